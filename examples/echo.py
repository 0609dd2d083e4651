# SPDX-License-Identifier: BSD-3-Clause
"""Answer ARP and ping for 10.0.0.1: python echo.py iface=/tmp/vhost0.sock,queues=1."""

import contextlib
import itertools
import sys

import numpy as np

import vhost_ioat

MAC, ADDRESS = bytes.fromhex("02000a000001"), bytes([10, 0, 0, 1])
OURS = np.frombuffer(MAC + ADDRESS, np.uint8)


def answer(packet: np.ndarray) -> bool:
    """Turn a request to us into its answer, in place; return False when it is something else."""
    head = packet[:42].tobytes()
    if len(head) < 42:
        return False
    if head[12:14] == b"\x08\x06" and head[20:22] == b"\0\1" and head[38:42] == ADDRESS:  # ARP, who has
        packet[32:42] = packet[22:32]
        packet[22:32] = OURS
        packet[21] = 2
    elif head[12:15] == b"\x08\x00\x45" and head[23] == 1 and head[34] == 8 and head[30:34] == ADDRESS:  # ICMP
        packet[26:34] = np.roll(packet[26:34], 4)
        total = int.from_bytes(head[36:38]) + 0x0800  # the type changes from 8 to 0, so the checksum grows by 0x0800
        packet[34:38] = list(((total & 0xFFFF) + (total >> 16)).to_bytes(4))
    else:
        return False
    packet[0:12] = np.concatenate([packet[6:12], OURS[:6]])
    return True


with contextlib.suppress(KeyboardInterrupt), vhost_ioat.EthVhost.from_devargs(sys.argv[1]) as port:
    for queue in itertools.cycle(range(port.devargs.queues)):
        burst = port.rx_burst(queue)
        port.tx_burst(queue, burst[np.array([answer(packet) for packet in burst], bool)])
