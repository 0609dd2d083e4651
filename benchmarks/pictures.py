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


def _peer(rows: Rows) -> None:
    rows = [row for row in rows if row["cores"] == "any"]
    names = [
        f"{row['size']} B"
        + "".join(
            f" {k}={row[k]}"
            for k, usual in (
                ("guests", 1),
                ("forward", "mac"),
                ("ring", 256),
                ("mrg_rxbuf", 1),
                ("in_order", 1),
                ("queues", 1),
            )
            if row[k] != usual
        )
        for row in rows
    ]
    medians = [row["ratio"]["median"] for row in rows]
    errors = [
        [m - row["ratio"]["low"] for m, row in zip(medians, rows, strict=True)],
        [row["ratio"]["high"] - m for m, row in zip(medians, rows, strict=True)],
    ]
    figure, axes = plt.subplots(figsize=(8, 0.35 * len(rows) + 1))
    axes.barh(names, medians, xerr=errors, color="tab:blue", ecolor="black", capsize=2)
    axes.axvline(1, color="gray", linestyle="--")
    axes.invert_yaxis()
    axes.set_xlabel("packets per second, Python loop / DPDK net_vhost (median, quartiles)")
    figure.tight_layout()
    figure.savefig(OUT / "peer.png", dpi=110)


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
    figure.savefig(OUT / "engine.png", dpi=110)
