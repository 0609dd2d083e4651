# SPDX-License-Identifier: BSD-3-Clause
"""State machines for the device side of a split ring, with an honest driver and with a hostile one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from . import strategies
from .layout import Descriptor, Memory, RingView, ring_bytes
from .model import EVENT_IDX, INDIRECT_DESC, Chain, Device, Driver, need_event, wrap

__all__ = ["DeviceRing", "DriverRing", "HostileRingMachine", "RingMachine"]

T = TypeVar("T")

# Guest-physical addresses: data buffers, the ring, indirect tables.
DATA, RING, TABLES = 1 << 20, 1 << 30, 1 << 31
DATA_BYTES = 1 << 16
TABLE_SIZE = 8  # entries of an indirect table


class ChainLike(Protocol):
    """What `pop` of a device ring returns."""

    @property
    def head(self) -> int: ...
    @property
    def readable(self) -> list[tuple[int, int]]: ...
    @property
    def writable(self) -> list[tuple[int, int]]: ...


class DeviceRing(Protocol):
    """The methods that a ring under test must have; `vhost_ioat.virtio.SplitRing` has them."""

    def pop(self) -> ChainLike | None:
        """Take the next available chain."""

    def push_used(self, head: int, n: int) -> None:
        """Give a chain back with `n` bytes written."""

    def publish(self) -> object:
        """Show the driver what was given back."""

    def should_notify(self) -> bool:
        """Whether the driver wants to be notified of what was published since the last call."""

    @property
    def broken(self) -> str | None:
        """Why the ring is broken, or None."""


class DriverRing(Protocol):
    """The methods that a driver must have; `vhost_ioat.virtio.DriverRing` has them."""

    def add(
        self, readable: list[tuple[int, int]], writable: list[tuple[int, int]], *, indirect: bool = False
    ) -> int | None:
        """Put a chain into the ring and return its head, or None without room."""

    def publish(self) -> bool:
        """Show the device what was added; return whether it wants a kick."""

    def take_used(self) -> tuple[int, int] | None:
        """Take the next chain that was given back: head and bytes written, or None."""


class _Bench(RuleBasedStateMachine):
    """Guest memory with one ring in it, and the ring under test on top."""

    def open_memory(self, regions: list[tuple[int, int]]) -> Memory:
        """Guest memory of these regions (address, bytes), shared with `open_ring`. Override it for your own memory."""
        return Memory((gpa, bytearray(size)) for gpa, size in regions)

    def open_ring(self, view: RingView, features: int, last_avail: int) -> DeviceRing:
        """The ring under test, at `view`. It must read its used index from memory. Override this."""
        return Device(view, features=features, last_avail=last_avail)

    def open_driver(self, view: RingView, features: int, start: int) -> DriverRing:
        """The driver that checks the ring under test. Override it to test a driver instead."""
        return Driver(view, features=features, start=start, tables=TABLES, table_size=min(TABLE_SIZE, view.size))

    def lay_out(self, size: int, features: int, start: int, borders: list[int]) -> None:
        """Make memory whose data part is split into adjacent regions at `borders`, and an empty ring at `start`."""
        desc, avail, used = ring_bytes(size)
        cuts = [0, *sorted(borders), DATA_BYTES]
        regions = [(DATA + low, high - low) for low, high in pairwise(cuts) if low < high]
        regions.append((RING, -(-(desc + avail + 2 + used) // 4096) * 4096))
        # A border in the middle of every table: device and driver must translate piece by piece.
        tables = 16 * TABLE_SIZE * size
        regions += [(TABLES, 24), (TABLES + 24, tables - 24)]
        self.memory = self.open_memory(regions)
        used_at = -(-(desc + avail) // 4) * 4
        self.view = RingView(self.memory, size, RING, RING + desc, RING + used_at)
        self.features, self.start = features, start
        self.driver = self.open_driver(self.view, features, start)
        self.ring = self.open_ring(self.view, features, start)


class RingMachine(_Bench):
    """Checks the device side of a split ring against an honest driver.

    Subclass it, override `open_ring` (and `open_memory`), and collect `YourMachine.TestCase`. Every rule may run at any
    time. It checks, with clauses of VIRTIO 1.2: each chain arrives once, whole and in the order made available
    (2.7.13); used elements appear when published, in the order pushed (2.7.8); the driver is notified exactly when it
    asked for it (2.7.7.2); nothing but the used ring is written; and a ring that is closed and reopened at its last
    index continues (the vring base of vhost-user).
    """

    FEATURES = EVENT_IDX | INDIRECT_DESC  # what the ring under test supports

    @initialize(
        size=strategies.ring_sizes(1024),
        start=strategies.ring_indices(),
        features=st.sampled_from([0, EVENT_IDX, INDIRECT_DESC, EVENT_IDX | INDIRECT_DESC]),
        borders=st.lists(st.integers(0, DATA_BYTES), max_size=4),
    )
    def set_up(self, size: int, start: int, features: int, borders: list[int]) -> None:
        """Begin with an empty ring at some index."""
        self.lay_out(size, features & self.FEATURES, start, borders)
        self.added: deque[Chain] = deque()  # not shown to the device yet
        self.available: deque[Chain] = deque()
        self.popped: list[Chain] = []
        self.pushed: deque[tuple[int, int]] = deque()  # not shown to the driver yet
        self.returned: deque[tuple[int, int]] = deque()
        self.popped_in_all = 0
        self.taken = start  # index of the next used element
        self.asked_at: int | None = None  # used index when the device was last asked whether to notify
        self.suppressed = False
        self.event = 0

    def quietly(self, call: Callable[[], T], *, used_ring: bool = False) -> T:
        """Call the ring; it may write the used ring only if `used_ring`, but its flags and avail_event always."""
        before = [bytearray(content) for _, content in self.memory.regions]
        result = call()
        _, _, used = ring_bytes(self.view.size)
        for (gpa, content), old in zip(self.memory.regions, before, strict=True):
            if gpa == RING:
                low = self.view.used - gpa
                fields = [(low, low + used)] if used_ring else [(low, low + 2), (low + used - 2, low + used)]
                for start, end in fields:
                    old[start:end] = content[start:end]
            assert content == old, f"the device wrote memory that is not its own (region {gpa:#x})"
        return result

    @rule(chain=strategies.chains(DATA_BYTES), indirect=st.booleans())
    def add(self, chain: tuple[list[tuple[int, int]], list[tuple[int, int]]], indirect: bool) -> None:
        """Put a chain into the ring without showing it."""
        readable, writable = ([(DATA + at, n) for at, n in part] for part in chain)
        indirect = indirect and bool(self.features & INDIRECT_DESC)
        head = self.driver.add(readable, writable, indirect=indirect)
        if head is not None:
            self.added.append(Chain(head, [b for b in readable if b[1]], [b for b in writable if b[1]]))

    @rule()
    def make_available(self) -> None:
        """Show the device the chains that were added."""
        self.driver.publish()
        self.available += self.added
        self.added.clear()

    @rule(n=st.integers(1, 8))
    def pop(self, n: int) -> None:
        """Let the device take up to `n` chains."""
        for _ in range(n):
            chain = self.quietly(self.ring.pop)
            if not self.available:
                assert chain is None, f"head {chain.head} was returned, but nothing is available"
                return
            expected = self.available.popleft()
            assert chain is not None, f"head {expected.head} is available, but not returned ({self.ring.broken})"
            assert Chain(chain.head, list(chain.readable), list(chain.writable)) == expected
            assert chain.head not in [other.head for other in self.popped], "a head is in flight twice"
            self.popped.append(expected)
            self.popped_in_all += 1

    @rule(which=st.integers(0, 2**15), part=st.floats(0, 1))
    def push_used(self, which: int, part: float) -> None:
        """Let the device give back any chain, partly written."""
        if self.popped:
            chain = self.popped.pop(which % len(self.popped))
            written = int(part * sum(n for _, n in chain.writable))
            self.quietly(lambda: self.ring.push_used(chain.head, written), used_ring=True)
            self.pushed.append((chain.head, written))

    @rule()
    def publish(self) -> None:
        """Let the device publish what it gave back."""
        self.quietly(self.ring.publish, used_ring=True)
        self.returned += self.pushed
        self.pushed.clear()

    @rule()
    def should_notify(self) -> None:
        """Ask the device whether to notify, and compare with the formula."""
        now, before = self.view.used_idx, self.asked_at
        if before is None and now == self.start:
            return  # nothing was ever published: either answer is right
        notify = self.quietly(self.ring.should_notify)
        if before == now:
            expected = False
        elif self.features & EVENT_IDX:
            expected = before is None or need_event(self.event, now, before)
        else:
            expected = not self.suppressed
        assert notify == expected, f"should_notify() is {notify}, but must be {expected}"
        self.asked_at = now

    @rule(suppressed=st.booleans(), ahead=st.integers(-2, 6))
    def suppress(self, suppressed: bool, ahead: int) -> None:
        """Change what the driver wants to be notified of."""
        self.suppressed, self.event = suppressed, wrap(self.taken + ahead)
        self.view.avail_flags = int(suppressed)
        self.view.used_event = self.event

    @rule(n=st.integers(1, 8))
    def take_used(self, n: int) -> None:
        """Let the driver take chains back."""
        for _ in range(n):
            expected = self.returned.popleft() if self.returned else None
            assert self.driver.take_used() == expected
            self.taken = wrap(self.taken + (expected is not None))

    @rule()
    def close_and_open(self) -> None:
        """Drain the ring and reopen it where it stopped, as GET_VRING_BASE and SET_VRING_BASE do."""
        while self.popped:
            self.push_used(0, 1.0)
        self.publish()
        self.start, self.popped_in_all = wrap(self.start + self.popped_in_all), 0
        self.ring = self.open_ring(self.view, self.features, self.start)
        self.asked_at = None

    @invariant()
    def indices_agree(self) -> None:
        """The ring is not broken, and no more chains are in flight than it has entries."""
        assert self.ring.broken is None, self.ring.broken
        assert wrap(self.view.avail_idx - self.view.used_idx) <= self.view.size


class HostileRingMachine(_Bench):
    """Checks a ring against a driver that writes anything anywhere in guest memory, between calls of the ring.

    It checks that buffers lie within guest memory, that a chain is not longer than the ring, and that a `broken` ring
    stays broken for the same reason and returns no more chains. Only a broken ring may raise, and only `FAULTS`.
    """

    FAULTS: tuple[type[Exception], ...] = ()

    @initialize(
        size=strategies.ring_sizes(64),
        start=strategies.ring_indices(),
        features=st.sampled_from([0, EVENT_IDX, INDIRECT_DESC, EVENT_IDX | INDIRECT_DESC]),
    )
    def set_up(self, size: int, start: int, features: int) -> None:
        """Begin with an empty ring at some index."""
        self.lay_out(size, features, start, [DATA_BYTES // 2])
        self.broken: str | None = None
        self.heads: list[int] = []

    def ask(self, call: Callable[[], T]) -> T | None:
        """Call the ring under test; None when it raised because it is broken."""
        try:
            result = call()
        except self.FAULTS:
            assert self.ring.broken is not None
            result = None
        assert self.broken is None or self.ring.broken == self.broken
        self.broken = self.ring.broken
        return result

    @rule(chain=strategies.chains(DATA_BYTES), indirect=st.booleans())
    def add(self, chain: tuple[list[tuple[int, int]], list[tuple[int, int]]], indirect: bool) -> None:
        """Make a well-formed chain available."""
        self.driver.add(*([(DATA + at, n) for at, n in part] for part in chain), indirect=indirect)
        self.driver.publish()

    @rule(where=st.floats(0, 1, exclude_max=True), content=st.binary(min_size=1, max_size=16))
    def write_ring(self, where: float, content: bytes) -> None:
        """Write anything anywhere in the ring."""
        gpa, region = self.memory.regions[-3]
        assert gpa == RING
        at = int(where * (len(region) - len(content)))
        region[at : at + len(content)] = content

    @rule(n=st.integers(0, 2**16), entry=strategies.descriptors(near=(DATA, RING, TABLES)))
    def write_descriptor(self, n: int, entry: Descriptor) -> None:
        """Write any descriptor."""
        self.view.set_descriptor(n % self.view.size, entry)

    @rule(index=strategies.ring_indices())
    def write_avail_index(self, index: int) -> None:
        """Write any avail index."""
        self.view.avail_idx = index

    @rule(ahead=st.integers(0, 3), head=st.integers(0, 70))
    def write_head(self, ahead: int, head: int) -> None:
        """Write any head."""
        self.view.set_avail_head(self.view.avail_idx + ahead, head)

    @rule()
    def pop(self) -> None:
        """Let the device take one chain, if it can."""
        chain = self.ask(self.ring.pop)
        if chain is not None:
            assert self.broken is None
            assert chain.head < self.view.size
            assert len(chain.readable) + len(chain.writable) <= self.view.size
            for gpa, n in [*chain.readable, *chain.writable]:
                self.memory.pieces(gpa, n)
            self.heads.append(chain.head)

    @rule(n=st.integers(0, 2**32 - 1))
    def give_back(self, n: int) -> None:
        """Let the device give a chain back with any length."""
        if self.heads:
            head = self.heads.pop()
            self.ask(lambda: self.ring.push_used(head, n))
        self.ask(self.ring.publish)
        self.ask(self.ring.should_notify)
