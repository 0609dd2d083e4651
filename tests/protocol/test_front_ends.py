# SPDX-License-Identifier: BSD-3-Clause
"""Front ends differ. What is legal is served, what is of no use costs only itself, and either way somebody says why."""

import mmap
import os
import select
import socket
import struct
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from raw_ring import F_VERSION_1, UVA, RawRing, raw_rings
from traffic import at_port, until
from vhost_ioat import EthVhost
from vhost_ioat.testing import RawFrontend
from vhost_ioat.testing.frontend import u64
from watchdog import WATCHDOG

F_CTRL_VQ, F_MQ = 1 << 17, 1 << 22
PACKET = b"a packet of sixty bytes".ljust(60, b".")


@pytest.fixture
def port(socket_path):
    with EthVhost(socket_path) as port:
        yield port


def told(port, *words, meanwhile=lambda: None):
    """Wait for an event that says all of this, and do something before each look."""
    texts = []

    def said():
        meanwhile()
        texts.extend(event.text for event in port.events())
        return any(all(word in text for word in words) for text in texts)

    until(said, f"an event with {words}")
    return texts


def passes_packets(port, rings):
    """One packet each way."""
    to_guest, from_guest = rings
    assert to_guest.frontend.is_answering()  # what was said is done: a ring that is not enabled yet drops its packets
    before = to_guest.used()
    to_guest.add()
    until(lambda: port.tx_burst(0, [PACKET]) == 1)
    until(lambda: to_guest.used() == (before + 1) % 65536)
    from_guest.add(PACKET)
    assert at_port(port, 0, 1) == [PACKET]


@contextmanager
def both_ends(kind):
    """An fd as a front end may send it, and its other end."""
    with ExitStack() as opened:
        if kind == "pipe":
            reader, writer = os.pipe()
        else:
            reader, writer = (end.detach() for end in socket.socketpair())
        opened.callback(os.close, reader)
        opened.callback(os.close, writer)
        yield reader, writer


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_call_fd_that_is_no_eventfd_is_written_and_never_blocks(port, kind):
    with raw_rings(port.devargs.iface) as rings, both_ends(kind) as (reader, writer):
        for ring in rings:
            ring.say(CALL=writer)
        rings[0].add(count=200)
        for _ in range(200):
            until(lambda: port.tx_burst(0, [PACKET]) == 1)
        assert os.read(reader, 8) == struct.pack("<Q", 1)
        os.set_blocking(writer, False)
        try:
            while True:
                os.write(writer, bytes(4096))
        except BlockingIOError:
            pass
        os.set_blocking(writer, True)  # the front end shares the open file
        passes_packets(port, rings)


def test_a_call_fd_whose_other_end_is_gone_is_told_and_replaced(port):
    with raw_rings(port.devargs.iface) as rings:
        with both_ends("pipe") as (_, writer):
            for ring in rings:
                ring.say(CALL=writer)
            assert rings[0].frontend.is_answering()
        passes_packets(port, rings)
        told(port, "tx queue 0", "call fd is gone")
        rings[0].say("CALL")
        passes_packets(port, rings)
        until(rings[0].called)


def test_a_ring_with_a_pipe_to_kick_with_is_polled_for_those_who_wait(port):
    with raw_rings(port.devargs.iface) as rings, both_ends("pipe") as (reader, _):
        for ring in rings:
            ring.say(KICK=reader)
        assert port.wait_link(timeout=60)
        until(lambda: not port.rx_intr_enable(0))
        rings[1].add(PACKET)
        assert select.select([port.rx_fileno(0)], [], [], WATCHDOG)[0]  # without a kick
        assert at_port(port, 0, 1) == [PACKET]
        told(port, "ring 1", "kick fd cannot be used", "a pipe", "polled")


@pytest.mark.parametrize("name", ["KICK", "CALL", "ERR"])
@pytest.mark.parametrize("kind", ["socket", "memfd", "null", "directory"])
def test_an_fd_that_is_of_no_use_costs_only_itself(port, name, kind, tmp_path):
    with raw_rings(port.devargs.iface) as rings, ExitStack() as opened:
        fd = kind
        if kind in ("null", "directory"):
            path = "/dev/null" if kind == "null" else str(tmp_path)
            fd = os.open(path, os.O_RDWR if kind == "null" else os.O_RDONLY)
            opened.callback(os.close, fd)
        for ring in rings:
            ring.say(*([] if name != "ERR" else ["ERR"]), **{name: fd})
            if name == "ERR":
                ring.say()
        if (name, kind) not in (("CALL", "socket"), ("ERR", "socket")):
            told(port, f"its {name.lower()} fd cannot be used")
        passes_packets(port, rings)


