# SPDX-License-Identifier: BSD-3-Clause
"""The commands and their options; what they do is in a module each."""

from __future__ import annotations

import enum
from typing import Annotated

import typer
from rich.console import Console

from .. import __version__
from ..errors import VhostIoatError
from . import demo as demo_command
from . import devices as devices_command
from . import fwd as fwd_command
from . import ioat_device as device_command

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


Seconds = Annotated[float | None, typer.Option("--seconds", "-t", min=0.1, help="Stop after so long.")]


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


def _end(error: Exception) -> typer.Exit:
    Console(stderr=True).print(f"[red]vhost-ioat:[/red] {error}", highlight=False, soft_wrap=True)
    return typer.Exit(2)


@app.command()
def demo(
    seconds: Annotated[float, typer.Option("--seconds", "-t", min=0.1, help="How long packets are made.")] = 5.0,
    queues: Annotated[int, typer.Option("--queues", "-q", min=1, max=128, help="Queue pairs.")] = 1,
    engine: Annotated[bool, typer.Option(help="Copy large packets by a software I/OAT engine per queue.")] = True,
) -> None:
    """A port and an embedded guest exchange packets; every byte and the order are checked both ways.

    The guest is a second process, the socket a real one. The exit status is 0 only if nothing was lost or altered.
    """
    if not demo_command.run(seconds, queues, engine, Console()):
        raise typer.Exit(1)


@app.command()
def fwd(
    devargs: Annotated[list[str], typer.Argument(help="One or two ports, as iface=/tmp/vhost0.sock,queues=2.")],
    mode: Annotated[Mode, typer.Option("--mode", "-m", help="What to do with a packet.")] = Mode.IO,
    seconds: Seconds = None,
) -> None:
    """Forward packets between two ports, or back where they came from with one; Ctrl-C ends it."""
    if len(devargs) > 2:
        raise typer.BadParameter("one or two ports")
    try:
        fwd_command.run(devargs, mode.value, seconds, Console())
    except (VhostIoatError, OSError) as error:
        raise _end(error) from None


@app.command()
def devices() -> None:
    """List the I/OAT channels of this machine and what keeps each from being used."""
    devices_command.run(Console())


@app.command("ioat-device")
def ioat_device(
    path: Annotated[str, typer.Argument(metavar="SOCKET", help="Where virtual machines connect (vfio-user).")],
    device_id: Annotated[str, typer.Option(metavar="ID", help="PCI device id: 0x0b00 or 0x2021.")] = "0x0b00",
    cbver: Annotated[
        str | None, typer.Option(metavar="VERSION", help="0x34 is version 3.4. By default that of the id.")
    ] = None,
    latency: Annotated[
        str | None, typer.Option(metavar="TIME", help="From a doorbell to the first fetch, as 20ms.")
    ] = None,
    bandwidth: Annotated[str | None, typer.Option(metavar="RATE", help="At most, as 4GB/s.")] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND[=VALUE][@NTH]", help="May be given several times: " + ", ".join(device_command.FAULTS)
        ),
    ] = None,
) -> None:
    """Serve the software I/OAT as a PCI card for virtual machines; Ctrl-C ends it."""
    try:
        device_command.run(path, device_id, cbver, latency, bandwidth, fault or [], Console())
    except (VhostIoatError, OSError) as error:
        raise _end(error) from None
    except KeyboardInterrupt:
        pass
