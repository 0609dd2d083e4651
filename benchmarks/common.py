# SPDX-License-Identifier: BSD-3-Clause
"""What the benchmarks share: results, medians of ratios, the C++ programs, cores."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "bench"
PROGRAMS = ROOT / "build" / "release"
sys.path.insert(0, str(ROOT / "tests"))  # the testpmd driver of the interop tests


@dataclass(frozen=True)
class Ratio:
    """Slice-by-slice ratios: median and quartiles."""

    median: float
    low: float
    high: float
    slices: int

    @classmethod
    def of(cls, numerators: Iterable[float], denominators: Iterable[float]) -> Ratio:
        ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        return cls(middle, low, high, len(ratios))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"


@dataclass
class Results:
    """Rows of every benchmark, kept as they come, so that an interrupted run leaves what it has."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, benchmark: str, **row: Any) -> None:
        flat = {k: (vars(v) if isinstance(v, Ratio) else v) for k, v in row.items()}
        self.rows.setdefault(benchmark, []).append(flat)
        shown = "  ".join(f"{key} {value}" for key, value in row.items())
        print(f"{benchmark:12} {shown}", flush=True)
        self.save()

    def save(self) -> None:
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / "results.json").write_text(json.dumps({"machine": machine(), "results": self.rows}, indent=1))


def machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "unknown",
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def program(name: str, *args: object) -> str:
    """What one of the C++ programs prints."""
    return subprocess.run(
        [PROGRAMS / name, *map(str, args)], check=True, capture_output=True, text=True, timeout=600
    ).stdout.strip()


NEAR_NS = 120.0  # 50 to 90 were seen at one place, 250 to 350 at the other
FEWEST = 4  # slices that make a row


def cores() -> str:
    """Where this machine's two cores are now, by the time a cache line takes from one to the other and back.

    The host of a virtual machine may run both near each other, where they share a cache, and may move them apart at any
    time; rates differ by two and ratios by half.
    """
    return "near" if float(program("bench_cores")) < NEAR_NS else "apart"


def by_place(slices: int, measure: Callable[[], tuple[float, ...]]) -> Iterator[tuple[str, list[tuple[float, ...]]]]:
    """Calls `measure` for each slice. Gives "any" with what all returned, then each place of the cores with what those
    slices returned that had it before and after, when there are enough."""
    places: dict[str, list[tuple[float, ...]]] = {"any": [], "apart": [], "near": []}
    before = cores()
    for _ in range(slices):
        rates = measure()
        after = cores()
        places["any"].append(rates)
        if after == before:
            places[after].append(rates)
        before = after
    return ((place, rates) for place, rates in places.items() if len(rates) >= FEWEST)


def best(name: str, *args: object, tries: int = 5) -> float:
    """The least of some tries: on a shared machine the noise only ever adds."""
    return min(float(program(name, *args)) for _ in range(tries))