def test_a_call_fd_that_comes_late_is_written_once(port):
    with raw_rings(port.devargs.iface) as rings:
        for ring in rings:
            ring.say("NUM", "ADDR", "BASE", "KICK", "ENABLE")
        rings[0].add()
        until(lambda: port.tx_burst(0, [PACKET]) == 1)
        rings[0].say("CALL")
        until(rings[0].called)


def test_a_stopped_ring_resumes_with_base_call_and_kick(port):
    with raw_rings(port.devargs.iface) as rings:
        for ring in rings:
            ring.say()
        passes_packets(port, rings)
        for ring in rings:
            ring.say("BASE", "CALL", "KICK", BASE=ring.stop())
        passes_packets(port, rings)


@pytest.mark.parametrize("base", [0, 7, 65535])
def test_a_base_that_is_not_what_the_used_ring_says_stops_nothing(port, base):
    with raw_rings(port.devargs.iface) as rings:
        for ring in rings:
            ring.say()
        passes_packets(port, rings)
        for ring in rings:
            ring.stop()
            ring.say("BASE", "CALL", "KICK", BASE=base)
        passes_packets(port, rings)


def test_enable_used_as_a_reset(port):
    """SET_VRING_ENABLE 0, new addresses, SET_VRING_ENABLE 1; never GET_VRING_BASE."""
    with raw_rings(port.devargs.iface) as rings:
        for ring in rings:
            ring.say()
        passes_packets(port, rings)
        for ring in rings:
            ring.say("ENABLE", ENABLE=0)
            ring.memory[ring.at : ring.at + 0x4000] = bytes(0x4000)
            ring.avail = 0
            ring.say("NUM", "ADDR", "BASE", "ENABLE")
        passes_packets(port, rings)


def test_features_change_between_firmware_and_kernel(port):
    with raw_rings(port.devargs.iface, F_VERSION_1 | 1) as rings:
        for ring in rings:
            ring.say()
        passes_packets(port, rings)
        for ring in rings:
            ring.stop()
        rings[0].frontend.tell("SET_FEATURES", u64(F_VERSION_1 | 1 << 30))
        for ring in rings:
            ring.memory[ring.at : ring.at + 0x4000] = bytes(0x4000)
            ring.avail = 0
            ring.say()
        passes_packets(port, rings)


@pytest.mark.parametrize(
    ("missing", "why"), [("ADDR", "SET_VRING_ADDR"), ("NUM", "SET_VRING_NUM"), ("memory", "SET_MEM_TABLE")]
)
def test_a_ring_that_is_kicked_and_does_not_run_is_told_with_what_is_missing(port, missing, why):
    with RawFrontend(port.devargs.iface) as frontend:
        frontend.negotiate(F_VERSION_1)
        if missing == "memory":
            frontend.memory = mmap.mmap(-1, 4 << 20)
        else:
            frontend.share_memory(4 << 20, uva=UVA)
        ring = RawRing(frontend, 1)
        ring.say(*(name for name in ("NUM", "ADDR", "BASE", "CALL", "KICK", "ENABLE") if name != missing))
        assert frontend.is_answering()
        ring.do_kick()
        told(port, "rx queue 0 is kicked, but does not run", why)
        assert "does not run" in port.info().last_error
        ring.close()


def test_memory_that_is_not_shared_is_told(port):
    """share=off: the back end maps the file, and the guest writes to pages of its own."""
    with raw_rings(port.devargs.iface) as rings:
        for ring in rings:
            ring.say()
        assert rings[0].frontend.is_answering()
        # Kicks that come faster than the port looks at them count as one, so their number is not known.
        told(port, "rx queue 0", "stays empty", "share=on", meanwhile=rings[1].do_kick)


def test_a_table_without_memory_is_told(port):
    with RawFrontend(port.devargs.iface) as frontend:
        frontend.negotiate(F_VERSION_1)
        frontend.tell("SET_MEM_TABLE", struct.pack("<II", 0, 0))
        told(port, "shared no memory", "share=on")


