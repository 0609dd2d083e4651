# SPDX-License-Identifier: BSD-3-Clause
"""`vhost-ioat demo`: a port here, an embedded guest in a second process, and packets that both ends check."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..guest import Guest
from ..port import EthVhost
from .format import count, rates, scaled
from .stream import Receiver, Sender, Stream

REFRESH = 0.25  # seconds
PATIENCE = 10.0  # seconds without a packet after which missing ones count as lost
RING_SIZE = 1024  # room for 30 of the largest packets
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TO_GUEST, FROM_GUEST = 1, 2  # seeds


@dataclass
class Totals:
    """One end's counts of one direction."""

    packets: int = 0
    octets: int = 0
    errors: int = 0
    first_error: str = ""


class End:
    """One end of the demo: a sender and a receiver for each queue, and their totals."""

    def __init__(self, queues: int, sends: int, receives: int) -> None:
        self.senders = [Sender(Stream(sends * 1000 + queue)) for queue in range(queues)]
        self.receivers = [Receiver(Stream(receives * 1000 + queue)) for queue in range(queues)]

    def sent(self) -> Totals:
        """What the ring has taken."""
        return Totals(sum(s.packets for s in self.senders), sum(s.octets for s in self.senders))

    def received(self) -> Totals:
        """What has been received and checked."""
        return Totals(
            sum(r.packets for r in self.receivers),
            sum(r.octets for r in self.receivers),
            sum(r.errors for r in self.receivers),
            next((r.first_error for r in self.receivers if r.errors), ""),
        )


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Delay signals while a process starts: half started, it would end with a traceback. It starts with them blocked.

    In this process blocking is not enough: another thread may take the signal, and Python runs the handler in this one.
    """
    resource_tracker.ensure_running()  # it unblocks signals when it starts
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in ENDING
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def _guest_process(path: str, queues: int, parent: Connection) -> None:
    """The second process. It reports its totals at intervals and at the end, and is told when to stop sending."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the other one ends this
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    end = End(queues, FROM_GUEST, TO_GUEST)
    sending, told = True, 0.0
    expected: int | None = None
    last_packet = time.monotonic()

    def tell(finished: bool) -> None:
        parent.send((finished, asdict(end.sent()), asdict(end.received())))

    with Guest(path, queues=queues, ring_size=RING_SIZE) as guest:
        guest.connect(timeout=PATIENCE)
        while True:
            for queue in range(queues):
                if sending:
                    sender = end.senders[queue]
                    sender.taken(guest.send(queue, sender.next_batch()))
                packets = guest.recv(queue, 64)
                end.receivers[queue].receive(packets)
                if packets:
                    last_packet = time.monotonic()
            now = time.monotonic()
            if now - told > REFRESH:
                tell(finished=False)
                told = now
            if parent.poll():
                message = parent.recv()
                if message == "leave":
                    return
                sending, expected, last_packet = False, message, now
                tell(finished=False)
            received = end.received()
            if expected is not None and (
                received.packets + received.errors >= expected or now - last_packet > PATIENCE
            ):
                tell(finished=True)
                expected = None


