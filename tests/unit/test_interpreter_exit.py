# SPDX-License-Identifier: BSD-3-Clause
"""A process ends while daemon threads are inside calls that wait or let the GIL go: status 0, and not a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXITS = 3

SCRIPT = """
import contextlib, sys, threading
from vhost_ioat import Disconnected, EthVhost, dma, forward
from vhost_ioat.guest import Guest
from vhost_ioat.virtio import GuestMemory

path = sys.argv[1]
port = EthVhost(path, ioats={{0: "sw0"}})
port.start()

def linked():
    guest = Guest(path)
    guest.connect(timeout=60)
    assert port.wait_link(timeout=60)
    return guest

def channel(mode="threaded"):
    model = dma.IoatModel(mode=mode)
    return model, dma.IoatChannel(model)

def forever(call, *arguments):
    while True:
        call(*arguments)

def quietly(call, *arguments):
    with contextlib.suppress(Disconnected):  # the port's socket goes before the thread does
        call(*arguments)

def body():
    {body}

guest = linked() if {link} else None
entered = threading.Event()

def run():
    entered.set()
    body()

threading.Thread(target=run, daemon=True).start()
entered.wait()
{then}
"""

WAITING = {
    "wait_link": "port.wait_link()",
    "wait_link_down": "forever(port.wait_link, False)",
    "rx_burst": "forever(port.rx_burst, 0)",
    "events": "port.events(); port.events(timeout=None)",
    "events_again": "forever(port.events, 0.001)",
    "info": "forever(port.info)",
    "tx_drain": "forever(port.tx_drain, 0)",
    "start_and_stop": "forever(lambda: (port.stop(), port.start()))",
    "open_and_close": "forever(lambda: EthVhost(path + 'b').__enter__().close())",
    "close": "port.close()",
    "left_behind": "forever(lambda: EthVhost(path + 'c').start())",
    "guest_connects": "port.stop(); Guest(path, server=True).connect()",
    "guest_sends": "forever(quietly, guest.send, 0, [b'x' * 60])",
    "guest_receives": "forever(quietly, guest.recv_burst, 0)",
    "serve": "dma.serve(path + 'd')",
    "forward": "forward(port, port)",
    "large_bursts": "forever(port.tx_burst, 0, [bytes(60000)] * 8)",
    "submit": "m, c = channel('inline'); forever(c.submit)",
    "reset": "m, c = channel(); forever(c.reset)",
    "make_channels": "forever(channel)",
    "map": "m, c = channel(); b = bytearray(4096); forever(lambda: (m.map(65536, b), m.unmap(65536)))",
    "step": "m = dma.IoatModel(mode='stepped'); forever(m.step)",
    "registers": "m = dma.IoatModel(); forever(m.read, 0, 4)",
}


LINKED = ("wait_link_down", "guest_sends", "guest_receives", "forward", "large_bursts", "tx_drain")


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], check=False, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("call", WAITING)
def test_a_daemon_thread_in_a_waiting_call_does_not_disturb_the_exit(call, socket_path):
    """Some exits come before the thread waits, most while it does."""
    for attempt in range(EXITS):
        then = "" if attempt % 2 else "import time; time.sleep(0.02)"
        done = run(SCRIPT.format(body=WAITING[call], link=call in LINKED, then=then), f"{socket_path}{attempt}")
        assert (done.returncode, done.stderr) == (0, ""), f"exit {attempt}"


def test_neither_does_one_that_python_code_called_from_here_let_in(socket_path):
    """The GIL is asked for within our functions, too, where they call Python code."""
    body = "forever(lambda: burst.tobytes(Index()))"
    script = SCRIPT.replace(
        "def body():",
        "from vhost_ioat import Burst\nburst = Burst.from_packets([b'x' * 60])\nclass Index:\n"
        "    def __index__(self):\n        return sum(range(3000)) * 0\n\ndef body():",
    )
    for attempt in range(EXITS):
        done = run(script.format(body=body, link=False, then=""), f"{socket_path}{attempt}")
        assert (done.returncode, done.stderr) == (0, "")


def test_the_exit_status_is_the_scripts_own(socket_path):
    done = run(SCRIPT.format(body="port.wait_link()", link=False, then="sys.exit(7)"), socket_path)
    assert (done.returncode, done.stderr) == (7, "")


def test_many_threads_wait_at_once(socket_path):
    body = (
        "[threading.Thread(target=port.wait_link, daemon=True).start() for _ in range(20)]; port.events(timeout=None)"
    )
    done = run(SCRIPT.format(body=body, link=False, then=""), socket_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not Path(socket_path).exists()


def test_there_is_one_way_to_let_the_gil_go():
    """Whoever releases it by pybind11's own class is back where the process aborts."""
    bindings = Path(__file__).parents[2] / "csrc" / "bindings"
    users = [path.name for path in bindings.iterdir() if "gil_scoped" in path.read_text()]
    assert users == []
