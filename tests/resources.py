# SPDX-License-Identifier: BSD-3-Clause
"""What a process holds, so that a test can say: as before."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from watchdog import until


class Resources(NamedTuple):
    """Open files by kind, and shared mappings by what they map. Private memory comes and goes with the allocator."""

    fds: Counter[str]
    mappings: Counter[str]


def resources() -> Resources:
    fds: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            fds[str(entry.readlink()).split(":[")[0]] += 1  # "socket:[1234]" -> "socket"
        except FileNotFoundError:
            continue  # the one that listed the folder
    mappings: Counter[str] = Counter()
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if fields[1][3] == "s":
            mappings[fields[5] if len(fields) > 5 else "anonymous"] += 1
    return Resources(fds, mappings)


def expect_resources(before: Resources) -> None:
    """
    A port's helper closes and unmaps what a peer gave; it has done so, sooner or later.

    Not more than before, rather than the same: what an earlier port left to its helper may have gone meanwhile.
    """

    def as_before() -> bool:
        now = resources()
        return now.fds <= before.fds and now.mappings <= before.mappings

    until(as_before, f"the resources held before, {before}; now {resources()}", pause=0.001)
