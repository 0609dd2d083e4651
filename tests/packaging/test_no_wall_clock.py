# SPDX-License-Identifier: BSD-3-Clause
"""No test's result may depend on how fast the machine is: none sleeps, and what waits has the one long limit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

# What a test must not say, by language. Time that passes on a clock of the test's own is no matter.
NUMBER = r"(?P<seconds>[\d.]+)(?![\d.]*(ms|us| \*))"
PYTHON = re.compile(
    r"time\.(sleep|monotonic|perf_counter|time)\b"
    rf"|\b(timeout|deadline|patience)(: float)? ?= ?{NUMBER}"
    rf"|\.(wait|join|wait_for)\({NUMBER.replace('seconds', 'wait')}\)"
    rf"|select\(\[.*\], {NUMBER.replace('seconds', 'select')}\)"
)
CPP = re.compile(
    r"\bsleep_(for|until)\b|\bu?sleep\("
    r"|(Clock|steady_clock)::now\(\)"
    r"|\bwait_(for|until)\(.*\b[1-9]\d*(ms|s|us|min)\b"
    r"|\bpoll\(&\w+, \d+, [1-9]\d*\)"
    r"|\b(timeout|patience) ?= ?\d+(ms|s|us)\b"
)
LONG = 60.0  # seconds; 0 is a look and no wait

# Lines that are as they should be, and why.
ALLOWED = {
    ("watchdog.py", "time."): "the one limit itself",
    ("watchdog.hpp", "now()"): "the one limit itself",
    ("", "port.events(timeout="): "a pause between looks of until()",
    ("", "time.monotonic() + 60"): "the same",
    ("test_distribution.py", "time.monotonic() < end"): "the same",
    ("product.py", "time.monotonic()"): "the one limit, in a virtual machine",
    ("console.py", "time.monotonic()"): "waits for output with a limit that is given",
    ("test_interpreter_exit.py", "then = "): "the moment of an exit; any will do",
    ("test_guest.py", "timeout=0.05"): "that nobody is there is what it waits for",
    ("test_port_reports.py", "timeout=0.1) is False"): "that nothing comes is what it waits for",
    ("test_ioat_model.cpp", "start"): "a least time, which a slow machine only makes longer",
    ("test_event_loop.cpp", "start"): "a least time, which a slow machine only makes longer",
    ("", "arm(Clock::now()"): "what a timer is set to",
    ("", "when = Clock::now()"): "the same",
    ("test_endpoint.cpp", "{.timeout = 30ms}"): "that nobody is there is what it waits for",
    ("test_endpoint.cpp", ".patience = 100ms"): "that it ends is what the test waits for",
    ("main.cpp", "now()"): "how long it took, for the report",
    ("test_interpreter_exit.py", "time.sleep(0.02)"): "makes one of two orders likelier; either must hold",
    ("test_paused_process.py", "paused_until"): "how long the process stands still, no limit",
}


def says(path: Path, line: str) -> bool:
    """Is that a sentence of this kind?"""
    if path.suffix != ".py":
        return CPP.search(line.split("//", maxsplit=1)[0]) is not None
    found = PYTHON.search(line)
    numbers = [float(n) for n in found.groupdict().values() if n] if found else []
    return found is not None and not (numbers and all(n == 0 or n >= LONG for n in numbers))


def sentences() -> list[tuple[Path, int, str]]:
    """Every line that says one of these things."""
    return [
        (path, number, line.strip())
        for path in sorted([*TESTS.rglob("*.py"), *TESTS.rglob("*.[ch]pp")])
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if says(path, line)
    ]


def reason(path: Path, line: str) -> str | None:
    return next((why for (name, part), why in ALLOWED.items() if name in ("", path.name) and part in line), None)


def test_no_test_looks_at_the_clock() -> None:
    wrong = [f"{p.relative_to(TESTS)}:{n}: {line}" for p, n, line in sentences() if reason(p, line) is None]
    assert not wrong, "wait for a state with watchdog.until() or eventually():\n" + "\n".join(wrong)


@pytest.mark.parametrize(("name", "part"), ALLOWED)
def test_every_exception_is_still_needed(name: str, part: str) -> None:
    assert any(name in ("", path.name) and part in line for path, _, line in sentences())