@pytest.mark.parametrize("kind", ["rom", "disk"])
def test_a_region_that_cannot_be_shared_costs_no_other(port, kind, tmp_path):
    size = 4 << 20
    fd = os.memfd_create("guest")
    os.truncate(fd, size)
    if kind == "rom":
        other = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    else:
        other = os.open(tmp_path / "nvdimm", os.O_RDWR | os.O_CREAT)
        os.truncate(other, 4096)
    with RawFrontend(port.devargs.iface) as frontend:
        frontend.negotiate(F_VERSION_1)
        frontend.memory = mmap.mmap(fd, size)
        regions = struct.pack("<IIQQQQ", 2, 0, 0, size, UVA, 0) + struct.pack(
            "<QQQQ", 1 << 32, 4096, UVA + (1 << 32), 0
        )
        frontend.tell("SET_MEM_TABLE", regions, [fd, other])
        rings = [RawRing(frontend, index) for index in range(2)]
        for ring in rings:
            ring.say()
        passes_packets(port, rings)
        if kind == "rom" or os.statvfs(tmp_path).f_fsid != os.statvfs("/dev/shm").f_fsid:
            told(port, "GPA 0x100000000 cannot be used")
        for ring in rings:
            ring.close()
    os.close(fd)
    os.close(other)


@pytest.mark.parametrize("mq", [False, True], ids=["one pair", "of many"])
@pytest.mark.parametrize("kick", [True, False], ids=["kicked", "polled"])
def test_a_control_queue_is_served(socket_path, mq, kick):
    with (
        EthVhost(socket_path, queues=2) as port,
        raw_rings(socket_path, F_VERSION_1 | F_CTRL_VQ | F_MQ * mq, rings=5) as rings,
    ):
        control = rings[4 if mq else 2]
        for ring in (*rings[:2], control):
            ring.say(KICK=None if kick else -1)
        for number, (command, answer) in enumerate(
            ((b"\0\0\1", 0), (b"\4\0\2\0", 0), (b"\4\0\3\0", 1), (b"\x63\0", 1)), 1
        ):
            slot = 2 * (number - 1)
            place = control.buffers + 0x800 * number
            control.memory[place : place + len(command)] = command
            control.memory[place + 0x100] = 0xAA
            out = struct.pack("<QIHH", place, len(command), 1, slot + 1)
            back = struct.pack("<QIHH", place + 0x100, 1, 2, 0)
            control.memory[control.at + 16 * slot : control.at + 16 * slot + 32] = out + back
            entry = control.at + 0x1004 + 2 * (number - 1)
            control.memory[entry : entry + 2] = struct.pack("<H", slot)
            control.memory[control.at + 0x1002 : control.at + 0x1004] = struct.pack("<H", number)
            control.do_kick()
            until(lambda number=number: control.used() == number)
            assert control.memory[place + 0x100] == answer
        told(port, "queue pairs 2")
        state = port.info().control
        assert (state.promiscuous, state.queue_pairs) == (True, 2)
        passes_packets(port, rings[:2])
        control.stop()
        until(lambda: port.info().control.queue_pairs == 1)


def test_a_front_end_needs_no_proc(socket_path):
    """Containers hide it."""
    script = """
import ctypes, os, sys
sys.path.insert(0, {tests!r})
import vhost_ioat
from vhost_ioat.testing import RawFrontend
from raw_ring import raw_rings
libc = ctypes.CDLL(None, use_errno=True)
if os.geteuid() != 0:
    sys.exit(77)
assert libc.unshare(0x20000) == 0                               # CLONE_NEWNS
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0      # MS_REC | MS_PRIVATE
assert libc.mount(b"none", b"/proc", b"tmpfs", 0, None) == 0
assert not os.listdir("/proc")
from protocol.test_front_ends import passes_packets
with vhost_ioat.EthVhost({path!r}) as port, raw_rings({path!r}) as rings:
    for ring in rings:
        ring.say()
    passes_packets(port, rings)
print("served")
"""
    code = script.format(tests=str(Path(__file__).parents[1]), path=socket_path)
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=WATCHDOG)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("it takes root to hide /proc")
    assert done.stdout == "served\n", done.stderr
