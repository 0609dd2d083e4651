# SPDX-License-Identifier: BSD-3-Clause
"""How the cost grows: regions, rings, bursts, ports, queues; latency of one packet; start-up."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, Ratio, Results, best, by_place, program

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


def rings_and_bursts(results: Results) -> None:
    for ring in (256, 1024, 4096):
        results.add(
            "rings",
            ring=ring,
            rx_ns=best("bench_queues", "rx", 64, 64, ring),
            tx_ns=best("bench_queues", "tx", 64, 64, ring),
        )
    for burst in (1, 8, 32, 64, 256, 1024):
        results.add(
            "bursts",
            burst=burst,
            rx_ns=best("bench_queues", "rx", 64, burst, 1024, 1, 2_000_000),
            tx_ns=best("bench_queues", "tx", 64, burst, 1024, 1, 2_000_000),
        )


def queues(results: Results, slices: int = 21) -> None:
    """Two native threads on two queues, rings posted before: how many times one thread's packets."""

    def both() -> tuple[float, float]:
        return float(program("bench_threads", 2)), float(program("bench_threads", 1))

    for place, rates in by_place(slices, both):
        results.add("threads", cores=place, slices=len(rates), two_to_one=Ratio.of(*zip(*rates, strict=True)))


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


def echo(path: str, mode: str) -> None:
    """Sends back what comes, polling or sleeping in between. Runs until it is killed."""
    os.sched_setaffinity(0, {1 % (os.cpu_count() or 1)})
    with vhost_ioat.EthVhost(path) as port:
        print("ready", flush=True)
        while True:
            if burst := port.rx_burst(0):
                port.tx_burst(0, burst)
            elif mode == "interrupt" and not port.rx_intr_enable(0):
                select.select([port.rx_fileno(0)], [], [])


def latency(results: Results, packets: int = 10_000) -> None:
    """From the guest's send to its recv of the same packet, sent back by a Python process that polls or sleeps."""
    home = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    for mode in ("poll", "interrupt"):
        with tempfile.TemporaryDirectory() as folder, Guest(f"{folder}/s") as guest:
            command = [sys.executable, __file__, "--echo", f"{folder}/s", mode]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                guest.connect(timeout=5)

                def there_and_back(guest: Guest = guest, mode: str = mode) -> float:
                    if mode == "interrupt":
                        time.sleep(0.0005)  # packets come far apart: the other side sleeps by then, most of the time
                    begin = time.perf_counter()
                    guest.send(0, [b"x" * 64])
                    while not guest.recv(0):
                        pass
                    return (time.perf_counter() - begin) * 1e6

                for place, times in by_place(20, lambda: tuple(there_and_back() for _ in range(packets // 20))):
                    every = list(itertools.chain.from_iterable(times))
                    results.add(
                        "latency",
                        mode=mode,
                        cores=place,
                        packets=len(every),
                        median_us=round(statistics.median(every), 1),
                        p999_us=round(statistics.quantiles(every, n=1000)[-1], 1),
                    )
                process.kill()
    os.sched_setaffinity(0, home)


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
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "build", "--wheel", "-o", folder, ROOT], check=True, capture_output=True)
        wheel = next(Path(folder).glob("*.whl")).stat().st_size
    results.add(
        "start-up",
        import_ms=round(min(imports) * 1e3, 1),
        link_up_ms=round(statistics.median(links) * 1e3, 2),
        wheel_kb=round(wheel / 1000),
    )


def run(results: Results) -> None:
    regions(results)
    rings_and_bursts(results)
    queues(results)
    idle_ports(results)
    latency(results)
    start_up(results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--echo"]:
        echo(*sys.argv[2:])
    else:
        run(Results())
