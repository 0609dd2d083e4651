# SPDX-License-Identifier: BSD-3-Clause
"""Net headers are set by the names of their fields, whatever their order in memory."""

from __future__ import annotations

import numpy as np
import pytest

from traffic import until
from vhost_ioat import Burst

FIELDS = [("flags", "u1"), ("gso_type", "u1"), ("hdr_len", "<u2"), ("gso_size", "<u2"), ("csum_start", "<u2")]
FIELDS.append(("csum_offset", "<u2"))
VALUES = {"flags": 1, "gso_type": 0, "hdr_len": 34, "gso_size": 0, "csum_start": 34, "csum_offset": 6}
PACKET = bytes(60)


def headers(fields, n=1):
    array = np.zeros(n, fields)
    for name in array.dtype.names:
        array[name] = VALUES.get(name, 0)
    return array


GOOD = {
    "same": FIELDS,
    "backwards": FIELDS[::-1],
    "big-endian": [(name, kind.replace("<", ">")) for name, kind in FIELDS],
    "narrower": [(name, "u1") for name, _ in FIELDS],
    "padded": np.dtype(FIELDS, align=True),
    "apart": np.dtype(
        {"names": [n for n, _ in FIELDS], "formats": [k for _, k in FIELDS], "offsets": range(0, 48, 8), "itemsize": 64}
    ),
}
BAD = {
    "wider": [(name, "<u4") for name, _ in FIELDS],
    "signed": [(name, kind.replace("u", "i")) for name, kind in FIELDS],
    "floats": [(name, "<f2") for name, _ in FIELDS],
    "bools": [(name, "?") for name, _ in FIELDS],
    "objects": [(name, "O") for name, _ in FIELDS],
    "arrays": [(name, kind, (1,)) for name, kind in FIELDS],
    "a field less": FIELDS[:-1],
    "a field more": [*FIELDS, ("num_buffers", "<u2")],
    "other names": [(name.upper(), kind) for name, kind in FIELDS],
    "no fields": "V10",
    "ten bytes": "S10",
    "numbers": "<u2",
}


@pytest.mark.parametrize("fields", GOOD.values(), ids=GOOD)
def test_fields_go_by_name(fields):
    burst = Burst.from_packets([PACKET] * 3)
    burst.net_hdr = headers(fields, 3)
    for name, value in VALUES.items():
        assert burst.net_hdr[name].tolist() == [value] * 3


@pytest.mark.parametrize("fields", GOOD.values(), ids=GOOD)
def test_so_do_those_that_a_guest_sends_with(fields, linked):
    port, guest = linked()
    array = headers(fields, 2)
    assert guest.send(0, [PACKET], net_hdr=array) == 1
    got = []
    until(lambda: got.append(port.rx_burst(0)) or got[-1], "the packet")
    assert {name: int(got[-1].net_hdr[name][0]) for name in VALUES} == VALUES


@pytest.mark.parametrize("kind", BAD)
def test_any_other_dtype_is_a_type_error_that_names_it(kind, linked):
    _, guest = linked()
    array = np.zeros(1, BAD[kind])
    burst = Burst.from_packets([PACKET])
    burst.net_hdr["csum_start"] = 9
    for attempt in (lambda: setattr(burst, "net_hdr", array), lambda: guest.send(0, [PACKET], net_hdr=array)):
        with pytest.raises(TypeError, match="dtype") as caught:
            attempt()
        assert str(array.dtype)[:20] in str(caught.value)
    assert burst.net_hdr["csum_start"].tolist() == [9]


@pytest.mark.parametrize(
    "wrong",
    [None, 0, b"0" * 10, [(1, 0, 34, 0, 34, 6)], headers(FIELDS)[0], np.ma.masked_array(headers(FIELDS)), "text"],
    ids=lambda wrong: type(wrong).__name__,
)
def test_what_is_no_array_is_a_type_error(wrong, linked):
    burst = Burst.from_packets([PACKET])
    with pytest.raises(TypeError, match="net_hdr"):
        burst.net_hdr = wrong
    if wrong is not None:  # which means: that of the Burst
        with pytest.raises(TypeError, match="net_hdr"):
            linked()[1].send(0, [PACKET], net_hdr=wrong)


@pytest.mark.parametrize("shape", [(0,), (2,), (4,), (3, 1), ()])
def test_the_number_of_entries_must_fit(shape):
    burst = Burst.from_packets([PACKET] * 3)
    with pytest.raises(ValueError, match="net_hdr"):
        burst.net_hdr = np.zeros(shape, FIELDS)


def test_it_can_be_set_but_not_deleted():
    burst = Burst.from_packets([PACKET] * 4)
    burst.net_hdr["hdr_len"] = range(4)
    burst.net_hdr = burst[::-1].net_hdr
    assert burst.net_hdr["hdr_len"].tolist() == [3, 2, 1, 0]
    part = burst[1::2]
    part.net_hdr = headers(FIELDS[::-1], 2)
    assert burst.net_hdr["hdr_len"].tolist() == [3, 34, 1, 34]
    with pytest.raises(AttributeError):
        del burst.net_hdr
