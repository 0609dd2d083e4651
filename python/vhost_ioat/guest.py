# SPDX-License-Identifier: BSD-3-Clause
"""An embedded guest: the driver side of a port, without a virtual machine."""

from ._core.guest import Guest

__all__ = ["Guest"]
