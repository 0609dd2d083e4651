# SPDX-License-Identifier: BSD-3-Clause
"""A bus error that has nothing to do with guest memory is none of our business, whoever came first."""

import signal
import subprocess
import sys

import pytest

from watchdog import WATCHDOG

SCRIPT = """
import faulthandler, mmap, os, sys
from vhost_ioat import EthVhost
from vhost_ioat.guest import Guest

def session():
    with EthVhost({path!r}) as port, Guest({path!r}) as guest:
        guest.connect(timeout=60)
        assert port.wait_link(timeout=60)

{steps}
fd = os.memfd_create("foreign")
os.ftruncate(fd, 4096)
memory = mmap.mmap(fd, 4096)
os.ftruncate(fd, 0)
print("touching", flush=True)
memory[0]
"""


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ("session()", 0),
        ("faulthandler.enable(); session()", 1),
        ("session(); faulthandler.enable()", 1),
        ("session(); faulthandler.enable(); session()", 1),
        ("faulthandler.enable(); session(); faulthandler.disable()", 0),
    ],
)
def test_a_foreign_bus_error_kills_and_faulthandler_tells_of_it(socket_path, steps, told):
    script = SCRIPT.format(path=socket_path, steps=steps)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=WATCHDOG, check=False)
    assert done.stdout == "touching\n", done.stderr
    assert done.returncode == -signal.SIGBUS
    assert done.stderr.count("Fatal Python error: Bus error") == told
