# SPDX-License-Identifier: BSD-3-Clause
"""The embedded guest against DPDK's own back end: the driver side, proven by somebody else's device."""

from __future__ import annotations

import contextlib
import random

import pytest

from interop import matrix
from interop.testpmd import Testpmd, net_vhost
from vhost_ioat.guest import Guest
from watchdog import WATCHDOG, Watchdog

pytestmark = pytest.mark.peers("dpdk")

FACTORS = {"size": (64, 1518, 9000), "queues": (1, 2), "server": (False, True), "ring_size": (64, 256, 1024)}


@pytest.mark.parametrize("setting", matrix.pairwise(FACTORS), ids=matrix.name)
def test_packets_come_back_in_order_and_unaltered(setting: matrix.Setting, socket_path: str) -> None:
    echo(socket_path, **setting)


def echo(socket_path: str, *, size: int, queues: int, server: bool, ring_size: int) -> None:
    rng = random.Random(size)
    sent = [[rng.randbytes(size) for _ in range(500)] for _ in range(queues)]
    received: list[list[bytes]] = [[] for _ in range(queues)]
    args = [f"--rxq={queues}", f"--txq={queues}"]
    if size > 1518:
        args += ["--mbuf-size=10240", "--total-num-mbufs=4096"]
    with contextlib.ExitStack() as stack:
        # whoever listens must be there first
        guest = Guest(socket_path, queues=queues, server=server, ring_size=ring_size, mtu=max(size, 1500))
        if server:
            stack.enter_context(guest)
        back = stack.enter_context(Testpmd(net_vhost(socket_path, queues=queues, client=server), args=args))
        if not server:
            stack.enter_context(guest)
        guest.connect(timeout=WATCHDOG)
        back.command("set fwd io retry")
        back.command("set burst tx delay 1 retry 1000000")
        back.command("start")
        dog = Watchdog()
        waiting = [list(packets) for packets in sent]
        while any(len(packets) < 500 for packets in received):
            dog.check([len(packets) for packets in received])
            for queue in range(queues):
                in_flight = 500 - len(waiting[queue]) - len(received[queue])
                batch = waiting[queue][: max(0, 32 - in_flight)]  # what the other side has room for
                if batch:
                    del waiting[queue][: guest.send(queue, batch)]
                if packets := guest.recv(queue):
                    received[queue] += packets
                    dog.feed()
        back.command("stop")
        counters = back.counters()
        back.quit()
    assert received == sent
    assert counters["rx_packets"] == counters["tx_packets"] == 500 * queues
    assert counters["rx_bytes"] == counters["tx_bytes"] == 500 * queues * size
