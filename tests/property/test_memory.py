# SPDX-License-Identifier: BSD-3-Clause
"""Guest memory against plain bytes: what is where, and what lies across a border."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_ioat import ConfigError, GuestError
from vhost_ioat.testing import BadRing, Driver, Memory, RingView, strategies
from vhost_ioat.virtio import GuestMemory, SplitRing


def edges(regions):
    return [edge for gpa, size in regions for edge in (gpa, gpa + size)]


@given(strategies.region_tables(), st.data())
def test_a_view_is_the_bytes_of_one_region(regions, data):
    native = GuestMemory(regions)
    near = data.draw(st.sampled_from(edges(regions)))
    gpa, n = max(0, near + data.draw(st.integers(-5000, 5000))), data.draw(st.integers(1, 9000))
    if any(start <= gpa and gpa + n <= start + size for start, size in regions):
        native.view(gpa, n, writable=True)[:] = 7
        assert bytes(native.view(gpa, n)) == b"\7" * n
        assert not native.view(gpa, n).flags.writeable
    else:
        with pytest.raises(GuestError):
            native.view(gpa, n)


@given(strategies.region_tables(), st.data())
def test_views_of_a_region_are_the_same_bytes(regions, data):
    native = GuestMemory(regions)
    gpa, size = data.draw(st.sampled_from(regions))
    at = data.draw(st.integers(0, size - 1))
    native.view(gpa, size, writable=True)[at] = 0xEE
    assert native.view(gpa + at, 1)[0] == 0xEE
    assert sum(int(native.view(start, length).sum()) for start, length in regions) == 0xEE


@given(strategies.region_tables(), st.data())
def test_a_buffer_is_found_exactly_when_every_byte_of_it_is(regions, data):
    """One buffer, near the edges of regions, maybe over several: the ring and plain bytes agree."""
    ring = 1 << 40
    native = GuestMemory([*regions, (ring, 4096)])
    memory = Memory((gpa, native.view(gpa, size, writable=True)) for gpa, size in [*regions, (ring, 4096)])
    view = RingView(memory, 1, ring, ring + 16, ring + 32)
    near = data.draw(st.sampled_from(edges(regions)))
    gpa, n = max(0, near + data.draw(st.integers(-5000, 5000))), data.draw(st.integers(1, 70000))
    Driver(view).add([(gpa, n)], [])
    view.avail_idx = 1
    device = SplitRing(native, 1, view.desc, view.avail, view.used)
    try:
        memory.pieces(gpa, n)
    except BadRing:
        with pytest.raises(GuestError, match="not"):
            device.pop()
    else:
        assert device.pop().readable == [(gpa, n)]


@given(strategies.region_tables(), st.data())
def test_overlapping_regions_are_refused(regions, data):
    gpa, size = data.draw(st.sampled_from(regions))
    start = data.draw(st.integers(gpa // 4096, (gpa + size) // 4096 - 1)) * 4096
    with pytest.raises(ConfigError):
        GuestMemory([*regions, (start, 4096)])
