# SPDX-License-Identifier: BSD-3-Clause
"""Packets through a port, with an embedded guest at the other end."""

import numpy as np
import pytest

from traffic import at_guest, at_port, exchange, numbered, packets_of, until
from vhost_ioat import Burst, VhostIoatError
from vhost_ioat.cli.stream import Stream

MIXED = [Stream(7).packet(n) for n in range(300)]  # 64 bytes to 64 KiB
SMALL = [packet[:1500] for packet in MIXED]


def to_guest(port, guest, packets, queue=0):
    return exchange(lambda left: port.tx_burst(queue, left), lambda: guest.recv(queue), packets)


def from_guest(port, guest, packets, queue=0):
    return exchange(lambda left: guest.send(queue, left), lambda: packets_of(port.rx_burst(queue)), packets)


SWITCHES = ["mrg_rxbuf", "event_idx", "indirect_desc", "version_1", "in_order", "any_layout", "protocol_features"]


@pytest.mark.parametrize("off", [None, *SWITCHES])
def test_packets_arrive_both_ways_with_any_feature_off(linked, off):
    port, guest = linked(**({off: False} if off else {}), guest={"rx_buf": 65600 if off == "mrg_rxbuf" else 2048})
    assert to_guest(port, guest, MIXED) == MIXED
    assert from_guest(port, guest, MIXED) == MIXED


def test_packets_arrive_with_every_feature_off(linked):
    port, guest = linked(**dict.fromkeys(SWITCHES, False))
    assert to_guest(port, guest, SMALL) == SMALL
    assert from_guest(port, guest, SMALL) == SMALL


@pytest.mark.parametrize("ring_size", [64, 256, 1024])
@pytest.mark.parametrize("client", [False, True])
def test_packets_arrive_in_both_modes_and_ring_sizes(linked, client, ring_size):
    port, guest = linked(client=client, guest={"ring_size": ring_size})
    assert to_guest(port, guest, MIXED) == MIXED
    assert from_guest(port, guest, MIXED) == MIXED


@pytest.mark.parametrize("sw_mode", ["threaded", "inline"])
@pytest.mark.parametrize("publish", ["cpu", "dma"])
@pytest.mark.parametrize("threshold", [0, 1024, 2**32 - 1])
def test_packets_arrive_in_order_however_they_are_copied(linked, sw_mode, publish, threshold):
    port, guest = linked(ioats={0: "sw0"}, sw_mode=sw_mode, publish=publish, ioat_threshold=threshold)
    assert to_guest(port, guest, MIXED) == MIXED
    assert port.tx_drain(0, 10.0)
    xstats = port.xstats()
    assert (xstats["tx_q0_dma_bytes"] > 0) is (threshold < 65536)
    assert (xstats["tx_q0_cpu_bytes"] > 0) is (threshold > 0)
    assert xstats["tx_q0_dma_errors"] == 0


def test_queues_are_separate(linked):
    port, guest = linked(queues=4)
    for queue in range(4):
        packets = [bytes([queue]) * 100] * 5
        assert port.tx_burst(queue, packets) == 5
        assert guest.send(queue, packets) == 5
    for queue in reversed(range(4)):
        assert at_guest(guest, queue, 5) == at_port(port, queue, 5) == [bytes([queue]) * 100] * 5
    assert port.stats().q_opackets == port.stats().q_ipackets == (5, 5, 5, 5)


def test_what_is_not_taken_stays_the_callers(linked):
    port, guest = linked(guest={"ring_size": 64})
    packets = list(numbered(200))
    sent = port.tx_burst(0, packets)
    assert 0 < sent <= 64
    assert port.tx_burst(0, packets[sent:]) == 0
    assert at_guest(guest, 0, sent) == packets[:sent]
    assert to_guest(port, guest, packets[sent:]) == packets[sent:]


