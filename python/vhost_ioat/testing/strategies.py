# SPDX-License-Identifier: BSD-3-Clause
"""Hypothesis strategies for what a port, a ring and a vhost-user session can be given."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from ..devargs import MAX_PATH, MAX_QUEUES, MIN_MEMPOOL, Devargs

__all__ = ["devargs", "devices"]

_SWITCHES = [field.name for field in dataclasses.fields(Devargs) if field.default is True]


def _is_socket_path(text: str) -> bool:
    return len(text.encode("utf-8", "surrogatepass")) <= MAX_PATH


def devices() -> SearchStrategy[str]:
    """DMA devices in the one form `Devargs` keeps: `0000:00:04.0` or `sw0`."""
    pci = st.builds(
        "{:04x}:{:02x}:{:02x}.{}".format,
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFF),
        st.integers(0, 0x1F),
        st.integers(0, 7),
    )
    return pci | st.builds("sw{}".format, st.integers(0, 99))


@st.composite
def devargs(draw: DrawFn) -> Devargs:
    """Valid `Devargs`, any of them."""
    queues = draw(st.sampled_from([1, 2, MAX_QUEUES]) | st.integers(1, MAX_QUEUES))
    txqs = draw(st.lists(st.integers(0, queues - 1), unique=True, max_size=4))
    engines = draw(st.lists(devices(), unique=True, min_size=len(txqs), max_size=len(txqs)))
    letters = st.characters(exclude_characters=",\0", exclude_categories=["Cs"])
    paths = st.text(letters, min_size=1).filter(_is_socket_path)
    names = st.from_regex(r"[A-Za-z0-9_.:-]{1,63}", fullmatch=True).filter(lambda name: name not in Devargs.__slots__)
    optional: dict[str, SearchStrategy[Any]] = {
        "client": st.booleans(),
        "name": names,
        "ioat_threshold": st.integers(0, 2**32 - 1) | st.just("auto"),
        "publish": st.sampled_from(["cpu", "dma"]),
        "sw_mode": st.sampled_from(["threaded", "inline", "stepped"]),
        "socket_mode": st.integers(0, 0o777),
        "mempool": st.integers(MIN_MEMPOOL, 2**63 - 1),
        "max_guest_mem": st.integers(4096, 2**63 - 1),
        **dict.fromkeys(_SWITCHES, st.booleans()),
    }
    chosen = draw(st.fixed_dictionaries({}, optional=optional))
    return Devargs(draw(paths), queues=queues, ioats=dict(zip(txqs, engines, strict=True)), **chosen)
