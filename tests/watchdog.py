# SPDX-License-Identifier: BSD-3-Clause
"""The one limit of every wait of the Python tests.

It is reached only when what is waited for never comes: no result depends on how fast the machine is.
"""

from __future__ import annotations

import time
from collections.abc import Callable

WATCHDOG = 60.0  # seconds


class Watchdog:
    """Ends a loop that no longer gets anywhere."""

    def __init__(self) -> None:
        self.feed()

    def feed(self) -> None:
        """Something has come."""
        self._end = time.monotonic() + WATCHDOG

    def check(self, state: object = "") -> None:
        """Raise AssertionError when nothing has come for too long."""
        assert time.monotonic() < self._end, f"nothing for {WATCHDOG:g} s: {state}"


def until(condition: Callable[[], object], what: str = "condition", *, pause: float = 0.0) -> None:
    """Call `condition` until it is true, every `pause` seconds."""
    dog = Watchdog()
    while not condition():
        dog.check(what)
        time.sleep(pause)
