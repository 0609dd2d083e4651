# SPDX-License-Identifier: BSD-3-Clause
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from traffic import until

pytest.importorskip("typer")
from vhost_ioat import __version__
from vhost_ioat.cli.format import count, rates, scaled
from vhost_ioat.guest import Guest
from watchdog import WATCHDOG

COMMAND = [sys.executable, "-m", "vhost_ioat"]
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


def run(*arguments):
    return subprocess.run(
        [*COMMAND, *arguments], check=False, capture_output=True, text=True, timeout=2 * WATCHDOG, env=ENVIRONMENT
    )


def start(*arguments):
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )


def test_says_its_version():
    assert run("--version").stdout == f"vhost-ioat {__version__}\n"


def test_lists_its_commands():
    done = run("--help")
    assert done.returncode == 0
    for command in ("demo", "fwd", "devices", "ioat-device"):
        assert command in done.stdout


@pytest.mark.parametrize("options", [[], ["--no-engine"], ["--queues", "2"]])
def test_the_demo_holds(options):
    done = run("demo", "--seconds", "1", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "every packet arrived once, in order and unaltered" in done.stdout
    assert ("software I/OAT" in done.stdout) == ("--no-engine" not in options)


def forward_and_stop(socket_path, number, *options):
    """Start `fwd`, exchange packets with a guest, and end it with a signal."""
    process = start("fwd", f"iface={socket_path}", *options)
    try:
        with Guest(socket_path) as guest:
            guest.connect(timeout=WATCHDOG)
            got = []

            def exchange():
                guest.send(0, [b"\2\0\0\0\0\1\2\0\0\0\0\2\x08\0" + bytes(50)])
                got.extend(guest.recv(0))
                return got

            until(exchange, "packets come back")
            process.send_signal(number)
            output, errors = process.communicate(timeout=WATCHDOG)
    finally:
        process.kill()
        process.wait()
    return process.returncode, output, errors, got


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_forwarding_cleanly(socket_path, number):
    code, output, errors, _ = forward_and_stop(socket_path, number)
    assert (code, errors) == (0, "")
    assert "eth_vhost_ioat0" in output
    assert not Path(socket_path).exists()


def test_macswap_exchanges_the_addresses(socket_path):
    *_, packets = forward_and_stop(socket_path, signal.SIGINT, "--mode", "macswap")
    assert packets[0][:14] == b"\2\0\0\0\0\2\2\0\0\0\0\1\x08\0"


def test_io_changes_nothing(socket_path):
    *_, packets = forward_and_stop(socket_path, signal.SIGINT)
    assert packets[0][:14] == b"\2\0\0\0\0\1\2\0\0\0\0\2\x08\0"


def test_two_ports_are_connected(socket_path):
    left, right = f"{socket_path}l", f"{socket_path}r"
    process = start("fwd", f"left,iface={left}", f"right,iface={right}", "--seconds", "60")
    try:
        with Guest(left) as a, Guest(right) as b:
            threads = [
                threading.Thread(target=guest.connect, kwargs={"timeout": WATCHDOG}, daemon=True) for guest in (a, b)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for here, there in ((a, b), (b, a)):
                assert here.send(0, [b"across" * 12]) == 1
                got = []
                until(lambda there=there, got=got: got.extend(there.recv(0)) or got)
                assert got == [b"across" * 12]
        process.send_signal(signal.SIGINT)
        assert process.wait(WATCHDOG) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fwd", "iface=/nowhere/v.sock"], "/nowhere/v.sock"),
        (["fwd", "queues=1"], "iface is missing"),
        (["fwd", "iface=/v,queue=1"], "unknown option 'queue'"),
        (["fwd", "iface=/a", "iface=/b", "iface=/c"], "one or two ports"),
        (["fwd", "iface=/a", "--mode", "fly"], "fly"),
        (["fwd"], "devargs"),
    ],
)
def test_mistakes_get_one_message_and_no_traceback(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.lower()  # of DEVARGS, older typers make capitals
    assert "Traceback" not in done.stderr


def test_devices_lists_or_says_that_there_are_none():
    done = run("devices")
    assert done.returncode == 0
    assert "no I/OAT device" in done.stdout or "8086:" in done.stdout


def test_without_typer_it_says_what_to_install():
    script = "import sys; sys.modules['typer'] = None; from vhost_ioat.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=WATCHDOG)
    assert done.returncode == 1
    assert "pip install 'vhost-ioat[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_numbers_are_readable():
    assert count(1234567) == "1 234 567"
    assert scaled(0, "B") == "0 B"
    assert scaled(999, "B") == "999 B"
    assert scaled(12345, "pps") == "12.3 kpps"
    assert scaled(999.9e9, "bit/s") == "1 Tbit/s"
    assert rates(1000, 100000, 2) == ("500 pps", "400 kbit/s")
    assert rates(1, 1, 0) == ("-", "-")
