# SPDX-License-Identifier: BSD-3-Clause
"""Peers that mean a port no good, one after the other: `python benchmarks/hostile.py SOCKET [--seed N]`.

A process of its own, so that what the port's process lacks it does not lack. SIGTERM ends it with a line of counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator

from vhost_ioat import Disconnected, ProtocolError
from vhost_ioat.guest import Guest
from vhost_ioat.testing import RawFrontend
from vhost_ioat.testing.frontend import REQUESTS, Message, u64, vring, vring_addr

PATIENCE = 2.0  # with a port that has no time or no fds for us
SIZE, UVA = 1 << 21, 0x7F00_0000_0000
RING, RING_BYTES = 256, 0x4000  # entries; of guest memory for each ring


def pester(path: str, dice: random.Random, patience: float = 60.0) -> None:
    """A peer that says anything."""
    with RawFrontend(path, timeout=patience) as front, contextlib.suppress(ConnectionError):
        if dice.random() < 0.7:
            front.negotiate(2**64 - 1)
            front.share_memory()
        for _ in range(dice.randrange(30)):
            request, size = dice.choice(list(REQUESTS.values()))
            size = dice.choice([size, size, size, dice.randrange(100)])
            index = dice.choice([0, 1, 2, 2**32 - 1])
            body = (index.to_bytes(4, "little") + dice.choice([b"\0\1\0\0", dice.randbytes(4)]) + bytes(256))[:size]
            fds = dice.choices(["eventfd", "memfd", "pipe"], k=dice.choice([0, 0, 1, 1, 2]))
            front.send(Message(request, body, fds, dice.choice([1, 1, 9, 2])))
        front.is_answering()


def negotiated(path: str) -> RawFrontend:
    front = RawFrontend(path, timeout=PATIENCE)
    try:
        front.negotiate(2**64 - 1)
    except BaseException:
        front.close()
        raise
    return front


def start_rings(front: RawFrontend, call: int, kick: int) -> None:
    for index in range(2):
        at = UVA + index * RING_BYTES
        front.tell("SET_VRING_NUM", vring(index, RING))
        front.tell("SET_VRING_BASE", vring(index, 0))
        front.tell("SET_VRING_ADDR", vring_addr(index, at, at + 0x1000, at + 0x2000))
        front.tell("SET_VRING_CALL", u64(index), [call])
        front.tell("SET_VRING_ERR", u64(index), [call])
        front.tell("SET_VRING_KICK", u64(index), [kick])
        front.tell("SET_VRING_ENABLE", vring(index, 1))


@contextlib.contextmanager
def running(path: str) -> Iterator[tuple[RawFrontend, int, int]]:
    """A front end whose two rings run in its memory; the memory's fd and the kick fd."""
    with contextlib.ExitStack() as opened:
        memory, call, kick = os.memfd_create("guest"), os.eventfd(0), os.eventfd(0)
        for fd in (memory, call, kick):
            opened.callback(os.close, fd)
        front = opened.enter_context(negotiated(path))
        os.truncate(memory, SIZE)
        front.tell("SET_MEM_TABLE", struct.pack("<IIQQQQ", 1, 0, 0, SIZE, UVA, 0), [memory])
        start_rings(front, call, kick)
        yield front, memory, kick


def rest(dice: random.Random, most: float) -> None:
    time.sleep(dice.random() * most)


def be_silent(path: str, dice: random.Random) -> None:
    """It connects and says nothing, or half a message."""
    with RawFrontend(path, timeout=PATIENCE) as front:
        if dice.random() < 0.5:
            front.socket.sendall(Message(5, bytes(40)).encode()[: dice.randrange(1, 51)])
        rest(dice, 0.5)


def flood(path: str, dice: random.Random) -> None:
    """Messages without end, and no look at the answers."""
    with negotiated(path) as front:
        front.socket.settimeout(0.2)
        name = dice.choice(["GET_FEATURES", "GET_PROTOCOL_FEATURES", "GET_QUEUE_NUM", "GET_STATUS"])
        with contextlib.suppress(TimeoutError):
            for _ in range(20000):
                front.tell(name)


def repeat(path: str, dice: random.Random) -> None:
    """One change of a running ring again and again."""
    with running(path) as (front, memory, kick):
        for _ in range(dice.randrange(2000)):
            if dice.random() < 0.1:
                front.tell("SET_MEM_TABLE", struct.pack("<IIQQQQ", 1, 0, 0, SIZE, UVA, 0), [memory])
            else:
                front.tell(dice.choice(["SET_VRING_CALL", "SET_VRING_KICK"]), u64(dice.randrange(2)), [kick])
        front.is_answering()


