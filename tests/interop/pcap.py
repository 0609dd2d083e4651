# SPDX-License-Identifier: BSD-3-Clause
"""Classic pcap files, as DPDK's net_pcap device reads and writes them."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

_FILE_HEADER = struct.Struct("<IHHiIII")
_PACKET_HEADER = struct.Struct("<IIII")


def write(path: Path, packets: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.write(_FILE_HEADER.pack(0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for packet in packets:
            file.write(_PACKET_HEADER.pack(0, 0, len(packet), len(packet)) + packet)


def read(path: Path) -> list[bytes]:
    data = path.read_bytes()
    packets, at = [], _FILE_HEADER.size
    while at < len(data):
        length = _PACKET_HEADER.unpack_from(data, at)[2]
        at += _PACKET_HEADER.size
        packets.append(data[at : at + length])
        at += length
    return packets
