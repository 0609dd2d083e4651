# SPDX-License-Identifier: BSD-3-Clause
"""What Python costs: the same echo of the same packets, by a Python loop and by the native loop, in alternating slices.

An embedded guest in another process is the load; it keeps its ring full, so that bursts are as long as asked for.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from multiprocessing.synchronize import Event as EventType

from common import Ratio, Results

import vhost_ioat
from vhost_ioat.guest import Guest


def load(path: str, stop: EventType) -> None:
    packets = vhost_ioat.Burst.from_packets([b"x" * 64] * 256)
    with Guest(path, ring_size=1024) as guest:
        guest.connect(timeout=10)
        while not stop.is_set():
            for _ in range(200):
                guest.send(0, packets)
                guest.recv_burst(0, 256)


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
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, vhost_ioat.EthVhost(f"{folder}/s") as port:
        stop = context.Event()
        guest = context.Process(target=load, args=(f"{folder}/s", stop))
        guest.start()
        try:
            assert port.wait_link(timeout=20)
            for burst in (8, 32, 64, 256):
                python, native = [], []
                for _ in range(slices):
                    python.append(python_rate(port, burst, seconds))
                    native.append(native_rate(port, burst, seconds))
                results.add(
                    "python cost",
                    burst=burst,
                    python_to_native=Ratio.of(python, native),
                    python_mpps=round(max(python) / 1e6, 2),
                )
        finally:
            stop.set()
            guest.join()


if __name__ == "__main__":
    run(Results())
