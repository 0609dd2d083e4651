# SPDX-License-Identifier: BSD-3-Clause
import pytest

pytest.importorskip("typer")
from vhost_ioat.cli.stream import LARGEST, SMALLEST, Receiver, Sender, Stream


def test_sizes_reach_from_64_bytes_to_64_kilobytes():
    lengths = [len(Stream(1).packet(n)) for n in range(200)]
    assert min(lengths) == SMALLEST == 64
    assert max(lengths) == LARGEST == 65536
    assert len(set(lengths)) > 100


def test_both_ends_know_the_same_packets():
    assert Stream(1).packet(70000) == Stream(1).packet(70000)
    assert Stream(1).packet(5) != Stream(2).packet(5)
    assert Stream(1).packet(5) != Stream(1).packet(5 + 1021)


def test_a_sender_offers_again_what_was_not_taken():
    sender, receiver = Sender(Stream(1), batch=4), Receiver(Stream(1))
    for taken in (4, 0, 3, 1, 4):
        batch = sender.next_batch()
        assert len(batch) == 4
        receiver.receive(batch[:taken])
        sender.taken(taken)
    assert receiver.packets == sender.packets == 12
    assert receiver.octets == sender.octets
    assert receiver.errors == 0


def altered(packet):
    return packet[:20] + bytes([packet[20] ^ 1]) + packet[21:]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda p: [p[0], altered(p[1])], "packet 1 differs at byte 20 of"),
        (lambda p: [p[1], p[0]], "packet 1 arrived instead of 0"),
        (lambda p: [p[0], p[0]], "packet 0 arrived instead of 1"),
        (lambda p: [p[0], p[2]], "packet 2 arrived instead of 1"),
        (lambda p: [p[0], p[1][:-1]], "packet 1 has 65535 bytes instead of 65536"),
        (lambda p: [p[0] + b"\0"], "packet 0 has 65 bytes instead of 64"),
    ],
)
def test_a_receiver_notices(spoil, reason):
    receiver = Receiver(Stream(1))
    receiver.receive(spoil([Stream(1).packet(n) for n in range(3)]))
    assert receiver.errors > 0
    assert receiver.first_error.startswith(reason)
