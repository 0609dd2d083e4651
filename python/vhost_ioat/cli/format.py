# SPDX-License-Identifier: BSD-3-Clause
"""Numbers and text for people."""

from __future__ import annotations

from rich.console import Console


def console(stderr: bool = False) -> Console:
    """A console that prints text as it is: a path or a name is the user's text, not markup or an emoji code."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def one_line(text: str) -> str:
    """The text, with line breaks, control characters and other unprintable characters written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def count(number: float) -> str:
    """The number with grouped digits: 1 234 567."""
    return f"{number:,.0f}".replace(",", " ")


def scaled(number: float, unit: str) -> str:
    """Three digits and a prefix: 12.3 Mpps."""
    prefixes = iter("kMGT")
    prefix = ""
    while number >= 999.5 and prefix != "T":
        number, prefix = number / 1000, next(prefixes)
    return f"{number:.3g} {prefix}{unit}"


def rates(packets: float, octets: float, seconds: float) -> tuple[str, str]:
    """Packets and bits per second, as text."""
    if seconds <= 0:
        return "-", "-"
    return scaled(packets / seconds, "pps"), scaled(8 * octets / seconds, "bit/s")
