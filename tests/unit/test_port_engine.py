# SPDX-License-Identifier: BSD-3-Clause
"""Promises about a port whose copies a DMA engine makes; the software engine can be stopped, stepped and broken."""

import pytest

from traffic import at_guest, exchange, numbered, send_all, until
from vhost_ioat import ConfigError, DmaError, EthVhost
from vhost_ioat.cli.stream import Stream
from watchdog import WATCHDOG

LARGE = list(numbered(20, 2000))
MIXED = [Stream(9).packet(n) for n in range(200)]


@pytest.fixture(params=["cpu", "dma"])
def stepped(request, linked):
    """A port whose engine copies only in step(), its guest, and the engine."""
    port, guest = linked(ioats={0: "sw0"}, sw_mode="stepped", publish=request.param)
    model = port.engine_model(0)

    def engage():
        """The engine is told of packet memory by the control thread, when it has first met some."""
        port.tx_burst(0, LARGE[:1])
        return port.xstats()["tx_q0_dma_submitted"]

    until(engage, "the engine copies")
    until(lambda: model.step(1000) == 0 and port.tx_pending(0) == 0)
    while guest.recv(0):
        pass
    port.stats_reset()
    return port, guest, model


def test_nothing_is_shown_before_it_is_copied(stepped):
    port, guest, model = stepped
    assert port.tx_burst(0, LARGE) == len(LARGE)
    assert guest.recv(0) == []
    assert port.tx_pending(0) == len(LARGE)
    assert port.stats().opackets == 0
    assert port.tx_drain(0, 0.05) is False
    until(lambda: model.step(1000) == 0 and port.tx_pending(0) == 0)
    assert at_guest(guest, 0, len(LARGE)) == LARGE
    assert port.stats().opackets == len(LARGE)
    assert port.tx_drain(0, 10) is True


def test_a_guest_waits_for_a_port_that_answers_late(stepped):
    """GET_VRING_BASE is answered when nothing is in flight, and the engine does nothing until it is reset."""
    port, guest, _ = stepped
    assert port.tx_burst(0, LARGE) == len(LARGE)
    guest.disconnect()
    assert port.wait_link(up=False, timeout=WATCHDOG)
    assert port.stats().opackets == len(LARGE)  # the CPU made the copies
    guest.connect(timeout=WATCHDOG)
    assert port.wait_link(timeout=WATCHDOG)


def test_a_small_packet_does_not_overtake_a_large_one(stepped):
    port, guest, model = stepped
    packets = [LARGE[0], b"small", LARGE[1], b"also small"]
    assert port.tx_burst(0, packets) == 4
    for _ in range(20):
        port.tx_done_cleanup(0)
        assert guest.recv(0) == []
    until(lambda: model.step(1) == 0 and port.tx_pending(0) == 0)
    assert at_guest(guest, 0, 4) == packets


def test_packets_are_shown_as_far_as_they_are_copied(stepped):
    port, guest, model = stepped
    port.tx_burst(0, LARGE)
    got = []

    def step():
        model.step(1)
        port.tx_done_cleanup(0)
        got.extend(guest.recv(0, 100))
        assert got == LARGE[: len(got)]
        return len(got) == len(LARGE)

    until(step)


def test_a_step_is_one_descriptor(stepped):
    port, _, model = stepped
    assert port.tx_burst(0, LARGE[:3]) == 3
    assert model.step() == 1


def test_cleanup_counts_what_it_reaped(linked):
    port, guest = linked(ioats={0: "sw0"}, sw_mode="inline")
    port.tx_burst(0, LARGE)
    reaped = port.tx_done_cleanup(0)
    assert 0 <= reaped <= len(LARGE)
    assert at_guest(guest, 0, len(LARGE)) == LARGE
    assert port.tx_done_cleanup(0) == 0


@pytest.mark.parametrize("publish", ["cpu", "dma"])
@pytest.mark.parametrize("queue", [0, 2])
def test_copies_are_finished_though_nobody_calls_again(linked, publish, queue):
    port, guest = linked(queues=3, ioats={queue: "sw0"}, publish=publish)
    assert guest.rx_intr_enable(queue) is False
    send_all(lambda left: port.tx_burst(queue, left), LARGE[:1])
    assert at_guest(guest, queue, 1) == LARGE[:1]


