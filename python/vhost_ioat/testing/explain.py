# SPDX-License-Identifier: BSD-3-Clause
"""A split ring as text, for people who investigate a failed test."""

from __future__ import annotations

from collections.abc import Iterator

from .layout import INDIRECT, NEXT, WRITE, BadRing, RingView
from .model import wrap

__all__ = ["explain"]

_SHOWN = 16  # entries of each table around the indices; a ring may have 32768


def _flags(flags: int) -> str:
    names = [name for bit, name in ((NEXT, "NEXT"), (WRITE, "WRITE"), (INDIRECT, "INDIRECT")) if flags & bit]
    return "|".join(names) + (f"|{flags & ~7:#x}" if flags & ~7 else "")


def _chain(ring: RingView, head: int) -> Iterator[str]:
    n, table, entries = head, None, ring.size
    for _ in range(_SHOWN):
        if n >= entries:
            yield f"      {n}: outside its table of {entries} entries"
            return
        entry = ring.descriptor(n, table)
        yield f"      {n}: addr {entry.addr:#x} len {entry.len} {_flags(entry.flags)} next {entry.next}"
        if entry.flags & INDIRECT and table is None:
            n, table, entries = 0, entry.addr, entry.len // 16
        elif entry.flags & NEXT:
            n = entry.next
        else:
            return
    yield "      ..."


def _lines(ring: RingView) -> Iterator[str]:
    yield f"split ring of {ring.size}: desc {ring.desc:#x}, avail {ring.avail:#x}, used {ring.used:#x}"
    avail, used = ring.avail_idx, ring.used_idx
    outstanding = wrap(avail - used)
    wrong = f", more than the {ring.size} entries" if outstanding > ring.size else ""
    yield f"  avail: idx {avail} flags {ring.avail_flags} used_event {ring.used_event}"
    yield f"  used:  idx {used} flags {ring.used_flags} avail_event {ring.avail_event}"
    yield f"  {outstanding} made available and not used{wrong}"
    first = max(avail - min(outstanding, _SHOWN), avail - ring.size)
    for index in range(first, avail):
        head = ring.avail_head(index)
        yield f"    avail[{wrap(index) % ring.size}] (index {wrap(index)}) = head {head}"
        yield from _chain(ring, head)
    for index in range(used - min(_SHOWN, ring.size), used):
        head, length = ring.used_element(index)
        yield f"    used[{wrap(index) % ring.size}] (index {wrap(index)}) = head {head}, {length} bytes written"


def explain(ring: RingView) -> str:
    """Describe indices, flags, available chains and what was used last. Never raises on a broken ring."""
    lines: list[str] = []
    try:
        lines.extend(_lines(ring))
    except BadRing as fault:
        lines.append(f"  {fault}")
    return "\n".join(lines)
