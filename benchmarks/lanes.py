# SPDX-License-Identifier: BSD-3-Clause
"""What the long runs share: ports with verified traffic, and what a process holds."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

from vhost_ioat import Disconnected, EthVhost
from vhost_ioat.cli.stream import Stream
from vhost_ioat.guest import Guest

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from resources import Resources, resources

__all__ = ["FAULTS", "PATIENCE", "Lane", "leaked", "resources", "rss"]

FAULTS = [("error", bit) for bit in range(13)] + [("stuck", 0), ("drop_writeback", 2)]
PATIENCE = 60.0


class Lane:
    """A port, its guest, and the packets between them."""

    def __init__(self, path: str, seed: int, counts: Counter[str], **options: object) -> None:
        self.path, self.counts = path, counts
        self.random, self.stream = random.Random(seed), Stream(seed)
        self.port = EthVhost(path, **options)
        self.port.start()
        self.client = bool(self.port.devargs.client)
        self.held: list[object] = []  # taken from the guest, not sent back yet
        self.begin()

    def begin(self) -> None:
        """A new life: a guest, and the stream from its first packet on."""
        self.guest = Guest(self.path, server=self.client, ring_size=self.random.choice([64, 256, 1024]))
        self.guest.connect(timeout=PATIENCE)
        assert self.port.wait_link(timeout=PATIENCE), self.port.info()
        self.sent = self.expected = 0
        self.held.clear()

    def move(self, send: bool = True) -> int:
        """One turn of everything; how many packets came back."""
        back = self.expected
        if send and self.sent - self.expected < 2000:
            batch = [self.stream.packet(n) for n in range(self.sent, self.sent + self.random.randrange(1, 33))]
            self.sent += self.guest.send(0, batch)
        if not self.held and (burst := self.port.rx_burst(0, 64)):
            self.held.append(burst)
        if self.held:
            burst = self.held.pop()
            if left := burst[self.port.tx_burst(0, burst) :]:
                self.held.append(left)
        for packet in self.guest.recv(0, 64):
            number = int.from_bytes(packet[:8], "big")
            self.counts["lost"] += max(0, number - self.expected)
            self.counts["repeated"] += number < self.expected
            self.counts["altered"] += packet != self.stream.packet(number)
            self.counts["packets"] += 1
            self.expected = max(self.expected, number + 1)
        return self.expected - back

    def settle(self) -> None:
        """Until everything is back; what is not after a minute is lost."""
        end = time.monotonic() + PATIENCE
        while self.expected < self.sent and time.monotonic() < end:
            self.move(send=False)
        self.counts["lost"] += self.sent - self.expected

    def reconnect(self) -> None:
        """The guest leaves when all is back, or in the middle, or the port stops under it."""
        how = self.random.randrange(3)
        if how == 0:
            self.settle()
            self.guest.disconnect()
        elif how == 1:
            self.guest.close()
        else:
            self.port.stop()
            with contextlib.suppress(Disconnected):
                self.guest.disconnect()
            self.port.start()
        self.guest.close()
        self.counts["reconnects"] += 1
        self.begin()

    def fault(self) -> None:
        """Something happens to the engine."""
        fault, value = self.random.choice(FAULTS)
        model = self.port.engine_model(0)
        assert model is not None
        model.inject(fault, nth=self.random.randrange(20), value=value)
        self.counts["faults"] += 1

    def close(self) -> None:
        self.settle()
        self.guest.close()
        self.port.close()


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def leaked(before: Resources, after: Resources) -> Counter[str]:
    """What a process holds now and did not before."""
    return (after.fds - before.fds) + (after.mappings - before.mappings)
