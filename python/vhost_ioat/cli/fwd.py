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
from .format import count, rate

REFRESH = 0.5  # seconds


def _table(ports: list[EthVhost], before: dict[EthVhost, Stats], seconds: float) -> Table:
    table = Table("port", "link", "received", "sent", "missed", "errors", "no buffer", "in", "out")
    for port in ports:
        now = port.stats()
        new = now - before[port]
        before[port] = now
        table.add_row(
            f"{port.name} {port.devargs.iface}",
            "up" if port.link() else "down",
            *map(count, (now.ipackets, now.opackets, now.imissed, now.ierrors + now.oerrors, now.rx_nombuf)),
            rate(new.ipackets, new.ibytes, seconds),
            rate(new.opackets, new.obytes, seconds),
        )
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
    with Live(_table(ports, before, 0), console=console, auto_refresh=False) as live:
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
        live.update(_table(ports, {port: Stats() for port in ports}, took), refresh=True)
    console.print(f"{mode} for {took:.1f} s; the rates are those of the whole time")
