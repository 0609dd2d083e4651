# SPDX-License-Identifier: BSD-3-Clause
import gc

import numpy as np
import pytest

from vhost_ioat import Burst

NET_HDR = ["flags", "gso_type", "hdr_len", "gso_size", "csum_start", "csum_offset"]
PACKETS = [bytes([n]) * length for n, length in enumerate([60, 64, 65, 1, 1514])]


@pytest.fixture
def burst():
    return Burst.from_packets(PACKETS)


def contents(burst):
    return [burst.tobytes(i) for i in range(len(burst))]


def test_holds_the_packets_in_order(burst):
    assert len(burst) == 5
    assert contents(burst) == PACKETS
    assert [bytes(packet) for packet in burst] == PACKETS
    assert [bytes(burst[i]) for i in range(5)] == PACKETS


def test_an_empty_burst_is_false():
    empty = Burst.from_packets([])
    assert not empty
    assert len(empty) == 0
    assert list(empty) == []
    assert empty.lengths.shape == (0,)
    assert empty.data.shape[0] == 0
    assert len(empty.gather()) == 0


def test_a_burst_with_packets_is_true(burst):
    assert burst


@pytest.mark.parametrize(
    "packet", [b"abc", bytearray(b"abc"), memoryview(b"abc"), np.frombuffer(b"abc", np.uint8), memoryview(b"xabc")[1:]]
)
def test_any_bytes_like_object_is_a_packet(packet):
    assert contents(Burst.from_packets([packet])) == [b"abc"]


@pytest.mark.parametrize("packets", [["abc"], [b"abc", 3], [None], 3, None])
def test_other_objects_are_a_type_error(packets):
    with pytest.raises(TypeError):
        Burst.from_packets(packets)


def test_is_not_made_by_calling_it():
    with pytest.raises(TypeError):
        Burst()


def test_indices_count_from_either_end(burst):
    assert bytes(burst[-1]) == PACKETS[-1]
    assert burst.tobytes(-5) == PACKETS[0]
    for i in (5, -6, 2**40, -(2**40)):
        with pytest.raises(IndexError):
            burst[i]
        with pytest.raises(IndexError):
            burst.tobytes(i)


def test_a_packet_is_a_writable_view(burst):
    view = burst[1]
    assert view.dtype == np.uint8
    assert view.shape == (64,)
    view[0] = 0xEE
    assert burst.tobytes(1)[0] == 0xEE


def test_data_is_one_matrix(burst):
    assert burst.data.dtype == np.uint8
    assert burst.data.shape[0] == 5
    assert burst.data.shape[1] >= 1514
    assert [bytes(row[:n]) for row, n in zip(burst.data, burst.lengths, strict=True)] == PACKETS
    burst.data[:, 0] = 7
    assert all(packet[0] == 7 for packet in contents(burst))


@pytest.mark.parametrize(
    ("longest", "stride"), [(1, 64), (64, 64), (65, 128), (1514, 1536), (4096, 4160), (4095, 4160), (65553, 65600)]
)
def test_stride_is_whole_cache_lines_and_no_multiple_of_a_page(longest, stride):
    assert Burst.from_packets([b"x", bytes(longest)]).data.shape[1] == stride


def test_lengths_and_headers_have_their_types(burst):
    assert burst.lengths.dtype == np.uint32
    assert burst.lengths.tolist() == [60, 64, 65, 1, 1514]
    assert list(burst.net_hdr.dtype.names) == NET_HDR
    assert burst.net_hdr.dtype.itemsize == 10
    assert burst.net_hdr.shape == (5,)
    assert not burst.net_hdr.tobytes().strip(b"\0")


def test_a_shorter_length_shortens_the_packet(burst):
    burst.lengths[0] = 5
    assert burst.tobytes(0) == PACKETS[0][:5]
    assert burst[0].shape == (5,)


def test_a_length_above_the_stride_is_refused(burst):
    burst.lengths[0] = burst.data.shape[1] + 1
    with pytest.raises(ValueError, match="stride"):
        burst[0]
    with pytest.raises(ValueError, match="stride"):
        burst.tobytes(0)


