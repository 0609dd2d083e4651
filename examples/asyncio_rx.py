# SPDX-License-Identifier: BSD-3-Clause
"""Sleep until packets arrive: python asyncio_rx.py iface=/tmp/vhost0.sock,queues=2.

Each queue has a task that waits for `rx_fileno` in the event loop, receives all packets there are and sends them back
with the MAC addresses exchanged. Nothing polls, so an idle script uses no CPU. The rates are printed every second.
"""

import asyncio
import contextlib
import sys

import vhost_ioat


async def readable(fd: int) -> None:
    """Return when `fd` is readable."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


async def serve(port: vhost_ioat.EthVhost, queue: int) -> None:
    """Send the packets of one queue back to their sender."""
    while True:
        while burst := port.rx_burst(queue):
            macs = burst.data[:, :12].copy()
            burst.data[:, :6], burst.data[:, 6:12] = macs[:, 6:], macs[:, :6]
            port.tx_burst(queue, burst)
            await asyncio.sleep(0)  # the other tasks get their turn
        # Enabling checks once more: a packet that arrived just before would otherwise wait for the next one.
        if not port.rx_intr_enable(queue):
            await readable(port.rx_fileno(queue))


async def report(port: vhost_ioat.EthVhost) -> None:
    """Print the rates of the last second."""
    before = port.stats()
    while True:
        await asyncio.sleep(1)
        now = port.stats()
        print(f"rx {now.ipackets - before.ipackets}/s tx {now.opackets - before.opackets}/s", flush=True)
        before = now


async def main() -> None:
    """Serve all queues of one port."""
    with vhost_ioat.EthVhost.from_devargs(sys.argv[1]) as port:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(report(port))
            for queue in range(port.devargs.queues):
                tasks.create_task(serve(port, queue))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
