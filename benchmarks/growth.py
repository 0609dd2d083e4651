# SPDX-License-Identifier: BSD-3-Clause
"""How the cost grows: regions, rings, bursts, ports, queues; latency of one packet; start-up."""

from __future__ import annotations

import contextlib
import os
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from common import Ratio, Results, program

import vhost_ioat
from vhost_ioat.guest import Guest


def regions(results: Results, slices: int = 11) -> None:
    for direction in ("rx", "tx"):
        times: dict[int, list[float]] = {1: [], 8: [], 64: [], 509: []}
        for _ in range(slices):
            for count, values in times.items():
                values.append(float(program("bench_queues", direction, 64, 64, 256, count, 4_000_000)))
        for count, values in times.items():
            results.add(
                "regions", direction=direction, regions=count, to_one_region=Ratio.of(values, times[1]), ns=min(values)
            )


def rings_and_bursts(results: Results, tries: int = 5) -> None:
    def least(*arguments: object) -> float:
        return min(float(program("bench_queues", *arguments)) for _ in range(tries))

    for ring in (256, 1024, 4096):
        results.add("rings", ring=ring, rx_ns=least("rx", 64, 64, ring), tx_ns=least("tx", 64, 64, ring))
    for burst in (1, 8, 32, 64, 256, 1024):
        results.add(
            "bursts",
            burst=burst,
            rx_ns=least("rx", 64, burst, 1024, 1, 2_000_000),
            tx_ns=least("tx", 64, burst, 1024, 1, 2_000_000),
        )


def queues(results: Results, slices: int = 9) -> None:
    """Two native threads on two queues, rings posted before: how many times one thread's packets."""
    one, two = [], []
    for _ in range(slices):
        one.append(float(program("bench_threads", 1)))
        two.append(float(program("bench_threads", 2)))
    results.add("threads", two_to_one=Ratio.of(two, one))


def idle_ports(results: Results) -> None:
    for count in (1, 8, 64):
        with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            ports = [stack.enter_context(vhost_ioat.EthVhost(f"{folder}/{i}")) for i in range(count)]
            polls = [port.rx_burst for port in ports]
            rounds = 20_000 // count
            spent = []
            for _ in range(9):
                begin = time.perf_counter()
                for _ in range(rounds):
                    for poll in polls:
                        poll(0)
                spent.append((time.perf_counter() - begin) / (rounds * count))
            results.add("idle ports", ports=count, ns_per_poll=round(min(spent) * 1e9, 1))


def latency(results: Results, packets: int = 2000) -> None:
    """From the guest's send to its recv of the same packet, sent back by a Python thread that polls or sleeps."""
    for mode in ("poll", "interrupt"):
        with (
            tempfile.TemporaryDirectory() as folder,
            vhost_ioat.EthVhost(f"{folder}/s") as port,
            Guest(f"{folder}/s") as guest,
        ):
            guest.connect(timeout=5)
            port.wait_link(timeout=5)
            stop = threading.Event()

            def echo(mode: str = mode, port: vhost_ioat.EthVhost = port, stop: threading.Event = stop) -> None:
                while not stop.is_set():
                    burst = port.rx_burst(0)
                    if burst:
                        port.tx_burst(0, burst)
                    elif mode == "interrupt" and not port.rx_intr_enable(0):
                        select.select([port.rx_fileno(0)], [], [], 0.05)

            thread = threading.Thread(target=echo)
            thread.start()
            times = []
            for _ in range(packets):
                begin = time.perf_counter()
                guest.send(0, [b"x" * 64])
                while not guest.recv(0):
                    if mode == "interrupt":
                        os.sched_yield()
                times.append((time.perf_counter() - begin) * 1e6)
            stop.set()
            thread.join()
            results.add(
                "latency",
                mode=mode,
                median_us=round(statistics.median(times), 1),
                p999_us=round(statistics.quantiles(times, n=1000)[-1], 1),
            )


def start_up(results: Results) -> None:
    imports = []
    for _ in range(7):
        code = "import time; t = time.perf_counter(); import vhost_ioat; print(time.perf_counter() - t)"
        imports.append(
            float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        )
    links = []
    for _ in range(21):
        with (
            tempfile.TemporaryDirectory() as folder,
            vhost_ioat.EthVhost(f"{folder}/s") as port,
            Guest(f"{folder}/s") as guest,
        ):
            begin = time.perf_counter()
            guest.connect(timeout=5)
            port.wait_link(timeout=5)
            links.append(time.perf_counter() - begin)
    results.add("start-up", import_ms=round(min(imports) * 1e3, 1), link_up_ms=round(statistics.median(links) * 1e3, 2))


def run(results: Results) -> None:
    regions(results)
    rings_and_bursts(results)
    queues(results)
    idle_ports(results)
    latency(results)
    start_up(results)


if __name__ == "__main__":
    run(Results())
