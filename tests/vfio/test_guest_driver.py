# SPDX-License-Identifier: BSD-3-Clause
"""Our own driver inside the machine: VFIO type 1 of a real kernel, a real IOMMU driver, real interrupts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vfio.card import Card
from vfio.test_ioatdma import verdict
from vfio.vm import VM

pytestmark = pytest.mark.vfio

PROGRAM = os.environ.get("VHOST_IOAT_GUEST_TESTS", str(Path(__file__).parents[2] / "build/dev/vhost_ioat_guest_tests"))

PROBE = """
import resource, os, sys
from vhost_ioat import dma
from vhost_ioat.errors import DmaError
{before}
for device in dma.probe():
    print(device.address, device.usable, device.missing)
    if {open}:
        try:
            dma.IoatChannel(device.address)
        except DmaError as error:
            print("refused:", error)
        else:
            print("opened")
"""


@pytest.mark.parametrize(("device_id", "cbver"), [(0x0B00, 0x34), (0x2021, 0x33)])
def test_copies_errors_interrupts_and_revoking_through_vfio(socket_path: str, device_id: int, cbver: int) -> None:
    with Card(socket_path, device_id, cbver) as card, VM(socket_path, iommu=True, host=True) as vm:
        address = vm.cards()[0]
        vm.run("modprobe vfio_iommu_type1")
        vm.bind(address, "vfio-pci")
        vm.run(f"VHOST_IOAT_DEVICE={address} chroot /host {PROGRAM}", timeout=180)
        assert card.model.counters()["errors"] == 3  # the unmapped addresses
        assert verdict(vm, card) == []  # and Linux finds the device as it wants it


def probe(vm: VM, before: str = "", *, open_it: bool = False) -> str:
    return vm.python(PROBE.format(before=before, open=open_it))


def test_each_thing_in_the_way_is_named(socket_path: str) -> None:
    with Card(socket_path):
        with VM(socket_path, host=True) as vm:
            assert "no IOMMU group: turn the IOMMU on" in probe(vm)
        with VM(socket_path, host=True, iommu=True) as vm:
            address = vm.cards()[0]
            assert "it has no driver; as root: modprobe vfio-pci" in probe(vm)
            vm.bind(address, "ioatdma")
            assert f"it is bound to ioatdma; as root: modprobe vfio-pci; echo {address} > " in probe(vm)
            vm.bind(address, "vfio-pci")
            assert "modprobe vfio_iommu_type1" in probe(vm, open_it=True)
            vm.run("modprobe vfio_iommu_type1")
            assert "True" in probe(vm)
            group = vm.run("ls /dev/vfio | grep -v vfio").strip()
            as_user = "os.setgid(1000); os.setuid(1000)"
            assert f"no permission on /dev/vfio/{group}; as root: chown 1000 /dev/vfio/{group}" in probe(vm, as_user)
            vm.run(f"chown 1000 /dev/vfio/{group}")
            little = "resource.setrlimit(resource.RLIMIT_MEMLOCK, (16384, 16384)); " + as_user
            assert "cannot pin" in probe(vm, little, open_it=True)
            assert "opened" in probe(vm, as_user, open_it=True)


def test_the_commands_in_the_message_make_the_device_usable(socket_path: str) -> None:
    with Card(socket_path), VM(socket_path, host=True, iommu=True) as vm:
        vm.bind(vm.cards()[0], "ioatdma")
        vm.run("modprobe vfio_iommu_type1")
        commands = probe(vm).split("as root: ")[1].strip()
        vm.run(commands)
        assert "opened" in probe(vm, open_it=True)


def test_a_group_that_the_kernel_shares_is_not_viable(socket_path: str) -> None:
    with (
        Card(socket_path),
        Card(f"{socket_path}2"),
        VM(socket_path, f"{socket_path}2", host=True, iommu=True, bridge=True) as vm,
    ):
        first, second = vm.cards()
        vm.run("modprobe vfio_iommu_type1")
        vm.bind(first, "vfio-pci")
        vm.bind(second, "ioatdma")
        assert f"is not viable because kernel drivers hold {second} (ioatdma)" in probe(vm)
