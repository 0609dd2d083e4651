# SPDX-License-Identifier: BSD-3-Clause
"""The software I/OAT served to virtual machines: its socket and its command. tests/vfio has the machines."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from interop.console import Console
from lingering import close_after, lingering
from vhost_ioat import ConfigError, DmaError, EthVhost, dma
from vhost_ioat.cli import ioat_device
from watchdog import WATCHDOG
from watchdog import until as until_true


def until(condition: Callable[[], bool]) -> Callable[[int], bool]:
    return lambda _: condition()


def hello(path: str) -> socket.socket:
    """A connection on which VERSION was asked and answered."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(WATCHDOG)
    until_true(lambda: connection.connect_ex(path) in (0, errno.EISCONN))  # a path is there before it is listened on
    connection.sendall(struct.pack("<HHIIIHH", 1, 1, 20, 0, 0, 0, 1))
    assert struct.unpack("<HHIII", connection.recv(16)) == (1, 1, 20, 1, 0)
    assert connection.recv(4) == bytes(4)
    return connection


def test_machines_are_served_one_after_the_other_and_the_socket_goes_at_the_end(socket_path: str) -> None:
    listening, done = threading.Event(), threading.Event()

    def watch(maps: int) -> bool:
        assert maps == 0
        listening.set()
        return done.is_set()

    thread = threading.Thread(target=dma.serve, args=(socket_path,), kwargs={"watch": watch}, daemon=True)
    thread.start()
    assert listening.wait(WATCHDOG)
    assert Path(socket_path).stat().st_mode & 0o777 == 0o600
    for _ in range(3):
        hello(socket_path).close()
    with hello(socket_path):  # it may end while a machine has the card
        done.set()
        thread.join(WATCHDOG)
    assert not thread.is_alive()
    assert not Path(socket_path).exists()


@pytest.mark.parametrize("said", [b"", b"\x01\x00\x01"], ids=["nothing", "half a header"])
def test_a_machine_that_says_nothing_makes_way_for_the_next(socket_path: str, said: bytes) -> None:
    listening, done = threading.Event(), threading.Event()

    def watch(_: int) -> bool:
        listening.set()
        return done.is_set()

    thread = threading.Thread(target=dma.serve, args=(socket_path,), kwargs={"watch": watch}, daemon=True)
    thread.start()
    assert listening.wait(WATCHDOG)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect(socket_path)
        silent.sendall(said)
        with hello(socket_path):
            assert silent.recv(1) == b""
    done.set()
    thread.join(WATCHDOG)
    assert not thread.is_alive()


def test_an_fd_whose_close_waits_keeps_no_other_machine_out(socket_path: str) -> None:
    done = threading.Event()
    server = threading.Thread(
        target=dma.serve, args=(socket_path,), kwargs={"watch": lambda _: done.is_set()}, daemon=True
    )
    server.start()
    until_true(lambda: Path(socket_path).exists())
    dma_map = struct.pack("<HHIIIIIQQQ", 2, 2, 48, 0, 0, 32, 3, 0, 0x10000, 4096)
    closing = []
    with lingering() as make:
        for _ in range(5):
            with hello(socket_path) as machine:
                held = make()
                send = functools.partial(socket.send_fds, machine, [dma_map], [held.fileno()])
                closing.append(close_after(send, held))
                machine.recv(16)  # refused, or dropped
        hello(socket_path).close()
        done.set()
        server.join(WATCHDOG)
        assert not server.is_alive()
    for thread in closing:
        thread.join(WATCHDOG)


