# SPDX-License-Identifier: BSD-3-Clause
"""`vhost-ioat devices`: what `dma.probe()` finds."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import dma


def run(console: Console) -> None:
    """Print a table of the I/OAT channels of this machine."""
    found = dma.probe()
    if not found:
        console.print("no I/OAT device in this machine; ports copy by CPU, or by software engines: ioats=(txq0@sw0)")
        return
    table = Table("address", "device id", "driver", "IOMMU group", "NUMA node", "state")
    for device in found:
        group, node = ("-" if number < 0 else str(number) for number in (device.iommu_group, device.numa_node))
        state = Text("usable", style="green") if device.usable else device.missing
        table.add_row(device.address, f"8086:{device.device_id:04x}", device.driver or "-", group, node, state)
    console.print(table)
