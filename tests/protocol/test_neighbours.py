# SPDX-License-Identifier: BSD-3-Clause
"""What blocks for one peer blocks nobody else: neither the port's next front end, nor another port of the process."""

import contextlib
import functools
import struct

import pytest

from lingering import close_after, lingering
from raw_ring import NO_FD, UVA
from vhost_ioat import EthVhost
from vhost_ioat.testing import RawFrontend
from vhost_ioat.testing.frontend import u64, vring
from watchdog import WATCHDOG

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
