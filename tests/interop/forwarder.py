# SPDX-License-Identifier: BSD-3-Clause
"""A Python forwarding loop in a thread, as a user would write it."""

from __future__ import annotations

import threading
from typing import Self

import vhost_ioat


class Forwarder:
    """Sends every packet back on the queue it came from, and drops none while the link is up."""

    def __init__(self, port: vhost_ioat.EthVhost, queues: int = 1) -> None:
        self._port, self._queues = port, queues
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="forwarder", daemon=True)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for queue in range(self._queues):
                    rest = self._port.rx_burst(queue, 64)
                    while rest and not self._stop.is_set() and self._port.link():
                        rest = rest[self._port.tx_burst(queue, rest) :]
        except BaseException as error:  # handed to the test by __exit__
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error:
            raise self._error
