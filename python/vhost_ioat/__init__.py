# SPDX-License-Identifier: BSD-3-Clause
"""A poll-mode port for virtual machines over vhost-user, with packet copies by an I/OAT DMA engine."""

from .devargs import Devargs, parse_devargs
from .errors import ConfigError, Disconnected, DmaError, GuestError, ProtocolError, VhostIoatError

__all__ = [
    "ConfigError",
    "Devargs",
    "Disconnected",
    "DmaError",
    "GuestError",
    "ProtocolError",
    "VhostIoatError",
    "parse_devargs",
]
