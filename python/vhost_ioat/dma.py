# SPDX-License-Identifier: BSD-3-Clause
"""I/OAT DMA engines: the software model of one, the driver of a channel, and what this machine has."""

from ._core.dma import DmaDevice, IoatChannel, IoatModel, probe
from .vfio_user import serve

__all__ = ["DmaDevice", "IoatChannel", "IoatModel", "probe", "serve"]
