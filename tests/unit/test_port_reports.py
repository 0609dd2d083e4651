# SPDX-License-Identifier: BSD-3-Clause
import _thread
import logging
import select
import threading

import pytest

import vhost_ioat
from raw_ring import raw_rings
from traffic import at_guest, at_port, send_all, until
from vhost_ioat import Burst, EthVhost, Stats
from vhost_ioat.guest import Guest
from vhost_ioat.testing import RawFrontend
from vhost_ioat.testing.frontend import REQUESTS, Message
from watchdog import WATCHDOG


def events_until(port, kind):
    """Events up to one of that kind."""
    got = []

    def look():
        got.extend(port.events(timeout=0.1))
        return any(event.kind == kind for event in got)

    until(look, f"a {kind} event")
    return got


def test_the_link_is_up_while_a_guest_is_there(linked):
    port, guest = linked()
    assert port.link()
    assert port.link().up
    assert port.link().full_duplex
    assert port.link().speed_mbps > 0
    guest.close()
    assert port.wait_link(up=False, timeout=WATCHDOG)
    assert not port.link()


def test_waiting_for_the_link_ends(socket_path):
    with EthVhost(socket_path) as port:
        assert port.wait_link(timeout=0.1) is False
        assert port.wait_link(up=False, timeout=0) is True


@pytest.mark.parametrize("wait", [lambda p: p.wait_link(), lambda p: p.events(timeout=WATCHDOG)])
def test_ctrl_c_ends_a_wait(socket_path, wait):
    with EthVhost(socket_path) as port:
        port.events()

        def interrupted() -> None:  # the signal may come before the wait has begun: it is raised here all the same
            threading.Timer(0.1, _thread.interrupt_main).start()
            wait(port)

        with pytest.raises(KeyboardInterrupt):
            interrupted()


def test_a_wait_lets_other_threads_run(socket_path):
    with EthVhost(socket_path) as port, Guest(socket_path) as guest:
        thread = threading.Thread(target=guest.connect, kwargs={"timeout": WATCHDOG}, daemon=True)
        thread.start()
        assert port.wait_link(timeout=2 * WATCHDOG)  # what it waits for needs the other thread
        thread.join()


def test_events_tell_of_the_link(linked):
    port, guest = linked()
    link = [event for event in events_until(port, "link") if event.kind == "link"]
    assert link[0].enabled
    assert link[0].queue is None
    guest.close()
    down = [event for event in events_until(port, "link") if event.kind == "link"]
    assert not down[0].enabled


def test_events_tell_of_queues(linked):
    port, _ = linked(queues=2)
    queues = {(e.queue, e.rx) for e in events_until(port, "link") + port.events() if e.kind == "queue" and e.enabled}
    assert queues == {(0, False), (0, True), (1, False), (1, True)}


@pytest.mark.parametrize(
    ("fault", "enabled", "level", "end"),
    [
        ("error", True, logging.INFO, "tx queue 1: engine sw0 works again"),
        ("gone", False, logging.ERROR, "tx queue 1: engine sw0 is given up ("),
    ],
)
def test_events_tell_of_an_engine_that_fails_and_what_becomes_of_it(linked, caplog, fault, enabled, level, end):
    caplog.set_level(logging.INFO, "vhost_ioat")
    port, guest = linked(queues=2, ioats={1: "sw0"})
    port.engine_model(1).inject(fault, value=10 if fault == "error" else 0)
    events = []

    def look():
        port.tx_burst(1, [bytes(2000)])
        guest.recv(1)
        events.extend(event for event in port.events() if event.kind == "engine")
        return len(events) >= 2

    until(look, "two events of an engine")
    failed, ended = events
    assert (failed.queue, failed.rx, failed.enabled) == (1, False, True)
    assert failed.text.startswith("tx queue 1: engine sw0 failed: ")
    assert failed.text.endswith("; its copies will be made by the CPU")
    assert (ended.queue, ended.rx, ended.enabled) == (1, False, enabled)
    assert ended.text.startswith(end)
    assert [r.levelno for r in caplog.records if "engine sw0" in r.getMessage()] == [logging.WARNING, level]


@pytest.mark.parametrize("rx", [False, True])
def test_an_event_tells_of_a_ring_that_is_broken(socket_path, caplog, rx):
    caplog.set_level(logging.INFO, "vhost_ioat")
    with EthVhost(socket_path, queues=2) as port, raw_rings(socket_path, rings=4) as rings:
        for ring in rings:
            ring.say()
        ring = rings[3 if rx else 2]
        ring.avail = 5000
        ring.add()
        events = []

        def look():
            if rx:
                port.rx_burst(1)
            else:
                port.tx_burst(1, [bytes(64)])
            events.extend(event for event in port.events() if event.kind == "peer")
            return events

        until(look, "an event of a peer")
        (event,) = events
        assert (event.queue, event.rx, event.enabled) == (1, rx, False)
        name = f"{'rx' if rx else 'tx'} queue 1"
        assert event.text.startswith(f"{name} is broken until the front end restarts it: ")
        assert [r.levelno for r in caplog.records if name + " is broken" in r.getMessage()] == [logging.WARNING]
        assert [r.index for r in port.info().rings if r.broken] == [ring.index]


