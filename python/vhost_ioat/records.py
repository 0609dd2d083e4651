# SPDX-License-Identifier: BSD-3-Clause
"""What a port reports: plain values, taken at one moment and never changing afterwards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from operator import add, sub
from typing import Any

__all__ = ["Control", "Engine", "Event", "Link", "Mempool", "PortInfo", "Region", "Ring", "Stats"]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the port was made or `stats_reset()`; `later - earlier` is what happened between.

    Bytes leave out the virtio header. Directions are the script's: "i" came from the guest, "o" went to it.

    Attributes:
        ipackets, opackets, ibytes, obytes: Received; published to the guest.
        imissed: Dropped by the port because their ring was disabled.
        ierrors: Malformed, from the guest; xstats has each reason (`rx_qN_..._dropped`).
        oerrors: Taken by `tx_burst` and dropped, because the queue can never take them.
        rx_nombuf: Times there was no packet memory: packets had to wait, or one was dropped because no piece of it was
            large enough (`rx_qN_nombuf_dropped` of xstats counts these alone).
        q_ipackets, q_opackets, q_ibytes, q_obytes, q_errors: The same for each queue.
        dropped: Of forward(): packets received that it had to drop, because the other port did not take them.
        consumed: Of forward(): packets received that its mode does not send on.
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
    """The link of a port; true when it is up, that is when some queue pair is started and enabled."""

    up: bool
    speed_mbps: int
    full_duplex: bool

    def __bool__(self) -> bool:
        return self.up


@dataclass(frozen=True, slots=True)
class Region:
    """A piece of guest memory the port has mapped: guest-physical address and bytes."""

    gpa: int
    size: int


@dataclass(frozen=True, slots=True)
class Ring:
    """A vring the front end has set up.

    Attributes:
        index: 2N is txq N, 2N+1 is rxq N; after the last, or 2 without the feature MQ, comes the control queue.
        size: Entries.
        started, enabled: As the front end said.
        broken: Which rule its driver broke, in a sentence, or None.
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
        name: As in the devargs, "0000:00:04.0" or "sw0".
        description: What it is.
        hardware: False for a software engine.
        active: False while the CPU copies for it.
        state: "ok", or what is wrong with it.
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
        in_use: Bytes held by bursts, and by copies in flight that read them.
        largest_free: Bytes of the largest piece that is free; a burst needs one for all its packets, so a packet that
            is longer cannot be received.
    """

    queue: int
    size: int
    in_use: int
    largest_free: int


@dataclass(frozen=True, slots=True)
class Control:
    """What the guest has asked for over its control queue (VIRTIO 1.2, 5.1.6.5), where a front end passes that on.

    Most keep it to themselves: QEMU does, User-Mode Linux does not. It changes nothing for the port, which delivers
    every packet.

    Attributes:
        promiscuous, all_multicast, all_unicast, no_multicast, no_unicast, no_broadcast: The receive mode.
        mac: The address it has chosen, as "52:54:00:12:34:56", or None.
        unicast, multicast: The addresses of its filter.
        vlans: The VLAN ids it wants, in order.
        queue_pairs: How many it uses.
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
    """A port as it is now.

    Attributes:
        driver: Name of the driver.
        name, iface, queues, client: As in the devargs.
        features: Virtio feature bits negotiated with the driver, as a mask; 0 without a front end.
        protocol_features: vhost-user protocol feature bits negotiated with the front end, as a mask.
        mtu: What the front end said with NET_SET_MTU, or 0.
        regions: Guest memory.
        rings: The vrings the front end has set up.
        engines: The DMA engines, one for each tx queue that has one.
        last_error: The last thing that went wrong, in a sentence, or None.
        state: "stopped", "listening", "connecting", "up" or "closed".
        mempools: The packet memory of each rx queue.
        control: What the guest has asked for over its control queue.
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
    """Something that happened to a port, not asked for.

    Attributes:
        kind: "link", "queue", "engine", "peer" (a guest or front end broke a rule, or gave what is of no use), "guest"
            (it asked for something over its control queue) or "port" (stopped or closed, and
            by which thread).
        queue: Queue number, or None when it is about the port.
        rx: For a queue: True for rxq, False for txq.
        enabled: For "link" and "queue": the new state.
        text: A sentence.
    """

    kind: str
    queue: int | None
    rx: bool
    enabled: bool
    text: str