def test_a_burst_is_forwarded_without_being_consumed(linked):
    (port, guest), (other_port, other_guest) = linked(), linked()
    packets = list(numbered(10))
    guest.send(0, packets)
    burst = Burst.from_packets([])
    received = []

    def receive():
        nonlocal burst
        burst = port.rx_burst(0)
        received.extend(packets_of(burst))
        return len(burst)

    until(receive)
    for to, peer in ((other_port, other_guest), (port, guest)):
        assert to.tx_burst(0, burst) == len(burst)
        assert at_guest(peer, 0, len(burst)) == received
    assert packets_of(burst) == received


def test_parts_of_a_burst_are_sent(linked):
    port, guest = linked()
    burst = Burst.from_packets(list(numbered(8)))
    for part in (burst[2:5], burst[::-2], burst[np.array([7, 0, 7])], burst[np.arange(8) % 3 == 0]):
        assert port.tx_burst(0, part) == len(part)
        assert at_guest(guest, 0, len(part)) == packets_of(part)
    assert port.tx_burst(0, burst[:0]) == 0


@pytest.mark.parametrize("packets", [[], (), Burst.from_packets([])])
def test_sending_nothing_is_fine(linked, packets):
    port, _ = linked()
    assert port.tx_burst(0, packets) == 0


@pytest.mark.parametrize("packets", [["abc"], [b"ok", None], 3, None, [b"ok", 7]])
def test_what_is_no_packet_is_a_type_error_before_anything_is_sent(linked, packets):
    port, guest = linked()
    with pytest.raises(TypeError):
        port.tx_burst(0, packets)
    assert port.tx_burst(0, [b"after"]) == 1
    assert at_guest(guest, 0, 1) == [b"after"]


def test_a_length_above_the_stride_is_a_value_error_and_nothing_is_sent(linked):
    port, guest = linked()
    burst = Burst.from_packets([b"a" * 60, b"b" * 60])
    burst.lengths[1] = 65
    with pytest.raises(ValueError, match="stride"):
        port.tx_burst(0, burst)
    assert port.tx_burst(0, [b"after"]) == 1
    assert at_guest(guest, 0, 1) == [b"after"]


@pytest.mark.parametrize("length", [0, 65554])
def test_a_packet_no_queue_can_take_is_dropped_and_counted(linked, length):
    port, guest = linked()
    assert port.tx_burst(0, [b"before", bytes(length), b"after"]) == 3
    assert at_guest(guest, 0, 2) == [b"before", b"after"]
    assert port.stats().oerrors == 1
    assert port.stats().opackets == 2


def test_the_largest_packet_passes(linked):
    port, guest = linked()
    largest = MIXED[1] + b"12345678901234567"
    assert len(largest) == 65553
    assert to_guest(port, guest, [largest]) == [largest]


def test_a_packet_larger_than_the_buffers_of_a_guest_without_merging_is_dropped(linked):
    port, guest = linked(mrg_rxbuf=False, guest={"rx_buf": 2048})
    assert port.tx_burst(0, [b"before", bytes(4000), b"after"]) == 3
    assert at_guest(guest, 0, 2) == [b"before", b"after"]
    assert port.xstats()["tx_q0_oversize_dropped"] == 1


@pytest.mark.parametrize("queue", [1, -1, 128, 2**40])
def test_a_queue_that_does_not_exist_is_an_index_error(linked, queue):
    port, _ = linked()
    for call in (
        port.rx_burst,
        port.tx_done_cleanup,
        port.tx_pending,
        port.tx_drain,
        port.rx_fileno,
        port.rx_intr_enable,
    ):
        with pytest.raises(IndexError):
            call(queue)
    with pytest.raises(IndexError):
        port.tx_burst(queue, [b"x"])


@pytest.mark.parametrize("n", [0, -1])
def test_a_burst_of_less_than_one_packet_is_a_value_error(linked, n):
    port, _ = linked()
    with pytest.raises(ValueError, match="nb_pkts"):
        port.rx_burst(0, n)