class Demo:
    """The port's end, and the counts that the guest reports."""

    def __init__(self, port: EthVhost, guest: Connection, queues: int) -> None:
        self.port, self.guest, self.queues = port, guest, queues
        self.end = End(queues, TO_GUEST, FROM_GUEST)
        self.guest_sent, self.guest_received = Totals(), Totals()
        self.guest_finished = False
        self.started, self.stopped = time.monotonic(), 0.0

    def exchange(self, sending: bool) -> bool:
        """One round over all queues; True when packets arrived."""
        came = False
        for queue in range(self.queues):
            if sending:
                sender = self.end.senders[queue]
                sender.taken(self.port.tx_burst(queue, sender.next_batch()))
            burst = self.port.rx_burst(queue, 64)
            if burst:
                came = True
                self.end.receivers[queue].receive(burst.tobytes(i) for i in range(len(burst)))
        self.hear()
        return came

    def hear(self) -> None:
        """Read the counts that the guest has reported."""
        while self.guest.poll():
            self.guest_finished, sent, received = self.guest.recv()
            self.guest_sent, self.guest_received = Totals(**sent), Totals(**received)

    def run(self, seconds: float, live: Live) -> None:
        """Exchange packets for some time, then wait for those in flight."""
        shown = self.started = time.monotonic()
        while (now := time.monotonic()) - self.started < seconds:
            self.exchange(sending=True)
            if now - shown > REFRESH:
                live.update(self.table(), refresh=True)
                shown = now
        self.stopped = time.monotonic()
        self.guest.send(self.end.sent().packets)
        last_packet = time.monotonic()
        while time.monotonic() - last_packet < PATIENCE:
            if self.exchange(sending=False):
                last_packet = time.monotonic()
            received = self.end.received()
            if self.guest_finished and received.packets + received.errors >= self.guest_sent.packets:
                break

    def table(self) -> Table:
        """What both ends have counted."""
        seconds = (self.stopped or time.monotonic()) - self.started
        table = Table("direction", "sent", "received", "bytes", "packet rate", "bit rate", "errors")
        for name, sent, received in (
            ("to the guest", self.end.sent(), self.guest_received),
            ("from the guest", self.guest_sent, self.end.received()),
        ):
            table.add_row(
                name,
                *map(count, (sent.packets, received.packets)),
                scaled(received.octets, "B"),
                *rates(received.packets, received.octets, seconds),
                count(received.errors),
            )
        return table

    def problems(self) -> list[str]:
        """What went wrong; empty if nothing did."""
        found = []
        stats = self.port.stats()
        for name, sent, received in (
            ("to the guest", self.end.sent(), self.guest_received),
            ("from the guest", self.guest_sent, self.end.received()),
        ):
            if received.errors:
                found.append(f"{name}: {received.errors} packets were wrong; the first: {received.first_error}")
            if received.packets + received.errors != sent.packets:
                found.append(f"{name}: {sent.packets} packets were sent, {received.packets + received.errors} arrived")
            if not received.packets:
                found.append(f"{name}: no packet arrived")
        lost = {name: getattr(stats, name) for name in ("imissed", "ierrors", "oerrors")}
        found += [f"the port counts {name} = {number}" for name, number in lost.items() if number]
        if (sent_by_port := self.end.sent().packets) != stats.opackets:
            found.append(f"the port counts {stats.opackets} packets published, but {sent_by_port} were given to it")
        return found


def _summary(demo: Demo, console: Console) -> bool:
    xstats = demo.port.xstats()

    def total(name: str) -> int:
        return sum(xstats.get(f"tx_q{queue}_{name}", 0) for queue in range(demo.queues))

    engines = demo.port.info().engines
    if engines:
        console.print(
            f"to the guest by {engines[0].description}: {scaled(total('dma_bytes'), 'B')} in "
            f"{count(total('dma_completed'))} copies, {total('dma_errors')} errors; "
            f"by the CPU: {scaled(total('cpu_bytes'), 'B')}",
            highlight=False,
        )
    else:
        console.print(f"to the guest by the CPU: {scaled(total('cpu_bytes'), 'B')}", highlight=False)
    problems = demo.problems()
    for problem in problems:
        console.print(problem, style="red")
    if not problems:
        console.print("every packet arrived once, in order and unaltered", style="green")
    return not problems


def run(seconds: float, queues: int, engine: bool, console: Console) -> bool:
    """Run the demo; True when every packet arrived once, in order and unaltered, in both directions."""
    ioats: Any = {queue: f"sw{queue}" for queue in range(queues)} if engine else {}
    context = multiprocessing.get_context("spawn")  # a forked child must not use the parent's port
    with TemporaryDirectory(prefix="vhost-ioat-") as directory:
        path = str(Path(directory) / "demo.sock")
        console.print(
            f"a port and an embedded guest in its own process exchange packets for {seconds:g} s", highlight=False
        )
        with EthVhost(path, queues=queues, ioats=ioats) as port:
            ours, theirs = context.Pipe()
            guest = context.Process(target=_guest_process, args=(path, queues, theirs), daemon=True)
            try:
                with _signals_wait():
                    guest.start()
                theirs.close()
                if not port.wait_link(timeout=PATIENCE):
                    console.print(f"the guest did not connect within {PATIENCE:g} s", style="red")
                    return False
                demo = Demo(port, ours, queues)
                with Live(console=console, auto_refresh=False, transient=True) as live:
                    demo.run(seconds, live)
                console.print(demo.table())
                held = _summary(demo, console)
                ours.send("leave")
                guest.join(PATIENCE)
                return held and guest.exitcode == 0
            finally:
                if guest.pid is not None and guest.is_alive():
                    guest.terminate()
                    guest.join()
