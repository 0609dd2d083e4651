# SPDX-License-Identifier: BSD-3-Clause
"""Runs inside a machine: a port whose tx queue copies by the card at argv[1], and an embedded guest that checks.

Sends argv[2] packets of mixed sizes, all bytes and the order verified. Prints what was counted as JSON.
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


def main(address: str, count: int) -> None:
    expected = packets(count)
    path = "/run/product.sock"
    received = sent = 0
    with (
        vhost_ioat.EthVhost(path, ioats={0: address}, mempool=16 << 20, ioat_fallback=False) as port,
        vhost_ioat.guest.Guest(path, rx_buf=4096) as guest,
    ):
        guest.connect(timeout=PATIENCE)
        assert port.wait_link(timeout=PATIENCE)
        last = time.monotonic()
        while received < count:
            if sent < count:
                # A Burst lies in memory that the card reaches; plain bytes would be copied by the CPU.
                sent += port.tx_burst(0, vhost_ioat.Burst.from_packets(expected[sent : sent + 8]))
            for packet in guest.recv(0, 64):
                wanted = expected[received]
                assert packet == wanted, f"packet {received}: {len(packet)} bytes, not the {len(wanted)} expected"
                received += 1
                if received == count // 10:
                    print("running", flush=True)  # noqa: T201
                last = time.monotonic()
            assert time.monotonic() - last < PATIENCE, f"sent {sent}, received {received}: {port.info()}"
        assert port.tx_drain(0, timeout=PATIENCE)
        events = [f"{event.kind}: {event.text}" for event in port.events() if event.text]
        counted = {name: value for name, value in port.xstats().items() if name.startswith("tx_q0")}
        engines = [str(engine) for engine in port.info().engines]
    # After close(): whoever waits for this line also waits for that.
    seen = {"received": received, "xstats": counted, "events": events, "engines": engines}
    print(json.dumps(seen), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
