# SPDX-License-Identifier: BSD-3-Clause
"""State machine for a vhost-user back end, with a front end that sends anything in any order."""

from __future__ import annotations

import contextlib
import gc
import time
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from . import strategies
from .frontend import Message, RawFrontend, u64, vring, vring_addr

__all__ = ["SessionMachine"]

UVA = 0x7F00_0000_0000  # front-end address at which its memory starts
RING_SIZE = 256
PATIENCE = 60.0  # seconds that a back end may take to close the fds of a session that has ended


class SessionMachine(RuleBasedStateMachine):
    """Checks a vhost-user back end that listens on a socket, in this process or another.

    Subclass it and override `open_backend` and `close_backend`, and also `count_fds` if the back end runs in another
    process. After every step the back end must be alive, and the session must answer or be closed. Between two sessions
    the back end must have closed every file descriptor of the first one.
    """

    def open_backend(self) -> str:
        """Start the back end and return the path of its socket."""
        raise NotImplementedError

    def close_backend(self) -> None:
        """Stop the back end."""

    def count_fds(self) -> int:
        """The number of file descriptors open in the back end's process."""
        return len(list(Path("/proc/self/fd").iterdir()))

    @initialize()
    def set_up(self) -> None:
        """Start the back end, and count the fds of a session without any message."""
        gc.collect()  # objects of earlier tests must not close fds while they are counted
        self.path = self.open_backend()
        self.frontend = RawFrontend(self.path)
        assert self.frontend.is_answering()
        self.fds = self.count_fds()

    def reconnect(self) -> None:
        """Disconnect, connect again, and check that nothing of the last session is left."""
        self.frontend.close()
        self.frontend = RawFrontend(self.path)
        assert self.frontend.is_answering(), "the back end does not answer a new front end"
        end = time.monotonic() + PATIENCE  # a back end may close elsewhere, later, what a peer can make slow to close
        while (now := self.count_fds()) != self.fds:
            assert time.monotonic() < end, f"the last session left {now - self.fds} file descriptors open"
            time.sleep(0.001)

    @rule(message=strategies.messages())
    def send(self, message: Message) -> None:
        """Send any message; when its size is not that of its payload, the stream is lost, and so is the session."""
        try:
            self.frontend.send(message)
        except ConnectionError:
            self.reconnect()
            return
        if message.size is not None and message.size != len(message.payload):
            self.reconnect()

    @rule(message=strategies.messages(), part=st.floats(0, 1, exclude_max=True))
    def send_part(self, message: Message, part: float) -> None:
        """Send part of a message, and disconnect."""
        content = message.encode()
        with contextlib.suppress(ConnectionError):  # the reply to an earlier message hid that one had ended the session
            self.frontend.socket.sendall(content[: int(part * len(content))])
        self.reconnect()

    @rule(features=st.integers(0, 2**64 - 1), protocol=st.none() | st.integers(0, 2**64 - 1))
    def negotiate(self, features: int, protocol: int | None) -> None:
        """Negotiate properly, with any subset of the features offered."""
        try:
            self.frontend.negotiate(features, protocol)
        except ConnectionError:
            self.reconnect()

    @rule(index=st.integers(0, 3), avail=st.integers(0, 2**16 - 1))
    def start_ring(self, index: int, avail: int) -> None:
        """Share memory, and start and enable one ring in it at any index."""
        frontend = self.frontend
        try:
            frontend.share_memory(uva=UVA)
            frontend.tell("SET_VRING_NUM", vring(index, RING_SIZE))
            frontend.tell("SET_VRING_ADDR", vring_addr(index, UVA, UVA + 0x1000, UVA + 0x2000))
            frontend.tell("SET_VRING_BASE", vring(index, avail))
            frontend.tell("SET_VRING_CALL", u64(index), ["eventfd"])
            frontend.tell("SET_VRING_KICK", u64(index), ["eventfd"])
            frontend.tell("SET_VRING_ENABLE", vring(index, 1))
        except ConnectionError:
            self.reconnect()

    @rule()
    def come_again(self) -> None:
        """Disconnect and connect again."""
        self.reconnect()

    @invariant()
    def is_answering_or_closed(self) -> None:
        """The session answers GET_FEATURES, or the back end has closed it."""
        if not self.frontend.is_answering():
            self.reconnect()

    def teardown(self) -> None:
        """Check once more that nothing is left over, and stop the back end."""
        try:
            self.reconnect()
        finally:
            self.frontend.close()
            self.close_backend()
