# SPDX-License-Identifier: BSD-3-Clause
"""Runs the benchmarks, one after the other, and draws what they found. `python benchmarks/bench.py [NAME...]`."""

from __future__ import annotations

import sys

import ceiling
import engine
import growth
import instructions
import peer
import pictures
import python_cost
from common import Results, machine

BENCHMARKS = {
    "instructions": instructions.run,
    "ceiling": ceiling.run,
    "engine": engine.run,
    "growth": growth.run,
    "python": python_cost.run,
    "peer": peer.run,
}


def main() -> None:
    print(machine())
    results = Results()
    for name in sys.argv[1:] or BENCHMARKS:
        BENCHMARKS[name](results)
    pictures.draw(results.rows)


if __name__ == "__main__":
    main()
