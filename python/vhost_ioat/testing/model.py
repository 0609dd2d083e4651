# SPDX-License-Identifier: BSD-3-Clause
"""The split virtqueue in plain Python, both sides, to be read alongside VIRTIO 1.2, section 2.7.

`Device` and `Driver` have the methods of `vhost_ioat.virtio.SplitRing` and `DriverRing`. They are slow and have no
memory barriers, so use them from one thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .layout import INDIRECT, NEXT, NO_INTERRUPT, NO_NOTIFY, WRITE, BadRing, Descriptor, RingView

__all__ = ["BadRing", "Chain", "Device", "Driver", "need_event", "wrap"]

INDIRECT_DESC, EVENT_IDX = 1 << 28, 1 << 29  # feature bits, 6
Buffers = Sequence[tuple[int, int]]  # guest-physical address, bytes


class Chain(NamedTuple):
    """A chain that a driver made available: buffers to read, then buffers to write, as (address, bytes)."""

    head: int
    readable: list[tuple[int, int]]
    writable: list[tuple[int, int]]


def wrap(index: int) -> int:
    """The 16-bit arithmetic of ring indices; all of it is here."""
    return index & 0xFFFF


def need_event(event: int, new: int, old: int) -> bool:
    """Whether `event` is one of the indices old ... new - 1. 2.7.7.2 and 2.7.10.1."""
    return wrap(new - event - 1) < wrap(new - old)


class Device:
    """The device side of a ring."""

    def __init__(self, ring: RingView, *, features: int = 0, last_avail: int = 0) -> None:
        self.ring, self.features, self.last_avail = ring, features, last_avail
        self.used_next = self.signalled = ring.used_idx
        self.signalled_valid = False
        self.broken: str | None = None

    def pop(self) -> Chain | None:
        """Take the next available chain; None when there is none, or when the ring is broken."""
        try:
            return self._pop() if self.broken is None else None
        except BadRing as fault:
            self.broken = str(fault)
            return None

    def _pop(self) -> Chain | None:
        ahead = wrap(self.ring.avail_idx - self.last_avail)
        if ahead > self.ring.size:  # 2.7.13.3
            raise BadRing(f"the avail index is {ahead} ahead, but the ring has {self.ring.size} entries")
        if ahead == 0:
            return None
        chain = self._walk(self.ring.avail_head(self.last_avail))
        self.last_avail = wrap(self.last_avail + 1)
        return chain

    def _walk(self, head: int) -> Chain:
        chain = Chain(head, [], [])
        table, entries, n, total, write_only = None, self.ring.size, head, 0, False
        left = self.ring.size  # 2.7.5.2: a chain is not longer than the queue
        while True:
            if n >= entries:
                raise BadRing(f"descriptor {n} is outside its table of {entries} entries")
            entry = self.ring.descriptor(n, table)
            if entry.flags & INDIRECT:  # 2.7.5.3.1
                if not self.features & INDIRECT_DESC or table is not None or entry.flags & NEXT:
                    raise BadRing("indirect descriptor: not negotiated, nested, or with NEXT")
                if entry.len == 0 or entry.len % 16 or entry.len // 16 > left:
                    raise BadRing(f"an indirect table cannot have {entry.len} bytes here")
                table, entries, n = entry.addr, entry.len // 16, 0
                continue
            if write_only and not entry.flags & WRITE:  # 2.7.4.2
                raise BadRing("a readable descriptor follows a writable one")
            write_only = bool(entry.flags & WRITE)
            total += entry.len
            if total > 1 << 32:
                raise BadRing(f"a chain has {total} bytes, but may have at most 2^32")
            if entry.len:
                self.ring.memory.pieces(entry.addr, entry.len)
                (chain.writable if entry.flags & WRITE else chain.readable).append((entry.addr, entry.len))
            if not entry.flags & NEXT:
                return chain
            left, n = left - 1, entry.next
            if left == 0:
                raise BadRing("a chain is longer than the ring, or loops")

    def push_used(self, head: int, n: int) -> None:
        """Give a chain back with `n` bytes written; `publish` shows it. 2.7.8."""
        self.ring.set_used_element(self.used_next, head, n)
        self.used_next = wrap(self.used_next + 1)

    def publish(self) -> int:
        """Show the driver the pushed elements; returns how many there were."""
        shown = wrap(self.used_next - self.ring.used_idx)
        self.ring.used_idx = self.used_next
        return shown

    def should_notify(self) -> bool:
        """Whether the driver wants to be notified of what was published since the last call. 2.7.7.2."""
        new, old, first = self.ring.used_idx, self.signalled, not self.signalled_valid
        self.signalled, self.signalled_valid = new, True
        if new == old and not first:
            return False
        if not self.features & EVENT_IDX:
            return not self.ring.avail_flags & NO_INTERRUPT
        return first or need_event(self.ring.used_event, new, old)


class Driver:
    """The driver side of a ring. `tables`: address of the indirect tables, one of `table_size` entries per head."""

    def __init__(
        self, ring: RingView, *, features: int = 0, start: int = 0, tables: int | None = None, table_size: int = 0
    ) -> None:
        self.ring, self.features, self.tables, self.table_size = ring, features, tables, table_size
        self.avail_next = self.last_used = ring.avail_idx = ring.used_idx = start
        self.free = list(range(ring.size))
        self.in_flight: dict[int, tuple[list[int], int]] = {}  # head -> its descriptors, writable bytes

    def add(self, readable: Buffers, writable: Buffers, *, indirect: bool = False) -> int | None:
        """Add a chain and return its head, or None without room; `publish` shows it. 2.7.13.1, 2.7.13.2."""
        flagged = [(addr, n, 0) for addr, n in readable] + [(addr, n, WRITE) for addr, n in writable]
        needed = 1 if indirect else len(flagged)
        if not flagged or needed > len(self.free) or (indirect and len(flagged) > self.table_size):
            return None
        slots = [self.free.pop() for _ in range(needed)]
        table = None if self.tables is None or not indirect else self.tables + 16 * self.table_size * slots[0]
        places = list(range(len(flagged))) if indirect else slots
        for (addr, n, flags), place, after in zip(flagged, places, [*places[1:], None], strict=True):
            entry = Descriptor(addr, n, flags if after is None else flags | NEXT, after or 0)
            self.ring.set_descriptor(place, entry, table)
        if table is not None:
            self.ring.set_descriptor(slots[0], Descriptor(table, 16 * len(flagged), INDIRECT, 0))
        self.ring.set_avail_head(self.avail_next, slots[0])
        self.avail_next = wrap(self.avail_next + 1)
        self.in_flight[slots[0]] = (slots, sum(n for _, n in writable))
        return slots[0]

    def publish(self) -> bool:
        """Show the device the added chains; True when it wants a kick. 2.7.13.3, 2.7.13.4."""
        old, self.ring.avail_idx = self.ring.avail_idx, self.avail_next
        if self.features & EVENT_IDX:
            return need_event(self.ring.avail_event, self.avail_next, old)
        return not self.ring.used_flags & NO_NOTIFY

    def take_used(self) -> tuple[int, int] | None:
        """Take back the next used chain: head and bytes written, or None. 2.7.14."""
        if self.last_used == self.ring.used_idx:
            return None
        head, length = self.ring.used_element(self.last_used)
        if head not in self.in_flight:
            raise BadRing(f"the device gave back head {head}, which it does not have")
        slots, writable = self.in_flight.pop(head)
        if length > writable:
            raise BadRing(f"the device wrote {length} bytes to {writable} writable ones (head {head})")
        self.free += reversed(slots)
        self.last_used = wrap(self.last_used + 1)
        return head, length
