# SPDX-License-Identifier: BSD-3-Clause
"""Test kit for virtual switches and their rings.

`model` is the split ring in plain Python, `frontend` is a raw vhost-user front end, and `explain` shows a ring as text.
These have no dependencies. `strategies` and `stateful` need Hypothesis, and pytest loads `plugin` automatically; the
extra `testing` installs both.
"""

from .explain import explain
from .frontend import RawFrontend
from .layout import BadRing, Memory, RingView
from .model import Device, Driver

__all__ = ["BadRing", "Device", "Driver", "Memory", "RawFrontend", "RingView", "explain"]
