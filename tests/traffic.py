# SPDX-License-Identifier: BSD-3-Clause
"""Polling until something has happened, with an end."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator, Sequence

from watchdog import until

__all__ = ["at_guest", "at_port", "exchange", "numbered", "packets_of", "readable", "send_all", "until"]


def readable(port, timeout: float = 0.0) -> bool:
    """Is rx queue 0 said to have packets, or does it come to be said within `timeout`?"""
    return bool(select.select([port.rx_fileno(0)], [], [], timeout)[0])


def packets_of(burst) -> list[bytes]:
    return [burst.tobytes(i) for i in range(len(burst))]


def at_port(port, queue: int, count: int) -> list[bytes]:
    """`count` packets from the guest."""
    got: list[bytes] = []

    def receive() -> bool:
        got.extend(packets_of(port.rx_burst(queue)))
        return len(got) >= count

    until(receive, f"{count} packets at the port")
    return got


def at_guest(guest, queue: int, count: int) -> list[bytes]:
    """`count` packets from the port."""
    got: list[bytes] = []

    def receive() -> bool:
        got.extend(guest.recv(queue))
        return len(got) >= count

    until(receive, f"{count} packets at the guest")
    return got


def send_all(send: Callable[[Sequence[bytes]], int], packets: Sequence[bytes]) -> None:
    """Send everything to somebody who takes it away meanwhile."""
    left = list(packets)

    def push() -> bool:
        del left[: send(left)]
        return not left

    until(push, f"{len(packets)} packets sent")


def exchange(
    send: Callable[[Sequence[bytes]], int], receive: Callable[[], list[bytes]], packets: Sequence[bytes]
) -> list[bytes]:
    """Send everything, receive as much."""
    left, got = list(packets), []

    def turn() -> bool:
        if left:
            del left[: send(left[:64])]
        got.extend(receive())
        return len(got) >= len(packets)

    until(turn, f"{len(packets)} packets across")
    return got


def numbered(count: int, length: int = 64) -> Iterator[bytes]:
    """Packets that differ."""
    for n in range(count):
        yield n.to_bytes(4, "big") + bytes([n & 0xFF]) * (length - 4)