def truncate(path: str, dice: random.Random) -> None:
    """The memory goes away under the rings."""
    with running(path) as (front, memory, kick):
        rest(dice, 0.05)
        os.truncate(memory, dice.choice([0, 4096, 0x8000]))
        os.eventfd_write(kick, 1)
        for _ in range(50):
            front.tell("SET_VRING_ENABLE", vring(dice.randrange(2), dice.randrange(2)))
        rest(dice, 0.05)


def scribble(path: str, dice: random.Random) -> None:
    """A guest that writes anything into its rings: loops, lengths, indices, addresses."""
    with running(path) as (front, memory, kick):
        for _ in range(dice.randrange(300)):
            base = dice.randrange(2) * RING_BYTES
            entry = struct.pack(
                "<QIHH",
                dice.choice([0x10000, 0, SIZE - 10, 2**64 - 16, dice.randrange(SIZE)]),
                dice.choice([0, 1, 60, 1514, 65536, 2**32 - 1]),
                dice.randrange(8),
                dice.choice([0, 1, dice.randrange(RING), 2**16 - 1]),
            )
            for n in range(dice.choice([1, 16, RING])):
                os.pwrite(memory, entry, base + n * 16)
            heads = [dice.choice([0, 1, dice.randrange(RING), 2**16 - 1]) for _ in range(RING)]
            avail = struct.pack(f"<HH{RING}H", dice.randrange(4), dice.randrange(2**16), *heads)
            os.pwrite(memory, avail, base + 0x1000)
            os.eventfd_write(kick, 1)
        rest(dice, 0.02)
        front.is_answering()


def linger(path: str, dice: random.Random) -> None:
    """A TCP socket whose last close() waits, in place of memory or of an eventfd."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        ours = opened.enter_context(socket.create_connection(listener.getsockname()))
        opened.enter_context(listener.accept()[0])
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 2))
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(1 << 20))
        front = opened.enter_context(negotiated(path))
        if dice.random() < 0.5:
            table = struct.pack("<IIQQQQ", 1, 0, 0, SIZE, UVA, 0)
            front.send(Message(REQUESTS["SET_MEM_TABLE"][0], table, [ours.fileno()]))
        else:
            front.tell(dice.choice(["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"]), u64(0), [ours.fileno()])
        ours.close()
        front.is_answering()


def crowd(path: str, dice: random.Random) -> None:
    """Many at once, of which the port can serve one."""
    with contextlib.ExitStack() as opened:
        for _ in range(dice.randrange(150)):
            one = opened.enter_context(socket.socket(socket.AF_UNIX))
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(path)
        rest(dice, 0.05)


def hoard(path: str, dice: random.Random) -> None:
    """As much memory, and as many fds, as it may."""
    with contextlib.ExitStack() as opened:
        fd = os.memfd_create("huge")
        opened.callback(os.close, fd)
        os.truncate(fd, 1 << 36)
        front = opened.enter_context(negotiated(path))
        size = dice.choice([1 << 30, 1 << 33, 1 << 35])
        for n in range(8):
            region = struct.pack("<QQQQQ", 0, n << 36, size, UVA + (n << 36), 0)
            if not front.acknowledged("ADD_MEM_REG", region, [fd]):
                break
        for _ in range(300):
            front.tell("SET_VRING_CALL", u64(dice.randrange(2)), ["eventfd"])
        front.is_answering()


def be_honest(path: str, dice: random.Random) -> None:
    """A guest with traffic, so that the engine has work, that leaves in the middle."""
    with Guest(path, ring_size=dice.choice([64, 256, 1024])) as guest:
        guest.connect(timeout=PATIENCE)
        for _ in range(dice.randrange(2000)):
            guest.send(0, [bytes(dice.choice([60, 1500, 9000]))] * dice.randrange(1, 17))
            guest.recv(0, 64)
        if dice.random() < 0.5:
            guest.disconnect()


ATTACKS = (pester, be_silent, flood, repeat, truncate, scribble, linger, crowd, hoard, be_honest, be_honest)


def attack(path: str, dice: random.Random, counts: Counter[str]) -> None:
    chosen = dice.choice(ATTACKS)
    counts[chosen.__name__] += 1
    # What it meets is no matter here: a port may refuse, drop, or have no time.
    with contextlib.suppress(OSError, Disconnected, ProtocolError):
        pester(path, dice, PATIENCE) if chosen is pester else chosen(path, dice)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("socket")
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    counts = Counter[str]()
    dice = random.Random(options.seed)

    def leave(*_: object) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, leave)
    try:
        while not select.select([sys.stdin], [], [], 0)[0]:  # at the end of who started it
            attack(options.socket, dice, counts)
            rest(dice, 0.02)
    finally:
        print(json.dumps(counts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
