# SPDX-License-Identifier: BSD-3-Clause
"""Numbers for people."""

from __future__ import annotations


def count(number: float) -> str:
    """As 1 234 567."""
    return f"{number:,.0f}".replace(",", " ")


def scaled(number: float, unit: str) -> str:
    """Three digits and a prefix, as 12.3 Mpps."""
    prefixes = iter("kMGT")
    prefix = ""
    while number >= 999.5 and prefix != "T":
        number, prefix = number / 1000, next(prefixes)
    return f"{number:.3g} {prefix}{unit}"


def rates(packets: float, octets: float, seconds: float) -> tuple[str, str]:
    """Packets and bits per second."""
    if seconds <= 0:
        return "-", "-"
    return scaled(packets / seconds, "pps"), scaled(8 * octets / seconds, "bit/s")
