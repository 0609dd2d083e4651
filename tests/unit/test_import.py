# SPDX-License-Identifier: BSD-3-Clause
"""What `import vhost_ioat` loads, and that nothing is loaded later, in the middle of the data path."""

from __future__ import annotations

import subprocess
import sys

DATA_PATH = """
import sys
import vhost_ioat
assert "numpy" in sys.modules
from vhost_ioat import Burst, EthVhost
from vhost_ioat.guest import Guest

path = sys.argv[1]
port = EthVhost(path)
port.start()
guest = Guest(path)
guest.connect(timeout=60)
assert port.wait_link(timeout=60)
packets = [b"a" * 60, bytearray(90), memoryview(bytes(1514))]
imported = []
sys.addaudithook(lambda event, arguments: imported.append(arguments[0]) if event == "import" else None)
guest.send(0, packets)
burst = port.rx_burst(0)
while len(burst) < 3:
    guest.send(0, packets)
    burst = port.rx_burst(0)
views = [burst[0], burst.data, burst.lengths, burst.net_hdr, burst[1:].data, burst.tobytes(0), burst.gather().data]
views += [burst[[0, 2]], burst[burst.lengths > 60], list(burst), repr(burst), burst.detach()]
burst.net_hdr = burst.net_hdr
for packets in (packets, burst, burst[1:], burst[[0]], burst.data):
    port.tx_burst(0, packets)
for wrong in (lambda: port.tx_burst(0, [3]), lambda: port.rx_burst(9), lambda: burst[99], lambda: port.rx_burst(0, 0)):
    try:
        wrong()
    except (TypeError, LookupError, ValueError):
        pass
guest.recv(0)
guest.recv_burst(0)
port.tx_pending(0), port.tx_done_cleanup(0), port.xstats()
try:
    port.close()
    port.rx_burst(0)
except vhost_ioat.VhostIoatError:
    pass
print(imported)
"""


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_nothing_is_imported_in_the_data_path(socket_path):
    assert run(DATA_PATH, socket_path) == "[]\n"


def test_the_command_line_and_the_test_kit_are_not_loaded_with_the_package():
    heavy = "typer", "rich", "hypothesis", "pytest", "asyncio", "multiprocessing"
    assert run(f"import sys, vhost_ioat; print([name for name in {heavy} if name in sys.modules])") == "[]\n"
