# SPDX-License-Identifier: BSD-3-Clause
"""I/OAT DMA engines: a software device, the driver of a channel, and a list of the channels in this machine."""

from ._core.dma import DmaDevice, IoatChannel, IoatModel, probe
from .vfio_user import serve

__all__ = ["DmaDevice", "IoatChannel", "IoatModel", "probe", "serve"]
