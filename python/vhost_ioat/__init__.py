# SPDX-License-Identifier: BSD-3-Clause
"""A poll-mode port for virtual machines over vhost-user, with packet copies by an I/OAT DMA engine.

    import vhost_ioat

    with vhost_ioat.EthVhost("/tmp/vhost0.sock") as port:
        port.wait_link()
        while True:
            burst = port.rx_burst(0)
            sent = port.tx_burst(0, burst)

`EthVhost` is the port, and a `Burst` holds packets. `vhost_ioat.guest` is an embedded guest, for use without a virtual
machine; `vhost_ioat.virtio` has the split ring by itself, `vhost_ioat.dma` the DMA engines, and `vhost_ioat.testing` a
test kit.
"""

from .devargs import Devargs, parse_devargs
from .errors import ConfigError, Disconnected, DmaError, GuestError, ProtocolError, VhostIoatError
from .records import Control, Engine, Event, Link, Mempool, PortInfo, Region, Ring, Stats

try:
    from ._core import Burst, __version__
except ImportError as error:
    error.add_note(
        "vhost_ioat's native part is missing or was built for another Python. In a source tree, install the package "
        "first (pip install .) and start Python outside python/."
    )
    raise

from . import dma, guest, virtio
from .port import EthVhost, forward

__all__ = [
    "Burst",
    "ConfigError",
    "Control",
    "Devargs",
    "Disconnected",
    "DmaError",
    "Engine",
    "EthVhost",
    "Event",
    "GuestError",
    "Link",
    "Mempool",
    "PortInfo",
    "ProtocolError",
    "Region",
    "Ring",
    "Stats",
    "VhostIoatError",
    "__version__",
    "dma",
    "forward",
    "guest",
    "parse_devargs",
    "virtio",
]


def __dir__() -> list[str]:
    return sorted(__all__)