@pytest.mark.parametrize(
    "part", [slice(1, 3), slice(None), slice(3, None), slice(-2, None), slice(3, 1), slice(None, None, 2)]
)
def test_a_slice_shares_memory_lengths_and_headers(burst, part):
    piece = burst[part]
    assert contents(piece) == PACKETS[part]
    assert piece.lengths.tolist() == burst.lengths[part].tolist()
    if piece:
        piece[0][0] = 0xEE
        piece.lengths[0] = 1
        piece.net_hdr["gso_size"][0] = 1448
        first = range(5)[part][0]
        assert burst.tobytes(first) == b"\xee"
        assert burst.net_hdr["gso_size"][first] == 1448
        assert bytes(piece.data[0][:1]) == b"\xee"


def test_slices_of_slices(burst):
    assert contents(burst[1:][1:][::2]) == PACKETS[2::2]
    assert contents(burst[::-1]) == PACKETS[::-1]


@pytest.mark.parametrize(
    ("mask", "chosen"),
    [
        (np.array([True, False, True, False, True]), [0, 2, 4]),
        (np.array([4, 0, 0, -1]), [4, 0, 0, 4]),
        (np.array([], dtype=int), []),
        (np.zeros(5, bool), []),
        ([True, False, False, False, True], [0, 4]),
        ([3, 1], [3, 1]),
    ],
)
def test_a_mask_shares_packets_and_copies_lengths(burst, mask, chosen):
    piece = burst[mask]
    assert contents(piece) == [PACKETS[i] for i in chosen]
    if piece:
        piece.lengths[0] = 1
        assert burst.lengths[chosen[0]] == len(PACKETS[chosen[0]])
        piece[0][0] = 0xEE
        assert burst[chosen[0]][0] == 0xEE


@pytest.mark.parametrize("mask", [np.ones(4, bool), np.array([5]), np.array([-6]), np.ones((5, 1), bool), np.ones(5)])
def test_a_mask_that_does_not_fit_is_an_index_error(burst, mask):
    with pytest.raises(IndexError):
        burst[mask]


def test_a_masked_burst_has_no_matrix_but_gather_gives_one(burst):
    piece = burst[np.array([4, 1])]
    with pytest.raises(BufferError, match="gather"):
        piece.data  # noqa: B018
    copy = piece.gather()
    assert contents(copy) == [PACKETS[4], PACKETS[1]]
    assert copy.data.shape[0] == 2
    copy.data[:] = 0
    assert burst.tobytes(4) == PACKETS[4]


def test_gather_keeps_the_headers(burst):
    burst.net_hdr["csum_start"] = np.arange(5)
    assert burst[np.array([3, 2])].gather().net_hdr["csum_start"].tolist() == [3, 2]


def test_slices_and_masks_of_a_masked_burst(burst):
    piece = burst[np.array([4, 3, 2, 1])]
    assert contents(piece[1:3]) == [PACKETS[3], PACKETS[2]]
    assert contents(piece[np.array([0, 3])]) == [PACKETS[4], PACKETS[1]]


@pytest.mark.parametrize("mask", [[True, 2], [0, False], [1, np.True_], [True, False, True, 0, True]])
def test_a_mask_is_of_booleans_or_of_integers(burst, mask):
    with pytest.raises(IndexError, match="not both"):
        burst[mask]


@pytest.mark.parametrize("index", ["a", 1.5, None, {}])
def test_other_indices_are_refused(burst, index):
    with pytest.raises((TypeError, IndexError)):
        burst[index]


@pytest.mark.parametrize("take", [lambda b: b[2], lambda b: b[2:3].data[0][:65], lambda b: b[np.array([2])][0]])
def test_views_keep_the_memory(take):
    view = take(Burst.from_packets(PACKETS))
    gc.collect()
    others = [Burst.from_packets([b"\xff" * 2000] * 8) for _ in range(8)]
    assert bytes(view) == PACKETS[2]
    del others


def test_lengths_keep_the_memory():
    burst = Burst.from_packets(PACKETS)
    lengths, headers = burst.lengths, burst.net_hdr
    del burst
    gc.collect()
    others = [Burst.from_packets([b"\xff" * 2000] * 8) for _ in range(8)]
    assert lengths.tolist() == [60, 64, 65, 1, 1514]
    assert not headers.tobytes().strip(b"\0")
    del others


def test_repr_says_how_much(burst):
    assert "5 packets" in repr(burst)
    assert "1704 bytes" in repr(burst)
