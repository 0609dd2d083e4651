# SPDX-License-Identifier: BSD-3-Clause
"""The pytest plugin: fixtures for a port with an embedded guest, and rings explained in failure reports."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from .explain import explain
from .layout import RingView

if TYPE_CHECKING:
    from ..guest import Guest
    from ..port import EthVhost

__all__ = ["linked", "socket_path"]


@pytest.fixture
def socket_path() -> Iterator[str]:
    """A path for a vhost-user socket, short enough for a socket address, in its own directory."""
    with TemporaryDirectory(prefix="vhost") as directory:
        yield str(Path(directory) / "v.sock")


@pytest.fixture
def linked(socket_path: str) -> Iterator[Callable[..., tuple[EthVhost, Guest]]]:
    """A function that makes a started port and an embedded guest connected to it; it may be called several times.

    Keywords are passed to `EthVhost`, and those in `guest` (a dict) to `Guest`. All are closed at the end of the test.
    """
    from ..guest import Guest  # noqa: PLC0415
    from ..port import EthVhost  # noqa: PLC0415

    numbers = itertools.count()
    with ExitStack() as opened:

        def link(guest: dict[str, Any] | None = None, **options: Any) -> tuple[EthVhost, Guest]:
            path = f"{socket_path}{next(numbers)}"
            port = opened.enter_context(EthVhost(path, **options))
            settings = {"queues": options.get("queues", 1), **(guest or {})}
            peer = opened.enter_context(Guest(path, server=options.get("client", False), **settings))
            peer.connect(timeout=10.0)
            assert port.wait_link(timeout=10.0)
            return port, peer

        yield link


def _rings(value: object, depth: int = 0) -> Iterator[RingView]:
    if isinstance(value, RingView):
        yield value
    elif depth == 0:
        for inner in getattr(value, "__dict__", {}).values():
            yield from _rings(inner, 1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,  # noqa: ARG001
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a failed test every ring in one of its variables, or in an attribute of one."""
    report = yield
    if call.excinfo is not None and report.failed:
        found = {
            id(ring): ring for entry in call.excinfo.traceback for v in entry.locals.values() for ring in _rings(v)
        }
        report.sections += [("split ring", explain(ring)) for ring in found.values()]
    return report
