# SPDX-License-Identifier: BSD-3-Clause
"""The exceptions of vhost_ioat. Errors of the operating system stay `OSError`.

A port never raises because of what a guest or a front end does: that goes to `EthVhost.events()` and to the counters.
"""

from __future__ import annotations

__all__ = ["ConfigError", "Disconnected", "DmaError", "GuestError", "ProtocolError", "VhostIoatError"]


class VhostIoatError(Exception):
    """Base of all errors of this package; itself for wrong use (a closed port, two callers on one queue)."""


class ConfigError(VhostIoatError, ValueError):
    """A devarg or keyword has a value the port cannot take; the message has key, value and limit."""


class GuestError(VhostIoatError):
    """A guest broke a rule of the ring or of its memory. Raised by `vhost_ioat.virtio` only."""


class DmaError(VhostIoatError):
    """A DMA engine halted, vanished or cannot be used. Raised by `vhost_ioat.dma` only."""


class ProtocolError(VhostIoatError):
    """The back end broke the vhost-user protocol. Raised by `vhost_ioat.guest.Guest` only."""


class Disconnected(VhostIoatError, ConnectionError):
    """The back end went away. Raised by `vhost_ioat.guest.Guest` only."""
