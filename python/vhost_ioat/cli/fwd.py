# SPDX-License-Identifier: BSD-3-Clause
"""`vhost-ioat fwd`: the native forwarding loop, with statistics."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .. import _core
from ..port import EthVhost
from ..records import Stats
from .format import count, rates

REFRESH = 0.5  # seconds
BURST = 64  # packets


def _lost(port: EthVhost) -> int:
    """Packets from the guest that never reached a burst; each is counted in `stats()` or `xstats()`."""
    now = port.stats()
    without_memory = sum(value for name, value in port.xstats().items() if name.endswith("_nombuf_dropped"))
    return now.imissed + now.ierrors + without_memory


def _table(ports: list[EthVhost], forwarder: _core.Forwarder, before: dict[EthVhost, Stats], seconds: float) -> Table:
    """The counters, and the rates since `before`, which is updated.

    On the way in, the port drops packets; on the way out, the port does, and the loop when the port does not take them.
    """
    table = Table("port", "link", "", "packets", "dropped", "packet rate", "bit rate")
    for port, side in zip(ports, forwarder.sides(), strict=False):
        now = port.stats()
        new = now - before[port]
        before[port] = now
        link = "up" if port.link() else "down"
        unsent = now.oerrors + side["dropped_full"] + side["dropped_down"]
        table.add_row(
            port.name, link, "in", count(now.ipackets), count(_lost(port)), *rates(new.ipackets, new.ibytes, seconds)
        )
        table.add_row("", "", "out", count(now.opackets), count(unsent), *rates(new.opackets, new.obytes, seconds))
    return table


def run(devargs: list[str], mode: Any, seconds: float | None, on_full: Any, console: Console) -> None:
    """Forward until the time is over or a signal ends it; then print the totals."""
    with ExitStack() as opened:
        ports = [opened.enter_context(EthVhost.from_devargs(text)) for text in devargs]
        _forward(ports, _core.Forwarder(ports[0], ports[-1], mode, BURST, on_full), seconds, console)
        console.print(f"{mode}, on_full={on_full}", highlight=False)


def _forward(ports: list[EthVhost], forwarder: _core.Forwarder, seconds: float | None, console: Console) -> None:
    started = shown = time.monotonic()
    before = {port: Stats() for port in ports}
    with Live(console=console, auto_refresh=False, transient=True) as live:
        try:
            while seconds is None or time.monotonic() - started < seconds:
                left = REFRESH if seconds is None else seconds - (time.monotonic() - started)
                forwarder.run(max(0.0, min(REFRESH, left)))
                now = time.monotonic()
                live.update(_table(ports, forwarder, before, now - shown), refresh=True)
                shown = now
        except KeyboardInterrupt:
            pass
    forwarder.finish()
    took = time.monotonic() - started
    console.print(_table(ports, forwarder, {port: Stats() for port in ports}, took))
    full, down = (sum(side[reason] for side in forwarder.sides()) for reason in ("dropped_full", "dropped_down"))
    dropped = f"{full} because the port was full, {down} because the link was down"
    console.print(f"{took:.1f} s; dropped: {dropped}", highlight=False)
