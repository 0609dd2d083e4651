# SPDX-License-Identifier: BSD-3-Clause
"""The split virtqueue by itself: guest memory, and the device side and driver side of a ring (VIRTIO 1.2, 2.7)."""

from ._core.virtio import Chain, DriverRing, GuestMemory, SplitRing

__all__ = ["Chain", "DriverRing", "GuestMemory", "SplitRing"]
