# SPDX-License-Identifier: BSD-3-Clause
"""Each example runs as a user runs it, with embedded guests as its peers."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from interop.console import Console
from vhost_ioat.guest import Guest

pytest.importorskip("scapy")
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether

from traffic import at_guest
from watchdog import WATCHDOG

EXAMPLES = Path(__file__).parents[2] / "examples"
OUR_MAC, ECHO_MAC = "02:00:00:00:00:02", "02:00:0a:00:00:01"
BROADCAST = "ff:ff:ff:ff:ff:ff"
TO_ECHO = Ether(dst=ECHO_MAC, src=OUR_MAC) / IP(src="10.0.0.2", dst="10.0.0.1")


@contextlib.contextmanager
def example(name: str, *devargs: str) -> Iterator[Console]:
    """The script runs meanwhile; at the end Ctrl-C makes it leave in silence."""
    with Console([sys.executable, str(EXAMPLES / name), *devargs]) as console:
        yield console
        console.process.send_signal(signal.SIGINT)
        assert console.wait() == 0, console.text
        assert "Traceback" not in console.text, console.text


def receive(guest: Guest, queue: int = 0) -> bytes:
    return at_guest(guest, queue, 1)[0]


def ask(guest: Guest, request: Ether) -> Ether:
    assert guest.send(0, [bytes(request)]) == 1
    return Ether(receive(guest))


@pytest.mark.parametrize("script", ["echo.py", "scapy_responder.py"])
def test_arp_and_ping_are_answered(socket_path: str, script: str) -> None:
    with example(script, f"iface={socket_path}"), Guest(socket_path) as guest:
        guest.connect(timeout=WATCHDOG)
        who_has = Ether(dst=BROADCAST, src=OUR_MAC) / ARP(hwsrc=OUR_MAC, psrc="10.0.0.2", pdst="10.0.0.1")
        answer = ask(guest, who_has)
        assert (answer.dst, answer.src) == (OUR_MAC, ECHO_MAC)
        assert (answer[ARP].op, answer[ARP].hwsrc, answer[ARP].psrc) == (2, ECHO_MAC, "10.0.0.1")
        assert (answer[ARP].hwdst, answer[ARP].pdst) == (OUR_MAC, "10.0.0.2")

        for payload in (b"x" * 56, b"\xff" * 1400):
            request = (
                Ether(dst=ECHO_MAC, src=OUR_MAC) / IP(src="10.0.0.2", dst="10.0.0.1") / ICMP(id=7, seq=1) / payload
            )
            answer = ask(guest, request)
            assert (answer[IP].src, answer[IP].dst) == ("10.0.0.1", "10.0.0.2")
            assert (answer[ICMP].type, answer[ICMP].id, answer[ICMP].seq) == (0, 7, 1)
            assert bytes(answer[ICMP].payload) == payload
            again = answer.copy()
            del again[ICMP].chksum
            assert Ether(bytes(again))[ICMP].chksum == answer[ICMP].chksum


def test_scapy_responder_echoes_udp(socket_path: str) -> None:
    with example("scapy_responder.py", f"iface={socket_path}") as console, Guest(socket_path) as guest:
        guest.connect(timeout=WATCHDOG)
        datagram = (
            Ether(dst=ECHO_MAC, src=OUR_MAC) / IP(src="10.0.0.2", dst="10.0.0.1") / UDP(sport=5000, dport=7) / b"hello"
        )
        answer = ask(guest, datagram)
        assert (answer[UDP].sport, answer[UDP].dport, bytes(answer[UDP].payload)) == (7, 5000, b"hello")
        guest.send(0, [bytes(Ether(dst=BROADCAST, src=OUR_MAC, type=0x88B5) / bytes(46))])
        console.expect("0x88b5", 10)


def test_switch_floods_learns_and_keeps_to_the_learned_port(socket_path: str) -> None:
    sockets = [f"{socket_path}{index}" for index in range(3)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(example("learning_switch.py", *(f"iface={path}" for path in sockets)))
        guests = [stack.enter_context(Guest(path)) for path in sockets]
        for guest in guests:
            guest.connect(timeout=WATCHDOG)
        macs = [bytes([2, 0, 0, 0, 1, index]) for index in range(3)]
        unknown = macs[1] + macs[0] + bytes(50)
        guests[0].send(0, [unknown])
        assert receive(guests[1]) == receive(guests[2]) == unknown
        known = macs[0] + macs[1] + bytes(50)
        guests[1].send(0, [known])
        assert receive(guests[0]) == known
        to_all = b"\xff" * 6 + macs[1] + bytes(50)
        guests[1].send(0, [to_all])
        assert receive(guests[0]) == receive(guests[2]) == to_all  # so `known` had not gone to guest 2


def test_asyncio_example_returns_what_comes_on_each_queue(socket_path: str) -> None:
    with example("asyncio_rx.py", f"iface={socket_path},queues=2") as console, Guest(socket_path, queues=2) as guest:
        guest.connect(timeout=WATCHDOG)
        for life in range(20):
            for queue in range(2):
                packet = b"\2\0\0\0\0\1" + b"\2\0\0\0\0\2" + bytes([life]) * 50
                guest.send(queue, [packet])
                assert receive(guest, queue) == packet[6:12] + packet[:6] + packet[12:]
        console.expect(r"rx \d+/s tx \d+/s", 10)


def test_script_of_the_readme_returns_packets_until_the_guest_leaves(socket_path: str, tmp_path: Path) -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    source = readme.split("```python\n")[1].split("```")[0].replace("/tmp/vhost0.sock", socket_path)
    script = tmp_path / "readme.py"
    script.write_text(source)
    with Console([sys.executable, str(script)]) as console:
        with Guest(socket_path, queues=2) as guest:
            guest.connect(timeout=WATCHDOG)
            packet = bytes(TO_ECHO / UDP(sport=5000, dport=7) / b"hello")
            for queue in range(2):
                guest.send(queue, [packet])
                assert receive(guest, queue) == packet[6:12] + packet[:6] + packet[12:]
        console.expect(r"Stats\(ipackets=2, opackets=2", 30)
        assert console.wait() == 0, console.text
