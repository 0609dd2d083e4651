# SPDX-License-Identifier: BSD-3-Clause
"""What holds for all tests: no leaked resources, and skips that say what to install."""

from __future__ import annotations

import faulthandler
import functools
import os
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

from watchdog import WATCHDOG

ROOT = Path(__file__).parents[1]
PEERS_REQUIRED = os.environ.get("VHOST_IOAT_REQUIRE") == "peers"

# A loaded two-core machine makes any deadline a coin toss, so there is none; HYPOTHESIS_PROFILE picks another.
hypothesis.settings.register_profile("default", deadline=None, max_examples=100)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=200, print_blob=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=5000, stateful_step_count=200)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))

# A shell that starts this in the background has Ctrl-C ignored, and the programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # likewise, by nohup


def pytest_unconfigure() -> None:
    """A thread that never ends must not keep the process from ending: its stack is shown, and the run fails."""
    faulthandler.dump_traceback_later(WATCHDOG, exit=True)


@functools.cache
def _missing(things: tuple[str, ...]) -> str:
    check = subprocess.run([ROOT / "tools" / "need", *things], check=False, stderr=subprocess.PIPE, text=True)
    return check.stderr.strip()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """@pytest.mark.peers("qemu", "dpdk"): what tools/need must find, else the test is skipped."""
    for marker in item.iter_markers("peers"):
        if reason := _missing(marker.args):
            pytest.skip(reason)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long runs only when asked for: `-m full`, `-m vfio`."""
    for name in ("full", "vfio"):
        if name not in config.option.markexpr:
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(name)])
            items[:] = [item for item in items if not item.get_closest_marker(name)]


def _no_skips(report: pytest.TestReport | pytest.CollectReport) -> None:
    if PEERS_REQUIRED and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but VHOST_IOAT_REQUIRE=peers: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _no_skips(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _no_skips(report)
    return report


@pytest.fixture(scope="session")
def initramfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from interop.linux_guest import build_initramfs

    try:
        return build_initramfs(tmp_path_factory.mktemp("guest") / "initrd.gz")
    except OSError as error:
        pytest.skip(str(error))
