# SPDX-License-Identifier: BSD-3-Clause
"""The port: `EthVhost`, and `forward` between two of them."""

from __future__ import annotations

import atexit
import dataclasses
import inspect
import itertools
import logging
import os
import threading
import weakref
from types import TracebackType
from typing import Literal, Self, Unpack

from . import _core
from .devargs import Devargs, Options, parse_devargs
from .errors import VhostIoatError
from .records import Control, Engine, Event, Link, Mempool, PortInfo, Region, Ring, Stats

__all__ = ["EthVhost", "forward"]

_log = logging.getLogger("vhost_ioat")
_log.addHandler(logging.NullHandler())

_numbers = itertools.count()
_exiting = False
_open_ports: weakref.WeakSet[EthVhost] = weakref.WeakSet()


class EthVhost(_core.Port):
    """A vhost-user network port; a virtual machine's virtio-net device connects to its socket.

    The methods of the data path (`rx_burst`, `tx_burst` and the others that take a queue) are native. Each queue and
    direction may have one caller at a time; a second one gets `VhostIoatError`. Different threads may use different
    queues. Any thread may call `close()`.

    What a guest or front end does wrong never raises here. It is reported by `events()` and by the logger "vhost_ioat",
    and counted. The main thread writes to the logger whenever it calls a method that waits or reports.

    Args:
        iface: Path of the vhost-user socket.
        **options: The other fields of `Devargs`, with the same meaning and defaults.

    Raises:
        ConfigError: An option is unknown or has a value that the port cannot use.
        DmaError: With `ioat_fallback=False`: a hardware engine cannot be used.

    Example:
        >>> port = EthVhost("/tmp/vhost0.sock", queues=2, ioats={0: "sw0"})
        >>> port
        <EthVhost eth_vhost_ioat0,iface=/tmp/vhost0.sock,queues=2,ioats=(txq0@sw0): stopped>
        >>> port.close()
    """

    def __init__(self, iface: str, **options: Unpack[Options]) -> None:
        devargs = Devargs.from_options({"iface": iface, **options})
        if devargs.name is None:
            devargs = dataclasses.replace(devargs, name=f"eth_vhost_ioat{next(_numbers)}")
        self.devargs = devargs
        super().__init__(**devargs.core_options())
        _open_ports.add(self)

    @classmethod
    def from_devargs(cls, devargs: str | Devargs) -> Self:
        """Make a port from a devargs string such as `iface=/tmp/vhost0.sock,queues=2,ioats=(txq0@00:04.0)`.

        Raises:
            ConfigError: See `parse_devargs`.
        """
        if isinstance(devargs, str):
            devargs = parse_devargs(devargs)
        return cls(**dataclasses.asdict(devargs))

    @property
    def name(self) -> str:
        """Name of the port in messages."""
        return str(self.devargs.name)

    def start(self) -> None:
        """Listen on the socket, or begin to connect to it. No effect on a started port.

        Raises:
            OSError: The directory is missing, the address is in use, or permission is denied.
            VhostIoatError: The port is closed.
        """
        if _exiting:
            return  # nobody would take the socket away again
        try:
            super().start()
        finally:
            self._write_log()

    def stop(self) -> None:
        """Drop the link and remove the socket; the port may be started again. Packets in flight complete first.

        From then on, other threads that poll the port get empty bursts. A "port" event names the thread that stopped
        it, and `info().state` is "stopped". Releases the GIL.
        """
        running = self._state() not in ("stopped", "closed")
        super().stop()
        if running:
            self._report(f"stopped by thread {threading.current_thread().name}")
        self._write_log()

    def close(self) -> None:
        """Stop for good and release all resources. Any thread may call this, any number of times.

        Calls that are running in other threads finish; later ones raise `VhostIoatError`. A "port" event names the
        thread that closed the port. Bursts that were received before stay readable. In a child of fork() the port
        belongs to the parent, and nothing happens. Releases the GIL.
        """
        super().close()
        if self in _open_ports:
            _open_ports.discard(self)
            self._report(f"closed by thread {threading.current_thread().name}")
            self._write_log()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def wait_link(self, up: bool = True, timeout: float | None = None) -> bool:
        """Wait until the link is up (or down, if `up` is False).

        Returns True when it is, and False when `timeout` seconds have passed or the port was closed. None waits for
        ever. Releases the GIL and honours Ctrl-C.
        """
        reached = super().wait_link(up, timeout)
        self._write_log()
        return reached

    def link(self) -> Link:
        """The state of the link."""
        self._write_log()
        return Link(**self._link())

    def stats(self) -> Stats:
        """The basic counters of the port and of each queue."""
        self._write_log()
        return Stats(**self._stats())

    def info(self) -> PortInfo:
        """The negotiated features, guest memory, rings, engines, and the last error."""
        self._write_log()
        core = self._info()
        return PortInfo(
            name=self.name,
            iface=self.devargs.iface,
            queues=self.devargs.queues,
            client=self.devargs.client,
            state=self._state(),
            regions=tuple(Region(**region) for region in core.pop("regions")),
            rings=tuple(Ring(**ring) for ring in core.pop("rings")),
            engines=tuple(Engine(**engine) for engine in core.pop("engines")),
            mempools=tuple(Mempool(**mempool) for mempool in core.pop("mempools")),
            control=Control(**core.pop("control")),
            **core,
        )

    def events(self, timeout: float = 0.0) -> list[Event]:
        """Take the events since the last call, oldest first; wait up to `timeout` seconds for the first one.

        `fileno()` is readable while events wait. Releases the GIL and honours Ctrl-C while it waits.
        """
        events = self._events(timeout)
        self._write_log()
        return [Event(**event) for event in events]

    def _write_log(self) -> None:
        # Messages come from the control thread, which must not run Python code; and a logging handler may not expect
        # to be called by some thread of the script.
        if threading.current_thread() is threading.main_thread():
            for level, text in self._messages():
                _log.log(level, "%s: %s", self.name, text)

    def __repr__(self) -> str:
        try:
            return f"<{type(self).__name__} {self.devargs}: {self._state()}>"
        except (VhostIoatError, AttributeError):
            return f"<{type(self).__name__}: not initialised, or owned by the parent process>"

    __signature__ = inspect.signature(Devargs).replace(
        parameters=[
            parameter.replace(kind=parameter.POSITIONAL_OR_KEYWORD if name == "iface" else parameter.KEYWORD_ONLY)
            for name, parameter in inspect.signature(Devargs).parameters.items()
        ],
        return_annotation=inspect.Signature.empty,
    )