def test_a_shortage_ends_nothing(socket_path: str, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    thread = threading.Thread(
        target=dma.serve, args=(socket_path,), kwargs={"watch": lambda _: done.is_set()}, daemon=True
    )
    thread.start()
    until_true(lambda: Path(socket_path).exists())
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waits:
        waits.settimeout(WATCHDOG)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, before[1]))
        try:
            until_true(lambda: waits.connect_ex(socket_path) in (0, errno.EISCONN))
            until_true(lambda: "for now: [Errno 24]" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        waits.sendall(struct.pack("<HHIIIHH", 1, 1, 20, 0, 0, 0, 1))
        assert len(waits.recv(20)) == 20
    done.set()
    thread.join(WATCHDOG)
    assert not thread.is_alive()


def test_a_device_has_one_driver_at_a_time(socket_path: str) -> None:
    model = dma.IoatModel()
    channel = dma.IoatChannel(model)
    with pytest.raises(DmaError, match="has a driver already"):
        dma.IoatChannel(model)
    with pytest.raises(DmaError, match="has a driver already"):
        dma.serve(socket_path, model, watch=until(lambda: True))
    assert not Path(socket_path).exists()
    source, target = bytearray(b"seat" * 16), bytearray(64)
    model.map(0x10000, source)
    model.map(0x20000, target)
    channel.copy(0x20000, 0x10000, 64)
    channel.submit()
    assert channel.poll() == [(0, "ok")]  # the others did nothing to the first one
    assert target == source
    del channel
    dma.serve(socket_path, model, watch=until(lambda: True))  # given back, with what was mapped
    channel = dma.IoatChannel(model)
    assert channel.outstanding == 0
    with EthVhost(socket_path, ioats={0: "sw0"}) as port:
        served = port.engine_model(0)
        assert served is not None
        with pytest.raises(DmaError, match="has a driver already"):
            dma.serve(socket_path + ".card", served, watch=until(lambda: True))


def test_a_driver_makes_the_function_a_bus_master_and_without_it_nothing_is_copied() -> None:
    model = dma.IoatModel()
    assert model.config_read(4, 2) & 4
    model.config_write(0x98, 0x8000, 2)  # a function-level reset
    assert model.config_read(4, 2) & 4 == 0
    channel = dma.IoatChannel(model)
    assert model.config_read(4, 2) & 4
    source, target = bytearray(b"x" * 64), bytearray(64)
    model.map(0x10000, source)
    model.map(0x20000, target)
    model.config_write(4, 2, 2)
    channel.copy(0x20000, 0x10000, 64)
    channel.submit()
    assert channel.poll() == []
    assert not any(target)
    model.config_write(4, 6, 2)
    assert channel.poll() == [(0, "ok")]
    assert target == source


def test_a_socket_that_nobody_serves_is_replaced_and_one_that_is_served_is_not(socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_behind:
        left_behind.bind(socket_path)
    dma.serve(socket_path, watch=until(lambda: True))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as served:
        served.bind(socket_path)
        served.listen()
        with pytest.raises(OSError, match="in use"):
            dma.serve(socket_path, watch=until(lambda: True))
    assert Path(socket_path).exists()


def test_one_that_is_served_and_too_busy_to_answer_is_not_replaced(socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as served, contextlib.ExitStack() as crowd:
        served.bind(socket_path)
        served.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waits = crowd.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                waits.setblocking(False)
                waits.connect(socket_path)
        with pytest.raises(OSError, match="in use"):
            dma.serve(socket_path, watch=until(lambda: True))


def test_a_child_of_fork_leaves_the_socket_alone(socket_path: str) -> None:
    looks = iter([False, True])

    def watch(_: int) -> bool:
        child = os.fork()
        if child == 0:
            raise SystemExit(0)  # out of serve(), and of everything else
        assert os.waitpid(child, 0)[1] == 0
        assert Path(socket_path).exists()
        return next(looks)

    try:
        dma.serve(socket_path, watch=watch)
    except SystemExit:
        os._exit(0)
    assert not Path(socket_path).exists()


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "file"
    precious.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        dma.serve(str(precious), watch=until(lambda: True))
    assert precious.read_text() == "precious"


def test_the_command_serves_until_ctrl_c(socket_path: str) -> None:
    command = [sys.executable, "-m", "vhost_ioat", "ioat-device", socket_path, "--device-id", "0x2021"]
    with Console([*command, "--latency", "20ms", "--bandwidth", "4GB/s", "--fault", "error@3"]) as console:
        console.expect(r"8086:2021, version 3\.3")
        console.expect("descriptors=0 .*maps=0")
        with hello(socket_path):
            console.process.send_signal(signal.SIGINT)
            assert console.wait() == 0, console.text
        assert "Traceback" not in console.text
    assert not Path(socket_path).exists()


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [("latency", "20ms", 20_000_000), ("latency", "1.5 us", 1500), ("bandwidth", "4GB/s", 4_000_000_000)],
)
def test_amounts_have_units(kind: str, text: str, value: int) -> None:
    assert ioat_device.amount(kind, text) == value


@pytest.mark.parametrize("text", ["20", "ms", "20GB/s", "-1ms", ""])
def test_an_amount_without_a_unit_of_its_kind_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="one of s, ms, us, ns"):
        ioat_device.amount("latency", text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("error", ("error", 8, 0)),
        ("error=0@100", ("error", 0, 100)),
        ("drop-writeback@5", ("drop_writeback", 0, 5)),
        ("drop_interrupt=1000", ("drop_interrupt", 1000, 0)),
    ],
)
def test_faults_are_written_as_kind_value_and_number(text: str, parts: tuple[str, int, int]) -> None:
    assert ioat_device.fault(text) == parts


@pytest.mark.parametrize("text", ["", "eror", "error@", "error@x", "@3", "latency=3"])
def test_other_faults_are_refused_with_the_list(text: str) -> None:
    with pytest.raises(ConfigError, match="reset_hang"):
        ioat_device.fault(text)
