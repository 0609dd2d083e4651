# SPDX-License-Identifier: BSD-3-Clause
"""Checksum and segmentation requests, which travel in `net_hdr`. VIRTIO 1.2, 5.1.6."""

import numpy as np
import pytest

from traffic import until
from vhost_ioat import Burst

NEEDS_CSUM = 1
TCPV4, UDP_L4, ECN = 1, 5, 0x80


def tcp_packet(payload=1000):
    """An Ethernet frame of IPv4 and TCP whose checksum is asked for: the field holds that of the pseudo header."""
    ip = bytes.fromhex("4500") + (40 + payload).to_bytes(2, "big") + bytes.fromhex("00010000400600000a0000010a000002")
    tcp = bytes.fromhex("1234005000000001000000005010ffff") + b"\0\0" + b"\0\0"
    segment = tcp + bytes(n & 0xFF for n in range(payload))
    pseudo = ip[12:20] + b"\0\x06" + len(segment).to_bytes(2, "big")
    frame = bytearray(b"\2\0\0\0\0\1\2\0\0\0\0\2\x08\0" + ip + segment)
    frame[50:52] = ones_sum(pseudo).to_bytes(2, "big")
    return bytes(frame), pseudo


def ones_sum(content):
    words = np.frombuffer(content + b"\0" * (len(content) % 2), ">u2")
    total = int(words.sum(dtype=np.uint64))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def with_header(packet, **fields):
    burst = Burst.from_packets([packet])
    for name, value in fields.items():
        burst.net_hdr[name] = value
    return burst


CSUM = {"flags": NEEDS_CSUM, "csum_start": 34, "csum_offset": 16}
TSO = {**CSUM, "gso_type": TCPV4, "gso_size": 1448, "hdr_len": 54}


def receive(guest):
    got = []
    until(lambda: got.extend([guest.recv_burst(0)]) or len(got[-1]))
    return got[-1]


def test_requests_of_the_guest_are_seen(linked):
    port, guest = linked()
    packet, _ = tcp_packet(4000)
    burst = with_header(packet, **TSO)
    assert guest.send(0, [packet], net_hdr=burst.net_hdr) == 1
    received = port.rx_burst(0)
    assert received.tobytes(0) == packet
    assert received.net_hdr[0] == burst.net_hdr[0]


def test_requests_pass_to_a_guest_that_agreed(linked):
    port, guest = linked()
    packet, _ = tcp_packet(60000)
    burst = with_header(packet, **TSO)
    assert port.tx_burst(0, burst) == 1
    received = receive(guest)
    assert received.tobytes(0) == packet
    assert received.net_hdr[0] == burst.net_hdr[0]


def test_a_checksum_the_guest_did_not_agree_to_is_completed(linked):
    port, guest = linked(guest_csum=False)
    packet, pseudo = tcp_packet()
    assert port.tx_burst(0, with_header(packet, **CSUM)) == 1
    received = receive(guest)
    assert not received.net_hdr["flags"][0] & NEEDS_CSUM
    assert ones_sum(pseudo + received.tobytes(0)[34:]) == 0xFFFF


def test_the_senders_packet_is_not_changed_by_that(linked):
    port, guest = linked(guest_csum=False)
    packet, _ = tcp_packet()
    burst = with_header(packet, **CSUM)
    port.tx_burst(0, burst)
    receive(guest)
    assert burst.tobytes(0) == packet


@pytest.mark.parametrize("switch", ["guest_tso", "guest_csum"])
def test_segmentation_the_guest_did_not_agree_to_is_dropped_and_counted(linked, switch):
    port, _ = linked(**{switch: False})
    packet, _ = tcp_packet(4000)
    assert port.tx_burst(0, with_header(packet, **TSO)) == 1
    assert port.xstats()["tx_q0_gso_dropped"] == 1
    assert port.stats().oerrors == 1


@pytest.mark.parametrize(
    "change",
    [
        {"csum_start": 5000},
        {"csum_offset": 5000},
        {"csum_start": 65535, "csum_offset": 65535},
        {"gso_size": 0},
        {"gso_type": 77},
        {"hdr_len": 5000},
    ],
)
def test_an_invalid_request_of_the_script_is_dropped_and_counted(linked, change):
    port, _ = linked()
    packet, _ = tcp_packet(4000)
    burst = with_header(packet, **{**TSO, **change})
    sent = port.tx_burst(0, burst)
    assert sent == 1
    assert port.stats().oerrors == 1
    assert port.stats().opackets == 0
