# SPDX-License-Identifier: BSD-3-Clause
"""A stream of packets that both ends know: the n-th packet is a function of n, in length and in every byte."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Receiver", "Sender", "Stream"]

SMALLEST, LARGEST = 64, 65536
_LENGTHS, _POOL = 1021, 1 << 20  # a prime, so that lengths and contents meet in ever new pairs
_NUMBER = 8  # bytes of the packet's number, at its start


class Stream:
    """Packets of 64 to 65536 bytes, small ones more often; `seed` makes streams differ."""

    def __init__(self, seed: int) -> None:
        random_numbers = random.Random(seed)
        self._pool = random_numbers.randbytes(_POOL + LARGEST)
        # The logarithm is evenly spread: as many packets of 64 to 128 bytes as of 32768 to 65536.
        self._lengths = [int(SMALLEST * (LARGEST / SMALLEST) ** random_numbers.random()) for _ in range(_LENGTHS)]
        self._lengths[:2] = SMALLEST, LARGEST

    def packet(self, number: int) -> bytes:
        """Packet number `number`."""
        length = self._lengths[number % _LENGTHS]
        at = number * 4099 % _POOL
        return number.to_bytes(_NUMBER, "big") + self._pool[at : at + length - _NUMBER]


@dataclass
class Sender:
    """The sending end: packets that the ring takes are counted, the others are offered again."""

    stream: Stream
    batch: int = 32
    packets: int = 0
    octets: int = 0
    _waiting: list[bytes] = field(default_factory=list)

    def next_batch(self) -> Sequence[bytes]:
        """The packets to offer now."""
        first = self.packets + len(self._waiting)
        self._waiting += [self.stream.packet(n) for n in range(first, self.packets + self.batch)]
        return self._waiting

    def taken(self, count: int) -> None:
        """`count` packets of the last batch were taken, from the front."""
        self.packets += count
        self.octets += sum(map(len, self._waiting[:count]))
        del self._waiting[:count]


@dataclass
class Receiver:
    """The receiving end: each packet must be the next one of the stream, byte for byte."""

    stream: Stream
    packets: int = 0
    octets: int = 0
    errors: int = 0
    first_error: str = ""

    def receive(self, packets: Iterable[Any]) -> None:
        """Check packets in the order in which they arrived."""
        for packet in packets:
            expected = self.stream.packet(self.packets + self.errors)
            if packet == expected:
                self.packets += 1
            else:
                self._mismatch(bytes(packet), expected)
            self.octets += len(packet)

    def _mismatch(self, packet: bytes, expected: bytes) -> None:
        if not self.errors:
            number, wanted = int.from_bytes(packet[:_NUMBER], "big"), self.packets
            at = next((n for n, pair in enumerate(zip(packet, expected, strict=False)) if pair[0] != pair[1]), None)
            if number != wanted:
                self.first_error = f"packet {number} arrived instead of {wanted}"
            elif at is not None:
                self.first_error = f"packet {wanted} differs at byte {at} of {len(expected)}"
            else:
                self.first_error = f"packet {wanted} has {len(packet)} bytes instead of {len(expected)}"
        self.errors += 1
