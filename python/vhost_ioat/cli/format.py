# SPDX-License-Identifier: BSD-3-Clause
"""Numbers for people."""

from __future__ import annotations


def count(number: float) -> str:
    """As 1 234 567."""
    return f"{number:,.0f}".replace(",", " ")


def scaled(number: float, unit: str) -> str:
    """Three digits and a prefix, as 12.3 Mpps."""
    for prefix in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:.0f} T{unit}"


def rate(packets: float, octets: float, seconds: float) -> str:
    """Packets and bits per second."""
    if seconds <= 0:
        return "-"
    return f"{scaled(packets / seconds, 'pps')}, {scaled(8 * octets / seconds, 'bit/s')}"
