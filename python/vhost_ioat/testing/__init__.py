# SPDX-License-Identifier: BSD-3-Clause
"""Test kit for virtual switches and their rings.

`model` is the split ring in plain Python, `frontend` a raw vhost-user front end, `explain` shows a ring as text. These
need nothing. `strategies` and `stateful` need Hypothesis, `plugin` is loaded by pytest itself: the extra `testing`.
"""

from .explain import explain
from .frontend import RawFrontend
from .layout import BadRing, Memory, RingView
from .model import Device, Driver

__all__ = ["BadRing", "Device", "Driver", "Memory", "RawFrontend", "RingView", "explain"]
