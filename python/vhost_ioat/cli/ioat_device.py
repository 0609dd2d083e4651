# SPDX-License-Identifier: BSD-3-Clause
"""`vhost-ioat ioat-device`: the software I/OAT as a PCI card for virtual machines, with counters and faults."""

from __future__ import annotations

import functools
import re
import time

from rich.console import Console

from .. import dma
from ..errors import ConfigError

VERSIONS = {0x0B00: 0x34, 0x2021: 0x33}  # of the others: 3.2
FAULTS = (
    "error",
    "corrupt",
    "drop_writeback",
    "drop_interrupt",
    "torn_status",
    "stuck",
    "reset_hang",
    "gone",
)
_UNITS = {
    "latency": {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1},
    "bandwidth": {"GB/s": 10**9, "MB/s": 10**6, "kB/s": 10**3, "B/s": 1},
}


def number(what: str, text: str, limit: int, base: int = 0) -> int:
    """A number such as `0x0b00` or `2816`."""
    try:
        value = int(text, base)
    except ValueError:  # also one of thousands of digits
        value = -1
    if not 0 <= value <= limit:
        raise ConfigError(f"{what} {text!r}: write a number up to {limit:#x}, such as 0x0b00")
    return value


def amount(kind: str, text: str) -> int:
    """A time such as `20ms` in nanoseconds, or a rate such as `4GB/s` in bytes per second."""
    units = _UNITS[kind]
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(\D+)", text)
    if not match or match[2] not in units:
        raise ConfigError(f"{kind} {text!r}: write a number and a unit, one of {', '.join(units)}")
    value = float(match[1]) * units[match[2]]
    if value >= 2**63:
        raise ConfigError(f"{kind} {text!r}: at most {2**63 // max(units.values())} {next(iter(units))}")
    if kind == "bandwidth" and round(value) == 0:
        raise ConfigError(f"{kind} {text!r}: at this rate no copy would ever end; leave the option out for no limit")
    return round(value)


def fault(text: str) -> tuple[str, int, int]:
    """Split KIND[=VALUE][@NTH] into kind, value and nth. `error` without a value is a read error (CHANERR bit 8)."""
    match = re.fullmatch(r"([a-z_-]+)(?:=(\d+))?(?:@(\d+))?", text)
    kind = match[1].replace("-", "_") if match else ""
    if not match or kind not in FAULTS:
        raise ConfigError(f"fault {text!r}: write KIND, KIND@NTH or KIND=VALUE@NTH, where KIND is {', '.join(FAULTS)}")
    default = "8" if kind == "error" else "0"
    read = functools.partial(number, limit=2**63 - 1, base=10)
    return kind, read(f"value of {kind}", match[2] or default), read(f"nth of {kind}", match[3] or "0")


def run(
    path: str,
    device_id: str,
    cbver: str | None,
    latency: str | None,
    bandwidth: str | None,
    faults: list[str],
    console: Console,
) -> None:
    """Serve until Ctrl-C, and print the counters when they change, at most once a second."""
    identity = number("device id", device_id, 0xFFFF)
    version = number("version", cbver, 0xFF) if cbver is not None else VERSIONS.get(identity, 0x32)
    model = dma.IoatModel(identity, version, mode="threaded")
    if latency is not None:
        model.inject("latency", value=amount("latency", latency))
    if bandwidth is not None:
        model.inject("bandwidth", value=amount("bandwidth", bandwidth))
    for kind, value, nth in map(fault, faults):
        model.inject(kind, nth=nth, value=value)
    say = functools.partial(console.print, soft_wrap=True)
    shown, shown_at = "", 0.0

    def watch(maps: int) -> None:
        nonlocal shown, shown_at
        if not shown_at:  # the socket is there by now
            say(f"8086:{identity:04x}, version {version >> 4}.{version & 15}, is at {path}; add it to QEMU with")
            say(f'  -device \'{{"driver":"vfio-user-pci","socket":{{"path":"{path}","type":"unix"}}}}\'')
        line = " ".join(f"{name}={value}" for name, value in model.counters().items()) + f" maps={maps}"
        if line != shown and time.monotonic() - shown_at >= 1:
            say(line)
            shown, shown_at = line, time.monotonic()

    dma.serve(path, model, watch=watch)
