# SPDX-License-Identifier: BSD-3-Clause
"""The commands and their options; each command has a module of its own."""

from __future__ import annotations

import contextlib
import enum
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Annotated

import typer

from .. import __version__
from ..errors import VhostIoatError
from . import demo as demo_command
from . import devices as devices_command
from . import fwd as fwd_command
from . import ioat_device as device_command
from .format import console, one_line

app = typer.Typer(
    name="vhost-ioat",
    help="A poll-mode vhost-user port with I/OAT DMA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Mode(enum.StrEnum):
    """What `fwd` does with a packet."""

    IO = "io"
    MACSWAP = "macswap"
    ICMPECHO = "icmpecho"
    RXONLY = "rxonly"
    TXONLY = "txonly"


class OnFull(enum.StrEnum):
    """What `fwd` does with packets that the other port does not take."""

    DROP = "drop"
    RETRY = "retry"


SHORTEST, LONGEST = 0.1, 1e9  # seconds


def _duration(seconds: float | None) -> float | None:
    if seconds is not None and not SHORTEST <= seconds <= LONGEST:  # nan is in no range
        raise typer.BadParameter(f"{seconds:g} is not in the range {SHORTEST:g} to {LONGEST:g}")
    return seconds


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vhost-ioat {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of all commands."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: handled like Ctrl-C, so that everything is released on the way out."""


@contextlib.contextmanager
def _running(endless: bool = False) -> Iterator[None]:
    """The context of each command: how it ends on signals and errors.

    Ctrl-C, SIGTERM and SIGHUP unwind it, so that its sockets, directories and processes are removed. That is the normal
    end of an `endless` command, with status 0; for others the status is 128 plus the signal's number. An error that the
    user can fix is reported on one line, with status 2.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        for other in handled:
            signal.signal(other, signal.SIG_IGN)  # once is enough; Ctrl-C may still cut the clean-up short
        raise Terminated(number)

    # A command that was started with a signal ignored, as by nohup, continues to ignore it.
    handled = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, end) for number in handled}
    try:
        yield
    except (VhostIoatError, OSError, MemoryError) as error:
        text = one_line(str(error) or type(error).__name__)
        console(stderr=True).print(f"vhost-ioat: {text}", style="red", soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt as interrupt:
        if not endless:
            number = interrupt.args[0] if isinstance(interrupt, Terminated) else signal.SIGINT
            raise typer.Exit(128 + number) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@app.command()
def demo(
    seconds: Annotated[
        float, typer.Option("--seconds", "-t", callback=_duration, help="How long to send, in seconds.")
    ] = 5.0,
    queues: Annotated[int, typer.Option("--queues", "-q", min=1, max=128, help="Queue pairs.")] = 1,
    engine: Annotated[bool, typer.Option(help="Copy large packets by a software I/OAT engine for each queue.")] = True,
) -> None:
    """Exchange packets between a port and an embedded guest; every byte and the order are checked in both directions.

    The guest is a second process and the socket is real. The exit status is 0 only if nothing was lost or altered.
    """
    with _running():
        held = demo_command.run(seconds, queues, engine, console())
    if not held:
        raise typer.Exit(1)


@app.command()
def fwd(
    devargs: Annotated[list[str], typer.Argument(help="One or two ports, such as iface=/tmp/vhost0.sock,queues=2.")],
    mode: Annotated[Mode, typer.Option("--mode", "-m", help="What to do with each packet.")] = Mode.IO,
    seconds: Annotated[
        float | None, typer.Option("--seconds", "-t", callback=_duration, help="Stop after this many seconds.")
    ] = None,
    on_full: Annotated[
        OnFull, typer.Option("--on-full", help="Drop packets the other port does not take, or offer them again.")
    ] = OnFull.DROP,
) -> None:
    """Forward packets between two ports or, with one port, back to the sender. Ctrl-C ends it."""
    if len(devargs) > 2:
        raise typer.BadParameter(f"{len(devargs)} ports; give one or two ports")
    with _running(endless=True):
        fwd_command.run(devargs, mode.value, seconds, on_full.value, console())


@app.command()
def devices() -> None:
    """List the I/OAT channels of this machine and what keeps each from being used."""
    with _running():
        devices_command.run(console())


@app.command("ioat-device")
def ioat_device(
    path: Annotated[str, typer.Argument(metavar="SOCKET", help="Where virtual machines connect (vfio-user).")],
    device_id: Annotated[str, typer.Option(metavar="ID", help="PCI device id: 0x0b00 or 0x2021.")] = "0x0b00",
    cbver: Annotated[
        str | None, typer.Option(metavar="VERSION", help="0x34 is version 3.4; the default depends on the id.")
    ] = None,
    latency: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time from a doorbell to the first fetch, such as 20ms.")
    ] = None,
    bandwidth: Annotated[str | None, typer.Option(metavar="RATE", help="Fastest copy rate, such as 4GB/s.")] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND[=VALUE][@NTH]",
            help="A fault to inject; may be given several times: " + ", ".join(device_command.FAULTS),
        ),
    ] = None,
) -> None:
    """Serve the software I/OAT as a PCI card for virtual machines. Ctrl-C ends it."""
    with _running(endless=True):
        device_command.run(path, device_id, cbver, latency, bandwidth, fault or [], console())
