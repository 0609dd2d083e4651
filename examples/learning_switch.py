# SPDX-License-Identifier: BSD-3-Clause
"""A learning switch in numpy: python learning_switch.py iface=/tmp/a.sock,queues=2 iface=/tmp/b.sock,queues=2 ...

Packets go from one guest to another unchanged, with the checksum and segmentation requests of `Burst.net_hdr`: a 64 KB
TCP segment is one packet here. What the destination did not negotiate is completed or dropped by its port.
"""

import contextlib
import sys
import time

import numpy as np

import vhost_ioat

MULTICAST = 1  # the first bit on the wire, so the lowest of a little-endian number


def addresses(burst: vhost_ioat.Burst, offset: int) -> np.ndarray:
    """The MAC addresses at `offset` of all packets, as one array of numbers."""
    numbers = np.zeros((len(burst), 8), np.uint8)
    numbers[:, :6] = burst.data[:, offset : offset + 6]
    return numbers.view("<u8")[:, 0]


def send(port: vhost_ioat.EthVhost, queue: int, burst: vhost_ioat.Burst) -> None:
    """Offer a burst for 10 ms; packets that find no buffers by then are lost, as on any congested link."""
    deadline = time.monotonic() + 0.01
    queue %= port.devargs.queues
    while burst := burst[port.tx_burst(queue, burst) :]:
        if not port.link() or time.monotonic() > deadline:
            break


def switch(ports: list[vhost_ioat.EthVhost]) -> None:
    """Forward between the ports until Ctrl-C."""
    table: dict[int, vhost_ioat.EthVhost] = {}
    while True:
        for source in ports:
            for queue in range(source.devargs.queues):
                burst = source.rx_burst(queue)
                if not burst:
                    continue
                table.update((mac, source) for mac in set(addresses(burst, 6).tolist()) if not mac & MULTICAST)
                destinations = addresses(burst, 0)
                for mac in set(destinations.tolist()):
                    part = burst[destinations == mac]
                    known = table.get(mac)
                    for port in [known] if known else ports:
                        if port is not source:
                            send(port, queue, part)


def main() -> None:
    """Open a port for each argument and switch between them."""
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(vhost_ioat.EthVhost.from_devargs(text)) for text in sys.argv[1:]]
        with contextlib.suppress(KeyboardInterrupt):
            switch(ports)


if __name__ == "__main__":
    main()
