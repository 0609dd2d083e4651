# SPDX-License-Identifier: BSD-3-Clause
"""The software I/OAT as a PCI card for virtual machines (vfio-user)."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ._core.dma import IoatModel, VfioUserServer
from .devargs import socket_path

__all__ = ["serve"]

logger = logging.getLogger("vhost_ioat")

TURN = 0.2  # seconds between two looks for Ctrl-C and two calls of `watch`


@contextlib.contextmanager
def _listener(path: str) -> Iterator[socket.socket]:
    """A listening socket file. It replaces one that nobody serves any more, and is removed at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        mine, process = None, os.getpid()
        try:
            _bind(listening, path)
            mine = Path(path).stat().st_ino
            Path(path).chmod(0o600)
            listening.listen()
            listening.settimeout(TURN)
            yield listening
        finally:
            with contextlib.suppress(FileNotFoundError):
                # A signal may arrive anywhere above: the socket knows whether it was bound. A child leaves it alone.
                if (
                    process == os.getpid()
                    and listening.getsockname() == path
                    and mine in (None, Path(path).stat().st_ino)
                ):
                    Path(path).unlink()


def _bind(listening: socket.socket, path: str) -> None:
    try:
        listening.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or _is_served(path):
            raise OSError(error.errno, error.strerror, path) from None
        Path(path).unlink()
        listening.bind(path)


def _is_served(path: str) -> bool:
    if not Path(path).is_socket():
        return True  # somebody's file: not ours to remove
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # EAGAIN: it is served, with a full backlog
        return probe.connect_ex(path) != errno.ECONNREFUSED


def _somebody_waits(listening: socket.socket) -> bool:
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    return bool(poll.poll(0))


def serve(path: str, model: IoatModel | None = None, *, watch: Callable[[int], object] | None = None) -> None:
    """Present a software I/OAT as a PCI card to the virtual machines that connect to `path`; blocks.

    One machine has the card at a time; others wait for it to leave. A machine that has not sent VERSION within 5 s is
    disconnected when another one waits. A machine may reboot, reset the card or vanish: the next one finds the card as
    after power-on, with nothing mapped. Guest memory must be shared (`memory-backend-memfd,share=on`).

    Args:
        path: The vfio-user socket. It is created here with mode 0600 and removed at the end.
        model: The device; by default `IoatModel(mode="threaded")`, an Ice Lake channel. The guest sees its faults.
        watch: Called about five times a second, on the calling thread, with the number of mappings that the guest has
            made. If it returns a true value, serving ends.

    Raises:
        ConfigError: `path` cannot be a socket path: it is empty, too long, not UTF-8, or contains NUL.
        DmaError: `model` already has a driver (an IoatChannel, a port, another server).
        OSError: The socket cannot be created, or another process serves it.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is left behind.
    """
    path = socket_path("path", path)
    if model is None:
        model = IoatModel(mode="threaded")
    server = VfioUserServer(model)
    connected = False
    told: str | None = None  # the last problem reported
    with _listener(path) as listening:
        while not (watch and watch(server.maps)):
            if connected and not (server.makes_way and server.has_room and _somebody_waits(listening)):
                connected = server.serve(TURN)
                if not connected:
                    logger.info("%s: the card is free again: %s", path, server.why)
                continue
            trouble = None
            try:
                if server.has_room:
                    connection, _ = listening.accept()
                    server.attach(connection.detach())
                    connected = True
                else:
                    trouble = "fds that earlier machines sent are still being closed"
            except TimeoutError:
                continue
            except OSError as error:  # out of file descriptors, or of threads
                trouble = str(error)
            if connected:
                logger.info("%s: a virtual machine has the card", path)
            if trouble and trouble != told:
                logger.warning("%s: no virtual machine can be served for now: %s", path, trouble)
            if trouble:
                time.sleep(TURN)
            told = trouble
