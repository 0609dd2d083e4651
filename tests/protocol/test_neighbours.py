# SPDX-License-Identifier: BSD-3-Clause
"""What blocks for one peer blocks nobody else: neither the port's next front end, nor another port of the process."""

import contextlib
import functools
import socket
import struct

import pytest

from lingering import close_after, lingering
from raw_ring import NO_FD, UVA
from vhost_ioat import EthVhost
from vhost_ioat.testing import RawFrontend
from vhost_ioat.testing.frontend import u64, vring
from watchdog import WATCHDOG, until

HELPER_JOBS = 64  # budget::helper_jobs
MEMORY = struct.pack("<IIQQQQ", 1, 0, 0, 1 << 21, UVA, 0)


MESSAGES = [
    ("SET_MEM_TABLE", MEMORY),
    ("ADD_MEM_REG", struct.pack("<QQQQQ", 0, 0, 1 << 21, UVA, 0)),
    ("SET_VRING_KICK", u64(0)),
    ("SET_VRING_CALL", u64(0)),
    ("SET_VRING_ERR", u64(0)),
    ("SET_BACKEND_REQ_FD", b""),
    ("SET_LOG_FD", b""),
    ("SET_VRING_NUM", vring(0, 256)),  # where none belongs
    ("SET_VRING_CALL", u64(NO_FD)),
]


@pytest.mark.parametrize(("name", "payload"), MESSAGES, ids=[f"{name} {len(payload)}" for name, payload in MESSAGES])
def test_an_fd_whose_close_waits_holds_up_nobody(socket_path, name, payload):
    threads = []
    with (
        EthVhost(socket_path) as port,
        EthVhost(socket_path + ".next") as next_door,
        RawFrontend(next_door.devargs.iface, timeout=WATCHDOG) as neighbour,
        lingering() as make,
    ):
        for _ in range(5):
            with RawFrontend(port.devargs.iface, timeout=WATCHDOG) as frontend, contextlib.suppress(ConnectionError):
                frontend.negotiate(1 << 32)
                held = make()
                threads.append(close_after(functools.partial(frontend.tell, name, payload, [held.fileno()]), held))
                frontend.is_answering()  # or dropped
            assert neighbour.is_answering()
        with RawFrontend(port.devargs.iface, timeout=WATCHDOG) as frontend:
            assert frontend.is_answering()
    for thread in threads:
        thread.join(WATCHDOG)
        assert not thread.is_alive()


@pytest.mark.parametrize("where", ["unread", "too many", "urgent", "not accepted"])
def test_an_fd_that_is_never_received_holds_up_nobody(socket_path, where):
    """The kernel would close it itself: with its socket, with urgent data, or when recvmsg() has no room for it."""
    port = EthVhost(socket_path)
    port.start()
    with (
        EthVhost(socket_path + ".next") as next_door,
        RawFrontend(next_door.devargs.iface, timeout=WATCHDOG) as neighbour,
        lingering() as make,
    ):
        with RawFrontend(socket_path, timeout=WATCHDOG) as first:
            assert first.is_answering()  # it has the port; whoever comes now waits in the backlog
            second = RawFrontend(socket_path, timeout=WATCHDOG)
            held = make()
            fds = [held.fileno()] * (9 if where == "too many" else 1)
            if where == "unread":
                second.socket.sendall(struct.pack("<III", 999, 1, 0x7FFF_FFFF))  # ends the session before the next one
            message = struct.pack("<III", 1, 1, 0)
            send = functools.partial(socket.send_fds, second.socket, [message], fds)
            if where == "urgent":
                send = functools.partial(socket.send_fds, second.socket, [message[:1]], fds, socket.MSG_OOB)
            thread = close_after(send, held)
            if where == "urgent":
                second.socket.sendall(struct.pack("<III", 999, 1, 0x7FFF_FFFF))  # ends the session after it
            if where == "not accepted":
                port.stop()
        until(lambda: second.receive() is None)
        for _ in range(3):
            assert neighbour.is_answering()
        second.close()
        port.close()
    thread.join(WATCHDOG)
    assert not thread.is_alive()


def test_a_front_end_that_leaves_while_it_is_not_read_makes_way(socket_path):
    """Nothing is read from it while too much of what it sent waits to be closed; that it has gone is noticed."""
    with (
        EthVhost(socket_path) as port,
        EthVhost(socket_path + ".next") as next_door,
        RawFrontend(next_door.devargs.iface, timeout=WATCHDOG) as neighbour,
        lingering() as make,
        open("/dev/null", "r+b") as plain,  # noqa: PTH123
    ):
        frontend = RawFrontend(port.devargs.iface, timeout=WATCHDOG)
        frontend.negotiate(1 << 32)
        held = make()
        frontend.tell("SET_BACKEND_REQ_FD", b"", [held.fileno()])
        assert frontend.is_answering()
        held.close()  # the port's is the last one now
        frontend.tell("SET_BACKEND_REQ_FD", b"", [plain.fileno()])  # instead of it
        for _ in range(HELPER_JOBS + 20):
            frontend.tell("SET_VRING_CALL", u64(0), [plain.fileno()])
        for _ in range(HELPER_JOBS + 20):  # each is a turn of the control thread: what it reads, it has read after them
            assert neighbour.is_answering()
        frontend.close()
        with RawFrontend(port.devargs.iface, timeout=WATCHDOG) as after:
            assert after.is_answering()
