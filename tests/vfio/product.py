# SPDX-License-Identifier: BSD-3-Clause
"""Runs inside a machine: ports whose tx queues copy by the card at argv[1], and embedded guests that check.

Sends argv[2] packets of mixed sizes through each queue, all bytes and the order verified; argv[3:] are how many queues
each port has. Prints what was counted as JSON.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time

import numpy as np

import vhost_ioat

SIZES = [60, 200, 1024, 1500, 1514, 4096, 9000, 16384, 40000, 65535]
PATIENCE = 60.0  # seconds without a packet


def packets(count: int) -> list[bytes]:
    """Each has its number, its size and bytes of its own."""
    generator = np.random.default_rng(1)
    noise = generator.bytes(1 << 20)
    choice = random.Random(2)
    made = []
    for number in range(count):
        size, start = choice.choice(SIZES), choice.randrange((1 << 20) - 65536)
        made.append(number.to_bytes(4, "little") + noise[start : start + size - 4])
    return made


class Lane:
    """A tx queue with its guest: sends the packets and checks what arrives."""

    def __init__(self, port: vhost_ioat.EthVhost, guest: vhost_ioat.guest.Guest, queue: int) -> None:
        self.port, self.guest, self.queue = port, guest, queue
        self.sent = self.received = 0

    def turn(self, expected: list[bytes]) -> bool:
        """Returns whether anything arrived."""
        before = self.received
        if self.sent < len(expected):
            # A Burst lies in memory that the card reaches; plain bytes would be copied by the CPU.
            burst = vhost_ioat.Burst.from_packets(expected[self.sent : self.sent + 8])
            self.sent += self.port.tx_burst(self.queue, burst)
        for packet in self.guest.recv(self.queue, 64):
            wanted = expected[self.received]
            assert packet == wanted, f"packet {self.received}: {len(packet)} bytes, not the {len(wanted)} expected"
            self.received += 1
        return self.received != before

    def xstats(self) -> dict[str, int]:
        assert self.port.tx_drain(self.queue, timeout=PATIENCE)
        return {name: value for name, value in self.port.xstats().items() if name.startswith(f"tx_q{self.queue}_")}


def main(address: str, count: int, *queues: int) -> None:
    """`queues`: tx queues of each port, all with the card; one port with one queue if there are none."""
    expected = packets(count)
    with contextlib.ExitStack() as stack:
        lanes = []
        ports = []
        for number, n in enumerate(queues or (1,)):
            path = f"/run/product{number}.sock"
            ioats = dict.fromkeys(range(n), address)
            port = vhost_ioat.EthVhost(path, queues=n, ioats=ioats, mempool=n * 16 << 20, ioat_fallback=False)
            ports.append(stack.enter_context(port))
            guest = stack.enter_context(vhost_ioat.guest.Guest(path, queues=n, rx_buf=4096))
            guest.connect(timeout=PATIENCE)
            assert port.wait_link(timeout=PATIENCE)
            lanes += [Lane(port, guest, queue) for queue in range(n)]
        last, tenth = time.monotonic(), count // 10
        while not all(lane.received == count for lane in lanes):
            arrived = [lane.turn(expected) for lane in lanes]  # each has its turn
            if any(arrived):
                last = time.monotonic()
            if tenth and all(lane.received >= tenth for lane in lanes):
                print("running", flush=True)  # noqa: T201
                tenth = 0
            assert time.monotonic() - last < PATIENCE, f"{[(lane.sent, lane.received) for lane in lanes]}: {ports}"
        xstats = [lane.xstats() for lane in lanes]
        events = [f"{event.kind}: {event.text}" for port in ports for event in port.events() if event.text]
        engines = [str(engine) for port in ports for engine in port.info().engines]
    # After close(): whoever waits for this line also waits for that.
    seen = {"received": [lane.received for lane in lanes], "xstats": xstats, "events": events, "engines": engines}
    print(json.dumps(seen), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
