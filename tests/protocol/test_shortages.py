# SPDX-License-Identifier: BSD-3-Clause
"""A process that lacks something while a front end starts: it lives, says so, and serves the next one when it has it.

The port is in a process of its own, so that only that one is short of things. What fails call by call is in
tests/failures.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from traffic import until
from vhost_ioat.guest import Guest
from vhost_ioat.testing import RawFrontend
from vhost_ioat.testing.frontend import u64, vring, vring_addr
from watchdog import WATCHDOG

UVA = 0x7F00_0000_0000
MIB = 1 << 20
VERSION_1, PROTOCOL_FEATURES = 1 << 32, 1 << 30

# Sends back what comes, does as it is told, and answers each command with a line.
PORT = """
import ctypes, json, os, resource, select, sys
import vhost_ioat

HOW = sys.argv[1]
if HOW == "without /proc":
    libc = ctypes.CDLL(None, use_errno=True)
    ok = libc.unshare(0x20000) == 0  # CLONE_NEWNS
    ok = ok and libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
    ok = ok and libc.mount(b"none", b"/proc", b"tmpfs", 0, None) == 0
    if not ok:
        print("cannot", flush=True)
        sys.exit()
    assert os.listdir("/proc") == []

def limit(what, value):
    resource.setrlimit(what, (value, resource.getrlimit(what)[1]))

def size():
    return int(open("/proc/self/statm").read().split()[0]) * 4096

NOFILE, AS = resource.RLIMIT_NOFILE, resource.RLIMIT_AS
usual = {NOFILE: resource.getrlimit(NOFILE)[0], AS: resource.getrlimit(AS)[0]}
with vhost_ioat.EthVhost(sys.argv[2], queues=int(sys.argv[3]), mempool=1 << 24) as port:
    port.events()
    # Not when a command comes: what the front end before it had may be on its way out.
    at_rest = max(map(int, os.listdir("/proc/self/fd"))) if os.listdir("/proc") else 0
    # What reading commands and writing answers takes is taken beforehand.
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, ""):
        words = line.split()
        if words[0] == "echo":
            for queue in range(port.devargs.queues):
                port.tx_burst(queue, port.rx_burst(queue))
        elif words[0] == "fds":
            limit(NOFILE, at_rest + int(words[1]))
        elif words[0] == "memory":
            limit(AS, size() + int(words[1]))
        elif words[0] == "lift":
            for what, value in usual.items():
                limit(what, value)
        elif words[0] == "tell":
            told = [event.text for event in port.events() if event.kind != "link" or event.text != "link is up"]
            info = port.info()
            print(json.dumps({"told": told, "error": info.last_error, "up": bool(port.link())}), flush=True)
            continue
        print(words[0], flush=True)
"""


class Victim:
    """The process with the port."""

    def __init__(self, path: str, queues: int, how: str = "") -> None:
        self.path = path
        command = [sys.executable, "-c", PORT, how, path, str(queues)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.first = self.answer()

    def answer(self) -> str:
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], WATCHDOG)[0], "the port's process is silent"
        line = self.process.stdout.readline().strip()
        assert line, f"the port's process ended with {self.process.wait(WATCHDOG)}"
        return line

    def do(self, command: str) -> str:
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.answer()

    def tell(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.do("tell"))
        return told

    def serves(self) -> None:
        """An honest guest gets its packet back."""
        with Guest(self.path) as guest:
            guest.connect(timeout=WATCHDOG)
            packet = b"still here" * 6

            def back() -> bool:
                guest.send(0, [packet])
                self.do("echo")
                return packet in guest.recv(0)

            until(back, "the next front end's packet comes back")

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError), self.process:
            assert self.process.stdin
            self.process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(WATCHDOG)
            self.process.kill()


@pytest.fixture
def victim(socket_path: str) -> Iterator[Any]:
    with contextlib.ExitStack() as opened:

        def make(queues: int, how: str = "") -> Victim:
            made = Victim(socket_path, queues, how)
            opened.callback(made.close)
            return made

        yield make


def start(front: RawFrontend, pairs: int, entries: int) -> None:
    """Say all that starts `pairs` queue pairs, without waiting for an answer."""
    step = -(-(16 * entries) // 4096) * 4096
    ring_bytes = 3 * step
    size = 2 * pairs * ring_bytes + 16 * MIB
    front.tell("SET_OWNER")
    front.tell("SET_FEATURES", u64(VERSION_1 | PROTOCOL_FEATURES))
    memory, event = os.memfd_create("guest"), os.eventfd(0)
    os.truncate(memory, size)
    front.tell("SET_MEM_TABLE", struct.pack("<IIQQQQ", 1, 0, 0, size, UVA, 0), [memory])
    for index in range(2 * pairs):
        at = UVA + index * ring_bytes
        front.tell("SET_VRING_NUM", vring(index, entries))
        front.tell("SET_VRING_BASE", vring(index, 0))
        front.tell("SET_VRING_ADDR", vring_addr(index, at, at + step, at + 2 * step))
        for name in ("SET_VRING_CALL", "SET_VRING_ERR", "SET_VRING_KICK"):
            front.tell(name, u64(index), [event])
        front.tell("SET_VRING_ENABLE", vring(index, 1))
    front.tell("GET_FEATURES")
    os.close(memory)
    os.close(event)


def live_short(port: Victim, shortage: str, pairs: int, entries: int) -> bool:
    """A front end starts during the shortage. Whether it came to run."""
    port.do(shortage)
    told: list[dict[str, Any]] = []
    with RawFrontend(port.path, timeout=WATCHDOG) as front:
        with contextlib.suppress(ConnectionError):
            start(front, pairs, entries)

        def over() -> bool:  # answered, closed, or said why not
            told.append(port.tell())
            return bool(select.select([front.socket], [], [], 0)[0]) or bool(told[-1]["told"] and told[-1]["error"])

        until(over, "an answer, the end, or an event", pause=0.001)
        told.append(port.tell())
        up = told[-1]["up"]
        port.do("lift")
        assert up or any(one["error"] for one in told), f"nobody was told: {told}"
    return up


def test_out_of_fds_while_a_front_end_starts(victim):
    """Each number of fds from enough down to none."""
    port = victim(queues=2)
    ran = []
    # Some 30 are open in the end; how many more at once depends on when the helper threads come to close the others.
    for free in (200, *range(40, 0, -1)):
        ran.append(live_short(port, f"fds {free}", 2, 256))
        port.serves()
    assert ran[0], "200 fds are enough"
    assert not ran[-1]


@pytest.mark.address_space
def test_out_of_memory_while_a_front_end_with_many_large_rings_starts(victim):
    """Address space for less than 14 pairs of 32768 entries need."""
    port = victim(queues=14)
    ran = []
    for mib in (0, 2, *range(4, 129, 4), 256, 1024):  # upwards: what one leaves with the allocator, the next has
        ran.append(live_short(port, f"memory {mib * MIB}", 14, 32768))
        port.serves()
    assert not ran[0]
    assert ran[-1], "a GiB is enough"


def test_a_process_without_proc_serves_front_ends(victim):
    port = victim(queues=2, how="without /proc")
    if port.first == "cannot":
        pytest.skip("hiding /proc needs root")
    for _ in range(2):
        port.serves()
