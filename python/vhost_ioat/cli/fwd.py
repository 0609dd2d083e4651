# SPDX-License-Identifier: BSD-3-Clause
"""`vhost-ioat fwd`: the native forwarding loop with statistics beside it."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..port import EthVhost, forward
from ..records import Stats
from .format import count, rates

REFRESH = 0.5  # seconds


def _table(ports: list[EthVhost], before: dict[EthVhost, Stats], seconds: float) -> Table:
    """The counters, and the rates since `before`, which becomes now."""
    table = Table("port", "link", "", "packets", "dropped", "packet rate", "bit rate")
    for port in ports:
        now = port.stats()
        new = now - before[port]
        before[port] = now
        link = "up" if port.link() else "down"
        lost = count(now.imissed + now.ierrors)
        table.add_row(port.name, link, "in", count(now.ipackets), lost, *rates(new.ipackets, new.ibytes, seconds))
        table.add_row("", "", "out", count(now.opackets), count(now.oerrors), *rates(new.opackets, new.obytes, seconds))
    return table


def run(devargs: list[str], mode: Any, seconds: float | None, console: Console) -> None:
    """Forward until the time is over, or Ctrl-C or SIGTERM comes; then print the totals."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        with ExitStack() as opened:
            ports = [opened.enter_context(EthVhost.from_devargs(text)) for text in devargs]
            _forward(ports, mode, seconds, console)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _forward(ports: list[EthVhost], mode: Any, seconds: float | None, console: Console) -> None:
    started = shown = time.monotonic()
    before = {port: Stats() for port in ports}
    with Live(console=console, auto_refresh=False, transient=True) as live:
        try:
            while seconds is None or time.monotonic() - started < seconds:
                left = REFRESH if seconds is None else seconds - (time.monotonic() - started)
                forward(ports[0], ports[-1], mode, seconds=max(0.0, min(REFRESH, left)))
                now = time.monotonic()
                live.update(_table(ports, before, now - shown), refresh=True)
                shown = now
        except KeyboardInterrupt:
            pass
    took = time.monotonic() - started
    console.print(_table(ports, {port: Stats() for port in ports}, took))
    console.print(f"{mode}, {took:.1f} s", highlight=False)
