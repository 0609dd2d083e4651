# SPDX-License-Identifier: BSD-3-Clause
"""DPDK's testpmd as a peer: its virtio-user front end, and its net_vhost back end for comparison."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence

from interop.console import Console
from watchdog import WATCHDOG

_serial = itertools.count()


def virtio_user(
    path: str, *, queues: int = 1, server: bool = False, ring: int = 256, index: int = 0, **options: int | str
) -> str:
    """A --vdev argument: a virtio-net card whose back end is on the vhost-user socket `path`."""
    extra = "".join(f",{key}={value}" for key, value in options.items())
    return f"net_virtio_user{index},path={path},queues={queues},queue_size={ring},server={int(server)}{extra}"


def net_vhost(path: str, *, queues: int = 1, client: bool = False, index: int = 0) -> str:
    """A --vdev argument: DPDK's own vhost-user back end."""
    return f"net_vhost{index},iface={path},queues={queues},client={int(client)}"


class Testpmd(Console):
    """An interactive testpmd. Needs no root, no hugepages, and all its threads share `core`."""

    __test__ = False

    def __init__(self, *vdevs: str, core: int = 0, forward: str = "io", args: Sequence[str] = ()) -> None:
        core %= os.cpu_count() or 1
        command = ["dpdk-testpmd", "--lcores", f"(0-4)@{core}", "--no-huge", "-m", "256", "--no-pci", "--log-level=3"]
        command += ["--no-telemetry", "--file-prefix", f"vhost-ioat-{os.getpid()}-{next(_serial)}"]
        for vdev in vdevs:
            command += ["--vdev", vdev]
        super().__init__([*command, "--", "-i", f"--forward-mode={forward}", "--total-num-mbufs=16384", *args])
        try:
            self.expect("testpmd> ")
        except BaseException:
            self.kill()
            raise

    def command(self, line: str, timeout: float = WATCHDOG) -> str:
        """Run one command and return what it printed."""
        self.send(line)
        self.expect(re.escape(line))  # its echo
        start = self._seen
        prompt = self.expect(r"testpmd> ", timeout)
        return self.text[start : prompt.start()]

    def counters(self, port: int = 0) -> dict[str, int]:
        """`show port stats`: rx_packets, rx_missed, rx_bytes, tx_packets, tx_errors, tx_bytes ..."""
        text = self.command(f"show port stats {port}")
        return {key.lower().replace("-", "_"): int(value) for key, value in re.findall(r"([RT]X-\w+): +(\d+)", text)}

    def xstats(self, port: int = 0) -> dict[str, int]:
        text = self.command(f"show port xstats {port}")
        return {key: int(value) for key, value in re.findall(r"^(\w+): (\d+)$", text, re.MULTILINE)}

    def quit(self) -> None:
        """End it as a user does; the port is closed in an orderly way."""
        self.send("quit")
        self.wait()
        self.kill()
