# SPDX-License-Identifier: BSD-3-Clause
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_ioat import Burst
from vhost_ioat.testing import strategies

bursts = st.lists(strategies.packets(3000), max_size=12)


def contents(burst):
    return [burst.tobytes(i) for i in range(len(burst))]


@given(bursts, st.data())
def test_indexing_is_that_of_a_list(packets, data):
    """Any chain of slices and masks shows what the same indexing of a list of packets shows."""
    burst = Burst.from_packets(packets)
    for _ in range(data.draw(st.integers(0, 4))):
        n = len(packets)
        kind = data.draw(st.sampled_from(["slice", "booleans", "integers"]))
        if kind == "slice":
            part = data.draw(st.slices(n))
            burst, packets = burst[part], packets[part]
        elif kind == "booleans":
            mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
            burst, packets = burst[np.array(mask, bool)], [p for p, keep in zip(packets, mask, strict=True) if keep]
        else:
            rows = data.draw(st.lists(st.integers(-n, n - 1), max_size=8)) if n else []
            burst, packets = burst[np.array(rows, int)], [packets[i] for i in rows]
        assert len(burst) == len(packets)
        assert contents(burst) == packets
        assert burst.lengths.tolist() == [len(p) for p in packets]
        assert contents(burst.gather()) == packets
        assert [bytes(p) for p in burst] == packets


@given(bursts, st.integers(-20, 20))
def test_an_index_is_in_range_or_refused(packets, i):
    burst = Burst.from_packets(packets)
    if -len(packets) <= i < len(packets):
        assert bytes(burst[i]) == packets[i]
    else:
        with pytest.raises(IndexError):
            burst[i]
