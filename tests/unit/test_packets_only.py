# SPDX-License-Identifier: BSD-3-Clause
"""What `tx_burst`, `Burst.from_packets` and `Guest.send` take for packets, and what they refuse before sending any."""

from __future__ import annotations

import array
import collections
import ctypes
import mmap
import types

import numpy as np
import pytest

from traffic import at_guest, until
from vhost_ioat import Burst

RAW = bytes(range(60))
BYTES = np.frombuffer(RAW, np.uint8)


class MyBytes(bytes):
    pass


class Subclass(np.ndarray):
    pass


class WithArray:
    def __array__(self, *args, **options):
        return BYTES.reshape(1, 60)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return [RAW][index]


class WithBuffer:
    def __buffer__(self, flags):
        return memoryview(RAW)


class OwnSequence:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return [RAW, RAW][index]


PACKETS = {
    "bytes": RAW,
    "bytearray": bytearray(RAW),
    "memoryview": memoryview(RAW),
    "slice of a memoryview": memoryview(b"x" + RAW)[1:],
    "memoryview of int8": memoryview(RAW).cast("b"),
    "memoryview of chars": memoryview(RAW).cast("c"),
    "memoryview of ctypes": memoryview((ctypes.c_ubyte * 60)(*RAW)),
    "uint8": BYTES,
    "int8": BYTES.astype(np.int8),
    "row": np.vstack([BYTES, BYTES])[1],
    "part of a row": np.tile(BYTES, (2, 2))[1, 60:],
    "array of B": array.array("B", RAW),
    "array of b": array.array("b", RAW),
    "subclass of bytes": MyBytes(RAW),
}

NO_PACKETS = {
    "pointers": np.array([object()] * 8, dtype=object),
    "floats": np.zeros(60),
    "dates": np.zeros(60, "datetime64[s]"),
    "durations": np.zeros(60, "timedelta64[s]"),
    "uint16": np.zeros(60, np.uint16),
    "big-endian": np.zeros(60, ">u2"),
    "int64": np.zeros(60, np.int64),
    "complex": np.zeros(60, complex),
    "structured": np.zeros(60, [("a", "u1")]),
    "bools": np.zeros(60, bool),
    "S1": np.zeros(60, "S1"),
    "V1": np.zeros(60, "V1"),
    "S60": np.zeros(3, "S60"),
    "text": np.zeros(60, "U1"),
    "a scalar": np.uint8(7),
    "a bytes scalar": np.bytes_(RAW),
    "a void scalar": np.void(RAW),
    "2-D": np.zeros((2, 60), np.uint8),
    "0-D": np.zeros((), np.uint8),
    "strided": np.zeros(120, np.uint8)[::2],
    "backwards": BYTES[::-1],
    "a column": np.zeros((60, 60), np.uint8)[:, 0],
    "masked": np.ma.masked_array(BYTES, BYTES > 3),
    "a subclass of ndarray": BYTES.view(Subclass),
    "memoryview of uint16": memoryview(RAW).cast("H"),
    "memoryview of floats": memoryview(RAW + bytes(4)).cast("d"),
    "memoryview of bools": memoryview(bytes(60)).cast("?"),
    "memoryview of two dimensions": memoryview(RAW).cast("B", (6, 10)),
    "memoryview with steps": memoryview(RAW)[::2],
    "memoryview of pointers": memoryview((ctypes.c_void_p * 4)()),
    "array of H": array.array("H", [1] * 30),
    "array of d": array.array("d", [1.0] * 8),
    "array of u": array.array("u", "text"),
    "ctypes": (ctypes.c_ubyte * 60)(*RAW),
    "a mapping of memory": mmap.mmap(-1, 4096),
    "__buffer__": WithBuffer(),
    "__array__": WithArray(),
    "text of str": "packet",
    "int": 60,
    "float": 1.5,
    "None": None,
    "list of ints": list(RAW),
    "a burst": Burst.from_packets([RAW]),
    "a type": bytes,
}
RELEASED = memoryview(RAW)
RELEASED.release()
NO_PACKETS["a released memoryview"] = RELEASED

