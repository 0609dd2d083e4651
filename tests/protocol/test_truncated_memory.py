# SPDX-License-Identifier: BSD-3-Clause
"""A front end truncates the file its guest's memory lies in: that peer is dropped, and nobody else notices.

Whoever touches the memory then gets SIGBUS, be it the caller of a burst or the control thread.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import vhost_ioat
from traffic import until
from vhost_ioat.guest import Guest
from vhost_ioat.testing.frontend import RawFrontend, vring, vring_addr
from watchdog import WATCHDOG

SIZE, UVA = 1 << 20, 0x7F00_0000_0000
VERSION_1, PROTOCOL_FEATURES = 1 << 32, 1 << 30
PACKET = b"\xff" * 6 + bytes(58)


class TruncatingFrontend(RawFrontend):
    """A front end that keeps the memfd of its one region."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.negotiate(VERSION_1 | PROTOCOL_FEATURES)
        self._fd = os.memfd_create("guest")
        os.truncate(self._fd, SIZE)
        assert self.acknowledged("SET_MEM_TABLE", struct.pack("<IIQQQQ", 1, 0, 0, SIZE, UVA, 0), [self._fd])

    def start_ring(self, index: int) -> None:
        base = UVA + index * 0x10000
        self.tell("SET_VRING_NUM", vring(index, 256))
        self.tell("SET_VRING_BASE", vring(index, 0))
        self.tell("SET_VRING_ADDR", vring_addr(index, base, base + 0x2000, base + 0x4000))
        self.tell("SET_VRING_KICK", struct.pack("<Q", index), ["eventfd"])
        self.tell("SET_VRING_ENABLE", vring(index, 1))

    def truncate(self) -> None:
        os.truncate(self._fd, 0)

    def is_dropped(self) -> bool:
        while self.receive() is not None:
            pass
        return True

    def close(self) -> None:
        super().close()
        os.close(self._fd)


@contextlib.contextmanager
def traffic(port: vhost_ioat.EthVhost, guest: Guest) -> Iterator[None]:
    """Packets go through another port all the while; at the end it must still be able to move a thousand."""
    stop = threading.Event()

    def move(at_least: int) -> None:
        moved = 0
        while moved < at_least or (not at_least and not stop.is_set()):
            guest.send(0, [PACKET])
            moved += port.tx_burst(0, port.rx_burst(0))
            guest.recv(0)

    thread = threading.Thread(target=move, args=[0], daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    move(1000)


def poll_rx(port: vhost_ioat.EthVhost) -> None:
    port.rx_burst(0)


def poll_tx(port: vhost_ioat.EthVhost) -> None:
    port.tx_burst(0, [PACKET])


@pytest.mark.parametrize("touch", [poll_rx, poll_tx])
def test_found_by_the_caller_of_a_burst(
    socket_path: str, linked: Callable[..., tuple[vhost_ioat.EthVhost, Guest]], touch: Callable[..., Any]
) -> None:
    with traffic(*linked()), vhost_ioat.EthVhost(socket_path) as port:
        with TruncatingFrontend(socket_path) as front:
            front.start_ring(0)
            front.start_ring(1)
            assert port.wait_link(timeout=WATCHDOG)
            port.events()
            front.truncate()
            touch(port)
            assert front.is_dropped()
        assert port.wait_link(up=False, timeout=WATCHDOG)
        until(lambda: any(event.kind == "peer" for event in port.events(timeout=1)), "the event")
        with Guest(socket_path) as guest:  # the next peer is served
            guest.connect(timeout=WATCHDOG)
            assert port.wait_link(timeout=WATCHDOG)


def test_found_by_the_control_thread(
    socket_path: str, linked: Callable[..., tuple[vhost_ioat.EthVhost, Guest]]
) -> None:
    with traffic(*linked()), vhost_ioat.EthVhost(socket_path) as port:
        with TruncatingFrontend(socket_path) as front:
            front.truncate()
            with contextlib.suppress(ConnectionError):
                front.start_ring(1)  # a ring that starts is read
            assert front.is_dropped()
        until(lambda: any(event.kind == "peer" for event in port.events(timeout=1)), "the event")
