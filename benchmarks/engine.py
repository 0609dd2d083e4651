# SPDX-License-Identifier: BSD-3-Clause
"""What tx_burst saves when an engine copies: CPU time inside it per packet, and the driver's cost per descriptor."""

from __future__ import annotations

from common import Results, program

SIZES = (64, 256, 1024, 1518, 4096, 9000, 65536)


def run(results: Results) -> None:
    for name, spread in (("spread over 256 MB", 256), ("hot", 0)):
        for size in SIZES:
            cpu, engine, ratio = map(float, program("bench_engine", size, spread).split())
            results.add("engine", buffers=name, size=size, cpu_ns=cpu, engine_ns=engine, times_less=ratio)
    results.add("descriptor", text=program("bench_descriptors"))


if __name__ == "__main__":
    run(Results())