NO_SEQUENCES = {
    "one array": BYTES,
    "one array of objects": np.array([RAW, RAW], dtype=object),
    "S60 rows": np.zeros(3, "S60"),
    "V60 rows": np.zeros(3, "V60"),
    "rows of floats": np.zeros((3, 60)),
    "no rows of floats": np.zeros((0, 60)),
    "rows of bools": np.zeros((3, 60), bool),
    "rows of uint16": np.zeros((3, 60), np.uint16),
    "rows of objects": np.zeros((3, 60), dtype=object),
    "3-D": np.zeros((2, 3, 60), np.uint8),
    "0-D": np.zeros((), np.uint8),
    "Fortran order": np.zeros((3, 60), np.uint8, order="F"),
    "columns": np.zeros((3, 120), np.uint8)[:, ::2],
    "masked": np.ma.masked_array(np.zeros((3, 60), np.uint8)),
    "a subclass of ndarray": np.zeros((3, 60), np.uint8).view(Subclass),
    "bytes": RAW,
    "bytearray": bytearray(RAW),
    "memoryview": memoryview(RAW),
    "rows of a memoryview": memoryview(RAW).cast("B", (6, 10)),
    "array": array.array("B", RAW),
    "ctypes": ((ctypes.c_ubyte * 60) * 2)(),
    "str": "packets",
    "a set": {RAW},
    "a frozenset": frozenset({RAW}),
    "a dict": {RAW: RAW},
    "keys": {RAW: RAW}.keys(),
    "values": {0: RAW}.values(),
    "a mapping": collections.UserDict({RAW: RAW}),
    "a mapping proxy": types.MappingProxyType({RAW: RAW}),
    "a generator": (RAW for _ in range(2)),
    "an iterator": iter([RAW]),
    "map": map(bytes, [RAW]),
    "__array__": WithArray(),
    "numbers": range(60),
    "None": None,
    "int": 60,
    "a type": bytes,
}


@pytest.fixture
def senders(linked):
    """All that take packets, and what came out of the port to the guest and back since."""
    port, guest = linked()
    return port, guest, (lambda p: port.tx_burst(0, p), lambda p: guest.send(0, p), Burst.from_packets)


@pytest.mark.parametrize("packet", PACKETS.values(), ids=PACKETS)
def test_a_packet_arrives_as_it_is(packet, senders):
    port, guest, _ = senders
    assert Burst.from_packets([packet]).tobytes(0) == RAW
    assert port.tx_burst(0, (packet,)) == 1
    assert at_guest(guest, 0, 1) == [RAW]


@pytest.mark.parametrize("name", NO_PACKETS)
def test_anything_else_is_a_type_error_before_anything_is_sent(name, senders):
    port, guest, takers = senders
    for take in takers:
        with pytest.raises(TypeError, match=r"packet 2 is an? .*; a packet is bytes"):
            take([RAW, RAW, NO_PACKETS[name], RAW])
    marker = b"m" * 60
    assert port.tx_burst(0, [marker]) == 1
    assert at_guest(guest, 0, 1) == [marker]  # nothing went before it
    assert guest.send(0, [marker]) == 1
    got = []
    until(lambda: got.extend(bytes(packet) for packet in port.rx_burst(0)) or got, "the marker")
    assert got == [marker]


@pytest.mark.parametrize(
    ("packet", "says"),
    [
        (NO_PACKETS["pointers"], "ndarray of dtype object"),
        (NO_PACKETS["floats"], "ndarray of dtype float64"),
        (NO_PACKETS["big-endian"], "ndarray of dtype >u2"),
        (NO_PACKETS["2-D"], "dtype uint8 and 2 dimensions"),
        (NO_PACKETS["strided"], "not contiguous"),
        (NO_PACKETS["array of d"], "array.array of type d"),
        (NO_PACKETS["a bytes scalar"], r"numpy.bytes_ of type \|S60"),
        (NO_PACKETS["memoryview of uint16"], "memoryview of format 'H'"),
    ],
)
def test_the_error_names_the_type(packet, says):
    with pytest.raises(TypeError, match=says):
        Burst.from_packets([packet])


