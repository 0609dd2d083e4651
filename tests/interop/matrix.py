# SPDX-License-Identifier: BSD-3-Clause
"""Every pair of settings at least once, in few runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Setting = dict[str, Any]


def product(factors: Mapping[str, Sequence[object]]) -> list[Setting]:
    return [dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())]


def pairwise(factors: Mapping[str, Sequence[object]]) -> list[Setting]:
    """Greedy cover: always the run that adds most pairs not seen yet. The same list every time."""

    def pairs(setting: Setting) -> Iterator[object]:
        return itertools.combinations(setting.items(), 2)

    runs = product(factors)
    missing = {pair for run in runs for pair in pairs(run)}
    chosen = []
    while missing:
        chosen.append(max(runs, key=lambda run: sum(pair in missing for pair in pairs(run))))
        missing.difference_update(pairs(chosen[-1]))
    return chosen


def name(setting: Setting) -> str:
    return "-".join(f"{key}={value}" for key, value in setting.items())
