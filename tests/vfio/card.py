# SPDX-License-Identifier: BSD-3-Clause
"""A virtual I/OAT card served by a thread of the test, so that the test sees and disturbs the device itself."""

from __future__ import annotations

import threading
from typing import Self

from vhost_ioat import dma
from watchdog import WATCHDOG


class Card:
    """`model` on the vfio-user socket `path`, from entry to exit."""

    def __init__(self, path: str, device_id: int = 0x0B00, cbver: int = 0x34) -> None:
        self.path = path
        self.model = dma.IoatModel(device_id, cbver, mode="threaded")
        self.maps = 0
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        def watch(maps: int) -> bool:
            self._ready.set()
            self.maps = maps
            return self._stop.is_set()

        dma.serve(self.path, self.model, watch=watch)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(WATCHDOG)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(WATCHDOG)
        assert not self._thread.is_alive()
