# SPDX-License-Identifier: BSD-3-Clause
"""The command line. It needs typer and rich (the extra `cli`)."""

from .app import app

__all__ = ["app"]
