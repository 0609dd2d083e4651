# SPDX-License-Identifier: BSD-3-Clause
"""A raw vhost-user front end: it sends any message with any size, flags and fds, and well-formed ones by name.

It deliberately does not check what is allowed. For a guest that moves packets, see `vhost_ioat.guest`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

__all__ = ["NEED_REPLY", "REPLY", "REQUESTS", "Message", "RawFrontend", "Reply", "open_fds"]

VERSION, REPLY, NEED_REPLY = 0x1, 0x4, 0x8  # flags
NO_FD = 0x100  # in the payload of SET_VRING_KICK, _CALL, _ERR
F_PROTOCOL_FEATURES = 1 << 30

# Name -> id and size of the payload (vhost-user specification, "Front-end message types").
REQUESTS = {
    "GET_FEATURES": (1, 0),
    "SET_FEATURES": (2, 8),
    "SET_OWNER": (3, 0),
    "RESET_OWNER": (4, 0),
    "SET_MEM_TABLE": (5, 40),  # with one region
    "SET_LOG_BASE": (6, 16),
    "SET_LOG_FD": (7, 0),
    "SET_VRING_NUM": (8, 8),
    "SET_VRING_ADDR": (9, 40),
    "SET_VRING_BASE": (10, 8),
    "GET_VRING_BASE": (11, 8),
    "SET_VRING_KICK": (12, 8),
    "SET_VRING_CALL": (13, 8),
    "SET_VRING_ERR": (14, 8),
    "GET_PROTOCOL_FEATURES": (15, 0),
    "SET_PROTOCOL_FEATURES": (16, 8),
    "GET_QUEUE_NUM": (17, 0),
    "SET_VRING_ENABLE": (18, 8),
    "SEND_RARP": (19, 8),
    "NET_SET_MTU": (20, 8),
    "SET_BACKEND_REQ_FD": (21, 0),
    "GET_INFLIGHT_FD": (31, 24),
    "SET_INFLIGHT_FD": (32, 24),
    "RESET_DEVICE": (34, 0),
    "GET_MAX_MEM_SLOTS": (36, 0),
    "ADD_MEM_REG": (37, 40),
    "REM_MEM_REG": (38, 40),
    "SET_STATUS": (39, 8),
    "GET_STATUS": (40, 0),
}


@dataclass(frozen=True)
class Message:
    """One message as it goes over the socket.

    `size`, when not None, replaces the true size of the payload in the header. `fds` are file descriptors, or the kinds
    that `open_fds` knows.
    """

    request: int
    payload: bytes = b""
    fds: Sequence[int | str] = ()
    flags: int = VERSION
    size: int | None = None

    def encode(self) -> bytes:
        """Header and payload."""
        size = len(self.payload) if self.size is None else self.size
        return struct.pack("<III", self.request, self.flags, size) + self.payload


@dataclass(frozen=True)
class Reply:
    """What the back end sent."""

    request: int
    flags: int
    payload: bytes

    @property
    def u64(self) -> int:
        """The payload as one number."""
        return int.from_bytes(self.payload, "little")


@contextlib.contextmanager
def open_fds(fds: Sequence[int | str]) -> Iterator[list[int]]:
    """Open fds for the kinds "eventfd", "memfd" (1 MiB), "pipe" (its write end), "socket"; close them at the end."""
    with contextlib.ExitStack() as cleanup:

        def close_later(fd: int) -> int:
            cleanup.callback(os.close, fd)
            return fd

        def make(kind: int | str) -> int:
            if isinstance(kind, int):
                return kind
            if kind == "eventfd":
                return close_later(os.eventfd(0))
            if kind == "memfd":
                fd = close_later(os.memfd_create("memory"))
                os.truncate(fd, 1 << 20)
                return fd
            if kind == "pipe":
                reader, writer = os.pipe()
                close_later(reader)
                return close_later(writer)
            return cleanup.enter_context(socket.socket(socket.AF_UNIX)).fileno()

        yield [make(kind) for kind in fds]


class RawFrontend:
    """One connection to a back end that listens or, when `server` is true, that connects to us.

    Every wait ends after `timeout` seconds with `TimeoutError`. Not thread-safe.
    """

    def __init__(self, path: str, *, server: bool = False, timeout: float = 5.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self.memory: mmap.mmap | None = None
        try:
            if server:
                listener = self.socket
                listener.bind(path)
                listener.listen()
                with listener:
                    self.socket, _ = listener.accept()
                self.socket.settimeout(timeout)
            else:
                self._connect(path, timeout)
        except BaseException:
            self.socket.close()
            raise

    def _connect(self, path: str, timeout: float) -> None:
        # Python's own timeout makes the socket non-blocking, and then a full backlog is an error at once (unix(7)).
        self.socket.settimeout(None)
        limit = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            self.socket.connect(path)
        except BlockingIOError:
            raise TimeoutError(f"nobody accepts on {path}") from None
        self.socket.settimeout(timeout)

    def close(self) -> None:
        """Close the connection and unmap the memory."""
        self.socket.close()
        if self.memory is not None:
            self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send(self, message: Message) -> None:
        """Send one message; its fds go with the first byte.

        Raises:
            ConnectionError: The back end has closed the connection.
        """
        content = message.encode()
        with open_fds(message.fds) as fds:
            sent = socket.send_fds(self.socket, [content], fds) if fds else self.socket.send(content)
        if sent < len(content):
            self.socket.sendall(content[sent:])

    def receive(self) -> Reply | None:
        """Return the next message from the back end; None when it has closed the connection."""
        header = self._read(12)
        if header is None:
            return None
        request, flags, size = struct.unpack("<III", header)
        payload = self._read(size) if size else b""
        return None if payload is None else Reply(request, flags, payload)

    def _read(self, n: int) -> bytes | None:
        content = b""
        while len(content) < n:
            try:
                piece = self.socket.recv(n - len(content))
            except ConnectionError:
                return None
            if not piece:
                return None
            content += piece
        return content

    def ask(self, name: str, payload: bytes = b"", fds: Sequence[int | str] = ()) -> Reply | None:
        """Send a request by name and return its reply; None when the back end has closed the connection."""
        self.send(Message(REQUESTS[name][0], payload, fds))
        return self.receive()

    def acknowledged(self, name: str, payload: bytes = b"", fds: Sequence[int | str] = ()) -> bool:
        """Send a request with NEED_REPLY: True if it was accepted, False if refused or closed. Needs REPLY_ACK."""
        self.send(Message(REQUESTS[name][0], payload, fds, VERSION | NEED_REPLY))
        reply = self.receive()
        return reply is not None and reply.u64 == 0

    def tell(self, name: str, payload: bytes = b"", fds: Sequence[int | str] = ()) -> None:
        """Send, by name, a request that has no reply."""
        self.send(Message(REQUESTS[name][0], payload, fds))

    def get_u64(self, name: str) -> int:
        """Return the number that answers a GET_ request.

        Raises:
            ConnectionError: The back end has closed the connection.
        """
        reply = self.ask(name)
        if reply is None:
            raise ConnectionError(f"the back end closed the connection instead of answering {name}")
        return reply.u64

    def negotiate(self, features: int, protocol_features: int | None = None) -> int:
        """Send SET_OWNER and negotiate; None means all protocol features offered. Returns the agreed features."""
        agreed = self.get_u64("GET_FEATURES") & (features | F_PROTOCOL_FEATURES)
        self.tell("SET_OWNER")
        if agreed & F_PROTOCOL_FEATURES:
            offered = self.get_u64("GET_PROTOCOL_FEATURES")
            wanted = offered if protocol_features is None else offered & protocol_features
            self.tell("SET_PROTOCOL_FEATURES", u64(wanted))
        self.tell("SET_FEATURES", u64(agreed))
        return agreed

    def share_memory(self, size: int = 1 << 21, gpa: int = 0, uva: int = 0x7F00_0000_0000) -> mmap.mmap:
        """Share a memfd as the only region of guest memory; front-end addresses are `uva` + guest-physical ones."""
        fd = os.memfd_create("guest")
        try:
            os.truncate(fd, size)
            self.memory = mmap.mmap(fd, size)
            self.tell("SET_MEM_TABLE", struct.pack("<IIQQQQ", 1, 0, gpa, size, uva + gpa, 0), [fd])
        finally:
            os.close(fd)
        return self.memory

    def is_answering(self) -> bool:
        """Whether the session still answers GET_FEATURES; False when the back end has closed the connection."""
        try:
            self.tell("GET_FEATURES")
            while (reply := self.receive()) is not None:
                if reply.request == REQUESTS["GET_FEATURES"][0]:
                    return True
        except ConnectionError:
            pass
        return False


def u64(value: int) -> bytes:
    """A payload of one 64-bit number."""
    return struct.pack("<Q", value)


def vring(index: int, number: int) -> bytes:
    """The payload of SET_VRING_NUM, _BASE, _ENABLE and GET_VRING_BASE."""
    return struct.pack("<II", index, number)


def vring_addr(index: int, desc: int, avail: int, used: int) -> bytes:
    """The payload of SET_VRING_ADDR, with front-end addresses."""
    return struct.pack("<IIQQQQ", index, 0, desc, used, avail, 0)
