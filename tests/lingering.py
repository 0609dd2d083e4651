# SPDX-License-Identifier: BSD-3-Clause
"""File descriptors whose close() waits for as long as a peer likes."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

from watchdog import WATCHDOG

LINGER = 3600  # seconds; far longer than any watchdog


@contextlib.contextmanager
def lingering() -> Iterator[Callable[[], socket.socket]]:
    """Makes TCP sockets with bytes that nobody reads: the last close() of one waits, until the end of this."""
    with contextlib.ExitStack() as at_end, socket.create_server(("127.0.0.1", 0)) as listening:

        def make() -> socket.socket:
            ours = socket.create_connection(listening.getsockname())
            theirs = at_end.enter_context(listening.accept()[0])
            for end, seconds in ((ours, LINGER), (theirs, 0)):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
            ours.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    ours.send(bytes(1 << 16))
            ours.setblocking(True)
            return ours

        yield make


def close_after(send: Callable[[], object], held: socket.socket) -> threading.Thread:
    """Send a message with `held`, and close it here.

    So the message holds the last descriptor, unless its receiver is very fast: then this close waits, in its thread.
    """
    told = threading.Event()

    def run() -> None:
        send()
        told.set()
        held.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert told.wait(WATCHDOG)
    return thread
