# SPDX-License-Identifier: BSD-3-Clause
"""What a port reports: plain, immutable values, taken at one moment."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from operator import add, sub
from typing import Any

__all__ = ["Control", "Engine", "Event", "Link", "Mempool", "PortInfo", "Region", "Ring", "Stats"]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the port was made or `stats_reset()`; `later - earlier` is what happened in between.

    Bytes do not include the virtio header. The names are DPDK's; directions are the script's: "i" came from the guest,
    "o" went to it.

    Attributes:
        ipackets, opackets, ibytes, obytes: Received from the guest; published to the guest.
        imissed: Packets the port dropped because their ring was disabled.
        ierrors: Malformed packets from the guest; `xstats()` counts each reason (`rx_qN_..._dropped`).
        oerrors: Packets taken by `tx_burst` and dropped because the queue can never take them.
        rx_nombuf: How often there was no packet memory: packets had to wait, or one was dropped because no free piece
            was large enough (`rx_qN_nombuf_dropped` of `xstats()` counts only the latter).
        q_ipackets, q_opackets, q_ibytes, q_obytes, q_errors: The same for each queue.
        dropped: Only from `forward()`: received packets it had to drop because the other port did not take them.
        consumed: Only from `forward()`: received packets that its mode does not send on.
    """

    ipackets: int = 0
    opackets: int = 0
    ibytes: int = 0
    obytes: int = 0
    imissed: int = 0
    ierrors: int = 0
    oerrors: int = 0
    rx_nombuf: int = 0
    q_ipackets: tuple[int, ...] = ()
    q_opackets: tuple[int, ...] = ()
    q_ibytes: tuple[int, ...] = ()
    q_obytes: tuple[int, ...] = ()
    q_errors: tuple[int, ...] = ()
    dropped: int = 0
    consumed: int = 0

    def __add__(self, other: Stats) -> Stats:
        return self._combine(other, add)

    def __sub__(self, other: Stats) -> Stats:
        return self._combine(other, sub)

    def _combine(self, other: Stats, operation: Any) -> Stats:
        def combine(mine: Any, theirs: Any) -> Any:
            if isinstance(mine, int):
                return operation(mine, theirs)
            queues = max(len(mine), len(theirs))
            pad = (0,) * queues
            return tuple(map(operation, (mine + pad)[:queues], (theirs + pad)[:queues]))

        names = [field.name for field in dataclasses.fields(self)]
        return Stats(*(combine(getattr(self, name), getattr(other, name)) for name in names))


@dataclass(frozen=True, slots=True)
class Link:
    """The link of a port; true when it is up, that is, when a queue pair is started and enabled."""

    up: bool
    speed_mbps: int
    full_duplex: bool

    def __bool__(self) -> bool:
        return self.up


@dataclass(frozen=True, slots=True)
class Region:
    """A region of guest memory in the front end's memory table: guest-physical address and size in bytes."""

    gpa: int
    size: int


@dataclass(frozen=True, slots=True)
class Ring:
    """A vring that the front end has set up.

    Attributes:
        index: 2N is txq N and 2N+1 is rxq N. The control queue follows the last pair; without the feature MQ it is 2.
        size: Entries.
        started, enabled: As the front end set them.
        broken: The rule that its driver broke, in a sentence, or None.
    """

    index: int
    size: int
    started: bool
    enabled: bool
    broken: str | None


@dataclass(frozen=True, slots=True)
class Engine:
    """The DMA engine of a tx queue.

    Attributes:
        queue: Number of the tx queue.
        name: "0000:00:04.0" or "sw0", as in the devargs, or that of the software engine that stands in.
        description: Type and version, such as "software I/OAT 3.4".
        hardware: False for a software engine.
        active: False while the CPU makes its copies.
        state: "ok", or what is wrong with it, in words.
    """

    queue: int
    name: str
    description: str
    hardware: bool
    active: bool
    state: str


@dataclass(frozen=True, slots=True)
class Mempool:
    """The packet memory of an rx queue: its share of `mempool`.

    Attributes:
        queue: Number of the rx queue.
        size: Bytes.
        in_use: Bytes held by bursts and by copies in flight that read them.
        largest_free: Bytes of the largest free piece. A burst needs one piece for all its packets, so a packet that is
            longer cannot be received.
    """

    queue: int
    size: int
    in_use: int
    largest_free: int


@dataclass(frozen=True, slots=True)
class Control:
    """What the guest has requested over its control queue (VIRTIO 1.2, 5.1.6.5), where a front end passes it on.

    Most front ends handle it themselves; QEMU does, User-Mode Linux does not. It changes nothing for the port, which
    delivers every packet.

    Attributes:
        promiscuous, all_multicast, all_unicast, no_multicast, no_unicast, no_broadcast: The receive mode.
        mac: The address that the guest has set, such as "52:54:00:12:34:56", or None.
        unicast, multicast: The addresses in its MAC filter.
        vlans: The VLAN ids in its filter, in ascending order.
        queue_pairs: How many queue pairs it uses.
    """

    promiscuous: bool = False
    all_multicast: bool = False
    all_unicast: bool = False
    no_multicast: bool = False
    no_unicast: bool = False
    no_broadcast: bool = False
    mac: str | None = None
    unicast: tuple[str, ...] = ()
    multicast: tuple[str, ...] = ()
    vlans: tuple[int, ...] = ()
    queue_pairs: int = 1


@dataclass(frozen=True, slots=True)
class PortInfo:
    """The state of a port.

    Attributes:
        driver: Name of the driver, "eth_vhost_ioat".
        name, iface, queues, client: As in the devargs.
        features: Virtio feature bits negotiated with the driver, as a mask; 0 without a front end.
        protocol_features: vhost-user protocol feature bits negotiated with the front end, as a mask.
        mtu: The value of the front end's NET_SET_MTU, or 0.
        regions: Guest memory, by guest-physical address.
        rings: The vrings that the front end has set up.
        engines: The DMA engines, one for each tx queue that has one.
        last_error: The last problem, in a sentence, or None.
        state: "stopped", "listening", "connecting", "connected" (a front end is there, the link is down), "up" or
            "closed".
        mempools: The packet memory of each rx queue.
        control: What the guest has requested over its control queue.
    """

    driver: str
    name: str
    iface: str
    queues: int
    client: bool
    features: int
    protocol_features: int
    mtu: int
    regions: tuple[Region, ...]
    rings: tuple[Ring, ...]
    engines: tuple[Engine, ...]
    last_error: str | None
    state: str = "stopped"
    mempools: tuple[Mempool, ...] = ()
    control: Control = Control()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a port and was not requested by the script.

    Attributes:
        kind: "link"; "queue"; "engine"; "peer" (a guest or front end broke a rule, or gave something unusable);
            "guest" (it requested something over its control queue); "control" (the control thread could not do
            something for this port); "port" (stopped or closed, and by which thread).
        queue: Queue number, or None when the event concerns the whole port.
        rx: For a queue: True for rxq, False for txq.
        enabled: For "link" and "queue": the new state.
        text: A sentence.
    """

    kind: str
    queue: int | None
    rx: bool
    enabled: bool
    text: str
