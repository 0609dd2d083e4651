# SPDX-License-Identifier: BSD-3-Clause
"""Processes that can be started and killed by the hundred: forks of one that has imported everything already."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from typing import Self

_MOTHER = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
{code}
while sys.stdin.readline():
    child = os.fork()
    if child == 0:
        main()
        os._exit(0)
    print(child, flush=True)
"""


class Nursery:
    """`code` is Python source that defines main(); each child runs it until it is killed."""

    def __init__(self, code: str) -> None:
        self._mother = subprocess.Popen(
            [sys.executable, "-c", _MOTHER.format(code=code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._pidfd: int | None = None

    def start(self) -> None:
        """Start a child."""
        assert self._mother.stdin
        assert self._mother.stdout
        self._mother.stdin.write("\n")
        self._mother.stdin.flush()
        self._pidfd = os.pidfd_open(int(self._mother.stdout.readline()))

    def kill(self) -> None:
        """SIGKILL to the child of the last start(); returns when its sockets are closed."""
        if self._pidfd is None:
            return
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        select.select([self._pidfd], [], [])
        os.close(self._pidfd)
        self._pidfd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._mother:
            self.kill()
            assert self._mother.stdin
            self._mother.stdin.close()
