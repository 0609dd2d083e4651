# SPDX-License-Identifier: BSD-3-Clause
"""DPDK's virtio-user front end: what it sends through a Python loop comes back complete, in order and unaltered."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

import vhost_ioat
from interop import matrix, pcap
from interop.failing_engine import failing_engine
from interop.forwarder import Forwarder
from interop.testpmd import Testpmd, virtio_user
from resources import expect_resources, resources
from watchdog import WATCHDOG, until

pytestmark = pytest.mark.peers("dpdk")

PACKETS = 1000  # a queue
FACTORS = {
    "size": (64, 1518, 9000),
    "queues": (1, 2),
    "mrg_rxbuf": (0, 1),
    "in_order": (0, 1),
    "client": (False, True),
    "ring": (64, 256, 1024),
}


def loop(
    socket_path: str,
    folder: Path,
    size: int,
    queues: int,
    mrg_rxbuf: int,
    in_order: int,
    client: bool,
    ring: int,
    **engine: Any,
) -> vhost_ioat.EthVhost:
    """net_pcap -> virtio-user -> our loop -> virtio-user -> net_pcap, and the two files are compared.

    `engine` are further options of the port; `faults=True` lets the engine of queue 0 fail at random. Returns the port.
    """
    faults = engine.pop("faults", False)
    rng = random.Random(size + ring)
    sent = [[rng.randbytes(size) for _ in range(PACKETS)] for _ in range(queues)]
    for queue, packets in enumerate(sent):
        pcap.write(folder / f"in{queue}", packets)
    files = ",".join(f"rx_pcap={folder}/in{queue},tx_pcap={folder}/out{queue}" for queue in range(queues))
    card = virtio_user(socket_path, queues=queues, server=client, ring=ring, mrg_rxbuf=mrg_rxbuf, in_order=in_order)
    # A thread for each way of each queue, and patient senders: testpmd must receive while it waits for room to send.
    args = [
        f"--rxq={queues}",
        f"--txq={queues}",
        f"--rxd={ring}",
        f"--txd={ring}",
        f"--nb-cores={2 * queues}",
        "--no-flush-rx",
    ]
    if size > 1518 and not mrg_rxbuf:
        args += ["--mbuf-size=10240", "--total-num-mbufs=12288"]  # the later option counts; both rings and more

    with contextlib.ExitStack() as stack:
        port = stack.enter_context(vhost_ioat.EthVhost(socket_path, queues=queues, client=client, **engine))
        front = stack.enter_context(Testpmd(card, f"net_pcap0,{files}", args=args))
        assert port.wait_link(timeout=WATCHDOG)
        stack.enter_context(Forwarder(port, queues))
        if faults:
            stack.enter_context(failing_engine(port))
        front.command("set fwd io retry")
        front.command("set burst tx delay 1 retry 1000000")
        front.command("start")
        until(lambda: front.counters(0)["rx_packets"] >= PACKETS * queues, "all packets are back")
        front.command("stop")
        theirs, ours = front.counters(0), port.stats()
        front.quit()

    assert (theirs["tx_packets"], theirs["tx_bytes"]) == (ours.ipackets, ours.ibytes)
    assert (theirs["rx_packets"], theirs["rx_bytes"]) == (ours.opackets, ours.obytes)
    assert ours.ipackets == ours.opackets == PACKETS * queues
    assert (ours.imissed, ours.ierrors, ours.oerrors, ours.rx_nombuf) == (0, 0, 0, 0)
    for queue, packets in enumerate(sent):
        assert pcap.read(folder / f"out{queue}") == packets
    return port


@pytest.mark.parametrize("setting", matrix.pairwise(FACTORS), ids=matrix.name)
def test_loops_all_packets_in_order_and_unaltered(setting: matrix.Setting, socket_path: str, tmp_path: Path) -> None:
    loop(socket_path, tmp_path, **setting)


@pytest.mark.parametrize("faults", [False, True], ids=["sound", "failing"])
@pytest.mark.parametrize("publish", ["cpu", "dma"])
@pytest.mark.parametrize("size", [1518, 9000])
def test_loops_all_packets_with_an_engine(
    socket_path: str, tmp_path: Path, size: int, publish: str, faults: bool
) -> None:
    setting: dict[str, Any] = {"queues": 1, "mrg_rxbuf": 1, "in_order": 1, "client": False, "ring": 256}
    port = loop(socket_path, tmp_path, size, **setting, ioats={0: "sw0"}, publish=publish, faults=faults)
    counted = port.xstats()
    assert counted["tx_q0_dma_completed"] > 0
    assert (counted["tx_q0_dma_resets"] > 0) == faults


@pytest.mark.full
@pytest.mark.parametrize("setting", matrix.product(FACTORS), ids=matrix.name)
def test_loops_all_packets_in_every_setting(setting: matrix.Setting, socket_path: str, tmp_path: Path) -> None:
    loop(socket_path, tmp_path, **setting)


def test_the_short_matrix_is_short() -> None:
    assert len(matrix.pairwise(FACTORS)) <= 16


@pytest.mark.parametrize("queues", [1, 2])
def test_circulating_packets_are_conserved(socket_path: str, queues: int) -> None:
    """256 packets a queue go round under load; when the music stops, all of them are still there."""
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(vhost_ioat.EthVhost(socket_path, queues=queues))
        front = stack.enter_context(
            Testpmd(virtio_user(socket_path, queues=queues), forward="mac", args=[f"--rxq={queues}", f"--txq={queues}"])
        )
        assert port.wait_link(timeout=WATCHDOG)
        stack.enter_context(Forwarder(port, queues))
        front.command("start tx_first 8")
        wait_for_traffic(port, 0, 100_000)
        front.command("stop")
        front.command("set fwd rxonly")  # takes what is still on its way
        front.command("start")
        theirs: dict[str, int] = {}

        def all_back() -> bool:
            theirs.update(front.counters())
            return theirs["rx_packets"] == theirs["tx_packets"]

        until(all_back, "no packet is on its way")
        ours = port.stats()
        front.quit()
    assert theirs["rx_packets"] == theirs["tx_packets"] == ours.ipackets == ours.opackets
    assert theirs["rx_bytes"] == theirs["tx_bytes"] == ours.ibytes == ours.obytes


@pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
def test_killed_front_end_comes_back_ten_times(socket_path: str, client: bool) -> None:
    with vhost_ioat.EthVhost(socket_path, client=client) as port, Forwarder(port):
        start = None
        for _ in range(10):
            with Testpmd(virtio_user(socket_path, server=client), forward="mac") as front:
                assert port.wait_link(timeout=WATCHDOG)
                before = port.stats().ipackets
                front.command("start tx_first 4")
                wait_for_traffic(port, before)
            assert port.wait_link(up=False, timeout=WATCHDOG)
            if client:
                Path(socket_path).unlink()  # testpmd as a server refuses the one its predecessor left
            start = start or resources()
        assert start is not None
        expect_resources(start)


def test_restarted_back_end_finds_its_front_end_ten_times(socket_path: str) -> None:
    """virtio-user waits for a new back end when it is the server (as its client it does not come back)."""
    with contextlib.ExitStack() as stack:
        front: Testpmd | None = None
        for _ in range(10):
            with vhost_ioat.EthVhost(socket_path, client=True) as port, Forwarder(port):
                # it is silent until its first back end has come
                front = front or stack.enter_context(Testpmd(virtio_user(socket_path, server=True), forward="mac"))
                assert port.wait_link(timeout=WATCHDOG)
                front.command("stop")
                front.command("start tx_first 4")  # what was on its way is lost with the back end
                wait_for_traffic(port, 0)


def wait_for_traffic(port: vhost_ioat.EthVhost, before: int, packets: int = 2000) -> None:
    until(lambda: port.stats().ipackets >= before + packets, "traffic", pause=0.01)
