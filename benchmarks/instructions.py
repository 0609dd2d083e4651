# SPDX-License-Identifier: BSD-3-Clause
"""Instructions per packet, counted by callgrind: the same every time, so that a change shows without noise.

`--check` compares with reference.json and fails on a rise of more than 3 %; `--write` makes that file anew.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from common import OUT, PROGRAMS, Results

REFERENCE = Path(__file__).parent / "reference.json"
CASES = [(direction, size) for direction in ("rx", "tx") for size in (64, 1518)]
TOLERANCE = 1.03


def collected(direction: str, size: int, packets: int) -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={OUT}/callgrind.out", PROGRAMS / "bench_queues"]
    run = subprocess.run(
        [*command, direction, str(size), "64", "256", "1", str(packets)], check=True, capture_output=True, text=True
    )
    match = re.search(r"Collected : (\d+)", run.stderr)
    assert match, run.stderr
    return int(match[1])


def per_packet(direction: str, size: int) -> float:
    """The difference of two runs leaves out start-up."""
    packets = 64_000
    return round((collected(direction, size, 2 * packets) - collected(direction, size, packets)) / packets, 1)


def run(results: Results) -> dict[str, float]:
    counts = {}
    for direction, size in CASES:
        counts[f"{direction} {size}"] = per_packet(direction, size)
        results.add("instructions", case=f"{direction} {size}", per_packet=counts[f"{direction} {size}"])
    return counts


def check(counts: dict[str, float]) -> bool:
    reference = json.loads(REFERENCE.read_text())
    risen = {case: (reference[case], count) for case, count in counts.items() if count > reference[case] * TOLERANCE}
    for case, (before, now) in risen.items():
        print(f"{case} B: {now} instructions a packet, {before} in reference.json")
    return not risen


if __name__ == "__main__":
    counted = run(Results())
    if "--write" in sys.argv:
        REFERENCE.write_text(json.dumps(counted, indent=1) + "\n")
    if "--check" in sys.argv and not check(counted):
        sys.exit(1)
