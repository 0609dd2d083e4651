# SPDX-License-Identifier: BSD-3-Clause
"""Pictures of the results, for docs/performance.md."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from common import OUT

mpl.use("Agg")
Rows = list[dict[str, Any]]


def draw(rows: dict[str, Rows]) -> None:
    if "peer" in rows:
        _peer(rows["peer"])
    if "engine" in rows:
        _engine(rows["engine"])


USUAL = {"guests": 1, "forward": "mac", "ring": 256, "mrg_rxbuf": 1, "in_order": 1, "queues": 1}
PLACES = {"apart": "tab:orange", "near": "tab:blue"}


def _setting(row: dict[str, Any]) -> str:
    size = "IMIX" if row["size"] == "imix" else f"{row['size']} B"
    return size + "".join(f" {key}={row[key]}" for key, usual in USUAL.items() if row[key] != usual)


def _peer(rows: Rows) -> None:
    names = list(dict.fromkeys(map(_setting, rows)))
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(names) + 1))
    for place, color in PLACES.items():
        here = [row for row in rows if row["cores"] == place]
        medians = [row["ratio"]["median"] for row in here]
        below = [m - row["ratio"]["low"] for m, row in zip(medians, here, strict=True)]
        above = [row["ratio"]["high"] - m for m, row in zip(medians, here, strict=True)]
        where = [names.index(_setting(row)) for row in here]
        axes.errorbar(medians, where, xerr=(below, above), fmt="o", color=color, capsize=3, label=f"cores {place}")
    axes.axvline(1, color="gray", linestyle="--")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower left")
    axes.set_xlabel("packets per second, Python loop / DPDK net_vhost (median, quartiles)")
    figure.tight_layout()
    figure.savefig(OUT / "peer.png", dpi=90)


def _engine(rows: Rows) -> None:
    figure, axes = plt.subplots(figsize=(7, 4))
    for buffers in dict.fromkeys(row["buffers"] for row in rows):
        chosen = [row for row in rows if row["buffers"] == buffers]
        sizes = [row["size"] for row in chosen]
        axes.plot(sizes, [row["cpu_ns"] for row in chosen], marker="o", label=f"CPU copies, {buffers}")
        axes.plot(sizes, [row["engine_ns"] for row in chosen], marker="s", linestyle="--", label=f"engine, {buffers}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("packet size, bytes")
    axes.set_ylabel("CPU time inside tx_burst per packet, ns")
    axes.legend()
    figure.tight_layout()
    figure.savefig(OUT / "engine.png", dpi=90)
