# SPDX-License-Identifier: BSD-3-Clause
"""Four ports in one process, three of them in trouble: `python benchmarks/chaos.py SECONDS [--seed N]`.

Three have hostile peers, failing engines, and a process that runs out of things, all at random; the fourth has
verified traffic. Fails unless the fourth lost, repeated and altered nothing, each of the three serves an honest guest
in the end, and no fd and no mapping is left. The fourth's longest stall is reported. `make chaos` also has calls of
the product's own threads fail at random (tests/failures/library).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from common import machine
from lanes import FAULTS, PATIENCE, Lane, leaked, resources, rss

from vhost_ioat import EthVhost
from vhost_ioat.guest import Guest

HOSTILE = str(Path(__file__).with_name("hostile.py"))
VICTIMS: list[dict[str, object]] = [
    {"ioats": {0: "sw0"}, "publish": "dma"},
    {"ioats": {0: "sw0"}, "sw_mode": "inline"},
    {},
]


class User(threading.Thread):
    """Who polls the three ports: what comes goes back. Also their engines' ill luck."""

    def __init__(self, ports: list[EthVhost], dice: random.Random, counts: Counter[str]) -> None:
        super().__init__(name="user")
        self.ports, self.dice, self.counts = ports, dice, counts
        self.ending = threading.Event()
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                for port in self.ports:
                    self.turn(port)
                time.sleep(0.0002)  # the fourth port's thread needs the interpreter, too
        except BaseException as error:
            self.problem = error

    def turn(self, port: EthVhost) -> None:
        port.tx_burst(0, port.rx_burst(0, 32))
        port.tx_burst(0, [bytes(1500)] * 4)
        if self.dice.random() < 1 / 50:
            for event in port.events():
                self.counts["events"] += 1
                self.counts["links"] += event.kind == "link" and event.enabled
        model = port.engine_model(0)
        if model is not None and self.dice.random() < 1 / 2000:
            fault, value = self.dice.choice([*FAULTS, ("reset_hang", 0), ("gone", 0)])
            model.inject(fault, nth=self.dice.randrange(20), value=value)
            self.counts["engine faults"] += 1


class Shortage:
    """This process runs out of fds now and then, and with the library also of whatever its own threads ask for."""

    def __init__(self, dice: random.Random, counts: Counter[str]) -> None:
        self.dice, self.counts = dice, counts
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.next = time.monotonic() + 0.5
        self.on = False
        library = ctypes.CDLL(None)
        self.calls = library if hasattr(library, "vhost_ioat_shortages") else None
        if self.calls:
            self.calls.vhost_ioat_shortages.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
            self.calls.vhost_ioat_shortages_seen.restype = ctypes.c_uint64

    def turn(self) -> None:
        if time.monotonic() < self.next:
            return
        if self.on:
            self.end()
        else:
            self.begin()
        self.next = time.monotonic() + self.dice.random() * 0.5

    def begin(self) -> None:
        self.on = True
        self.counts["shortages"] += 1
        if self.calls and self.dice.random() < 0.5:
            self.calls.vhost_ioat_shortages(self.dice.choice([2, 10, 100]), self.dice.getrandbits(64))
        else:
            highest = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir())
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(3, highest - self.dice.randrange(8)), self.limits[1]))

    def end(self) -> None:
        self.on = False
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)
        if self.calls:
            self.calls.vhost_ioat_shortages(0, 0)
            self.counts["calls that failed"] = self.calls.vhost_ioat_shortages_seen()


@contextlib.contextmanager
def peers(ports: list[EthVhost], seed: int, counts: Counter[str]) -> Iterator[None]:
    """A process of hostile peers for each port."""
    processes = [
        subprocess.Popen(
            [sys.executable, HOSTILE, port.devargs.iface, "--seed", str(seed + n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
        )
        for n, port in enumerate(ports)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            output, _ = process.communicate()
            counts["hostile peers"] += sum(json.loads(output or "{}").values())


def serves(port: EthVhost, user: User) -> bool:
    """Does an honest guest get its packets back, now that there is enough of everything?"""
    with Guest(str(port.devargs.iface)) as guest:
        guest.connect(timeout=PATIENCE)
        end = time.monotonic() + PATIENCE
        packet = b"still here" * 6
        while time.monotonic() < end:
            user.turn(port)
            guest.send(0, [packet])
            if packet in guest.recv(0, 64):
                return True
    return False


def chaos(directory: str, seed: int, counts: Counter[str], seconds: float) -> float:
    """All of it for so long; the fourth port's longest stall in seconds."""
    dice = random.Random(seed)
    longest = 0.0
    with contextlib.ExitStack() as opened:
        victims = [
            opened.enter_context(EthVhost(f"{directory}/{n}", name=f"victim{n}", mempool=1 << 23, **options))
            for n, options in enumerate(VICTIMS)
        ]
        lane = Lane(f"{directory}/lane", seed, counts, name="fourth")
        user = User(victims, random.Random(seed + 1), counts)
        shortage = Shortage(dice, counts)
        end, report = time.monotonic() + seconds, time.monotonic() + 60
        with peers(victims, seed, counts):
            user.start()
            last = time.monotonic()
            while time.monotonic() < end:
                moved, now = lane.move(), time.monotonic()
                longest = max(longest, now - last)
                if moved or lane.sent == lane.expected:
                    last = now
                shortage.turn()
                if now > report:
                    print(f"{end - now:.0f} s left: {dict(counts)}", flush=True)
                    report += 60
            shortage.end()
        user.ending.set()
        user.join()
        if user.problem:
            raise user.problem
        lane.close()
        for n, port in enumerate(victims):
            if not serves(port, user):
                counts["out of service"] += 1
                print(f"victim {n} serves nobody any more: {port.info()}")
    return longest


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("seconds", type=float)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    print(machine())
    counts = Counter[str]()
    with tempfile.TemporaryDirectory(prefix="chaos") as directory:
        chaos(directory, options.seed, Counter(), 0)  # what the first use allocates stays, and is no leak
        before, memory = resources(), rss()
        longest = chaos(directory, options.seed, counts, options.seconds)
        end = time.monotonic() + PATIENCE
        while (left := leaked(before, resources())) and time.monotonic() < end:
            time.sleep(0.1)
    counts["left open"] = left.total()
    if left:
        print(f"left open: {dict(left)}")
    happened = ("packets", "hostile peers", "links", "events", "engine faults", "shortages", "calls that failed")
    bad = ("lost", "repeated", "altered", "out of service", "left open")
    print(f"seed {options.seed}: " + ", ".join(f"{counts[what]:,} {what}" for what in (*happened, *bad)))
    stall = f"longest stall of the fourth port {longest * 1000:.0f} ms"
    print(f"{stall}; memory {memory >> 20} MiB before, {rss() >> 20} MiB after")
    return any(counts[what] for what in bad)


if __name__ == "__main__":
    sys.exit(main())
