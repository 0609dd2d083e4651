# SPDX-License-Identifier: BSD-3-Clause
"""The same message ten thousand times, and thousands of short sessions: nothing grows (CVE-2019-14818, 2020-10726)."""

import contextlib
import os
import struct
from pathlib import Path

import pytest

from resources import expect_resources, resources
from traffic import at_guest
from vhost_ioat import EthVhost
from vhost_ioat.testing import RawFrontend
from vhost_ioat.testing.frontend import REQUESTS, Message, u64, vring, vring_addr
from watchdog import WATCHDOG

UVA = 0x7F00_0000_0000
TIMES = 10_000


# AddressSanitizer keeps back what was freed (its quarantine), to see who still uses it.
ALLOWED_GROWTH = (256 if "libasan" in os.environ.get("LD_PRELOAD", "") else 4) << 20


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.fixture
def frontend(socket_path, linked):
    """A front end that has shared memory, beside another port that must go on."""
    bystander, guest = linked()
    with EthVhost(socket_path) as port, RawFrontend(socket_path, timeout=WATCHDOG) as frontend:
        frontend.negotiate(2**64 - 1)
        frontend.share_memory(uva=UVA)
        assert frontend.is_answering()
        yield frontend
        assert port.link() is not None
    assert bystander.tx_burst(0, [b"still here" * 6]) == 1
    assert at_guest(guest, 0, 1) == [b"still here" * 6]


@pytest.mark.parametrize(
    ("name", "payload", "kind"),
    [
        ("SET_VRING_NUM", vring(0, 1024), None),
        ("SET_VRING_BASE", vring(1, 65535), None),
        ("SET_VRING_ADDR", vring_addr(0, UVA, UVA + 0x4000, UVA + 0x8000), None),
        ("SET_VRING_ENABLE", vring(0, 1), None),
        ("SET_VRING_KICK", u64(0), "eventfd"),
        ("SET_VRING_CALL", u64(1), "eventfd"),
        ("SET_VRING_ERR", u64(1), "eventfd"),
        ("SET_BACKEND_REQ_FD", b"", "socket"),
        ("SET_MEM_TABLE", struct.pack("<IIQQQQ", 1, 0, 0, 1 << 20, UVA, 0), "memfd"),
        ("SEND_RARP", bytes(8), None),
        ("RESET_DEVICE", b"", None),
    ],
)
def test_a_message_may_be_repeated_without_end(frontend, name, payload, kind):
    times = TIMES if kind is None else TIMES // 5

    def storm(count):
        for done in range(count):
            frontend.tell(name, payload, [kind] if kind else [])
            if done % 100 == 0:
                assert frontend.is_answering()
        assert frontend.is_answering()

    storm(200)
    before, memory = resources(), resident()
    storm(times)
    expect_resources(before)
    assert resident() - memory < ALLOWED_GROWTH


@pytest.mark.parametrize("name", ["GET_INFLIGHT_FD", "SET_INFLIGHT_FD", "SET_LOG_BASE"])
def test_a_message_that_was_not_offered_ends_a_thousand_sessions_and_leaves_nothing(socket_path, name):
    request, size = REQUESTS[name]
    with EthVhost(socket_path) as port:

        def storm(count):
            for _ in range(count):
                with RawFrontend(socket_path, timeout=WATCHDOG) as frontend, contextlib.suppress(ConnectionError):
                    frontend.negotiate(2**64 - 1)
                    frontend.send(Message(request, b"\xff" * size, ["memfd"]))
                    assert not frontend.is_answering()

        storm(50)
        port.events()
        before, memory = resources(), resident()
        storm(1000)
        port.events()
        expect_resources(before)
        assert resident() - memory < ALLOWED_GROWTH
