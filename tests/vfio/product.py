# SPDX-License-Identifier: BSD-3-Clause
"""Runs inside a machine: a port whose tx queues copy by the card at argv[1], and an embedded guest that checks.

Sends argv[2] packets of mixed sizes through each of argv[3] queues (1), all bytes and the order verified. Prints what
was counted as JSON.
"""

from __future__ import annotations

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


def main(address: str, count: int, queues: int = 1) -> None:
    """All tx queues of the port have the card; no other port gets it meanwhile."""
    expected = packets(count)
    path = "/run/product.sock"
    ioats = dict.fromkeys(range(queues), address)
    with (
        vhost_ioat.EthVhost(path, queues=queues, ioats=ioats, mempool=queues * 16 << 20, ioat_fallback=False) as port,
        vhost_ioat.guest.Guest(path, queues=queues, rx_buf=4096) as guest,
    ):
        try:
            vhost_ioat.EthVhost("/run/other.sock", queues=queues, ioats=ioats)
        except vhost_ioat.ConfigError as error:
            refused = str(error)
        guest.connect(timeout=PATIENCE)
        assert port.wait_link(timeout=PATIENCE)
        lanes = [Lane(port, guest, queue) for queue in range(queues)]
        last, tenth = time.monotonic(), count // 10
        while not all(lane.received == count for lane in lanes):
            arrived = [lane.turn(expected) for lane in lanes]  # each has its turn
            if any(arrived):
                last = time.monotonic()
            if tenth and all(lane.received >= tenth for lane in lanes):
                print("running", flush=True)  # noqa: T201
                tenth = 0
            assert time.monotonic() - last < PATIENCE, (
                f"{[(lane.sent, lane.received) for lane in lanes]}: {port.info()}"
            )
        xstats = [lane.xstats() for lane in lanes]
        events = [f"{event.kind}: {event.text}" for event in port.events() if event.text]
        engines = [str(engine) for engine in port.info().engines]
    # After close(): whoever waits for this line also waits for that.
    seen = {"received": [lane.received for lane in lanes], "xstats": xstats, "events": events, "engines": engines}
    seen["refused"] = refused
    print(json.dumps(seen), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
