# SPDX-License-Identifier: BSD-3-Clause
"""The learning switch of examples/, whose engines fail at random. Arguments as there; prints what the engines did."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "examples"), str(Path(__file__).parents[1])]

import learning_switch  # noqa: E402

import vhost_ioat  # noqa: E402
from interop.failing_engine import failing_engine  # noqa: E402

with contextlib.ExitStack() as stack:
    ports = [stack.enter_context(vhost_ioat.EthVhost.from_devargs(text)) for text in sys.argv[1:]]
    for port in ports:
        stack.enter_context(failing_engine(port, pause=0.2))
    with contextlib.suppress(KeyboardInterrupt):
        learning_switch.switch(ports)
