# SPDX-License-Identifier: BSD-3-Clause
"""Linux's own ioatdma judges the device model.

That it binds proves little: it polls where interrupts fail, and resets where write-backs fail. So each verdict also
counts interrupts and asks the kernel's log and the device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from vfio.card import Card
from vfio.vm import VM
from watchdog import WATCHDOG

pytestmark = pytest.mark.vfio

PASSED = {"descriptors": 2, "bytes": 2000, "interrupts": 2, "errors": 0}


def complaints(vm: VM, address: str, counted: dict[str, int]) -> list[str]:
    """What is wrong after ioatdma has probed a card and run its self-test; nothing when all is right."""
    found = []
    if address not in vm.run("ls -l /sys/class/dma"):
        found.append("no channel")
    line = vm.run(f"grep '{address}.*ioat-msix' /proc/interrupts || true")
    if (number := int(line.split()[1]) if line else 0) != 2:
        found.append(f"{number} interrupts")
    found += [
        line for line in vm.run(f"dmesg | grep 'ioatdma {address}' || true").splitlines() if "Removing" not in line
    ]
    if counted != PASSED:
        found.append(f"counters {counted}")
    return found


def verdict(vm: VM, card: Card) -> list[str]:
    """Hand the machine's only card to ioatdma and look."""
    address = vm.cards()[0]
    before = card.model.counters()
    vm.bind(address, "ioatdma")
    after = card.model.counters()
    return complaints(vm, address, {name: after[name] - before[name] for name in after})


@pytest.fixture
def card(socket_path: str) -> Iterator[Card]:
    with Card(socket_path) as served:
        yield served


# The driver of 8086:2021 reads CHANERR_INT in extended configuration space, which the machine "pc" does not have.
@pytest.mark.parametrize(("device_id", "cbver", "machine"), [(0x0B00, 0x34, "pc"), (0x2021, 0x33, "q35")])
def test_ioatdma_binds_and_its_self_test_passes(socket_path: str, device_id: int, cbver: int, machine: str) -> None:
    with Card(socket_path, device_id, cbver) as card, VM(socket_path, machine=machine) as vm:
        assert verdict(vm, card) == []


def test_thirty_rebinds_a_reboot_and_a_vanished_machine(card: Card) -> None:
    with VM(card.path) as vm:
        assert verdict(vm, card) == []
        address = vm.cards()[0]
        before = card.model.counters()
        vm.run(
            "cd /sys/bus/pci/drivers/ioatdma; i=0; while [ $i -lt 30 ]; do "
            f"echo {address} > unbind && echo {address} > bind || break; i=$((i + 1)); done; [ $i = 30 ]",
            timeout=2 * WATCHDOG,
        )
        after = card.model.counters()
        assert {name: after[name] - before[name] for name in after} == {name: 30 * PASSED[name] for name in PASSED}
        assert complaints(vm, address, PASSED) == []
        vm.reboot()
        assert verdict(vm, card) == []
        vm.kill()  # while the driver has the card
    with VM(card.path, iommu=True) as vm:  # the next machine reaches memory through an IOMMU, page by page
        assert verdict(vm, card) == []
        assert vm.run("ls /sys/bus/pci/drivers/ioatdma/0*/iommu_group")


def test_each_fault_is_noticed_by_the_driver_or_by_these_checks(socket_path: str) -> None:
    faults = {
        "": r"^$",
        "corrupt": "failed compare",
        "error": "timed out|Err",
        "drop_writeback": "Reset channel|timed out",
        "drop_interrupt": "^0 interrupts",
    }
    with ExitStack() as stack:
        cards = [stack.enter_context(Card(f"{socket_path}{number}")) for number in range(len(faults))]
        for card, fault in zip(cards, faults, strict=True):
            if fault:
                card.model.inject(
                    fault, nth=0 if fault == "drop_interrupt" else 1, value=1000 if "drop" in fault else 0
                )
        vm = stack.enter_context(VM(*(card.path for card in cards)))
        vm.run("modprobe ioatdma")
        for card, address, (fault, noticed) in zip(cards, vm.cards(), faults.items(), strict=True):
            found = "\n".join(complaints(vm, address, card.model.counters()))
            assert re.search(noticed, found, re.MULTILINE), (fault, found)
