# SPDX-License-Identifier: BSD-3-Clause
"""Hypothesis strategies for the input of a port, a ring and a vhost-user session."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from ..devargs import MAX_MEMPOOL, MAX_PATH, MAX_QUEUES, MIN_MEMPOOL, Devargs
from .frontend import REQUESTS, Message
from .layout import Descriptor

__all__ = [
    "chains",
    "descriptors",
    "devargs",
    "devices",
    "messages",
    "packets",
    "region_tables",
    "ring_indices",
    "ring_sizes",
]

_U16, _U32, _U64 = 2**16 - 1, 2**32 - 1, 2**64 - 1
_SWITCHES = [
    field.name for field in dataclasses.fields(Devargs) if isinstance(field.default, bool) and field.name != "client"
]


def _is_socket_path(text: str) -> bool:
    return len(text.encode()) <= MAX_PATH


def devices() -> SearchStrategy[str]:
    """DMA devices in the form that `Devargs` stores: `0000:00:04.0` or `sw0`."""
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
    """Any valid `Devargs`."""
    queues = draw(st.sampled_from([1, 2, MAX_QUEUES]) | st.integers(1, MAX_QUEUES))
    txqs = draw(st.lists(st.integers(0, queues - 1), unique=True, max_size=4))
    engines = draw(st.lists(devices(), min_size=len(txqs), max_size=len(txqs)))
    letters = st.characters(exclude_characters=",\0", exclude_categories=["Cs"])
    paths = st.text(letters, min_size=1).filter(_is_socket_path)
    names = st.from_regex(r"[A-Za-z0-9_.:-]{1,63}", fullmatch=True).filter(lambda name: name not in Devargs.__slots__)
    optional: dict[str, SearchStrategy[Any]] = {
        "client": st.booleans(),
        "name": names,
        "ioat_threshold": st.integers(0, _U32) | st.just("auto"),
        "publish": st.sampled_from(["cpu", "dma"]),
        "sw_mode": st.sampled_from(["threaded", "inline", "stepped"]),
        "socket_mode": st.integers(0, 0o777),
        "mempool": st.integers(MIN_MEMPOOL, MAX_MEMPOOL),
        "max_guest_mem": st.integers(4096, 2**63 - 1),
        **dict.fromkeys(_SWITCHES, st.booleans()),
    }
    chosen = draw(st.fixed_dictionaries({}, optional=optional))
    return Devargs(draw(paths), queues=queues, ioats=dict(zip(txqs, engines, strict=True)), **chosen)


def ring_sizes(most: int = 32768) -> SearchStrategy[int]:
    """Sizes of split rings: powers of two from 1 to `most`. VIRTIO 1.2, 2.7."""
    return st.integers(0, most.bit_length() - 1).map(lambda order: 1 << order)


def ring_indices() -> SearchStrategy[int]:
    """Free-running 16-bit indices, often just before they wrap."""
    return st.integers(_U16 - 8, _U16) | st.integers(0, _U16)


@st.composite
def chains(draw: DrawFn, data_bytes: int, most: int = 8) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Readable and writable buffers, at least one, as (offset, bytes); some have 0 bytes, some overlap."""

    def buffers(least: int) -> list[tuple[int, int]]:
        offsets = draw(st.lists(st.integers(0, data_bytes), min_size=least, max_size=most // 2))
        return [(at, draw(st.integers(0, min(data_bytes - at, 4096)))) for at in offsets]

    readable = buffers(0)
    return readable, buffers(0 if readable else 1)


def descriptors(near: Sequence[int] = (0,)) -> SearchStrategy[Descriptor]:
    """Descriptors as a hostile driver writes them; addresses are often close to one of `near`."""
    close = st.builds(lambda base, offset: max(0, base + offset), st.sampled_from(near), st.integers(-64, 1 << 16))
    lengths = st.sampled_from([0, 1, 15, 16, 32, 128, 4096, _U32]) | st.integers(0, _U32)
    flags = st.integers(0, 7) | st.integers(0, _U16)
    return st.builds(
        Descriptor, close | st.integers(0, _U64), lengths, flags, st.integers(0, 64) | st.integers(0, _U16)
    )


@st.composite
def region_tables(draw: DrawFn, most: int = 8) -> list[tuple[int, int]]:
    """Guest memory regions (address, bytes) in any order: whole pages, apart or adjacent, never overlapping."""
    sizes = draw(st.lists(st.integers(1, 16), min_size=1, max_size=most))
    gpa, regions = draw(st.sampled_from([0, 1 << 20, 1 << 32])), []
    for pages in sizes:
        regions.append((gpa, pages * 4096))
        gpa += (pages + draw(st.sampled_from([0, 0, 1, 1 << 20]))) * 4096
    return draw(st.permutations(regions))


def messages() -> SearchStrategy[Message]:
    """vhost-user messages, well-formed or not: any id, size, flags and number of fds.

    The `fds` are kinds ("eventfd", "memfd", "pipe", "socket"); `frontend.open_fds` opens real ones for them.
    """
    kinds = st.lists(st.sampled_from(["eventfd", "memfd", "pipe", "socket"]), max_size=9)
    fds = st.sampled_from([[], ["eventfd"], ["memfd"]]) | kinds
    numbers = st.integers(0, 8) | st.integers(0, _U64) | st.sampled_from([0x100, 256, 32768])
    bodies = st.lists(numbers, max_size=6).map(lambda words: b"".join(word.to_bytes(8, "little") for word in words))

    def of_type(name: str) -> SearchStrategy[Message]:
        number, size = REQUESTS[name]
        exact = st.lists(numbers, min_size=size // 8, max_size=size // 8).map(
            lambda words: b"".join(word.to_bytes(8, "little") for word in words)
        )
        states = st.builds(
            lambda index, value: index.to_bytes(4, "little") + value.to_bytes(4, "little"),
            st.integers(0, 4),
            st.sampled_from([0, 1, 255, 256, 65535]),
        )
        body = exact | states if size == 8 else exact
        return st.builds(Message, st.just(number), body, fds=fds, flags=st.sampled_from([1, 9]))

    anything = st.builds(
        Message,
        st.integers(0, 64) | st.integers(0, _U32),
        bodies | st.binary(max_size=64),
        fds=kinds,
        flags=st.sampled_from([1, 9]) | st.integers(0, _U32),
        size=st.none() | st.sampled_from([0, 1, 4096, _U32]),
    )
    return st.sampled_from(sorted(REQUESTS)).flatmap(of_type) | anything


def packets(most: int = 65553) -> SearchStrategy[bytes]:
    """Packets of 1 to `most` bytes, often of sizes that matter, with contents that differ from packet to packet."""
    lengths = st.sampled_from([n for n in (1, 14, 60, 64, 1023, 1024, 1514, 9014, most) if n <= most]) | st.integers(
        1, most
    )
    return st.builds(fill, lengths, st.integers(0, _U32))


def fill(length: int, seed: int) -> bytes:
    """`length` bytes that depend on `seed` and on their position, so that a shifted or swapped block is noticed."""
    block = b"".join(((seed + n * 2654435761) & _U32).to_bytes(4, "little") for n in range(-(-length // 4) % 4096 or 1))
    return (block * (-(-length // len(block))))[:length]