@pytest.mark.parametrize("name", NO_SEQUENCES)
def test_what_is_no_sequence_of_packets_is_a_type_error(name, senders):
    _, guest, takers = senders
    for take in takers:
        with pytest.raises(TypeError, match="packet"):
            take(NO_SEQUENCES[name])
    assert guest.recv(0) == []


@pytest.mark.parametrize(
    "packets",
    [
        [RAW, RAW],
        (RAW, RAW),
        collections.deque([RAW, RAW]),
        OwnSequence(),
        np.vstack([BYTES, BYTES]),
        np.vstack([BYTES, BYTES]).astype(np.int8),
        np.tile(BYTES, (4, 2))[::2, :60],
        np.tile(BYTES, (2, 1))[::-1],
        Burst.from_packets([RAW, RAW]),
    ],
    ids=lambda packets: type(packets).__name__,
)
def test_sequences_of_packets(packets, senders):
    port, guest, _ = senders
    assert port.tx_burst(0, packets) == 2
    assert at_guest(guest, 0, 2) == [RAW, RAW]
    assert guest.send(0, packets) == 2


def test_no_rows_are_no_packets(senders):
    assert senders[0].tx_burst(0, np.zeros((0, 60), np.uint8)) == 0
    assert len(Burst.from_packets(np.zeros((0, 60), np.uint8))) == 0


def test_one_packet_of_a_burst_is_no_sequence(senders):
    port, guest, _ = senders
    burst = Burst.from_packets([RAW])
    with pytest.raises(TypeError, match=r"one packet.*\[packet\]"):
        port.tx_burst(0, burst[0])
    assert port.tx_burst(0, [burst[0]]) == 1
    assert at_guest(guest, 0, 1) == [RAW]


def leftovers():
    """Packet memory that others have used: bursts made from now on lie where these bytes are."""
    return [Burst.from_packets([b"\xee" * 4000] * 60) for _ in range(8)]


@pytest.fixture
def received(linked):
    """A function that receives packets of these lengths in memory full of earlier packets."""
    port, guest = linked(guest={"ring_size": 1024, "rx_buf": 4096})

    def receive(lengths):
        for _ in range(20):  # these fill the arena's blocks
            guest.send(0, [b"\xee" * 1500] * len(lengths))
            until(lambda: port.rx_burst(0, len(lengths)), "earlier packets")
        while port.rx_burst(0):
            pass
        guest.send(0, [b"a" * length for length in lengths])
        burst = port.rx_burst(0, len(lengths))
        while len(burst) < len(lengths):
            guest.send(0, [b"a" * length for length in lengths[len(burst) :]])
            burst = port.rx_burst(0, len(lengths))
        return burst

    return port, guest, receive


LENGTHS = [60, 1500, 64, 100]


@pytest.mark.parametrize(
    "look",
    [
        lambda b: b.data,
        lambda b: b[1:].data,
        lambda b: b[::-1].data,
        lambda b: b[::2].data,
        lambda b: b[1:][1:].data,
    ],
)
def test_data_shows_nothing_of_other_packets(look, received):
    *_, receive = received
    rows = look(receive(LENGTHS))
    assert set(np.unique(rows)) <= {0, ord("a")}
    kept = leftovers()
    del kept
    rows = look(Burst.from_packets([b"a" * length for length in LENGTHS]))
    assert set(np.unique(rows)) <= {0, ord("a")}


