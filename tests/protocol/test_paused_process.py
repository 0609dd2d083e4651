# SPDX-License-Identifier: BSD-3-Clause
"""A process that does not run for a second, with copies in flight."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from vhost_ioat.guest import Guest
from watchdog import WATCHDOG, Watchdog

ECHO = """
import json, sys, vhost_ioat
with vhost_ioat.EthVhost(sys.argv[1], ioats={0: "sw0"}, publish=sys.argv[2]) as port:
    print("ready", flush=True)
    port.wait_link(timeout=60)
    while port.link():
        rest = port.rx_burst(0, 64)
        while rest and port.link():
            rest = rest[port.tx_burst(0, rest):]
    print(json.dumps(port.xstats()), flush=True)
"""
PACKETS = 20_000
SIZE = 3000


@pytest.mark.parametrize("publish", ["cpu", "dma"])
def test_a_second_of_sigstop_under_load_loses_nothing(socket_path: str, publish: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ECHO, socket_path, publish], stdout=subprocess.PIPE, text=True
    ) as echo:
        assert echo.stdout is not None
        assert echo.stdout.readline() == "ready\n"
        sent = received = 0
        with Guest(socket_path, rx_buf=4096) as guest:
            guest.connect(timeout=WATCHDOG)
            paused_until = 0.0
            dog = Watchdog()
            while received < PACKETS:
                dog.check(f"{received} of {sent} packets came back")
                if sent < PACKETS:
                    numbers = range(sent, min(sent + 32, PACKETS))
                    sent += guest.send(0, [n.to_bytes(4, "big") * (SIZE // 4) for n in numbers])
                for packet in guest.recv(0, 64):
                    assert packet == received.to_bytes(4, "big") * (SIZE // 4)
                    received += 1
                    dog.feed()
                if received > PACKETS // 2 and paused_until == 0:
                    os.kill(echo.pid, signal.SIGSTOP)
                    paused_until = time.monotonic() + 1
                if paused_until and time.monotonic() > paused_until:
                    os.kill(echo.pid, signal.SIGCONT)
                    paused_until = float("inf")
        counted = json.loads(echo.stdout.readline())
    # Whether the engine was taken for stuck is a matter of time, and tests/cpp/test_recovery.cpp has a clock for it.
    assert counted["tx_q0_dma_completed"] > 0
    assert counted["tx_q0_dma_errors"] == 0