@pytest.mark.parametrize("fault", [("error", 10), ("gone", 0), ("drop_writeback", 1), ("stuck", 0)])
@pytest.mark.parametrize("nth", [0, 7])
def test_a_failing_engine_loses_nothing(linked, fault, nth):
    kind, value = fault
    port, guest = linked(ioats={0: "sw0"}, guest={"ring_size": 1024})
    port.engine_model(0).inject(kind, nth=nth, value=value)
    got = exchange(lambda left: port.tx_burst(0, left), lambda: guest.recv(0), MIXED)
    assert got == MIXED
    assert port.tx_drain(0, 10)
    assert port.stats().opackets == len(MIXED)
    if kind == "error":
        assert port.xstats()["tx_q0_dma_errors"] == 1
        assert any(event.kind == "engine" for event in port.events())


def test_an_engine_that_vanished_is_replaced_by_the_cpu(linked):
    port, guest = linked(ioats={0: "sw0"})
    port.engine_model(0).inject("gone")
    assert exchange(lambda left: port.tx_burst(0, left), lambda: guest.recv(0), LARGE) == LARGE
    (engine,) = port.info().engines
    assert not engine.active
    assert engine.state != "ok"
    assert port.info().last_error


def test_each_queue_has_the_engine_it_was_given(linked):
    port, guest = linked(queues=3, ioats={0: "sw0", 2: "sw1"})
    for queue in range(3):
        assert exchange(lambda p, q=queue: port.tx_burst(q, p), lambda q=queue: guest.recv(q), LARGE) == LARGE
    xstats = port.xstats()
    assert [xstats[f"tx_q{queue}_dma_bytes"] > 0 for queue in range(3)] == [True, False, True]
    assert port.engine_model(1) is None
    assert [engine.queue for engine in port.info().engines] == [0, 2]


@pytest.fixture(params=["cpu", "dma"])
def sharing(request, linked):
    """A port whose queues 0 and 2 share one engine, and a function that sends packets through queue 0, 1, 2 in turn."""
    port, guest = linked(queues=3, ioats={0: "sw0", 2: "sw0"}, publish=request.param, guest={"ring_size": 512})

    def send_through_all(packets):
        left, got = [list(packets) for _ in range(3)], [[] for _ in range(3)]

        def turn():
            for queue in range(3):
                del left[queue][: port.tx_burst(queue, left[queue][:16])]
                got[queue] += guest.recv(queue)
            return all(len(one) == len(packets) for one in got)

        until(turn, "every queue's packets at the guest")
        return got

    return port, send_through_all


def test_queues_share_an_engine(sharing):
    port, send_through_all = sharing
    assert port.engine_model(0) is port.engine_model(2)
    assert send_through_all(MIXED) == [MIXED] * 3
    xstats = port.xstats()
    assert [xstats[f"tx_q{queue}_dma_bytes"] > 0 for queue in range(3)] == [True, False, True]
    done = xstats["tx_q0_dma_completed"] + xstats["tx_q2_dma_completed"]
    assert port.engine_model(0).counters()["descriptors"] == done + 1  # the null descriptor of its start


@pytest.mark.parametrize("fault", [("error", 10), ("gone", 0), ("stuck", 0)])
def test_a_shared_engine_that_fails_loses_nothing_of_any_queue(sharing, fault):
    kind, value = fault
    port, send_through_all = sharing
    port.engine_model(0).inject(kind, nth=9, value=value)
    assert send_through_all(MIXED) == [MIXED] * 3
    assert all(port.tx_drain(queue, WATCHDOG) for queue in range(3))
    assert port.stats().opackets == 3 * len(MIXED)
    told = " ".join(event.text for event in port.events() if event.kind == "engine")
    assert "tx queue 0: engine sw0 failed" in told
    assert "tx queue 2: engine sw0 failed" in told
    assert [engine.active for engine in port.info().engines] == [kind != "gone"] * 2


def test_a_device_that_is_not_there_is_a_fallback_or_an_error(socket_path):
    with EthVhost(socket_path, ioats={0: "ff:1f.7"}) as port:
        (engine,) = port.info().engines
        assert not engine.hardware or not engine.active
        assert "0000:ff:1f.7" in str(port.info())
    with pytest.raises((ConfigError, DmaError), match=r"0000:ff:1f\.7"):
        EthVhost(socket_path, ioats={0: "ff:1f.7"}, ioat_fallback=False)


def test_a_link_that_goes_down_with_copies_in_flight_comes_back(linked, socket_path):
    port, guest = linked(ioats={0: "sw0"})
    for _ in range(5):
        port.tx_burst(0, MIXED[:20])
        guest.close()
        assert port.wait_link(up=False, timeout=WATCHDOG)
        assert port.tx_pending(0) == 0
        guest.connect(timeout=WATCHDOG)
        assert port.wait_link(timeout=WATCHDOG)
        assert exchange(lambda left: port.tx_burst(0, left), lambda: guest.recv(0), LARGE) == LARGE