@pytest.mark.parametrize(
    "grown",
    [
        lambda b: (b.lengths.fill(1536), [bytes(p) for p in b])[1],
        lambda b: (b.lengths.fill(1536), [b.tobytes(i) for i in range(len(b))])[1],
        lambda b: (b[1:].lengths.fill(1536), [bytes(p) for p in b[1:]])[1],
        lambda b: [(m.lengths.fill(1536), bytes(m[0]))[1] for m in [b[[0]], b[[2, 3]]]],
        lambda b: [(m.lengths.fill(1536), bytes(m[0]))[1] for m in [b[b.lengths < 100], b[[3, 2]][1:]]],
        lambda b: (b.lengths.fill(1536), [bytes(p) for p in b.gather()])[1],
        lambda b: (b.lengths.fill(1536), [bytes(p) for p in b.detach()])[1],
        lambda b: [bytes(row) for row in b.gather().data],
        lambda b: [bytes(row) for row in b.detach().data],
    ],
)
def test_a_packet_that_grows_grows_by_zeros(grown, received):
    *_, receive = received
    for packet in grown(receive(LENGTHS)):
        assert packet.rstrip(b"\0").strip(b"a") == b""


@pytest.mark.parametrize("packets", [lambda b: b.data, lambda b: (b.lengths.fill(1536), b)[1], lambda b: list(b.data)])
def test_padding_that_is_sent_is_zeros(packets, received):
    port, guest, receive = received
    assert port.tx_burst(0, packets(receive(LENGTHS))) == len(LENGTHS)
    for packet, length in zip(at_guest(guest, 0, len(LENGTHS)), LENGTHS, strict=True):
        assert packet == b"a" * length + bytes(1536 - length)


def test_what_the_program_wrote_into_the_padding_stays(received):
    *_, receive = received
    burst = receive(LENGTHS)
    part = burst[1:3]
    burst.data[2, 64:68] = 5
    assert part.data[1, 64:68].tolist() == [5] * 4
    part.lengths[1] = 68
    assert burst.tobytes(2) == b"a" * 64 + b"\5" * 4
    chosen = burst[[2]]
    chosen.lengths[0] = 70
    assert chosen.tobytes(0) == b"a" * 64 + b"\5" * 4 + b"\0\0"


def test_a_detached_burst_holds_only_itself(received):
    port, guest, receive = received
    burst = receive(LENGTHS)
    detached = burst[2:3].detach()
    assert (len(detached), detached.tobytes(0), detached.data.shape) == (1, b"a" * 64, (1, 64))
    detached[0][0] = 7
    assert burst[2][0] == ord("a")
    assert port.tx_burst(0, detached) == 1
    assert at_guest(guest, 0, 1) == [b"\7" + b"a" * 63]


def test_cut_up_detached_bursts_keep_their_memory():
    detached = Burst.from_packets([bytes([n]) * 60 for n in range(8)]).detach()
    parts = [detached[2:], detached[::-2], detached[[5, 1]], detached[[5, 1]][1:], detached[1:][[0, 2]][[1]]]
    views = [detached[3], detached[[4]][0], detached[4:].data[1]]
    masks = detached
    for _ in range(200_000):  # and none holds the one before it
        masks = masks[[0]]
    del detached
    churn = [Burst.from_packets([b"\xff" * 60] * 8).detach() for _ in range(64)]
    assert [[part[i][0] for i in range(len(part))] for part in parts] == [
        [2, 3, 4, 5, 6, 7],
        [7, 5, 3, 1],
        [5, 1],
        [1],
        [3],
    ]
    assert [view[0] for view in views] == [3, 4, 5]
    assert masks.tobytes(0) == bytes(60)
    del churn, masks


def test_an_empty_burst_detaches():
    assert len(Burst.from_packets([]).detach()) == 0


def test_the_common_memory_says_that_it_is_exhausted_and_what_to_do():
    held = []
    with pytest.raises(MemoryError, match="detach"):  # noqa: PT012
        while True:
            held.append(Burst.from_packets([bytes(60000)] * 16))
    with pytest.raises(MemoryError, match="67108864 bytes"):
        held[0].gather()
    assert held[0].detach().tobytes(15) == bytes(60000)
    del held
    assert len(Burst.from_packets([bytes(60000)] * 16)) == 16