def test_an_event_tells_what_a_guest_does_wrong(linked, caplog):
    caplog.set_level(logging.INFO, "vhost_ioat")
    port, guest = linked(queues=2)
    burst = Burst.from_packets([bytes(4000)])
    burst.net_hdr["gso_type"], burst.net_hdr["gso_size"], burst.net_hdr["hdr_len"] = 1, 1448, 54
    assert guest.send(1, burst, net_hdr=burst.net_hdr) == 1
    until(lambda: port.rx_burst(1) or port.stats().ierrors)
    (event,) = [event for event in events_until(port, "peer") if event.kind == "peer"]
    assert (event.queue, event.rx, event.enabled) == (1, True, True)
    assert event.text.startswith("rx queue 1: the guest asks for segmentation (gso_type 1)")
    assert [r.levelno for r in caplog.records if "segmentation" in r.getMessage()] == [logging.WARNING]


def test_the_event_fd_is_readable_while_events_wait(linked):
    port, guest = linked()
    port.events()
    assert not select.select([port.fileno()], [], [], 0)[0]
    guest.close()
    assert select.select([port.fileno()], [], [], WATCHDOG)[0]
    assert port.events()


def test_a_peer_that_misbehaves_is_reported_and_not_raised(socket_path, caplog):
    caplog.set_level(logging.INFO, "vhost_ioat")
    with EthVhost(socket_path, name="left") as port, RawFrontend(socket_path) as frontend:
        frontend.send(Message(REQUESTS["SET_FEATURES"][0], b"too short"))
        assert not frontend.is_answering()
        (event,) = [event for event in events_until(port, "peer") if event.kind == "peer"]
        assert "SET_FEATURES" in event.text
        assert "SET_FEATURES" in port.info().last_error
        (record,) = [record for record in caplog.records if "SET_FEATURES" in record.getMessage()]
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith("left: ")
        assert record.threadName == "MainThread"


def test_the_log_is_written_by_the_main_thread_only(linked, caplog):
    caplog.set_level(logging.INFO, "vhost_ioat")
    port, guest = linked()
    port.info()
    caplog.clear()
    guest.close()

    def other():
        port.wait_link(up=False, timeout=WATCHDOG)

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    thread.join()
    assert not caplog.records
    port.info()
    assert "link is down" in caplog.text


def test_importing_configures_no_logging():
    assert [type(handler) for handler in logging.getLogger("vhost_ioat").handlers] == [logging.NullHandler]


def test_info_says_what_was_negotiated(linked):
    port, _ = linked(queues=2, ioats={1: "sw0"}, event_idx=False)
    info = port.info()
    assert (info.name, info.queues, info.client, info.iface) == (port.name, 2, False, port.devargs.iface)
    assert info.features & 1 << 32
    assert not info.features & 1 << 29
    assert info.features & ~port.devargs.features == 0
    assert info.regions
    assert all(region.size > 0 for region in info.regions)
    assert {ring.index for ring in info.rings if ring.started and ring.enabled} == {0, 1, 2, 3}
    assert {ring.size for ring in info.rings} == {256}
    (engine,) = info.engines
    assert (engine.queue, engine.name, engine.hardware, engine.active) == (1, "sw0", False, True)
    assert info.last_error is None


def test_info_without_a_front_end(socket_path):
    with EthVhost(socket_path) as port:
        info = port.info()
        assert (info.features, info.regions, info.last_error) == (0, (), None)


def test_counters_can_be_reset(linked):
    port, guest = linked()
    port.tx_burst(0, [b"x" * 64])
    guest.send(0, [b"x" * 64])
    at_guest(guest, 0, 1)
    at_port(port, 0, 1)
    assert port.stats().opackets == port.stats().ipackets == 1
    port.stats_reset()
    assert port.stats() == Stats(**dict.fromkeys(QUEUE_FIELDS, (0,)))
    assert port.xstats()["tx_q0_good_packets"] == 1
    port.xstats_reset()
    assert port.xstats()["tx_q0_good_packets"] == 0


