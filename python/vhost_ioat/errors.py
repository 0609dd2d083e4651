# SPDX-License-Identifier: BSD-3-Clause
"""The exceptions of vhost_ioat. Errors of the operating system are raised as `OSError`.

A port never raises because of what a guest or a front end does; that is reported by `EthVhost.events()` and counted.
"""

from __future__ import annotations

__all__ = ["ConfigError", "Disconnected", "DmaError", "GuestError", "ProtocolError", "VhostIoatError"]


class VhostIoatError(Exception):
    """Base class of all errors of this package; raised itself for misuse (a closed port, two callers on one queue)."""


class ConfigError(VhostIoatError, ValueError):
    """A devarg or argument has a value that cannot be used; the message gives the key, the value and the limit."""


class GuestError(VhostIoatError):
    """A guest broke a rule of the ring or of its memory. Raised by `vhost_ioat.virtio` only."""


class DmaError(VhostIoatError):
    """A DMA engine halted, vanished or cannot be used.

    Raised by `vhost_ioat.dma`, and by `EthVhost` with `ioat_fallback=False`; otherwise a port reports an event.
    """


class ProtocolError(VhostIoatError):
    """The back end broke the vhost-user protocol. Raised by `vhost_ioat.guest.Guest` only."""


class Disconnected(VhostIoatError, ConnectionError):
    """The back end went away. Raised by `vhost_ioat.guest.Guest` only."""
