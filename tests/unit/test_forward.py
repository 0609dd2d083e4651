# SPDX-License-Identifier: BSD-3-Clause
"""forward(): every packet that enters is sent, dropped and counted, or consumed."""

import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest

from traffic import until
from vhost_ioat import ConfigError, EthVhost, Stats, VhostIoatError, _core, forward
from vhost_ioat.guest import Guest

PACKET = bytes(12) + b"\x08\x00" + bytes(46)


@pytest.fixture
def pair(socket_path):
    """Two ports and their guests: (a, guest of a, b, guest of b)."""
    with ExitStack() as opened:
        made = []
        for name in "ab":
            port = opened.enter_context(EthVhost(f"{socket_path}{name}"))
            guest = opened.enter_context(Guest(f"{socket_path}{name}", ring_size=64))
            guest.connect(timeout=60)
            assert port.wait_link(timeout=60)
            made += [port, guest]
        yield made


def offer(guest, count):
    return guest.send(0, [PACKET] * count)


def test_drop_counts_what_the_other_port_does_not_take(pair):
    a, a_guest, b, b_guest = pair
    sent, total = 0, Stats()
    while sent < 1000:
        sent += offer(a_guest, 64)
        total += forward(a, b, seconds=0)
    until(lambda: forward(a, b, seconds=0) == Stats(q_ipackets=(0,), q_opackets=(0,), q_ibytes=(0,), q_obytes=(0,),
                                                    q_errors=(0,)))  # fmt: skip
    received = len(b_guest.recv(0, 4096))
    assert total.ipackets == a.stats().ipackets == sent
    assert total.dropped == sent - received > 0
    assert (total.opackets, total.consumed) == (received, 0)


def test_retry_drops_nothing_while_the_other_port_is_served(pair):
    a, a_guest, b, b_guest = pair
    forwarder = _core.Forwarder(a, b, "io", 16, "retry")
    sent, got = 0, []

    def through():
        nonlocal sent
        if sent < 5000:
            sent += offer(a_guest, 64)
        forwarder.run(0.0)
        got.extend(b_guest.recv(0, 64))
        return len(got) == sent >= 5000

    until(through)
    left, right = forwarder.sides()
    assert left["received"] == right["sent"] == sent
    assert right["dropped_full"] == right["dropped_down"] == 0


def test_retry_ends_with_its_time_and_counts_what_is_left(pair):
    a, a_guest, b, b_guest = pair
    sent, total = 0, Stats()
    while total.dropped == 0:
        sent += offer(a_guest, 64)
        total += forward(a, b, seconds=0.05, burst=16, on_full="retry")
    assert total.dropped <= 16
    assert total.ipackets == total.opackets + total.dropped
    assert total.opackets == len(b_guest.recv(0, 4096))


def test_a_port_that_is_closed_meanwhile_ends_it_and_loses_no_count(pair):
    a, a_guest, b, b_guest = pair
    sent, total = 0, Stats()
    while total.opackets == 0:
        sent += offer(a_guest, 16)
        total += forward(a, b, seconds=0)
    got = len(b_guest.recv(0, 4096))
    sent += offer(a_guest, 64)
    b.close()
    with pytest.raises(VhostIoatError, match="closed") as ended:
        forward(a, b, seconds=60)
    total += ended.value.stats
    assert total.ipackets == a.stats().ipackets
    assert total.ipackets == total.opackets + total.dropped
    assert (total.opackets, total.dropped > 0) == (got, True)


def test_counters_that_are_reset_meanwhile_change_nothing(pair):
    a, a_guest, b, _ = pair
    sent, before = offer(a_guest, 64), Stats()
    while before.ipackets < sent:
        before += forward(a, b, seconds=0)
    sent = offer(a_guest, 16)
    done = threading.Event()

    def reset():
        while not done.is_set():
            a.stats_reset()
            b.stats_reset()

    thread = threading.Thread(target=reset, daemon=True)
    thread.start()
    total = Stats()
    while total.ipackets < sent:
        total += forward(a, b, seconds=0)
    done.set()
    thread.join()
    assert (total.ipackets, total.ibytes) == (16, 16 * len(PACKET))


def test_retry_gives_up_when_the_link_is_down(pair):
    a, a_guest, b, b_guest = pair
    b_guest.close()
    assert b.wait_link(up=False, timeout=60)
    sent = offer(a_guest, 32)
    total = Stats()

    def through():
        nonlocal total
        total += forward(a, b, seconds=0, on_full="retry")
        return total.ipackets == sent

    until(through)
    assert total.dropped == sent


@pytest.mark.parametrize("mode", ["rxonly", "icmpecho"])
def test_what_a_mode_keeps_is_consumed_and_not_dropped(pair, mode):
    a, a_guest, b, _ = pair
    sent = offer(a_guest, 20)
    total = Stats()

    def through():
        nonlocal total
        total += forward(a, b, mode, seconds=0)
        return total.ipackets == sent

    until(through)
    assert (total.consumed, total.dropped, total.opackets) == (sent, 0, 0)


def test_txonly_counts_what_was_taken_and_drops_nothing(pair):
    a, a_guest, b, b_guest = pair
    total = forward(a, b, "txonly", seconds=0)
    assert total.dropped == 0
    assert total.opackets == len(a_guest.recv(0, 4096)) + len(b_guest.recv(0, 4096)) > 0


