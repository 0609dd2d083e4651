# SPDX-License-Identifier: BSD-3-Clause
"""SEND_RARP: a guest has moved here, and the next packets received begin with the frame that tells switches so."""

from traffic import at_port
from vhost_ioat import EthVhost
from vhost_ioat.testing import RawFrontend
from vhost_ioat.testing.frontend import u64, vring, vring_addr
from watchdog import WATCHDOG

UVA = 0x7F00_0000_0000
MAC = bytes.fromhex("525400123456")


def test_a_guest_that_moved_is_announced_once(socket_path):
    with EthVhost(socket_path) as port, RawFrontend(socket_path) as frontend:
        frontend.negotiate(2**64 - 1)
        frontend.share_memory(uva=UVA)
        for index in range(2):
            at = UVA + index * 0x4000
            frontend.tell("SET_VRING_NUM", vring(index, 256))
            frontend.tell("SET_VRING_ADDR", vring_addr(index, at, at + 0x1000, at + 0x2000))
            frontend.tell("SET_VRING_KICK", u64(index), ["eventfd"])
            frontend.tell("SET_VRING_ENABLE", vring(index, 1))
        assert port.wait_link(timeout=WATCHDOG)
        frontend.tell("SEND_RARP", MAC + bytes(2))
        (frame,) = at_port(port, 0, 1)
        # RFC 903: to everybody, from the guest, type RARP, Ethernet and IPv4, "request reverse", who am I.
        head = b"\xff" * 6 + MAC + bytes.fromhex("80350001080006040003") + MAC + bytes(4) + MAC + bytes(4)
        assert frame == head.ljust(60, b"\0")
        assert frontend.is_answering()
        assert not port.rx_burst(0)
