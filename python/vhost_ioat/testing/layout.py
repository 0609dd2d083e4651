# SPDX-License-Identifier: BSD-3-Clause
"""Guest memory as plain bytes, and where the fields of a split ring lie in it (VIRTIO 1.2, 2.7.5 to 2.7.8)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

__all__ = ["BadRing", "Descriptor", "Memory", "RingView", "ring_bytes"]

NEXT, WRITE, INDIRECT = 1, 2, 4  # descriptor flags, 2.7.5
NO_INTERRUPT = NO_NOTIFY = 1  # avail flags, 2.7.6; used flags, 2.7.8


class BadRing(Exception):
    """The other side of a ring broke a rule."""


class Descriptor(NamedTuple):
    """One entry of a descriptor table. 2.7.5."""

    addr: int
    len: int
    flags: int
    next: int


def ring_bytes(size: int) -> tuple[int, int, int]:
    """Bytes of descriptor table, avail ring and used ring, including the EVENT_IDX fields. 2.7."""
    return 16 * size, 6 + 2 * size, 6 + 8 * size


class Memory:
    """Guest memory: regions of bytes, each at its guest-physical address. Accesses may cross from one to the next."""

    def __init__(self, regions: Iterable[tuple[int, Any]]) -> None:
        self.regions = [(gpa, memoryview(content).cast("B")) for gpa, content in sorted(regions, key=lambda r: r[0])]

    def pieces(self, gpa: int, n: int) -> list[memoryview]:
        """Views of the `n` bytes at `gpa`, one for each region that they lie in."""
        found = []
        for start, content in self.regions:
            if n > 0 and start <= gpa < start + len(content):
                piece = content[gpa - start : gpa - start + n]
                found.append(piece)
                gpa, n = gpa + len(piece), n - len(piece)
        if n > 0:
            raise BadRing(f"{n} bytes at guest address {gpa:#x} are not in guest memory")
        return found

    def read(self, gpa: int, n: int) -> bytes:
        """A copy of the `n` bytes at `gpa`."""
        return b"".join(self.pieces(gpa, n))

    def write(self, gpa: int, content: bytes) -> None:
        """Overwrite the bytes at `gpa`."""
        for piece in self.pieces(gpa, len(content)):
            piece[:] = content[: len(piece)]
            content = content[len(piece) :]


def _u16(address: Callable[[RingView], int]) -> Any:
    def read(ring: RingView) -> int:
        return int.from_bytes(ring.memory.read(address(ring), 2), "little")

    def write(ring: RingView, value: int) -> None:
        ring.memory.write(address(ring), value.to_bytes(2, "little"))

    return property(read, write)


class RingView:
    """The fields of a ring in memory, readable and writable for both sides. 2.7.5, 2.7.6, 2.7.8."""

    def __init__(self, memory: Memory, size: int, desc: int, avail: int, used: int) -> None:
        self.memory, self.size, self.desc, self.avail, self.used = memory, size, desc, avail, used

    avail_flags = _u16(lambda ring: ring.avail)
    avail_idx = _u16(lambda ring: ring.avail + 2)
    used_event = _u16(lambda ring: ring.avail + 4 + 2 * ring.size)
    used_flags = _u16(lambda ring: ring.used)
    used_idx = _u16(lambda ring: ring.used + 2)
    avail_event = _u16(lambda ring: ring.used + 4 + 8 * ring.size)

    def descriptor(self, n: int, table: int | None = None) -> Descriptor:
        """Entry `n` of the descriptor table, or of the indirect table at address `table`."""
        return Descriptor(
            *struct.unpack("<QIHH", self.memory.read((self.desc if table is None else table) + 16 * n, 16))
        )

    def set_descriptor(self, n: int, entry: Descriptor, table: int | None = None) -> None:
        """Overwrite entry `n` of the descriptor table, or of the indirect table at address `table`."""
        self.memory.write((self.desc if table is None else table) + 16 * n, struct.pack("<QIHH", *entry))

    def avail_head(self, index: int) -> int:
        """Head of the chain made available at this free-running index."""
        return int.from_bytes(self.memory.read(self.avail + 4 + 2 * (index % self.size), 2), "little")

    def set_avail_head(self, index: int, head: int) -> None:
        """Make a chain available at this free-running index."""
        self.memory.write(self.avail + 4 + 2 * (index % self.size), head.to_bytes(2, "little"))

    def used_element(self, index: int) -> tuple[int, int]:
        """Head and bytes written of the used element at this free-running index."""
        head, length = struct.unpack("<II", self.memory.read(self.used + 4 + 8 * (index % self.size), 8))
        return head, length

    def set_used_element(self, index: int, head: int, length: int) -> None:
        """Give a chain back at this free-running index."""
        self.memory.write(self.used + 4 + 8 * (index % self.size), struct.pack("<II", head, length))