def test_txonly_sends_udp_to_the_discard_port_of_a_test_address(pair):
    a, a_guest, b, b_guest = pair
    forward(a, b, "txonly", seconds=0, burst=7)
    ethernet = bytes.fromhex("56484f535402 56484f535401 0800")
    ip = bytes.fromhex("4500 0032 0000 0000 40 11 ee93 c6120001 c6120002")  # RFC 2544
    packet = ethernet + ip + bytes.fromhex("0009 0009 001e 0000")
    for guest in (a_guest, b_guest):
        assert set(guest.recv(0, 4096)) == {packet + bytes(64 - len(packet))}


US, THEM = bytes.fromhex("56484f535400"), bytes.fromhex("020000000001")
OURS, THEIRS = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])


def arp(to, sender, operation, *addresses):
    return to + sender + bytes.fromhex("0806 0001 0800 06 04") + bytes([0, operation]) + b"".join(addresses)


def icmp(to, sender, source, destination, first=0x45, protocol=1, kind=8, words=(1, 2)):
    """An ICMP message over IPv4; `first` is the version and the length of the header."""
    header = bytes([first]) + bytes(8) + bytes([protocol, 0, 0]) + source + destination
    total = sum(words) + (kind << 8)
    checksum = 0xFFFF - (total % 0xFFFF or 0xFFFF)
    message = bytes([kind, 0]) + checksum.to_bytes(2, "big") + b"".join(word.to_bytes(2, "big") for word in words)
    return to + sender + b"\x08\x00" + header + bytes(max(0, (first & 15) - 5) * 4) + message


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (arp(b"\xff" * 6, THEM, 1, THEM, THEIRS, bytes(6), OURS), arp(THEM, US, 2, US, OURS, THEM, THEIRS)),
        (icmp(US, THEM, THEIRS, OURS), icmp(THEM, US, OURS, THEIRS, kind=0)),
        (
            icmp(US, THEM, THEIRS, OURS, first=0x46, words=(1, 2, 3)),
            icmp(THEM, US, OURS, THEIRS, first=0x46, words=(1, 2, 3), kind=0),
        ),
        (icmp(US, THEM, THEIRS, OURS, words=(1, 0xF801)), icmp(THEM, US, OURS, THEIRS, words=(1, 0xF801), kind=0)),
    ],
)
def test_icmpecho_answers_arp_and_ping(pair, request_, answer):
    a, a_guest, b, _ = pair
    assert a_guest.send(0, [request_]) == 1
    until(lambda: forward(a, b, "icmpecho", seconds=0).opackets)
    assert a_guest.recv(0) == [answer]


@pytest.mark.parametrize(
    "packet",
    [
        arp(THEM, US, 2, US, OURS, THEM, THEIRS),
        arp(b"\xff" * 6, THEM, 1, THEM, THEIRS, bytes(6), OURS)[:-1],
        icmp(US, THEM, THEIRS, OURS)[:-1],
        icmp(US, THEM, THEIRS, OURS, first=0x46)[:-1],
        icmp(US, THEM, THEIRS, OURS, first=0x65),
        icmp(US, THEM, THEIRS, OURS, first=0x44, words=(1, 2, 3, 4)),
        icmp(US, THEM, THEIRS, OURS, protocol=17),
        icmp(US, THEM, THEIRS, OURS, kind=0),
        US + THEM + b"\x86\xdd" + icmp(US, THEM, THEIRS, OURS)[14:],
    ],
)
def test_icmpecho_answers_nothing_else(pair, packet):
    a, a_guest, b, _ = pair
    assert a_guest.send(0, [packet]) == 1
    until(lambda: forward(a, b, "icmpecho", seconds=0).consumed)
    assert a_guest.recv(0) == []


@pytest.mark.parametrize("policy", ["", "wait", "DROP", None, 3])
def test_a_policy_is_drop_or_retry(pair, policy):
    a, _, b, _ = pair
    with pytest.raises(ConfigError, match=r"use drop or retry"):
        forward(a, b, seconds=0, on_full=policy)


@pytest.mark.parametrize("mode", ["", "IO", None])
def test_a_mode_is_one_of_those_there_are(pair, mode):
    a, _, b, _ = pair
    with pytest.raises(ConfigError, match=r"use io, macswap"):
        forward(a, b, mode, seconds=0)


def test_stats_add_up_with_the_fields_of_forward():
    one = Stats(ipackets=3, dropped=2, consumed=1)
    assert (one + one).dropped == 4
    assert (one - one).consumed == 0


@pytest.mark.parametrize("policy", ["drop", "retry"])
def test_the_command_shows_what_was_dropped(socket_path, policy):
    pytest.importorskip("typer")
    command = [sys.executable, "-m", "vhost_ioat", "fwd", f"left,iface={socket_path}l", f"right,iface={socket_path}r"]
    process = subprocess.Popen(
        [*command, "--on-full", policy], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        with Guest(f"{socket_path}l") as left, Guest(f"{socket_path}r", ring_size=64) as right:
            threads = [
                threading.Thread(target=guest.connect, kwargs={"timeout": 60}, daemon=True) for guest in (left, right)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            sent = 0

            def send():
                nonlocal sent
                sent += offer(left, 8)
                return sent >= 200

            until(send)
            process.send_signal(2)
            output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (0, "")
    assert f"on_full={policy}" in output
    assert "because the port was full" in output
