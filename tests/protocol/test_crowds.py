# SPDX-License-Identifier: BSD-3-Clause
"""A write to a file wakes all who wait for it, in the thread that writes: a peer may let very many wait."""

from __future__ import annotations

import contextlib
import os
import select
import struct
from collections.abc import Callable, Iterator

import pytest

from raw_ring import raw_rings
from traffic import until
from vhost_ioat import EthVhost
from vhost_ioat.guest import Guest
from vhost_ioat.testing import RawFrontend
from watchdog import WATCHDOG

SETS, NUMBERS = 300, 400  # 120,000 wait


@contextlib.contextmanager
def crowd(fd: int) -> Iterator[None]:
    """Each set waits for the file under each number."""
    with contextlib.ExitStack() as opened:
        numbers = [os.dup(fd) for _ in range(NUMBERS)]
        for number in numbers:
            opened.callback(os.close, number)
        for _ in range(SETS):
            waiting = opened.enter_context(select.epoll())
            for number in numbers:
                waiting.register(number, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        yield


def hears(port: EthVhost, text: str, meanwhile: Callable[[], object] = lambda: None) -> None:
    def heard() -> bool:
        meanwhile()
        return any(text in event.text for event in port.events())

    until(heard, f'an event with "{text}"')


@pytest.fixture
def port(socket_path: str) -> Iterator[EthVhost]:
    with EthVhost(socket_path) as port:
        yield port


def next_front_end_is_served(port: EthVhost) -> None:
    with Guest(port.devargs.iface) as guest:
        guest.connect(timeout=WATCHDOG)
        until(lambda: guest.send(0, [b"honest" * 10]) == 1, "the ring takes a packet")
        until(lambda: len(port.rx_burst(0)) == 1, "the packet arrives")


@pytest.mark.parametrize("which", ["call", "kick", "err"])
def test_an_fd_for_which_very_many_wait_costs_its_session(port: EthVhost, which: str) -> None:
    with contextlib.ExitStack() as opened:
        rings = opened.enter_context(raw_rings(port.devargs.iface))
        ring = rings[1]  # the port receives
        opened.enter_context(crowd(ring.kick if which == "kick" else ring.call))
        ring.say("NUM", "ADDR", "BASE", "KICK")
        ring.say("ERR" if which == "err" else "CALL", ERR=ring.call)
        ring.say("ENABLE")
        hears(port, "rx queue 0 is enabled")

        def use() -> None:
            ring.add(b"packet" * 10, count=1000 if which == "err" else 1)  # too many for this ring
            ring.do_kick()
            port.rx_intr_enable(0)
            port.rx_burst(0)
            if which != "err":
                return
            with contextlib.suppress(ConnectionError):  # one signal for each time the ring breaks: begin again
                ring.avail = ring.stop()
                ring.memory[ring.at + 0x1002 : ring.at + 0x1004] = struct.pack("<H", ring.avail)
                ring.say("BASE", "KICK", BASE=ring.avail)

        hears(port, "so many wait for its call or kick fd", meanwhile=use)
    next_front_end_is_served(port)


def test_a_socket_for_which_very_many_wait_is_closed(port: EthVhost) -> None:
    with (
        RawFrontend(port.devargs.iface, timeout=WATCHDOG) as frontend,
        crowd(frontend.socket.fileno()),
        contextlib.suppress(ConnectionError),
    ):
        for _ in range(100):
            frontend.ask("GET_FEATURES")
        pytest.fail("it went on for 100 messages")
    hears(port, "so many wait for its socket")
    next_front_end_is_served(port)
