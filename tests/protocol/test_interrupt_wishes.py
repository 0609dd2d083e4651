# SPDX-License-Identifier: BSD-3-Clause
"""The wish for kicks is the user's: no message of the front end ends it, nobody sleeps while packets wait."""

import mmap
import os
import struct
from contextlib import contextmanager

import pytest

from raw_ring import F_EVENT_IDX, F_VERSION_1, UVA, raw_rings
from traffic import at_port, readable, until
from vhost_ioat import EthVhost
from vhost_ioat.testing.frontend import u64
from watchdog import WATCHDOG

PACKET = b"wish" * 15


@pytest.fixture
def port(socket_path):
    with EthVhost(socket_path) as port:
        yield port


@contextmanager
def running(port, features=F_VERSION_1):
    with raw_rings(port.devargs.iface, features) as rings:
        for ring in rings:
            ring.say()
        assert rings[0].frontend.is_answering()
        yield rings


def arm(port):
    """Ask to be woken, as one that has just found nothing."""
    until(lambda: not port.rx_intr_enable(0) and not len(port.rx_burst(0)))


def sends(port, ring):
    """A guest that kicks only when it is asked to; who waits for it is woken, and takes the packet."""
    ring.add(PACKET)
    if ring.wants_kick():
        ring.do_kick()
    assert readable(port, WATCHDOG)
    assert at_port(port, 0, 1) == [PACKET]


def another_table(rings):
    """The same contents in another file, as after a hot plug or a move of memory."""
    old = rings[0].memory
    fd = os.memfd_create("moved")
    os.write(fd, old[:])
    rings[0].frontend.tell("SET_MEM_TABLE", struct.pack("<IIQQQQ", 1, 0, 0, len(old), UVA, 0), [fd])
    rings[0].frontend.memory = mmap.mmap(fd, len(old))
    for ring in rings:
        ring.memory = rings[0].frontend.memory
    os.close(fd)


def hot_plug(rings):
    fd = os.memfd_create("plugged")
    os.truncate(fd, 1 << 20)
    region = struct.pack("<QQQQQ", 0, 1 << 32, 1 << 20, UVA + (1 << 40), 0)
    rings[0].frontend.tell("ADD_MEM_REG", region, [fd])
    os.close(fd)


def restart(rings):
    for ring in rings:
        ring.say("BASE", "KICK", "CALL", BASE=ring.stop())


def disabled_and_enabled(rings):
    for value in (0, 1):
        for ring in rings:
            ring.say("ENABLE", ENABLE=value)


def another_kick_fd(rings):
    for ring in rings:
        os.close(ring.kick)
        ring.kick = os.eventfd(0, os.EFD_NONBLOCK)
        ring.say("KICK")


def without_a_kick_fd(rings):
    for ring in rings:
        ring.stop()
        ring.say("KICK", KICK=-1)


def reset_by_firmware(rings):
    for ring in rings:
        ring.stop()
    rings[0].frontend.tell("SET_FEATURES", u64(F_VERSION_1 | 1 << 30 | (F_EVENT_IDX if rings[0].event_idx else 0)))
    for ring in rings:
        ring.memory[ring.at : ring.at + 0x4000] = bytes(0x4000)
        ring.avail = 0
        ring.say()


CHANGES = [
    another_table,
    hot_plug,
    restart,
    disabled_and_enabled,
    another_kick_fd,
    without_a_kick_fd,
    reset_by_firmware,
]


@pytest.mark.parametrize("features", [F_VERSION_1, F_VERSION_1 | F_EVENT_IDX], ids=["flags", "event index"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_wish_survives(port, change, features):
    with running(port, features) as rings:
        arm(port)
        sends(port, rings[1])
        arm(port)
        change(rings)
        assert rings[0].frontend.is_answering()
        sends(port, rings[1])
        arm(port)  # as many times as one likes
        sends(port, rings[1])


@pytest.mark.parametrize(
    "change", [another_table, restart, another_kick_fd, reset_by_firmware], ids=lambda c: c.__name__
)
def test_who_waits_is_woken_once_after_a_change_since_a_kick_may_have_gone_astray(port, change):
    with running(port) as rings:
        arm(port)
        change(rings)
        assert readable(port, WATCHDOG)
        assert rings[0].frontend.is_answering()
        arm(port)
        assert not readable(port)


@pytest.mark.parametrize("features", [F_VERSION_1, F_VERSION_1 | F_EVENT_IDX], ids=["flags", "event index"])
def test_packets_that_wait_when_a_ring_starts_need_no_kick(port, features):
    with running(port, features) as rings:
        arm(port)
        base = rings[1].stop()
        rings[1].add(PACKET)
        rings[1].say("BASE", "CALL", "KICK", BASE=base)
        assert readable(port, WATCHDOG)
        assert at_port(port, 0, 1) == [PACKET]


@pytest.mark.parametrize("features", [F_VERSION_1, F_VERSION_1 | F_EVENT_IDX], ids=["flags", "event index"])
def test_a_wish_may_come_before_the_ring(port, features):
    assert port.rx_intr_enable(0) in (False, True)
    with running(port, features) as rings:
        until(lambda: not len(port.rx_burst(0)))
        sends(port, rings[1])


def test_a_wish_survives_the_front_end(port):
    for _ in range(3):
        with running(port) as rings:
            sends(port, rings[1]) if port.stats().ipackets else arm(port)
            sends(port, rings[1])
        assert port.wait_link(up=False, timeout=WATCHDOG)


def test_a_wish_ends_when_the_user_says_so(port):
    with running(port) as rings:
        arm(port)
        assert rings[1].wants_kick()
        port.rx_intr_disable(0)
        assert not rings[1].wants_kick()
        restart(rings)
        assert rings[0].frontend.is_answering()
        assert not rings[1].wants_kick()


def test_a_guest_is_called_when_its_ring_starts_with_what_it_has_not_seen(port):
    """The former back end died after it had published, and before it called."""
    with raw_rings(port.devargs.iface) as rings:
        rings[0].add(count=4)
        at = rings[0].at + 0x2000
        rings[0].memory[at + 2 : at + 4] = struct.pack("<H", 2)
        for ring in rings:
            ring.say()
        until(rings[0].called)