def test_counters_of_queues_add_up_and_a_reset_reaches_each(linked):
    port, guest = linked(queues=2)
    wrong = Burst.from_packets([bytes(80)])
    wrong.net_hdr["flags"], wrong.net_hdr["csum_start"] = 1, 5000
    port.xstats_reset()
    for _ in range(2):  # what is counted from the reset on does not depend on what was before
        port.stats_reset()
        send_all(lambda left: port.tx_burst(0, left), [bytes(64)])
        send_all(lambda left: port.tx_burst(1, left), [bytes(70)] * 3 + [bytes(70000)])
        at_guest(guest, 0, 1)
        at_guest(guest, 1, 3)
        assert guest.send(0, [bytes(90)] * 4) == 4
        assert guest.send(1, [bytes(100)] * 2) == 2
        assert guest.send(1, wrong, net_hdr=wrong.net_hdr) == 1
        at_port(port, 0, 4)
        at_port(port, 1, 2)
        until(lambda: port.rx_burst(1) or port.stats().ierrors)
        assert port.stats() == Stats(
            ipackets=6, opackets=4, ibytes=560, obytes=274, ierrors=1, oerrors=1,
            q_ipackets=(4, 2), q_opackets=(1, 3), q_ibytes=(360, 200), q_obytes=(64, 210), q_errors=(0, 2),
        )  # fmt: skip
    xstats = port.xstats()
    assert [xstats[f"{side}_q{queue}_errors"] for side in ("rx", "tx") for queue in (0, 1)] == [0, 2, 0, 2]
    assert (xstats["rx_q1_header_dropped"], xstats["tx_q1_oversize_dropped"]) == (2, 2)


def test_what_a_disabled_ring_loses_is_counted(socket_path):
    with EthVhost(socket_path) as port, raw_rings(socket_path) as rings:
        for ring in rings:
            ring.say(ENABLE=0)
        until(lambda: len(port.info().rings) == 2)
        for _ in range(2):
            rings[1].add(bytes(64), 3)
            until(lambda: port.rx_burst(0) or port.stats().imissed == 3)
            assert port.stats().ipackets == 0
            port.stats_reset()
        assert port.stats().imissed == 0
        assert port.xstats()["rx_q0_missed_packets"] == 6


QUEUE_FIELDS = ["q_ipackets", "q_opackets", "q_ibytes", "q_obytes", "q_errors"]
NET_VHOST = [
    "good_packets",
    "good_bytes",
    "multicast_packets",
    "broadcast_packets",
    "undersize_packets",
    "size_64_packets",
    "size_65_127_packets",
    "size_128_255_packets",
    "size_256_511_packets",
    "size_512_1023_packets",
    "size_1024_1518_packets",
    "size_1519_max_packets",
]
EACH = [*NET_VHOST, *(f"guest_notifications{what}" for what in ("", "_suppressed", "_error")), "errors"]
RX = ["missed_packets", "mbuf_alloc_failed", "gso_no_csum_dropped"]
RX += [f"{why}_dropped" for why in ("nombuf", "empty", "oversize", "pieces", "header", "gso")]
TX = ["oversize_dropped", "gso_dropped", "short_buffers", "engine_lost", "cpu_bytes"]
DMA = ["submitted", "completed", "bytes", "errors", "resets", "inflight", "inflight_max", "publish_batches"]
FALLBACK = ["ring_full", "unmapped", "address", "disabled"]


def test_extended_statistics_have_their_names(linked):
    port, _ = linked(queues=2)
    names = {"control_errors", "events_lost", "rarp_lost"}
    for queue in range(2):
        names |= {f"rx_q{queue}_{name}" for name in EACH + RX}
        names |= {f"tx_q{queue}_{name}" for name in EACH + TX}
        names |= {f"tx_q{queue}_dma_{name}" for name in DMA}
        names |= {f"tx_q{queue}_dma_fallback_{name}" for name in FALLBACK}
    assert set(port.xstats()) == names


@pytest.mark.parametrize(
    ("length", "bucket"),
    [
        (60, "undersize_packets"),
        (64, "size_64_packets"),
        (65, "size_65_127_packets"),
        (127, "size_65_127_packets"),
        (255, "size_128_255_packets"),
        (511, "size_256_511_packets"),
        (1023, "size_512_1023_packets"),
        (1024, "size_1024_1518_packets"),
        (1518, "size_1024_1518_packets"),
        (1519, "size_1519_max_packets"),
    ],
)
def test_packets_are_counted_by_size(linked, length, bucket):
    port, guest = linked()
    port.tx_burst(0, [b"\2" * length])
    guest.send(0, [b"\2" * length])
    at_guest(guest, 0, 1)
    at_port(port, 0, 1)
    xstats = port.xstats()
    for side in ("rx", "tx"):
        assert {name for name in NET_VHOST if xstats[f"{side}_q0_{name}"]} == {"good_packets", "good_bytes", bucket}


def test_multicast_and_broadcast_are_counted(linked):
    port, guest = linked()
    port.tx_burst(0, [b"\xff" * 64, b"\1" * 64, b"\2" * 64])
    at_guest(guest, 0, 3)
    assert port.xstats()["tx_q0_broadcast_packets"] == 1
    assert port.xstats()["tx_q0_multicast_packets"] == 1


def test_the_package_lists_its_names():
    assert set(vhost_ioat.__all__) <= set(dir(vhost_ioat))
    assert dir(vhost_ioat) == sorted(vhost_ioat.__all__)
    for name in vhost_ioat.__all__:
        assert getattr(vhost_ioat, name) is not None