os.register_at_fork(after_in_child=_open_ports.clear)  # they are the parent's


@atexit.register
def _close_ports() -> None:
    """Take the sockets away. A daemon thread that polls a port gets empty bursts until it ends, and no exception."""
    global _exiting  # noqa: PLW0603
    _exiting = True
    alone = threading.active_count() == 1
    for port in list(_open_ports):
        if alone:
            port.close()
        else:
            port.stop()


def forward(
    a: EthVhost,
    b: EthVhost,
    mode: Literal["io", "macswap", "icmpecho", "rxonly", "txonly"] = "io",
    *,
    seconds: float | None = None,
    burst: int = 64,
    on_full: Literal["drop", "retry"] = "drop",
) -> Stats:
    """Forward packets between two ports, both ways and on all queues, in a native loop; `a` and `b` may be the same.

    Queue N of one port goes to queue N of the other, modulo its number of queues. Every packet received is sent,
    dropped or consumed: ipackets = packets that the ports' tx_burst took + dropped + consumed. Releases the GIL;
    Ctrl-C ends it.

    Args:
        a: One port.
        b: The other port.
        mode: "io" changes nothing; "macswap" exchanges the MAC addresses; "icmpecho" answers ARP and ICMP echo requests
            to their sender and consumes everything else; "rxonly" consumes what arrives; "txonly" sends 64-byte UDP
            packets, as many as are taken.
        seconds: How long to run; None means until Ctrl-C.
        burst: Packets received at a time, 1 to 1024.
        on_full: What happens to packets that the destination does not take. "drop": they are dropped. "retry": they are
            offered again, and until then nothing is received from the queue they came from, which slows its guest
            down. At most one burst waits for each queue and direction. Even with "retry", packets are dropped when the
            link is down, when the ring is stopped or broken, and at the end.

    Returns:
        What both ports together received and sent during the call. `dropped` counts the packets that had to be dropped,
        `consumed` those that the mode does not send on.

    Raises:
        ConfigError: `mode` or `on_full` is unknown, or `burst` is out of range.
        VhostIoatError: A port is closed, or another thread is inside one of the queues. Its attribute `stats` holds
            what would have been returned.
    """

    def counted() -> Stats:  # whoever resets the counters meanwhile
        return sum((Stats(**port._stats(raw=True)) for port in {a, b}), Stats())

    before = counted()
    forwarder = _core.Forwarder(a, b, str(mode), burst, str(on_full))

    def stats() -> Stats:
        forwarder.finish()
        sides = forwarder.sides()
        return dataclasses.replace(
            counted() - before,
            dropped=sum(side["dropped_full"] + side["dropped_down"] for side in sides),
            consumed=sum(side["consumed"] for side in sides),
        )

    try:
        forwarder.run(seconds)
    except BaseException as ended:
        if not isinstance(ended, KeyboardInterrupt) or seconds is not None:
            ended.stats = stats()  # type: ignore[attr-defined]
            raise
    return stats()
