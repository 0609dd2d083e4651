# SPDX-License-Identifier: BSD-3-Clause
"""The command `vhost-ioat`, also available as `python -m vhost_ioat`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without the extra `cli`, say how to get it."""
    try:
        from .cli import app  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        if missing.name not in ("typer", "rich"):
            raise
        sys.exit(f"the command line of vhost-ioat needs {missing.name}: pip install 'vhost-ioat[cli]'")
    app()


if __name__ == "__main__":
    main()
