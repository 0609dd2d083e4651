# SPDX-License-Identifier: BSD-3-Clause
import itertools
import os
import select
import signal
import subprocess
import sys

import numpy as np
import pytest

from traffic import at_guest, at_port, until
from vhost_ioat import Burst, ConfigError, Disconnected, EthVhost, VhostIoatError
from vhost_ioat.guest import Guest
from watchdog import WATCHDOG

MRG_RXBUF, INDIRECT_DESC, EVENT_IDX, VERSION_1, IN_ORDER = 1 << 15, 1 << 28, 1 << 29, 1 << 32, 1 << 35
PACKETS = [bytes([i]) * n for i, n in enumerate([1, 60, 1514, 3000, 9000, 64])]


def optional(*bits):
    return [sum(chosen) for n in range(len(bits) + 1) for chosen in itertools.combinations(bits, n)]


@pytest.mark.parametrize("segment", [0, 700])
@pytest.mark.parametrize("features", [0, *[VERSION_1 | bits for bits in optional(MRG_RXBUF, INDIRECT_DESC, IN_ORDER)]])
def test_packets_pass_both_ways_with_any_features(linked, features, segment):
    port, guest = linked(guest={"features": features, "segment": segment, "rx_buf": 9100})
    assert guest.features == features
    assert guest.send(0, PACKETS) == len(PACKETS)
    assert at_port(port, 0, len(PACKETS)) == PACKETS
    assert port.tx_burst(0, PACKETS) == len(PACKETS)
    assert at_guest(guest, 0, len(PACKETS)) == PACKETS


def test_net_hdr_travels_with_a_burst_or_beside_it(linked):
    port, guest = linked()
    burst = Burst.from_packets([bytes(4000)] * 2)
    for name, value in {"flags": 1, "gso_type": 1, "hdr_len": 54, "gso_size": 1448, "csum_start": 34}.items():
        burst.net_hdr[name] = value
    assert guest.send(0, burst) == 2
    assert guest.send(0, [bytes(4000)], net_hdr=burst.net_hdr[:1]) == 1
    received = port.rx_burst(0)
    assert (received.net_hdr == burst.net_hdr[0]).all()
    assert len(received) == 3
    assert port.tx_burst(0, received) == 3
    back = []
    until(lambda: back.append(guest.recv_burst(0)) or back[-1])
    assert (back[-1].net_hdr == burst.net_hdr[0]).all()


def test_a_net_hdr_that_does_not_fit_is_refused(linked):
    _, guest = linked()
    headers = Burst.from_packets([bytes(60)]).net_hdr
    with pytest.raises(ValueError, match="1 entries for 2 packets"):
        guest.send(0, [bytes(60)] * 2, net_hdr=headers)
    with pytest.raises(TypeError, match="dtype"):
        guest.send(0, [bytes(60)], net_hdr=np.zeros(1, np.uint8))


def test_arguments_are_checked(linked):
    _, guest = linked()
    for queue in (-1, 1):
        with pytest.raises(IndexError):
            guest.send(queue, [bytes(60)])
        with pytest.raises(IndexError):
            guest.recv(queue)
    with pytest.raises(ValueError, match="n is 0"):
        guest.recv(0, 0)
    with pytest.raises(TypeError):
        guest.send(0, [5])
    with pytest.raises(ValueError, match="65553"):
        guest.send(0, [bytes(60), bytes(65554)])
    assert guest.rings()[1]["packets"] == 0
    with pytest.raises(VhostIoatError, match="connected already"):
        guest.connect()


@pytest.mark.parametrize(
    "options",
    [{"queues": 0}, {"queues": 129}, {"ring_size": 100}, {"rx_buf": 10}, {"mtu": 10}, {"features": 1 << 34}],
)
def test_a_bad_configuration_is_refused(socket_path, options):
    with pytest.raises(ConfigError):
        Guest(socket_path, **options)


def test_more_queues_than_the_back_end_has(socket_path):
    guest = Guest(socket_path, queues=3)
    with EthVhost(socket_path, queues=2), pytest.raises(ConfigError, match="2 queue pairs"):
        guest.connect(timeout=WATCHDOG)


def test_nobody_there(socket_path):
    with Guest(socket_path) as guest, pytest.raises(Disconnected, match="is the other side running"):
        guest.connect(timeout=0.05)
    with Guest(socket_path, server=True) as guest, pytest.raises(Disconnected):
        guest.connect(timeout=0.05)
    with Guest(socket_path) as guest, pytest.raises(Disconnected, match=r"call connect\(\)"):
        guest.recv(0)


def test_a_guest_notices_that_the_port_left_and_finds_it_again(linked):
    port, guest = linked()
    port.tx_burst(0, PACKETS)
    until(lambda: port.tx_pending(0) == 0)
    port.stop()
    assert at_guest(guest, 0, len(PACKETS)) == PACKETS  # what had come is not lost
    with pytest.raises(Disconnected):
        guest.recv(0)
    assert not guest.connected
    port.start()
    guest.connect(timeout=WATCHDOG)
    assert port.wait_link(timeout=WATCHDOG)
    assert guest.send(0, PACKETS) == len(PACKETS)
    assert at_port(port, 0, len(PACKETS)) == PACKETS


def test_an_orderly_leave_keeps_the_ring_indices(linked):
    port, guest = linked()
    guest.send(0, PACKETS)
    at_port(port, 0, len(PACKETS))
    guest.disconnect()
    assert port.wait_link(up=False, timeout=WATCHDOG)
    guest.connect(timeout=WATCHDOG)
    assert port.wait_link(timeout=WATCHDOG)
    assert guest.rings()[1]["avail_index"] == len(PACKETS)
    guest.send(0, PACKETS)
    assert at_port(port, 0, len(PACKETS)) == PACKETS


@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | EVENT_IDX])
def test_a_guest_sleeps_until_a_packet_comes(linked, features):
    port, guest = linked(guest={"features": features})
    call = guest.rx_fileno(0)
    assert guest.rx_intr_enable(0) is False
    for _ in range(3):
        assert port.tx_burst(0, [bytes(60)]) == 1
        assert select.select([call], [], [], WATCHDOG)[0]
        assert len(at_guest(guest, 0, 1)) == 1
        assert guest.rx_intr_enable(0) is False
        assert not select.select([call], [], [], 0)[0]
    port.tx_burst(0, [bytes(60)])
    until(lambda: guest.rings()[0]["used_index"] == 3 and guest.rx_intr_enable(0))


def test_memory_outlives_the_guest(linked):
    _, guest = linked()
    memory = guest.memory
    assert memory.dtype == np.uint8
    assert memory.flags.writeable
    assert os.fstat(guest.memory_fd).st_size == memory.size
    guest.close()
    memory[:] = 7
    assert memory[-1] == 7


def test_a_truncated_memory_is_survived_by_both_sides(linked):
    port, guest = linked()
    os.ftruncate(guest.memory_fd, 0)
    with pytest.raises(Disconnected):
        until(lambda: guest.send(0, [bytes(60)] * 32) + len(port.rx_burst(0)) < 0)
    assert any("truncated" in event.text or "memory" in event.text for event in port.events())


def test_ctrl_c_ends_connect(socket_path):
    script = f"from vhost_ioat.guest import Guest\nprint('up', flush=True)\nGuest({socket_path!r}).connect()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.communicate(timeout=WATCHDOG)[1]
