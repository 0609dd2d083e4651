# SPDX-License-Identifier: BSD-3-Clause
"""User-Mode Linux against the port.

Its memory tables are as long as two regions in any case, its call fds are pipes, and it passes its guest's control
queue on to the back end.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from interop.linux_guest import UmlGuest, build_uml_initramfs
from interop.test_linux_guest import ECHO, SWITCH, script
from vhost_ioat import EthVhost
from watchdog import WATCHDOG, until

pytestmark = [pytest.mark.peers("uml", "busybox-static", "cpio"), pytest.mark.timeout(600)]

MEGABYTES = 50


@pytest.fixture(scope="module")
def initramfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_uml_initramfs(tmp_path_factory.mktemp("uml") / "initrd.gz")


def test_every_ping_is_answered_and_the_next_guest_is_served(initramfs: Path, socket_path: str) -> None:
    with script(ECHO, f"iface={socket_path}"):
        for _ in range(2):
            with UmlGuest(initramfs, socket_path) as guest:
                guest.wait_booted()
                guest.up("10.0.0.2/24")
                for size in (56, 1400):
                    assert guest.ping("10.0.0.1", size, count=10) == 10
                guest.power_off()


def test_what_the_guest_asks_for_over_its_control_queue_is_told(initramfs: Path, socket_path: str) -> None:
    with EthVhost(socket_path) as port, UmlGuest(initramfs, socket_path) as guest:
        guest.wait_booted()
        guest.run("ip link set eth0 up")
        assert port.wait_link(timeout=WATCHDOG)
        guest.run("ip link set eth0 promisc on")
        until(lambda: port.info().control.promiscuous, "the port knows")
        guest.run("ip link set eth0 promisc off")
        until(lambda: not port.info().control.promiscuous, "the port knows")
        texts = [event.text for event in port.events() if event.kind == "guest"]
        assert any(text.endswith("promiscuous on") for text in texts), texts
        assert [ring.broken for ring in port.info().rings] == [None] * 3
        guest.power_off()


def test_a_file_comes_whole_over_tcp(initramfs: Path, socket_path: str) -> None:
    sockets = [f"{socket_path}{index}" for index in range(2)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(script(SWITCH, *(f"iface={path}" for path in sockets)))
        sender, receiver = (stack.enter_context(UmlGuest(initramfs, path, memory=128 + MEGABYTES)) for path in sockets)
        for index, guest in enumerate((sender, receiver), 1):
            guest.wait_booted()
            guest.run(f"ip link set eth0 address 52:54:00:00:00:0{index}")
            guest.up(f"10.0.0.{index}/24")
        sender.run(f"dd if=/dev/urandom of=/tmp/file bs=1M count={MEGABYTES}")
        expected = sender.run("md5sum < /tmp/file").split()[0]
        receiver.run("mkfifo /tmp/open && exec 3<>/tmp/open")  # an input that does not end, which nc would pass on
        receiver.run("(nc -l -p 5001 <&3 | md5sum > /tmp/sum; echo received) &")
        receiver.run("until netstat -ltn | grep -q :5001; do usleep 100000; done")
        sender.run("nc 10.0.0.2 5001 < /tmp/file", timeout=300)
        receiver.expect("received", 300)
        assert receiver.run("cat /tmp/sum").split()[0] == expected
        for guest in (sender, receiver):
            guest.power_off()
