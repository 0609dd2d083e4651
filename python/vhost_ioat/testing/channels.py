# SPDX-License-Identifier: BSD-3-Clause
"""State machine for a DMA channel: memory must be as if its operations had run in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

__all__ = ["DmaChannel", "DmaMachine"]

BASE, HALF = 0x100000, 1 << 16  # address of the memory; size of each half


class DmaChannel(Protocol):
    """The methods that a channel under test must have; `vhost_ioat.dma.IoatChannel` has them."""

    def copy(self, dst: int, src: int, n: int) -> int:
        """Put a copy of `n` bytes into the ring and return its number."""

    def fill(self, dst: int, pattern: int, n: int) -> int:
        """Put a fill of `n` bytes into the ring and return its number."""

    def submit(self) -> None:
        """Start the operations in the ring."""

    def poll(self) -> list[tuple[int, str]]:
        """Numbers and statuses ("ok", "error", "not_attempted") of the operations that have ended, in order."""

    def reset(self) -> None:
        """Stop the channel and make it ready again."""


class DmaMachine(RuleBasedStateMachine):
    """Checks a DMA channel against plain bytes.

    Subclass it and override `open_channel`, and `fail_next` if failures can be provoked. It checks that each operation
    ends once and in order; that the bytes of those with status "ok" are in place; that after an "error" the others are
    "not_attempted" and have written nothing; that nothing else in memory changes; and that the channel works again
    after a reset.
    """

    REFUSALS: tuple[type[Exception], ...] = ()  # what copy and fill raise when they cannot take an operation
    CAPACITY = 63  # operations that may be outstanding

    def open_channel(self, memory: bytearray, base: int) -> DmaChannel:
        """Return the channel under test, which must reach `memory` at address `base`."""
        raise NotImplementedError

    def close_channel(self) -> None:
        """Release the channel."""

    def fail_next(self, after: int) -> bool:  # noqa: ARG002
        """Make the operation that runs after `after` others fail; return False if failures cannot be provoked."""
        return False

    @initialize(seed=st.integers(0, 255))
    def set_up(self, seed: int) -> None:
        """Begin with memory full of varied bytes."""
        self.memory = bytearray((seed + n * 7 + n // 256) & 0xFF for n in range(2 * HALF))
        self.expected = bytearray(self.memory)
        self.channel = self.open_channel(self.memory, BASE)
        self.outstanding: deque[tuple[int, int, bytes | tuple[int, int]]] = deque()  # number, destination, content
        self.started = 0  # how many of them were submitted
        self.stopped = False  # something failed, and there was no reset yet
        self.may_fail = False

    def put(self, call: Callable[[], int], dst: int, n: int, content: bytes | tuple[int, int]) -> None:
        """Put one operation, unless the channel has a reason to refuse it."""
        try:
            number = call()
        except self.REFUSALS:
            assert n == 0 or self.stopped or self.may_fail or len(self.outstanding) >= self.CAPACITY
            return
        assert n > 0, "an operation of zero bytes was taken"
        assert not self.outstanding or number == self.outstanding[-1][0] + 1
        self.outstanding.append((number, dst, content))

    @rule(upwards=st.booleans(), src=st.integers(0, HALF - 1), dst=st.integers(0, HALF - 1), n=st.integers(0, 4096))
    def copy(self, upwards: bool, src: int, dst: int, n: int) -> None:
        """Copy from one half to the other."""
        n = min(n, HALF - src, HALF - dst)
        src, dst = (src, dst + HALF) if upwards else (src + HALF, dst)
        self.put(lambda: self.channel.copy(BASE + dst, BASE + src, n), dst, n, (src, n))

    @rule(dst=st.integers(0, 2 * HALF - 1), pattern=st.integers(0, 2**64 - 1), n=st.integers(0, 1024))
    def fill(self, dst: int, pattern: int, n: int) -> None:
        """Fill with a repeated pattern of eight bytes."""
        n = min(n, 2 * HALF - dst)
        content = (pattern.to_bytes(8, "little") * (n // 8 + 1))[:n]
        self.put(lambda: self.channel.fill(BASE + dst, pattern, n), dst, n, content)

    @rule()
    def submit(self) -> None:
        """Start the operations in the ring."""
        self.channel.submit()
        self.started = len(self.outstanding)

    @rule()
    def poll(self) -> None:
        """Take the operations that have ended."""
        self.account(self.channel.poll())

    def account(self, results: list[tuple[int, str]], *, interrupted: bool = False) -> None:
        """Apply to the expected memory what each operation is reported to have done."""
        for number, status in results:
            assert self.outstanding, f"operation {number} ended, but none is outstanding"
            expected, dst, content = self.outstanding.popleft()
            assert number == expected, f"operation {number} ended before {expected}"
            if isinstance(content, tuple):
                content = bytes(self.expected[content[0] : content[0] + content[1]])
            end = dst + len(content)
            if status == "ok":
                assert self.started > 0, f"operation {number} ran before it was submitted"
                assert not self.stopped, f"operation {number} is ok, but one before it was not"
                self.expected[dst:end] = content
            elif status == "error":
                assert self.may_fail, f"operation {number} failed"
                assert not self.stopped, f"operation {number} failed after another one that had failed"
                self.stopped = True
                self.expected[dst:end] = self.memory[dst:end]  # it may have written any part
            else:
                assert status == "not_attempted", status
                assert self.stopped or interrupted, f"operation {number} was not attempted, but nothing had failed"
                self.stopped = True
            self.started = max(0, self.started - 1)

    @rule()
    def finish(self) -> None:
        """Wait for everything, and compare all of memory."""
        self.submit()
        end = time.monotonic() + 10
        while self.outstanding:
            self.poll()
            assert time.monotonic() < end, f"{len(self.outstanding)} operations did not end within 10 s"
        assert self.memory == self.expected

    @rule()
    def reset(self) -> None:
        """Stop the channel, at any time or after a failure; what has not run yet never does."""
        self.channel.reset()
        self.account(self.channel.poll(), interrupted=True)
        assert not self.outstanding, "a reset leaves nothing outstanding"
        assert self.memory == self.expected
        self.stopped = False

    @rule(after=st.integers(0, 3))
    def provoke(self, after: int) -> None:
        """Make a later operation fail."""
        self.may_fail = self.fail_next(after) or self.may_fail

    def teardown(self) -> None:
        """Release the channel."""
        self.close_channel()
