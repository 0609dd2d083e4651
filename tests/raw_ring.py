# SPDX-License-Identifier: BSD-3-Clause
"""A ring written by hand, and each message about it sent when a test wants it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from vhost_ioat.testing import RawFrontend
from vhost_ioat.testing.frontend import u64, vring, vring_addr

UVA = 0x7F00_0000_0000
NO_FD = 1 << 8
SIZE = 256
MESSAGES = ("NUM", "ADDR", "BASE", "CALL", "KICK", "ENABLE")
F_VERSION_1 = 1 << 32
F_EVENT_IDX = 1 << 29


class RawRing:
    """Ring `index` of a front end, in memory from RawFrontend.share_memory(). Its buffers have 2 KiB."""

    def __init__(self, frontend: RawFrontend, index: int, event_idx: bool = False) -> None:
        assert frontend.memory is not None
        self.frontend, self.index, self.memory, self.event_idx = frontend, index, frontend.memory, event_idx
        self.at = index * 0x4000
        self.buffers = 0x100000 + index * SIZE * 0x800
        self.avail = 0
        self.kick, self.call = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)

    def close(self) -> None:
        os.close(self.kick)
        os.close(self.call)

    def say(self, *names: str, **values: object) -> None:
        """Send SET_VRING_ messages. `values`: other fds for CALL and KICK, or -1 for none; a base or an enable."""
        at = UVA + self.at
        for name in names or MESSAGES:
            value = values.get(name)
            if name == "ADDR":
                self.frontend.tell("SET_VRING_ADDR", vring_addr(self.index, at, at + 0x1000, at + 0x2000))
            elif name in ("KICK", "CALL", "ERR"):
                fd = {"KICK": self.kick, "CALL": self.call}.get(name, -1) if value is None else value
                none = fd == -1
                self.frontend.tell(f"SET_VRING_{name}", u64(self.index | NO_FD * none), [] if none else [fd])
            else:
                number = {"NUM": SIZE, "BASE": 0, "ENABLE": 1}[name] if value is None else int(value)  # type: ignore[call-overload]
                self.frontend.tell(f"SET_VRING_{name}", vring(self.index, number))

    def stop(self) -> int:
        reply = self.frontend.ask("GET_VRING_BASE", vring(self.index, 0))
        assert reply is not None
        return struct.unpack("<II", reply.payload)[1]

    def add(self, packet: bytes | None = None, count: int = 1) -> None:
        """Make buffers available: `packet` to be sent, or room for one."""
        for _ in range(count):
            slot = self.avail % SIZE
            place = self.buffers + slot * 0x800
            length = 0x800
            if packet is not None:
                length = 12 + len(packet)
                self.memory[place : place + length] = bytes(12) + packet
            descriptor = struct.pack("<QIHH", place, length, 2 if packet is None else 0, 0)
            self.memory[self.at + 16 * slot : self.at + 16 * slot + 16] = descriptor
            entry = self.at + 0x1000 + 4 + 2 * slot
            self.memory[entry : entry + 2] = struct.pack("<H", slot)
            self.avail += 1
            self.memory[self.at + 0x1002 : self.at + 0x1004] = struct.pack("<H", self.avail % 65536)

    def used(self) -> int:
        return struct.unpack("<H", self.memory[self.at + 0x2002 : self.at + 0x2004])[0]

    def wants_kick(self) -> bool:
        """Has the back end asked for a kick, for what was made available last?"""
        if self.event_idx:
            at = self.at + 0x2004 + 8 * SIZE
            return struct.unpack("<H", self.memory[at : at + 2])[0] == (self.avail - 1) % 65536
        return self.memory[self.at + 0x2000] & 1 == 0

    def do_kick(self) -> None:
        os.eventfd_write(self.kick, 1)

    def called(self) -> bool:
        try:
            return os.eventfd_read(self.call) > 0
        except BlockingIOError:
            return False


@contextmanager
def raw_rings(path: str, features: int = F_VERSION_1, rings: int = 2) -> Iterator[list[RawRing]]:
    """A front end that has negotiated and shared its memory, and rings of which it has said nothing."""
    with RawFrontend(path, timeout=60) as frontend:
        agreed = frontend.negotiate(features)
        frontend.share_memory(4 << 20, uva=UVA)
        made = [RawRing(frontend, index, bool(agreed & F_EVENT_IDX)) for index in range(rings)]
        try:
            yield made
        finally:
            for ring in made:
                ring.close()
