# SPDX-License-Identifier: BSD-3-Clause
"""The whole product in one machine: a port copies by a card through VFIO, an embedded guest checks every byte."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from interop.console import Console
from vfio.card import Card
from vfio.vm import VM
from watchdog import WATCHDOG

pytestmark = pytest.mark.vfio

PACKETS = 600


def command(vm: VM, queues: str = "") -> str:
    """Bind the machine's card to VFIO; the command line that runs the product on it."""
    address = vm.cards()[0]
    vm.run("modprobe vfio_iommu_type1")
    vm.bind(address, "vfio-pci")
    script = Path(__file__).with_name("product.py")
    return f"{vm.environment} chroot /host {sys.executable} {script} {address} {PACKETS} {queues}"


def result(output: str) -> dict[str, Any]:
    counted: dict[str, Any] = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert set(counted["received"]) == {PACKETS}
    counted["tx_q0"] = {name.removeprefix("tx_q0_"): value for name, value in counted["xstats"][0].items()}
    return counted


def test_every_byte_arrives_in_order_and_the_counts_of_port_and_card_agree(socket_path: str) -> None:
    with Card(socket_path) as card, VM(socket_path, iommu=True, host=True, memory=1024) as vm:
        counted = result(vm.run(command(vm), timeout=2 * WATCHDOG))["tx_q0"]
        device = card.model.counters()
        assert counted["dma_bytes"] == device["bytes"] > 1_000_000
        assert counted["dma_completed"] == device["descriptors"] - 1  # the null descriptor at the start
        assert counted["cpu_bytes"] + counted["dma_bytes"] == counted["good_bytes"]
        assert counted["dma_errors"] == device["errors"] == 0


def test_nothing_is_lost_when_the_card_fails_again_and_again(socket_path: str) -> None:
    with Card(socket_path, 0x2021, 0x33) as card:
        for fault, nth, value in [("error", 100, 8), ("drop_writeback", 150, 5), ("stuck", 400, 0), ("error", 700, 0)]:
            card.model.inject(fault, nth=nth, value=value)
        with VM(socket_path, iommu=True, host=True, memory=1024) as vm:
            seen = result(vm.run(command(vm), timeout=180))
            assert seen["tx_q0"]["dma_errors"] == card.model.counters()["errors"] == 2
            assert seen["tx_q0"]["dma_resets"] == 3
            assert sum("works again" in event for event in seen["events"]) == 3
            assert seen["tx_q0"]["dma_bytes"] > 1_000_000


def test_queues_share_the_card_and_its_failures_and_lose_nothing(socket_path: str) -> None:
    with Card(socket_path) as card:
        for fault, nth, value in [("error", 500, 8), ("stuck", 1500, 0)]:
            card.model.inject(fault, nth=nth, value=value)
        with VM(socket_path, iommu=True, host=True, memory=1024) as vm:
            seen = result(vm.run(command(vm, "3"), timeout=180))
            assert len(seen["received"]) == 3
            assert seen["refused"].endswith("already serves another port of this process")
            counted = [{name[len("tx_q0_") :]: value for name, value in lane.items()} for lane in seen["xstats"]]
            assert all(lane["dma_bytes"] > 1_000_000 for lane in counted)
            device = card.model.counters()
            assert sum(lane["dma_errors"] for lane in counted) == device["errors"] == 1
            for queue in ("tx queue 0", "tx queue 1", "tx queue 2"):
                assert any(f"{queue}: engine" in event and "works again" in event for event in seen["events"])


def goes_on_by_cpu(vm: VM) -> None:
    seen = result(vm.expect(r"^\{.*\}$", 120)[0])
    assert any("is given up" in event for event in seen["events"])
    assert seen["tx_q0"]["dma_bytes"] > 0
    assert seen["tx_q0"]["dma_fallback_disabled"] > 0


def test_when_the_card_leaves_the_bus_the_queue_goes_on_by_cpu_copies(socket_path: str) -> None:
    with Card(socket_path) as card, VM(socket_path, iommu=True, host=True, memory=1024) as vm:
        card.model.inject("gone", nth=300)
        vm.send(command(vm))
        goes_on_by_cpu(vm)


def test_when_the_server_is_killed_under_load_the_queue_goes_on_by_cpu_copies(socket_path: str) -> None:
    server = Console([sys.executable, "-m", "vhost_ioat", "ioat-device", socket_path, "--latency", "1ms"])
    server.expect("add it to QEMU with")
    with server, VM(socket_path, iommu=True, host=True, memory=1024) as vm:
        vm.send(command(vm))
        vm.expect(r"^running$", 120)
        server.kill()
        try:
            goes_on_by_cpu(vm)
        except AssertionError:
            if "error_setv: Assertion" in vm.complaints():
                pytest.xfail("QEMU 11.1 aborts when its vfio-user server dies at certain moments")
            raise
