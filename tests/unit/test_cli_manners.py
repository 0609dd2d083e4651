# SPDX-License-Identifier: BSD-3-Clause
"""The command line with users' mistakes and users' text, and how its commands end by signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from traffic import until

pytest.importorskip("typer")
from vhost_ioat.guest import Guest

COMMAND = [sys.executable, "-m", "vhost_ioat"]
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
COMMANDS = {"fwd": ["fwd"], "ioat-device": ["ioat-device"]}


def run(*arguments, **options):
    return subprocess.run(
        [*COMMAND, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        env=ENVIRONMENT,
        errors="surrogateescape",
        **options,
    )


def assert_one_line(done, *parts):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "std::" not in done.stderr
    assert "incompatible function arguments" not in done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    "text", ["[/x]", "[red]", "[bold]x[/bold]", "[link=http://x]", ":smile:", "\x1b[31m", "a\nb", "\udcff", "[/]"]
)
@pytest.mark.parametrize("command", [["fwd"], ["fwd", "iface=/tmp/a", "--mode"], ["ioat-device", "/tmp/a", "--fault"]])
def test_users_text_is_no_markup(command, text):
    done = run(*command, text)
    assert_one_line(done)
    if text.isprintable() and "=" not in text and text != ":smile:":  # which is taken for a port's name
        assert text in done.stderr


def test_it_is_none_in_a_path_or_a_name(tmp_path):
    for text in ("[/x]", "[red]", ":smile:"):
        missing = f"{tmp_path}/{text}/v.sock"
        assert_one_line(run("fwd", f"iface={missing}"), missing)
        assert_one_line(run("ioat-device", missing), missing)
    done = run("fwd", f":smile:,iface={tmp_path}/[red]", "--seconds", "0.1")
    assert (done.returncode, done.stderr) == (0, "")
    assert ":smile:" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        *[["demo", "--seconds", value] for value in ("nan", "inf", "-inf", "-1", "0", "1e300", "x", "")],
        *[["fwd", "iface=/tmp/a", "--seconds", value] for value in ("nan", "inf", "-1", "0", "1e300", "x")],
        *[["demo", "--queues", value] for value in ("0", "-1", "129", str(2**40), str(2**70), "1.5", "x")],
        *[
            ["fwd", f"iface=/tmp/a,{option}"]
            for option in (
                "queues=0",
                "queues=-1",
                "queues=129",
                f"queues={2**40}",
                f"queues={10**30}",
                "queues=nan",
                "mempool=-1",
                "mempool=0",
                "mempool=nan",
                f"mempool={10**18}",
                f"mempool={2**63 - 1}",
                f"mempool={2**64}",
                "mempool=9000000000G",
                "max_guest_mem=1",
                f"max_guest_mem={2**70}",
                "ioat_threshold=-1",
                f"ioat_threshold={2**40}",
                f"ioat_threshold={10**30}",
                "ioat_threshold=1.5",
                "socket_mode=999",
                "socket_mode=7777",
                "socket_mode=-1",
                "client=2",
                "ioats=(txq99999999999@sw0)",
                "ioats=(txq0@sw999999999999)",
            )
        ],
        *[["ioat-device", "/tmp/a", "--device-id", value] for value in ("-1", "0x10000", "x", "", "9" * 5000)],
        *[["ioat-device", "/tmp/a", "--cbver", value] for value in ("-1", "0x100", "x", "9" * 5000)],
        *[
            ["ioat-device", "/tmp/a", "--latency", value]
            for value in ("1", "-1s", "nan", "nans", "infs", "9" * 400 + "s", "9" * 30 + "ns", "1e3s", "")
        ],
        *[["ioat-device", "/tmp/a", "--bandwidth", value] for value in ("1", "-1B/s", "0GB/s", "9" * 400 + "GB/s")],
        *[
            ["ioat-device", "/tmp/a", "--fault", value]
            for value in ("x", "error=-1", f"error@{10**30}", f"drop_writeback={10**30}", f"error={'9' * 5000}", "")
        ],
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_every_number_has_a_range(arguments):
    assert_one_line(run(*arguments, stdin=subprocess.DEVNULL))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "is missing"),
        ("/tmp/" + "x" * 200, "107"),
        ("/nowhere/at/all/v.sock", "/nowhere/at/all/v.sock"),
        ("/proc/v.sock", "/proc/v.sock"),
        ("/etc/hostname", "/etc/hostname"),
        ("/tmp", "/tmp"),
        ("/etc/hostname/v.sock", "/etc/hostname/v.sock"),
    ],
)
def test_a_path_that_cannot_be_a_socket_gets_a_sentence(command, path, says):
    done = run(*COMMANDS[command], f"iface={path}" if command == "fwd" else path)
    assert_one_line(done, says)
    assert "None" not in done.stderr


def started(arguments, ready):
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    until(lambda: ready() or process.poll() is not None, "the command is ready")
    return process


def children_of(process):
    found = []
    for task in Path(f"/proc/{process.pid}/task").glob("*/children"):
        found += [int(pid) for pid in task.read_text().split()]
    return found


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_is_the_normal_end_of_what_runs_for_ever(command, number, socket_path):
    path = Path(socket_path)
    process = started([*COMMANDS[command], f"iface={path}" if command == "fwd" else str(path)], path.is_socket)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert not path.exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_the_demo_takes_its_guest_and_its_folder_away(number, tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "TMPDIR", str(tmp_path))
    sockets = lambda: list(tmp_path.glob("vhost-ioat-*/*.sock"))  # noqa: E731
    process = started(["demo", "--seconds", "1000"], sockets)
    until(lambda: any("spawn_main" in command_line(child) for child in children_of(process)), "it has a guest")
    children = children_of(process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, "")
    assert list(tmp_path.glob("vhost-ioat-*")) == []
    until(lambda: not any(Path(f"/proc/{child}/exe").exists() for child in children), "its processes end")


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_signal_that_was_ignored_from_the_start_stays_ignored(socket_path):
    path = Path(socket_path)
    process = subprocess.Popen(
        ["nohup", *COMMAND, "fwd", f"iface={path}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
    )
    until(path.is_socket, "it listens")
    process.send_signal(signal.SIGHUP)
    with Guest(str(path)) as guest:
        guest.connect(timeout=60)  # it is still there
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert not path.exists()


def test_a_reader_that_has_gone_is_no_traceback():
    process = subprocess.Popen(
        [*COMMAND, "devices"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    process.stdout.close()
    errors = process.stderr.read()
    process.wait(60)
    process.stderr.close()
    assert "Traceback" not in errors
