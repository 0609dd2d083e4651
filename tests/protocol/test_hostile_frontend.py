# SPDX-License-Identifier: BSD-3-Clause
"""A front end that sends what it must not: the port lives, the session answers or ends, and others do not notice."""

import contextlib
import os
import socket
import struct
from pathlib import Path

import pytest

from traffic import at_guest, at_port, until
from vhost_ioat import EthVhost
from vhost_ioat.testing import RawFrontend
from vhost_ioat.testing.frontend import NEED_REPLY, REPLY, REQUESTS, VERSION, Message, u64, vring, vring_addr
from watchdog import WATCHDOG

EXACT = dict(REQUESTS.values())
FLAGS = [VERSION, VERSION | NEED_REPLY, VERSION | REPLY, 2]
UVA = 0x7F00_0000_0000
MIB = 1 << 20


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def bystander(linked):
    """Another port of this process; it must keep moving packets."""
    port, guest = linked()

    def check():
        assert port.tx_burst(0, [b"still here" * 6]) == 1
        assert at_guest(guest, 0, 1) == [b"still here" * 6]
        assert guest.send(0, [b"me too" * 10]) == 1
        assert at_port(port, 0, 1) == [b"me too" * 10]

    check()
    return check


@pytest.fixture
def port(socket_path):
    with EthVhost(socket_path, queues=2) as port:
        yield port


def fresh(_):
    """A session that has said nothing."""


def negotiated(frontend):
    """Features are agreed."""
    frontend.negotiate(2**64 - 1)


def running(frontend):
    """Memory is shared, and all rings run."""
    frontend.negotiate(2**64 - 1)
    frontend.share_memory(uva=UVA)
    with contextlib.ExitStack() as fds:
        event = os.eventfd(0)
        fds.callback(os.close, event)
        for index in range(4):
            at = UVA + index * 0x4000
            frontend.tell("SET_VRING_NUM", vring(index, 256))
            frontend.tell("SET_VRING_ADDR", vring_addr(index, at, at + 0x1000, at + 0x2000))
            frontend.tell("SET_VRING_BASE", vring(index, 0))
            frontend.tell("SET_VRING_CALL", u64(index), [event])
            frontend.tell("SET_VRING_KICK", u64(index), [event])
            frontend.tell("SET_VRING_ENABLE", vring(index, 1))


@contextlib.contextmanager
def connected(port, state):
    with RawFrontend(port.devargs.iface) as frontend:
        state(frontend)
        yield frontend


def idle_files(port):
    """Open files with one session that has said nothing; all others are over then."""
    with connected(port, fresh) as frontend:
        assert frontend.is_answering()
        return open_files()


def expect_idle(port, before):
    """A port's helper closes what a peer gave: sooner or later no more is open than before."""
    until(lambda: idle_files(port) <= before, f"{before} open files; now {open_files()}", pause=0.001)


@pytest.mark.parametrize("state", [fresh, negotiated, running])
@pytest.mark.parametrize("first", range(0, 65, 13))
def test_any_message_of_any_size_with_any_fds(port, bystander, state, first):
    before = idle_files(port)
    event = os.eventfd(0)
    for request in range(first, min(first + 13, 65)):
        exact = EXACT.get(request, 8)
        for size in sorted({0, 1, max(0, exact - 1), exact, exact + 1, 4096, 2**32 - 1}):
            for fds in (0, 1, 8, 9, 33):
                flags = FLAGS[(size + fds) % len(FLAGS)]
                with connected(port, state) as frontend, contextlib.suppress(ConnectionError):
                    frontend.send(Message(request, bytes(min(size, 4096)), [event] * fds, flags, size))
                    frontend.is_answering()  # or closed; anything else is a TimeoutError
    os.close(event)
    bystander()
    expect_idle(port, before)


@pytest.mark.parametrize("state", [fresh, running])
def test_a_message_may_be_cut_at_any_byte(port, bystander, state):
    before = idle_files(port)
    for name in ("SET_FEATURES", "SET_VRING_ADDR", "SET_MEM_TABLE", "GET_FEATURES"):
        request, size = REQUESTS[name]
        content = Message(request, bytes(size)).encode()
        for length in range(len(content)):
            with connected(port, state) as frontend:
                frontend.socket.sendall(content[:length])
    bystander()
    expect_idle(port, before)


def test_a_slow_sender_is_understood(port):
    with connected(port, fresh) as frontend:
        for message in (Message(3), Message(2, u64(1 << 32)), Message(1)):
            for byte in message.encode():
                frontend.socket.sendall(bytes([byte]))
        reply = frontend.receive()
        assert reply.request == 1
        assert reply.u64 == port.devargs.features


