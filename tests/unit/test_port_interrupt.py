# SPDX-License-Identifier: BSD-3-Clause
import asyncio
import os
import select

import pytest

from traffic import at_port, packets_of, readable
from vhost_ioat import EthVhost
from vhost_ioat.guest import Guest
from watchdog import WATCHDOG


@pytest.mark.parametrize("event_idx", [True, False])
def test_the_fd_becomes_readable_when_the_guest_sends(linked, event_idx):
    port, guest = linked(event_idx=event_idx)
    for _ in range(5):
        assert port.rx_intr_enable(0) is False
        assert not readable(port)
        guest.send(0, [b"x" * 60])
        assert readable(port, WATCHDOG)
        port.rx_intr_disable(0)
        assert packets_of(port.rx_burst(0)) == [b"x" * 60]


@pytest.mark.parametrize("event_idx", [True, False])
def test_arming_says_when_packets_wait_already(linked, event_idx):
    port, guest = linked(event_idx=event_idx)
    guest.send(0, [b"x" * 60])
    assert port.rx_intr_enable(0) is True
    at_port(port, 0, 1)
    assert port.rx_intr_enable(0) is False


def test_the_fd_stays_the_same_over_reconnects(socket_path):
    with EthVhost(socket_path) as port:
        fd = port.rx_fileno(0)
        for _ in range(3):
            with Guest(socket_path) as guest:
                guest.connect(timeout=WATCHDOG)
                assert port.wait_link(timeout=WATCHDOG)
                assert port.rx_fileno(0) == fd
                port.rx_intr_enable(0)
                guest.send(0, [b"x" * 60])
                assert readable(port, WATCHDOG)
                at_port(port, 0, 1)
            assert port.wait_link(up=False, timeout=WATCHDOG)


def test_asyncio_can_wait_for_packets(linked):
    port, guest = linked()

    async def receive():
        arrived = asyncio.Event()
        asyncio.get_running_loop().add_reader(port.rx_fileno(0), arrived.set)
        if not port.rx_intr_enable(0):
            asyncio.get_running_loop().call_soon(guest.send, 0, [b"x" * 60])
            await asyncio.wait_for(arrived.wait(), WATCHDOG)
        asyncio.get_running_loop().remove_reader(port.rx_fileno(0))
        return packets_of(port.rx_burst(0))

    assert asyncio.run(receive()) == [b"x" * 60]


@pytest.mark.parametrize("end", [EthVhost.stop, EthVhost.close])
@pytest.mark.parametrize("connected", [True, False])
def test_who_waits_is_woken_when_the_port_goes(socket_path, end, connected):
    with EthVhost(socket_path) as port, Guest(socket_path) as guest:
        if connected:
            guest.connect(timeout=WATCHDOG)
            assert port.wait_link(timeout=WATCHDOG)
        port.rx_intr_enable(0)
        fd = os.dup(port.rx_fileno(0))
        end(port)
        assert select.select([fd], [], [], WATCHDOG)[0]
        os.close(fd)
