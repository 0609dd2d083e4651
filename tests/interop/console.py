# SPDX-License-Identifier: BSD-3-Clause
"""A child process that is driven over its terminal: send a line, wait for what it answers."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from watchdog import WATCHDOG, until

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\x00")


class Console:
    """A process on a pseudo terminal. Everything it printed stays in `text`, for the message when a wait fails."""

    def __init__(self, command: Sequence[str], **environment: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=slave,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **environment},
        )
        os.close(slave)
        self.text = ""
        self._seen = 0  # how much of text earlier waits have consumed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def expect(self, pattern: str, timeout: float = WATCHDOG) -> re.Match[str]:
        """Wait for `pattern` in what was printed since the last match, and consume up to its end."""
        compiled = re.compile(pattern, re.MULTILINE)
        deadline = time.monotonic() + timeout
        while True:
            match = compiled.search(self.text, self._seen)
            if match:
                self._seen = match.end()
                return match
            if not self._read(deadline):
                state = "is silent" if self.process.poll() is None else f"ended with {self.process.returncode}"
                msg = f"{self.process.args!r} {state}; no {pattern!r} within {timeout:.0f} s in:\n{self.text[-4000:]}"
                raise AssertionError(msg)

    def _read(self, deadline: float) -> bool:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not select.select([self._master], [], [], remaining)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the last process on the terminal has gone
            return False
        self.text += _ESCAPES.sub("", data.decode(errors="replace"))
        return bool(data)

    def wait(self, timeout: float = WATCHDOG) -> int:
        """Wait for the process to end by itself, and return its exit status."""
        deadline = time.monotonic() + timeout
        while self._read(deadline):
            pass
        return self.process.wait(max(1.0, deadline - time.monotonic()))

    def kill(self) -> None:
        """End the process without ceremony, as a crash would. Idempotent."""
        if self._master < 0:
            return
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        os.close(self._master)
        self._master = -1


def wait_for_listener(path: str) -> None:
    """Wait until somebody listens on the socket `path`, without connecting to it."""

    def listening() -> bool:
        return any(
            line.endswith(f" {path}") and line.split()[3] == "00010000"  # __SO_ACCEPTCON, proc(5)
            for line in Path("/proc/net/unix").read_text().splitlines()
        )

    until(listening, f"somebody listens on {path}", pause=0.01)