def test_a_burst_has_at_most_what_was_asked_for_and_no_cap_of_32(linked):
    port, guest = linked()
    packets = list(numbered(100))
    assert guest.send(0, packets) == 100
    assert packets_of(port.rx_burst(0, 1)) == packets[:1]
    assert packets_of(port.rx_burst(0)) == packets[1:33]
    assert packets_of(port.rx_burst(0, nb_pkts=1000)) == packets[33:]
    assert not port.rx_burst(0)


def test_a_burst_ends_before_a_megabyte(linked):
    port, guest = linked(guest={"ring_size": 1024})
    packets = [bytes(60000)] * 20
    assert guest.send(0, packets) == 20
    first = port.rx_burst(0, 100)
    assert first.data.nbytes <= 1 << 20
    assert 0 < len(first) < 20
    assert len(at_port(port, 0, 20 - len(first))) == 20 - len(first)


def test_received_packets_outlive_the_port(linked):
    port, guest = linked()
    guest.send(0, [b"kept" * 20])
    burst = port.rx_burst(0)
    view = burst[0]
    port.close()
    assert burst.tobytes(0) == bytes(view) == b"kept" * 20


def test_with_the_packet_memory_exhausted_packets_wait(linked):
    port, guest = linked(mempool=1 << 20)
    held, sent = [], 0

    def fill():
        nonlocal sent
        sent += guest.send(0, [bytes(60000)])
        if burst := port.rx_burst(0):
            held.append(burst)
        return port.stats().rx_nombuf

    until(fill)
    count = sum(map(len, held))
    assert count < sent
    held.clear()
    assert len(at_port(port, 0, sent - count)) == sent - count


def test_with_the_packet_memory_cut_up_small_packets_pass(linked):
    port, guest = linked(mempool=1 << 20)
    held = []

    def fill():
        guest.send(0, [bytes(60)])
        if burst := port.rx_burst(0, 1):
            held.append(burst)
        return port.stats().rx_nombuf

    until(fill)
    assert port.info().mempools[0].largest_free == 0
    del held[::2]
    memory = port.info().mempools[0]
    assert (memory.queue, memory.size, memory.largest_free) == (0, 1 << 20, 4096)
    assert memory.in_use <= memory.size // 2
    until(lambda: not port.rx_burst(0))
    assert guest.send(0, [bytes(9000), bytes(77)]) == 2
    assert at_port(port, 0, 1) == [bytes(77)]
    assert port.xstats()["rx_q0_nombuf_dropped"] == 1
    texts = []
    until(lambda: texts.extend(event.text for event in port.events()) or any("cut up" in text for text in texts))
    assert any("exhausted" in text for text in texts)


def test_with_the_link_down_nothing_moves(socket_path):
    from vhost_ioat import EthVhost

    with EthVhost(socket_path) as port:
        assert port.tx_burst(0, [b"x"]) == 0
        assert not port.rx_burst(0)
        assert port.tx_drain(0, 1.0)


def test_byte_counts_leave_out_the_virtio_header(linked):
    port, guest = linked(queues=2)
    port.tx_burst(1, [bytes(100), bytes(23)])
    guest.send(0, [bytes(77)])
    at_guest(guest, 1, 2)
    at_port(port, 0, 1)
    stats = port.stats()
    assert (stats.opackets, stats.obytes, stats.ipackets, stats.ibytes) == (2, 123, 1, 77)
    assert stats.q_opackets == (0, 2)
    assert stats.q_obytes == (0, 123)
    assert stats.q_ipackets == (1, 0)
    assert stats.q_ibytes == (77, 0)
    assert stats.q_errors == (0, 0)


def test_after_close_every_call_raises(linked):
    port, _ = linked()
    port.close()
    for call in (
        lambda: port.rx_burst(0),
        lambda: port.tx_burst(0, [b"x"]),
        lambda: port.tx_done_cleanup(0),
        port.start,
    ):
        with pytest.raises(VhostIoatError, match="closed"):
            call()
