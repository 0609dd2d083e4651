# SPDX-License-Identifier: BSD-3-Clause
"""An engine in trouble: its software device fails at random while packets go through it."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator

import vhost_ioat

CHANERR_BITS = (0, 1, 8, 9, 10, 11)


@contextlib.contextmanager
def failing_engine(port: vhost_ioat.EthVhost, queue: int = 0, pause: float = 0.02) -> Iterator[None]:
    """Lets a copy fail, or a write-back get lost, every `pause` seconds or so."""
    model = port.engine_model(queue)
    assert model is not None
    stop = threading.Event()
    rng = random.Random(queue)
    model.inject("error", nth=rng.randrange(20), value=CHANERR_BITS[0])  # at least one, however short the traffic

    def fail() -> None:
        while not stop.wait(pause * rng.random() * 2):
            if rng.random() < 0.7:
                model.inject("error", nth=rng.randrange(20), value=rng.choice(CHANERR_BITS))
            else:
                model.inject("drop_writeback", nth=rng.randrange(20), value=1)

    thread = threading.Thread(target=fail, name="failing engine", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
