# SPDX-License-Identifier: BSD-3-Clause
"""How near the data path is to what cannot be beaten: memcpy of the same bytes, and a bare loop over the same ring."""

from __future__ import annotations

from common import Ratio, Results, program

SIZES = (64, 256, 1024, 1518, 4096, 9000, 65536)


def run(results: Results, slices: int = 11) -> None:
    for size in SIZES:
        packets = 20_000_000 // max(1, size // 64)
        arguments = (size, 64 if size < 16000 else 8, 256, 1, packets)
        times: dict[str, list[float]] = {"memcpy-rx": [], "rx": [], "memcpy-tx": [], "tx": []}
        for _ in range(slices):
            for what, values in times.items():
                values.append(float(program("bench_queues", what, *arguments)))
        for what in ("rx", "tx"):
            results.add(
                "ceiling",
                direction=what,
                size=size,
                of_memcpy_rate=Ratio.of(times[f"memcpy-{what}"], times[what]),
                ns_per_packet=min(times[what]),
                gb_per_s=round(size / min(times[what]), 2),
            )
    ring = [float(program("bench_queues", "ring", 64)) for _ in range(slices)]
    results.add("ceiling", direction="ring alone", ns_per_packet=min(ring))


if __name__ == "__main__":
    run(Results())