def test_many_messages_at_once_are_answered_in_order(port):
    with connected(port, fresh) as frontend:
        frontend.socket.sendall(Message(1).encode() * 200 + Message(15).encode())
        assert [frontend.receive().request for _ in range(201)] == [1] * 200 + [15]


def test_hundreds_of_connections_do_not_keep_the_next_one_out(port, bystander):
    before = idle_files(port)
    for _ in range(3):
        crowd = []
        for _ in range(100):
            one = socket.socket(socket.AF_UNIX)
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):  # the backlog is full
                one.connect(port.devargs.iface)
            crowd.append(one)
        bystander()
        for one in crowd:
            one.close()
    expect_idle(port, before)


def memory(size=MIB):
    fd = os.memfd_create("memory")
    os.truncate(fd, size)
    return fd


def table(*regions):
    return struct.pack("<II", len(regions), 0) + b"".join(struct.pack("<QQQQ", *region) for region in regions)


@pytest.mark.parametrize(
    "regions",
    [
        [(0, 0, UVA, 0)],
        [(0, MIB + 4096, UVA, 0)],
        [(0, MIB, UVA, 4096)],
        [(0, MIB, UVA, 2**64 - 4096)],
        [(2**64 - 4096, MIB, UVA, 0)],
        [(0, MIB, 2**64 - 4096, 0)],
        [(0, 1 << 40, UVA, 0)],
        [(0, 2**64 - 1, UVA, 0)],
        [(0, MIB, UVA, 0), (MIB - 4096, MIB, UVA + MIB, 0)],
        [(0, MIB, UVA, 0), (MIB, MIB, UVA + MIB - 4096, 0)],
        [(0, MIB, UVA, 0), (0, MIB, UVA, 0)],
    ],
)
def test_impossible_memory_is_refused(port, bystander, regions):
    before = idle_files(port)
    fd = memory()
    with connected(port, negotiated) as frontend:
        assert not frontend.acknowledged("SET_MEM_TABLE", table(*regions), [fd] * len(regions))
    os.close(fd)
    bystander()
    expect_idle(port, before)


@pytest.mark.parametrize("count", [0, 2, 9, 2**32 - 1])
def test_a_table_must_have_as_many_regions_and_fds_as_it_says(port, bystander, count):
    before = idle_files(port)
    fd = memory()
    payload = struct.pack("<IIQQQQ", count, 0, 0, MIB, UVA, 0)
    with connected(port, negotiated) as frontend:
        assert not frontend.acknowledged("SET_MEM_TABLE", payload, [fd])
    os.close(fd)
    bystander()
    expect_idle(port, before)


@pytest.mark.parametrize("kind", ["pipe", "socket", "file", "null"])
def test_memory_must_be_memory(port, bystander, kind, tmp_path):
    before = idle_files(port)
    with contextlib.ExitStack() as opened:
        fds = [kind]
        if kind == "file":
            fds = [opened.enter_context((tmp_path / "disk").open("w+b")).fileno()]
            os.truncate(fds[0], MIB)
            if os.statvfs(tmp_path).f_fsid == os.statvfs("/dev/shm").f_fsid:
                pytest.skip("the temporary directory is a tmpfs")
        if kind == "null":
            fds = [opened.enter_context(open("/dev/null", "r+b")).fileno()]  # noqa: PTH123
        with connected(port, negotiated) as frontend:
            assert not frontend.acknowledged("SET_MEM_TABLE", table((0, MIB, UVA, 0)), fds)
    bystander()
    expect_idle(port, before)


@pytest.mark.parametrize("name", ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "memfd"])
def test_an_fd_that_could_block_neither_blocks_nor_stays_open(port, bystander, name, kind):
    before = idle_files(port)
    with connected(port, negotiated) as frontend:
        assert frontend.acknowledged(name, u64(0), [kind])
        assert frontend.is_answering()
        bystander()
    bystander()
    expect_idle(port, before)


