# SPDX-License-Identifier: BSD-3-Clause
"""What blocks for one peer blocks nobody else: neither the port's next front end, nor another port of the process."""

import contextlib
import socket
import struct
import threading

import pytest

from raw_ring import NO_FD, UVA
from vhost_ioat import EthVhost
from vhost_ioat.testing import RawFrontend
from vhost_ioat.testing.frontend import u64, vring
from watchdog import WATCHDOG

MEMORY = struct.pack("<IIQQQQ", 1, 0, 0, 1 << 21, UVA, 0)
LINGER = 3600  # seconds; far longer than any watchdog


@contextlib.contextmanager
def lingering():
    """Makes TCP sockets with bytes that nobody reads: the last close() of one waits, until the end of this."""
    with contextlib.ExitStack() as at_end, socket.create_server(("127.0.0.1", 0)) as listening:

        def make():
            ours = socket.create_connection(listening.getsockname())
            theirs = at_end.enter_context(listening.accept()[0])
            for end, seconds in ((ours, LINGER), (theirs, 0)):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
            ours.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    ours.send(bytes(1 << 16))
            ours.setblocking(True)
            return ours

        yield make


def tell_and_close(frontend, name, payload, held):
    """The message holds the last descriptor, unless the port is very fast: then the close here waits, in its thread."""
    told = threading.Event()

    def send():
        frontend.tell(name, payload, [held.fileno()])
        told.set()
        held.close()

    thread = threading.Thread(target=send)
    thread.start()
    assert told.wait(WATCHDOG)
    return thread


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
                threads.append(tell_and_close(frontend, name, payload, make()))
                frontend.is_answering()  # or dropped
            assert neighbour.is_answering()
        with RawFrontend(port.devargs.iface, timeout=WATCHDOG) as frontend:
            assert frontend.is_answering()
    for thread in threads:
        thread.join(WATCHDOG)
        assert not thread.is_alive()
