# SPDX-License-Identifier: BSD-3-Clause
"""Everything at once, for as long as you like: ports with engines, guests that leave and die, faults, hostile peers.

`python benchmarks/soak.py SECONDS [--seed N]`. Each lane is a port that sends back what its guest sends. Every packet
must come back once, in order, byte for byte, within one life of the link; what a peer takes with it when it goes is
not counted. Fails unless lost, repeated, altered and leaked are all 0.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator

from common import machine
from hostile import pester
from lanes import Lane, leaked, resources, rss

from vhost_ioat import EthVhost


@contextlib.contextmanager
def world(directory: str, seed: int, counts: Counter[str]) -> Iterator[tuple[list[Lane], EthVhost]]:
    """Four lanes, and a port for those who mean it no good."""
    with EthVhost(f"{directory}/pest") as pest:
        kinds = [(sw, publish) for sw in ("threaded", "inline") for publish in ("cpu", "dma")]
        lanes = [
            Lane(f"{directory}/{n}", seed + n, counts, ioats={0: "sw0"}, sw_mode=sw, publish=publish, client=n % 2 == 1)
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
    counts["leaked"] = leaked(before, after).total()
    for what in ("packets", "reconnects", "faults", "hostile peers", "lost", "repeated", "altered", "leaked"):
        print(f"{what:14} {counts[what]:12,}")
    print(f"engines given up after many faults: {given_up}; memory {memory >> 20} MiB before, {rss() >> 20} MiB after")
    return any(counts[what] for what in ("lost", "repeated", "altered", "leaked"))


if __name__ == "__main__":
    sys.exit(main())
