# SPDX-License-Identifier: BSD-3-Clause
"""A Python loop against DPDK's net_vhost: the same front end and load, the same cores, alternating slices.

Pair A is testpmd on net_vhost (forward mode io), pair B a Python loop `port.tx_burst(0, port.rx_burst(0, 64))`. Each
has a testpmd on virtio-user of its own, which sends back what it gets, as front end and load. Front ends share core 0,
back ends core 1.

Every slice says where the cores were (common.cores).
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from common import Ratio, Results, by_place

import vhost_ioat
from interop.testpmd import Testpmd, net_vhost, virtio_user

IMIX = "imix"
SIZES = (64, 128, 256, 512, 1024, 1518, 9000, IMIX)
CHANGES: tuple[dict[str, Any], ...] = (
    {"ring": 1024},
    {"mrg_rxbuf": 0},
    {"in_order": 0},
    {"queues": 2},
    {"guests": 2},
    {"forward": "io"},  # the front end leaves the packets as they are; elsewhere it writes their MAC addresses
)


def python_loop(paths: list[str], queues: int) -> None:
    """What a user writes. Runs until it is killed."""
    os.sched_setaffinity(0, {1 % (os.cpu_count() or 1)})
    with ExitStack() as stack:
        ports = [stack.enter_context(vhost_ioat.EthVhost(path, queues=queues)) for path in paths]
        print("ready", flush=True)
        if len(ports) == 2:
            left, right = ports
            while True:
                right.tx_burst(0, left.rx_burst(0, 64))
                left.tx_burst(0, right.rx_burst(0, 64))
        port = ports[0]
        if queues == 1:
            rx_burst, tx_burst = port.rx_burst, port.tx_burst
            while True:
                tx_burst(0, rx_burst(0, 64))
        while True:
            for queue in range(queues):
                port.tx_burst(queue, port.rx_burst(queue, 64))


class Pair:
    """A back end and its front end; `rate()` runs them for one slice.

    With two guests the back end forwards between two ports, and the front end, both guests in one, between its two.
    """

    def __init__(
        self,
        stack: ExitStack,
        path: str,
        *,
        ours: bool,
        size: int | str,
        queues: int,
        ring: int,
        guests: int = 1,
        forward: str = "mac",
        **card: int,
    ) -> None:
        self._front: Testpmd
        self.pids: list[int] = []
        paths = [f"{path}{index}" for index in range(guests)]
        extra = [f"--rxq={queues}", f"--txq={queues}"] if queues > 1 else []
        if ours:
            back = subprocess.Popen(
                [sys.executable, __file__, "--loop", *paths, "--queues", str(queues)], stdout=subprocess.PIPE, text=True
            )
            stack.callback(back.wait)
            stack.callback(back.kill)
            assert back.stdout is not None
            assert back.stdout.readline() == "ready\n"
            self.pids.append(back.pid)
        else:
            cards = [net_vhost(path, queues=queues, index=index) for index, path in enumerate(paths)]
            net = stack.enter_context(Testpmd(*cards, core=1, args=extra))
            net.command("start")
            self.pids.append(net.process.pid)
        self._front = stack.enter_context(
            Testpmd(
                *(virtio_user(path, queues=queues, ring=ring, index=n, **card) for n, path in enumerate(paths)),
                core=0,
                forward=forward,
                args=extra,
            )
        )
        self.pids.append(self._front.process.pid)
        if size == IMIX:  # packets of 64, 570 and 1518 bytes, at random
            self._front.command("set txsplit rand")
            self._front.command("set txpkts 64,506,948")
        else:
            self._front.command(f"set txpkts {'2000,2000,2000,2000,1000' if size == 9000 else size}")
        self._front.command("start tx_first 32")
        self.stop()

    def stop(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)

    def go(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGCONT)

    def rate(self, seconds: float) -> float:
        """Packets per second received by the front end, over one slice."""
        self.go()
        before, begin = self._front.counters()["rx_packets"], time.monotonic()
        time.sleep(seconds)  # the slice itself, nothing is waited for
        after, end = self._front.counters()["rx_packets"], time.monotonic()
        self.stop()
        return (after - before) / (end - begin)


@contextmanager
def pairs(**setting: Any) -> Iterator[tuple[Pair, Pair]]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        theirs = Pair(stack, f"{folder}/a", ours=False, **setting)
        ours = Pair(stack, f"{folder}/b", ours=True, **setting)
        try:
            yield theirs, ours
        finally:
            theirs.go()
            ours.go()


def compare(results: Results, slices: int, seconds: float, **setting: Any) -> None:
    """A row for all slices, and one for each place of the cores that both pairs of a slice ran in."""
    with pairs(**setting) as (theirs, ours):
        theirs.rate(seconds), ours.rate(seconds)  # warm
        measured = by_place(slices, lambda: (theirs.rate(seconds), ours.rate(seconds)))
    for place, rates in measured:
        a, b = zip(*rates, strict=True)
        results.add(
            "peer",
            **setting,
            cores=place,
            slices=len(rates),
            ratio=Ratio.of(b, a),
            net_vhost_mpps=round(statistics.median(a) / 1e6, 3),
            ours_mpps=round(statistics.median(b) / 1e6, 3),
        )


def run(results: Results, slices: int = 20, seconds: float = 1.0, *, full: bool = False) -> None:
    base: dict[str, Any] = {"guests": 1, "queues": 1, "ring": 256, "mrg_rxbuf": 1, "in_order": 1, "forward": "mac"}
    for size in SIZES:
        compare(results, slices, seconds, size=size, **base)
    changes = (
        CHANGES
        if not full
        else tuple(
            dict(zip(("ring", "mrg_rxbuf", "in_order", "queues"), values, strict=True))
            for values in itertools.product((256, 1024), (1, 0), (1, 0), (1, 2))
        )
    )
    for change, size in itertools.product(changes, (64, 1518)):
        compare(results, slices, seconds, size=size, **{**base, **change})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", nargs="+")
    parser.add_argument("--queues", type=int, default=1)
    parser.add_argument("--guests", type=int, default=1)
    parser.add_argument("--forward", default="mac", help="what the front end does with packets")
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--size", type=lambda text: text if text == IMIX else int(text))
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    if options.loop:
        python_loop(options.loop, options.queues)
    elif options.size:
        compare(
            Results(),
            options.slices,
            options.seconds,
            size=options.size,
            guests=options.guests,
            forward=options.forward,
            queues=options.queues,
            ring=256,
            mrg_rxbuf=1,
            in_order=1,
        )
    else:
        run(Results(), options.slices, options.seconds, full=options.full)
