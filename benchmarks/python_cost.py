# SPDX-License-Identifier: BSD-3-Clause
"""What Python costs: the same echo of the same packets, by a Python loop and by the native loop, in alternating slices.

A testpmd on virtio-user on the other core is the load; an embedded guest driven by Python would be slower than either.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time

from common import Ratio, Results, by_place

import vhost_ioat
from interop.testpmd import Testpmd, virtio_user


def python_rate(port: vhost_ioat.EthVhost, burst: int, seconds: float) -> float:
    before, begin = port.stats().opackets, time.perf_counter()
    rx_burst, tx_burst = port.rx_burst, port.tx_burst
    while time.perf_counter() - begin < seconds:
        for _ in range(500):
            tx_burst(0, rx_burst(0, burst))
    return (port.stats().opackets - before) / (time.perf_counter() - begin)


def native_rate(port: vhost_ioat.EthVhost, burst: int, seconds: float) -> float:
    before, begin = port.stats().opackets, time.perf_counter()
    vhost_ioat.forward(port, port, "io", seconds=seconds, burst=burst)
    return (port.stats().opackets - before) / (time.perf_counter() - begin)


def run(results: Results, slices: int = 20, seconds: float = 0.5) -> None:
    os.sched_setaffinity(0, {1 % (os.cpu_count() or 1)})
    with (
        tempfile.TemporaryDirectory() as folder,
        vhost_ioat.EthVhost(f"{folder}/s") as port,
        Testpmd(virtio_user(f"{folder}/s", ring=1024), core=0, forward="mac") as front,
    ):
        front.command("start tx_first 32")
        for burst in (8, 32, 64, 256):

            def both(burst: int = burst) -> tuple[float, float]:
                return python_rate(port, burst, seconds), native_rate(port, burst, seconds)

            for place, rates in by_place(slices, both):
                python, native = zip(*rates, strict=True)
                results.add(
                    "python cost",
                    burst=burst,
                    cores=place,
                    slices=len(rates),
                    python_to_native=Ratio.of(python, native),
                    python_mpps=round(statistics.median(python) / 1e6, 2),
                )


if __name__ == "__main__":
    run(Results())