def test_a_call_fd_that_is_full_does_not_block(port):
    """2^64 - 2 in an eventfd makes the next write wait, unless it is non-blocking."""
    with contextlib.ExitStack() as opened, connected(port, negotiated) as frontend:
        shared = frontend.share_memory(uva=UVA)
        call = os.eventfd(0)
        opened.callback(os.close, call)
        os.eventfd_write(call, 2**64 - 2)
        shared[0:16] = struct.pack("<QIHH", 0x10000, 4096, 2, 0)
        shared[0x1000:0x1006] = struct.pack("<HHH", 0, 1, 0)
        frontend.tell("SET_VRING_NUM", vring(0, 256))
        frontend.tell("SET_VRING_ADDR", vring_addr(0, UVA, UVA + 0x1000, UVA + 0x2000))
        frontend.tell("SET_VRING_BASE", vring(0, 0))
        frontend.tell("SET_VRING_CALL", u64(0), [call])
        frontend.tell("SET_VRING_KICK", u64(0), ["eventfd"])
        frontend.tell("SET_VRING_ENABLE", vring(0, 1))
        until(lambda: port.tx_burst(0, [b"x" * 60]))
        assert struct.unpack("<H", shared[0x2002:0x2004]) == (1,)
        assert frontend.is_answering()


@pytest.mark.parametrize(
    ("desc", "avail", "used"),
    [
        (UVA + 8, UVA + 0x1000, UVA + 0x2000),
        (UVA, UVA + 0x1001, UVA + 0x2000),
        (UVA, UVA + 0x1000, UVA + 0x2002),
        (UVA + 2 * MIB - 16, UVA + 0x1000, UVA + 0x2000),
        (UVA, UVA + 2 * MIB - 4, UVA + 0x2000),
        (UVA, UVA + 0x1000, UVA + 2 * MIB - 4),
        (0, 0, 0),
        (2**64 - 16, 2**64 - 16, 2**64 - 16),
    ],
)
def test_a_ring_outside_of_memory_never_runs(port, bystander, desc, avail, used):
    with connected(port, negotiated) as frontend, contextlib.suppress(ConnectionError):
        frontend.share_memory(uva=UVA)
        for index in range(2):
            frontend.tell("SET_VRING_NUM", vring(index, 256))
            frontend.tell("SET_VRING_ADDR", vring_addr(index, desc, avail, used))
            frontend.tell("SET_VRING_CALL", u64(index), ["eventfd"])
            frontend.tell("SET_VRING_KICK", u64(index), ["eventfd"])
            frontend.tell("SET_VRING_ENABLE", vring(index, 1))
        frontend.is_answering()
        assert port.tx_burst(0, [b"x" * 60]) == 0
        assert not port.rx_burst(0)
    bystander()


@pytest.mark.parametrize("size", [0, 3, 65536, 2**32 - 1])
def test_a_ring_of_a_wrong_size_is_refused(port, size):
    with connected(port, negotiated) as frontend:
        assert not frontend.acknowledged("SET_VRING_NUM", vring(0, size))


@pytest.mark.parametrize("name", ["SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ENABLE", "GET_VRING_BASE"])
@pytest.mark.parametrize("index", [5, 255, 2**32 - 1])
def test_a_ring_that_does_not_exist_is_refused(port, name, index):
    with connected(port, negotiated) as frontend:
        frontend.send(Message(REQUESTS[name][0], vring(index, 1), flags=VERSION | NEED_REPLY))
        reply = frontend.receive()
        assert reply is None or reply.u64 != 0


def test_memory_taken_away_from_a_running_ring_stops_it(port, bystander):
    with connected(port, running) as frontend:
        assert port.wait_link(timeout=WATCHDOG)
        with contextlib.suppress(ConnectionError):
            fd = memory()
            frontend.tell("SET_MEM_TABLE", table((1 << 40, MIB, UVA + (1 << 40), 0)), [fd])
            os.close(fd)
            frontend.is_answering()
        assert port.tx_burst(0, [b"x" * 60]) == 0
        assert not port.rx_burst(0)
    bystander()


def test_fds_where_none_belong_are_closed(port, bystander):
    before = idle_files(port)
    for name in ("SET_LOG_BASE", "SET_LOG_FD", "GET_INFLIGHT_FD", "SET_INFLIGHT_FD", "GET_FEATURES", "SET_VRING_NUM"):
        request, size = REQUESTS[name]
        with connected(port, running) as frontend, contextlib.suppress(ConnectionError):
            frontend.send(Message(request, bytes(size), ["memfd", "eventfd"]))
            frontend.is_answering()
    bystander()
    expect_idle(port, before)


def test_guest_memory_is_let_go_with_its_session(port):
    def mapped():
        with open("/proc/self/maps") as maps:  # noqa: PTH123
            return sum("memfd:guest" in line for line in maps)

    until(lambda: not mapped())  # the helper may still be unmapping that of an earlier test
    with connected(port, running):
        assert port.wait_link(timeout=WATCHDOG)
        assert mapped()
    until(lambda: not mapped())
