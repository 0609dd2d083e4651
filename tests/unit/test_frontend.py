# SPDX-License-Identifier: BSD-3-Clause
import os
import socket
import struct
import threading
from pathlib import Path

import pytest

from vhost_ioat.testing import RawFrontend
from vhost_ioat.testing.frontend import NEED_REPLY, REPLY, REQUESTS, Message, open_fds, u64, vring, vring_addr


@pytest.fixture
def pair(socket_path):
    """A front end and the socket of whoever it talks to."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path)
        listener.listen()
        with RawFrontend(socket_path) as frontend:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(5)
                yield frontend, peer


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_payloads_have_the_sizes_of_their_requests():
    assert len(u64(1)) == REQUESTS["SET_FEATURES"][1]
    assert len(vring(0, 1)) == REQUESTS["SET_VRING_NUM"][1]
    assert len(vring_addr(0, 1, 2, 3)) == REQUESTS["SET_VRING_ADDR"][1]
    assert vring_addr(1, 2, 3, 4) == struct.pack("<IIQQQQ", 1, 0, 2, 4, 3, 0)


def test_a_message_goes_out_as_it_is(pair):
    frontend, peer = pair
    frontend.send(Message(99, b"abc", flags=0xFFFFFFFF, size=4096))
    assert peer.recv(100) == struct.pack("<III", 99, 0xFFFFFFFF, 4096) + b"abc"


def test_fds_go_with_the_first_byte(pair):
    frontend, peer = pair
    before = open_files()
    frontend.send(Message(5, b"payload", ["eventfd", "memfd", "pipe", "socket"]))
    _, fds, _, _ = socket.recv_fds(peer, 1, 10)
    kinds = [str(Path(f"/proc/self/fd/{fd}").readlink()).split(":")[0] for fd in fds]
    for fd in fds:
        os.close(fd)
    assert kinds == ["anon_inode", "/memfd", "pipe", "socket"]
    assert open_files() == before


def test_kinds_of_fds_are_closed_and_fds_are_not():
    mine = os.eventfd(0)
    with open_fds([mine, "eventfd"]) as (first, second):
        assert first == mine
    os.fstat(mine)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(second)
    os.close(mine)


def test_replies_are_read_whole(pair):
    frontend, peer = pair
    peer.sendall(struct.pack("<III", 1, REPLY | 1, 8) + b"\1\2")
    late = threading.Timer(0.05, lambda: peer.sendall(b"\3" + bytes(5)))
    late.start()
    reply = frontend.receive()
    late.join()
    assert (reply.request, reply.flags, reply.u64) == (1, REPLY | 1, 0x030201)


def test_an_acknowledgement_is_asked_for_and_understood(pair):
    frontend, peer = pair
    for answer in (0, 1):
        peer.sendall(struct.pack("<IIIQ", 2, REPLY | 1, 8, answer))
        assert frontend.acknowledged("SET_FEATURES", u64(5)) is (answer == 0)
        assert peer.recv(20) == struct.pack("<IIIQ", 2, NEED_REPLY | 1, 8, 5)


def test_a_closed_back_end_is_told_apart_from_a_silent_one(pair):
    frontend, peer = pair
    frontend.socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        frontend.is_answering()
    peer.close()
    assert frontend.is_answering() is False
    assert frontend.receive() is None


def test_it_can_be_the_one_that_listens(socket_path):
    def connect():
        with socket.socket(socket.AF_UNIX) as client:
            while client.connect_ex(socket_path):
                pass
            client.sendall(struct.pack("<IIIQ", 1, REPLY | 1, 8, 42))
            client.recv(12)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    with RawFrontend(socket_path, server=True) as frontend:
        assert frontend.get_u64("GET_FEATURES") == 42
    thread.join()
