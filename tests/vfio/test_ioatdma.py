# SPDX-License-Identifier: BSD-3-Clause
"""Linux's own ioatdma judges the device model. That it binds proves little: it polls where interrupts fail, and resets
where write-backs fail. So each test also counts interrupts, and asks the kernel's log and the device."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from vfio.card import Card
from vfio.vm import VM

pytestmark = pytest.mark.vfio


def interrupts(vm: VM) -> int:
    line = vm.run("grep ioat-msix /proc/interrupts || true")
    return int(line.split(":")[1].split()[0]) if line else 0


def verdict(vm: VM, card: Card) -> list[str]:
    """What is wrong after ioatdma has probed and tested its first channel; nothing when all is right."""
    before = card.model.counters()
    vm.bind(vm.cards()[0], "ioatdma")
    log = vm.run("dmesg | grep -i ioat")
    counted = {name: value - before[name] for name, value in card.model.counters().items()}
    found = []
    if not vm.run("ls /sys/class/dma").strip():
        found.append("no channel")
    if (number := interrupts(vm)) != 2:
        found.append(f"{number} interrupts")
    found += re.findall(r"Reset channel|failed compare|timed out|[Ee]rror.*", log)
    if counted != {"descriptors": 2, "bytes": 2000, "interrupts": 2, "errors": 0}:
        found.append(f"counters {counted}")
    return found


@pytest.fixture
def card(sock: str) -> Iterator[Card]:
    with Card(sock) as served:
        yield served


@pytest.mark.parametrize(
    ("device_id", "cbver", "machine"), [(0x0B00, 0x34, "q35"), (0x0B00, 0x34, "pc"), (0x2021, 0x33, "q35")]
)
def test_ioatdma_binds_and_its_self_test_passes(sock: str, device_id: int, cbver: int, machine: str) -> None:
    with Card(sock, device_id, cbver) as card, VM(sock, machine=machine) as vm:
        assert verdict(vm, card) == []


def test_thirty_rebinds_a_reboot_and_a_vanished_machine(card: Card) -> None:
    with VM(card.path) as vm:
        address = vm.cards()[0]
        vm.bind(address, "ioatdma")
        before = card.model.counters()
        vm.run(
            "cd /sys/bus/pci/drivers/ioatdma; i=0; while [ $i -lt 30 ]; do "
            f"echo {address} > unbind && echo {address} > bind || break; i=$((i + 1)); done; [ $i = 30 ]",
            timeout=120,
        )
        after = card.model.counters()
        assert {name: after[name] - before[name] for name in after} == {
            "descriptors": 60,
            "bytes": 60_000,
            "interrupts": 60,
            "errors": 0,
        }
        assert "Reset channel" not in vm.run("dmesg")
        vm.reboot()
        assert verdict(vm, card) == []
        vm.kill()  # while the driver has the card
    with VM(card.path) as vm:
        assert verdict(vm, card) == []


def test_ioatdma_behind_an_iommu_reaches_memory_page_by_page(card: Card) -> None:
    with VM(card.path, iommu=True) as vm:
        assert verdict(vm, card) == []
        assert card.maps > 100  # the descriptor ring alone is hundreds of pages


@pytest.mark.parametrize(
    ("fault", "nth", "value", "noticed"),
    [
        ("corrupt", 1, 0, "failed compare"),
        ("error", 1, 0, "timed out|Error"),
        ("drop_writeback", 1, 1000, "Reset channel|timed out"),
        ("drop_interrupt", 0, 1000, "0 interrupts"),
    ],
)
def test_each_fault_is_noticed(card: Card, fault: str, nth: int, value: int, noticed: str) -> None:
    card.model.inject(fault, nth=nth, value=value)
    with VM(card.path) as vm:
        found = verdict(vm, card)
        assert re.search(noticed, "\n".join(found)), found
