# SPDX-License-Identifier: BSD-3-Clause
"""A real Linux guest in QEMU against Python scripts on the public API."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vhost_ioat
from interop.console import Console, wait_for_listener
from interop.linux_guest import LinuxGuest, Nic
from watchdog import WATCHDOG

pytestmark = [pytest.mark.peers("qemu", "busybox-static", "cpio"), pytest.mark.timeout(600)]

EXAMPLES = Path(__file__).parents[2] / "examples"
ECHO = EXAMPLES / "echo.py"


@contextlib.contextmanager
def script(path: Path, *devargs: str) -> Iterator[Console]:
    """Run an example as a process of its own; at the end Ctrl-C must make it leave without a complaint."""
    with Console([sys.executable, str(path), *devargs]) as console:
        for text in devargs:
            arguments = vhost_ioat.parse_devargs(text)
            if not arguments.client:
                wait_for_listener(arguments.iface)
        yield console
        console.process.send_signal(signal.SIGINT)
        assert console.wait() == 0, console.text
        assert "Traceback" not in console.text, console.text


def test_echo_script_is_under_forty_lines() -> None:
    assert len(ECHO.read_text().splitlines()) < 40


@pytest.mark.parametrize("queues", [1, 2])
@pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
def test_every_ping_is_answered(initramfs: Path, socket_path: str, client: bool, queues: int) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(script(ECHO, f"iface={socket_path},client={int(client)},queues={queues}"))
        guest = stack.enter_context(LinuxGuest(initramfs, Nic(socket_path, server=client, queues=queues), cpus=queues))
        guest.wait_booted()
        guest.up("10.0.0.2/24", mtu=9000)
        for size in (56, 1400, 8000):
            assert guest.ping("10.0.0.1", size, count=10) == 10
        guest.power_off()


def test_mtu_reaches_the_guest_through_the_device(initramfs: Path, socket_path: str) -> None:
    with script(ECHO, f"iface={socket_path}"), LinuxGuest(initramfs, Nic(socket_path, host_mtu=9000)) as guest:
        guest.wait_booted()
        assert guest.run("cat /sys/class/net/eth0/mtu").strip() == "9000"
        guest.up("10.0.0.2/24", mtu=9000)
        assert guest.ping("10.0.0.1", 8000) == 5
        guest.power_off()


def test_guest_reboots_and_pings_again(initramfs: Path, socket_path: str) -> None:
    """The same script serves one VM after the other."""
    with script(ECHO, f"iface={socket_path}"):
        for _ in range(2):
            with LinuxGuest(initramfs, Nic(socket_path)) as guest:
                guest.wait_booted()
                guest.up("10.0.0.2/24")
                assert guest.ping("10.0.0.1") == 5


MEGABYTES = 64


SWITCH = EXAMPLES / "learning_switch.py"
FAILING_SWITCH = Path(__file__).parent / "failing_switch.py"


@pytest.mark.parametrize(
    ("program", "queues", "engine"),
    [
        (SWITCH, 1, ""),
        (SWITCH, 2, ""),
        (SWITCH, 1, ",ioats=(txq0@sw0)"),
        (SWITCH, 1, ",ioats=(txq0@sw0),publish=dma"),
        (FAILING_SWITCH, 1, ",ioats=(txq0@sw0)"),
    ],
    ids=["one queue", "two queues", "engine", "engine publishes", "failing engine"],
)
def test_guests_transfer_a_file_over_tcp_through_the_switch(
    initramfs: Path, socket_path: str, program: Path, queues: int, engine: str
) -> None:
    """Checksums and segmentation stay requests all the way: the packets between the guests are longer than the MTU."""
    sockets = [f"{socket_path}{index}" for index in range(2)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(script(program, *(f"iface={s},queues={queues}{engine}" for s in sockets)))
        sender, receiver = (
            stack.enter_context(
                LinuxGuest(
                    initramfs,
                    Nic(path, queues=queues, mac=f"52:54:00:00:00:0{index}"),
                    memory=256 + MEGABYTES,
                    cpus=queues,
                )
            )
            for index, path in enumerate(sockets, 1)
        )
        sender.wait_booted()
        receiver.wait_booted()
        sender.up("10.0.0.1/24")
        receiver.up("10.0.0.2/24")
        sender.run(f"dd if=/dev/urandom of=/tmp/file bs=1M count={MEGABYTES}", timeout=2 * WATCHDOG)
        expected = sender.run("md5sum < /tmp/file", timeout=2 * WATCHDOG).split()[0]

        receiver.run(
            "mkfifo /tmp/open && exec 3<>/tmp/open"
        )  # a standard input that does not end, which nc would pass on
        receiver.run("(nc -l -p 5001 <&3 | md5sum > /tmp/sum; echo received) &")
        receiver.run("until netstat -ltn | grep -q :5001; do usleep 100000; done")
        sender.run("nc 10.0.0.2 5001 < /tmp/file", timeout=300)
        receiver.expect("received", 300)
        assert receiver.run("cat /tmp/sum").split()[0] == expected

        counters = sender.run("cd /sys/class/net/eth0/statistics; echo $(cat tx_bytes) $(cat tx_packets)")
        sent_bytes, sent_packets = map(int, re.findall(r"\d+", counters))
        assert sent_bytes >= MEGABYTES << 20
        assert sent_bytes / sent_packets > 3000, "the guest sent no segments above its MTU: offloads were not in use"
        for guest in (sender, receiver):
            guest.power_off()
