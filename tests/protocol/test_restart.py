# SPDX-License-Identifier: BSD-3-Clause
"""Either side is killed while traffic runs, again and again: it resumes each time, and nothing is left behind."""

from __future__ import annotations

import pytest

import vhost_ioat
from nursery import Nursery
from resources import expect_resources, resources
from vhost_ioat.guest import Guest
from watchdog import WATCHDOG, Watchdog

TIMES = 200
PACKETS = 200  # that must pass in each life
PACKET = bytes(range(64)) * 4

GUEST = """
import vhost_ioat.guest

def main():
    with vhost_ioat.guest.Guest({socket_path!r}, server={server}) as guest:
        guest.connect(timeout=60)
        while True:
            guest.send(0, [{packet!r}] * 8)
            guest.recv(0, 64)
"""

RETURNING_GUEST = """
import vhost_ioat.guest

def main():
    while True:
        try:
            with vhost_ioat.guest.Guest({socket_path!r}, server={server}) as guest:
                guest.connect(timeout=60)
                while True:
                    guest.send(0, [{packet!r}] * 8)
                    guest.recv(0, 64)
        except vhost_ioat.Disconnected:
            pass
"""

PORT = """
import vhost_ioat

def main():
    with vhost_ioat.EthVhost({socket_path!r}, client={client}) as port:
        while True:
            port.tx_burst(0, port.rx_burst(0, 64))
"""


@pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
def test_guest_killed_under_traffic(socket_path: str, client: bool) -> None:
    code = GUEST.format(socket_path=socket_path, server=client, packet=PACKET)
    with Nursery(code) as guests, vhost_ioat.EthVhost(socket_path, client=client) as port:
        start = None
        for life in range(TIMES):
            guests.start()
            assert port.wait_link(timeout=WATCHDOG), f"life {life}: {port.info()}"
            received = 0
            dog = Watchdog()
            while received < PACKETS:
                burst = port.rx_burst(0, 64)
                assert all(packet.tobytes() == PACKET for packet in burst)
                received += len(burst)
                port.tx_burst(0, burst)
                dog.check(f"life {life}: {received} packets")
            del burst
            guests.kill()
            assert port.wait_link(up=False, timeout=WATCHDOG), f"life {life}: {port.info()}"
            port.events()
            if life == 0:
                start = resources()
        expect_resources(start)


@pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
def test_port_killed_under_traffic(socket_path: str, client: bool) -> None:
    with Nursery(PORT.format(socket_path=socket_path, client=client)) as ports:
        start = None
        for life in range(TIMES):
            with Guest(socket_path, server=client) as guest:
                ports.start()
                guest.connect(timeout=WATCHDOG)
                received = 0
                dog = Watchdog()
                while received < PACKETS:
                    guest.send(0, [PACKET] * 8)
                    packets = guest.recv(0, 64)
                    assert set(packets) <= {PACKET}
                    received += len(packets)
                    dog.check(f"life {life}: {received} packets came back")
                ports.kill()
                with pytest.raises(vhost_ioat.Disconnected):
                    talk(guest)
            if life == 0:
                start = resources()
        expect_resources(start)


def talk(guest: Guest) -> None:
    dog = Watchdog()
    while True:
        guest.send(0, [PACKET])
        guest.recv(0)
        dog.check("the guest was not told that its port is dead")


@pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
def test_port_stopped_and_started_under_traffic(socket_path: str, client: bool) -> None:
    code = RETURNING_GUEST.format(socket_path=socket_path, server=client, packet=PACKET)
    with Nursery(code) as guests, vhost_ioat.EthVhost(socket_path, client=client) as port:
        guests.start()
        start = None
        for life in range(TIMES):
            port.start()
            assert port.wait_link(timeout=WATCHDOG), f"life {life}: {port.info()}"
            before = port.stats().ipackets
            dog = Watchdog()
            while port.stats().ipackets < before + PACKETS:
                port.tx_burst(0, port.rx_burst(0, 64))
                dog.check(f"life {life}")
            port.stop()
            port.events()
            if life == 0:
                start = resources()
        expect_resources(start)
