# SPDX-License-Identifier: BSD-3-Clause
"""Everything at once, for as long as you like: ports with engines, guests that leave and die, faults, hostile peers.

`python benchmarks/soak.py SECONDS [--seed N]`. Each lane is a port that sends back what its guest sends. Every packet
must come back once, in order, byte for byte, within one life of the link; what a peer takes with it when it goes is
not counted. Fails unless lost, repeated, altered and leaked are all 0.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from common import machine

from vhost_ioat import Disconnected, EthVhost
from vhost_ioat.cli.stream import Stream
from vhost_ioat.guest import Guest
from vhost_ioat.testing import RawFrontend
from vhost_ioat.testing.frontend import REQUESTS, Message

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from resources import resources

FAULTS = [("error", bit) for bit in range(13)] + [("stuck", 0), ("drop_writeback", 2)]
PATIENCE = 20.0


class Lane:
    """A port, its guest, and the packets between them."""

    def __init__(self, path: str, seed: int, counts: Counter[str], **options: object) -> None:
        self.path, self.counts = path, counts
        self.random, self.stream = random.Random(seed), Stream(seed)
        self.port = EthVhost(path, ioats={0: "sw0"}, **options)
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

    def move(self, send: bool = True) -> None:
        """One turn of everything."""
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

    def settle(self) -> None:
        """Until everything is back; what is not after 20 s is lost."""
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


def pester(path: str, dice: random.Random) -> None:
    """A peer that says anything."""
    with RawFrontend(path, timeout=PATIENCE) as front, contextlib.suppress(ConnectionError):
        if dice.random() < 0.7:
            front.negotiate(2**64 - 1)
            front.share_memory()
        for _ in range(dice.randrange(30)):
            request, size = dice.choice(list(REQUESTS.values()))
            size = dice.choice([size, size, size, dice.randrange(100)])
            index = dice.choice([0, 1, 2, 2**32 - 1])
            body = (index.to_bytes(4, "little") + dice.choice([b"\0\1\0\0", dice.randbytes(4)]) + bytes(256))[:size]
            fds = dice.choices(["eventfd", "memfd", "pipe"], k=dice.choice([0, 0, 1, 1, 2]))
            front.send(Message(request, body, fds, dice.choice([1, 1, 9, 2])))
        front.is_answering()


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@contextlib.contextmanager
def world(directory: str, seed: int, counts: Counter[str]) -> Iterator[tuple[list[Lane], EthVhost]]:
    """Four lanes, and a port for those who mean it no good."""
    with EthVhost(f"{directory}/pest") as pest:
        kinds = [(sw, publish) for sw in ("threaded", "inline") for publish in ("cpu", "dma")]
        lanes = [
            Lane(f"{directory}/{n}", seed + n, counts, sw_mode=sw, publish=publish, client=n % 2 == 1)
            for n, (sw, publish) in enumerate(kinds)
        ]
        yield lanes, pest
        for lane in lanes:
            lane.close()


def soak(directory: str, dice: random.Random, counts: Counter[str], seed: int, seconds: float) -> int:
    """All of it for so long; how many engines were given up, after many faults."""
    end, report = time.monotonic() + seconds, time.monotonic() + 60
    with world(directory, seed, counts) as (lanes, pest):
        while time.monotonic() < end:
            for lane in lanes:
                lane.move()
                if dice.random() < 1 / 2000:
                    lane.reconnect()
                if dice.random() < 1 / 3000:
                    lane.fault()
            if dice.random() < 1 / 200:
                pester(str(pest.devargs.iface), dice)
                counts["hostile peers"] += 1
            if time.monotonic() > report:
                print(f"{end - time.monotonic():.0f} s left: {dict(counts)}", flush=True)
                report += 60
        return sum(e.state == "given up" for lane in lanes for e in lane.port.info().engines)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("seconds", type=float)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    print(machine())
    dice, counts = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="soak") as directory:
        soak(directory, dice, Counter(), options.seed, 0)  # what the first use allocates stays, and is no leak
        before, memory = resources(), rss()
        given_up = soak(directory, dice, counts, options.seed, options.seconds)
        after = resources()
    counts["leaked"] = sum((after.fds - before.fds).values()) + sum((after.mappings - before.mappings).values())
    for what in ("packets", "reconnects", "faults", "hostile peers", "lost", "repeated", "altered", "leaked"):
        print(f"{what:14} {counts[what]:12,}")
    print(f"engines given up after many faults: {given_up}; memory {memory >> 20} MiB before, {rss() >> 20} MiB after")
    return any(counts[what] for what in ("lost", "repeated", "altered", "leaked"))


if __name__ == "__main__":
    sys.exit(main())
