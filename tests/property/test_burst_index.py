# SPDX-License-Identifier: BSD-3-Clause
"""`burst[key]` against numpy: the same packets as from an array of as many entries, or an IndexError or TypeError."""

from __future__ import annotations

import array

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from vhost_ioat import Burst

SIZE = 7
BURST = Burst.from_packets([bytes([n]) * 60 for n in range(SIZE)])
ARRAY = np.arange(SIZE)
WHOLE = st.integers(-SIZE - 2, SIZE + 2)
HUGE = st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 2**80])
INTEGERS = WHOLE | HUGE
NUMPY_INTEGERS = st.sampled_from([np.int8, np.uint8, np.int16, np.uint32, np.int64, np.uint64])


class Index:
    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


SCALARS = st.one_of(
    INTEGERS,
    st.booleans(),
    st.floats(),
    st.none(),
    st.just(...),
    st.text(max_size=2),
    st.binary(max_size=2),
    st.builds(Index, INTEGERS),
    st.builds(np.bool_, st.booleans()),
    st.builds(np.float64, WHOLE),
    st.builds(np.array, WHOLE),
    st.builds(np.array, st.booleans()),
    st.builds(np.array, st.floats()),
    st.builds(np.int64, WHOLE),
    st.just(np.uint64(2**64 - 1)),
    st.just(np.datetime64(3, "s")),
    st.just({}),
    st.just({1, 2}),
)
ARRAYS = npst.arrays(
    st.one_of(
        npst.integer_dtypes(),
        npst.unsigned_integer_dtypes(),
        npst.boolean_dtypes(),
        npst.floating_dtypes(),
        npst.datetime64_dtypes(),
        st.just(np.dtype(object)),
        st.just(np.dtype("S1")),
    ),
    st.one_of(st.integers(0, SIZE + 1), st.just(SIZE), npst.array_shapes(max_dims=3, min_side=0, max_side=SIZE)),
)
SMALL = st.builds(np.array, st.lists(st.integers(0, SIZE)), NUMPY_INTEGERS)
MASKS = npst.arrays(bool, SIZE)
LISTS = st.lists(st.one_of(INTEGERS, st.booleans(), st.builds(np.bool_, st.booleans()), SCALARS), max_size=SIZE + 1)
ENDS = st.none() | INTEGERS
SLICES = st.builds(slice, ENDS, ENDS, ENDS)
OTHERS = st.one_of(
    st.builds(range, st.integers(0, SIZE)),
    st.builds(lambda values: array.array("q", values), st.lists(WHOLE)),
    st.builds(lambda values: memoryview(bytes(values)), st.lists(st.integers(0, SIZE))),
    MASKS.map(list),
    MASKS.map(lambda mask: mask.tolist()),
    st.lists(WHOLE),
    st.lists(st.lists(WHOLE, max_size=3), max_size=3),
    st.tuples(INTEGERS),
    st.tuples(WHOLE, WHOLE),
    st.tuples(),
    st.tuples(MASKS),
)


def chosen(key):
    """The packets that a burst gives for a key, or the kind of its refusal."""
    try:
        part = BURST[key]
    except (IndexError, TypeError):
        return "refused"
    except ValueError:
        return "no step"
    if isinstance(part, Burst):
        return [part.tobytes(i)[0] for i in range(len(part))]
    return int(part[0])


def by_numpy(key):
    try:
        part = ARRAY[key]
    except (IndexError, TypeError, OverflowError, DeprecationWarning):
        return "refused"
    except ValueError:
        return "no step"
    return part.tolist()


@given(st.one_of(SCALARS, ARRAYS, SMALL, MASKS, LISTS, SLICES, OTHERS))
@example([True, 2])
@example([2, np.True_])
@example(np.array([2**64 - 1], np.uint64))
@example((0, 3))
@example([])
@example(np.array([]))
@example(np.array(3))
@example(np.ones(SIZE))
@example(np.array([1, 2], dtype=object))
@example([[0, 1]])
@example(True)
def test_a_burst_is_indexed_as_numpy_means_it_or_not_at_all(key):
    got = chosen(key)
    assert got in ("refused", by_numpy(key))


@given(st.one_of(WHOLE, MASKS, SMALL, SLICES, st.lists(WHOLE)))
def test_what_numpy_takes_and_has_one_meaning_is_taken(key):
    assert chosen(key) == by_numpy(key)


@pytest.mark.parametrize(
    "key",
    [
        (0, 12),
        (0,),
        (),
        [True, 2],
        [np.False_, 1, 2],
        np.array([2**64 - 1], np.uint64),
        np.uint64(2**64 - 1),
        np.ones(SIZE),
        np.array([]),
        True,
        None,
        ...,
        [None],
        ["0"],
        [0.0],
        "0",
        b"0",
        {},
        np.ones((SIZE, 1), bool),
        np.ones((1, SIZE), bool),
        np.array(True),
        np.array([1, 2], "m8[s]"),
        np.array([1], dtype=object),
        [True] * (SIZE + 1),
        [SIZE],
        [-SIZE - 1],
        BURST,
    ],
    ids=repr,
)
def test_is_an_index_error(key):
    with pytest.raises(IndexError):
        BURST[key]


@pytest.mark.parametrize("index", [True, False, np.True_, 1.0, "0", None, [0], SIZE, -SIZE - 1, 2**64])
def test_tobytes_takes_one_integer(index):
    with pytest.raises((IndexError, TypeError)):
        BURST.tobytes(index)
