# SPDX-License-Identifier: BSD-3-Clause
"""What threads may share. With a GIL little of this can fail; tools/free-threaded runs it without one."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest

from vhost_ioat import Burst
from vhost_ioat.dma import IoatChannel, IoatModel
from vhost_ioat.virtio import DriverRing, GuestMemory, SplitRing

THREADS = 4


def together(*bodies: Callable[[], object]) -> list[object]:
    """Runs the bodies in as many threads, from one moment on; what each returned."""
    start = threading.Barrier(len(bodies))

    def run(body: Callable[[], object]) -> object:
        start.wait()
        return body()

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(run, bodies))


def test_the_module_needs_no_gil():
    """CPython without a GIL turns it on for a module that does not say so. Others may: so in a process of its own."""
    ask = "import sys, vhost_ioat; print(getattr(sys, '_is_gil_enabled', lambda: True)())"
    enabled = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    assert enabled == str(not sysconfig.get_config_var("Py_GIL_DISABLED"))


def test_threads_cut_up_one_burst():
    packets = [bytes([i]) * (60 + i) for i in range(64)]
    burst = Burst.from_packets(packets)

    def cut() -> bool:
        for i in range(300):
            part = burst[i % 64 :: 2]
            chosen = part[np.arange(len(part))[::-1]]
            if chosen and chosen.tobytes(-1) != packets[i % 64]:
                return False
        return [p.tobytes() for p in burst] == packets

    assert together(*[cut] * THREADS) == [True] * THREADS


def test_bursts_are_made_and_freed_in_many_threads():
    def churn() -> bool:
        return all(Burst.from_packets([bytes([i % 256]) * 60])[0][59] == i % 256 for i in range(2000))

    assert together(*[churn] * THREADS) == [True] * THREADS


def test_a_list_that_another_thread_changes_is_taken_as_it_was_at_one_moment():
    packets: list[bytes] = []

    def change() -> None:
        for i in range(3000):
            packets.extend([b"x" * 60] * 50)
            if i % 2:
                packets.clear()

    def take() -> bool:
        return all(len(Burst.from_packets(packets)) % 50 == 0 for _ in range(100))

    assert together(change, take, take)[1:] == [True, True]


def test_a_list_that_its_own_item_changes():
    packets: list[object] = []

    class Emptying:
        def __buffer__(self, flags: int) -> memoryview:
            packets.clear()
            return memoryview(b"x" * 60)

    packets.extend([Emptying(), b"y" * 60, b"z" * 60])
    if sys.version_info >= (3, 12):  # PEP 688
        assert Burst.from_packets(packets).tobytes(2) == b"z" * 60
        assert packets == []
    else:
        with pytest.raises(TypeError, match="packet 0 is a Emptying"):
            Burst.from_packets(packets)


def test_threads_take_turns_at_a_ring():
    memory = GuestMemory([(0, 1 << 16)])
    size, rounds = 256, 40
    driver = DriverRing(memory, size, 0, 0x2000, 0x3000)
    device = SplitRing(memory, size, 0, 0x2000, 0x3000)

    for _ in range(rounds):

        def add() -> int:
            return sum(driver.add([(0x8000, 64)], []) is not None for _ in range(size // THREADS + 5))

        assert sum(together(*[add] * THREADS)) == size
        driver.publish()

        def serve() -> list[int]:
            heads = []
            while (popped := device.pop()) is not None:
                heads.append(popped.head)
                device.push_used(popped.head, 0)
            return heads

        assert sorted(chain.from_iterable(together(*[serve] * THREADS))) == list(range(size))
        device.publish()

        def reclaim() -> list[int]:
            taken = []
            while (used := driver.take_used()) is not None:
                taken.append(used[0])
            return taken

        assert sorted(chain.from_iterable(together(*[reclaim] * THREADS))) == list(range(size))


def test_memory_grows_while_another_thread_reads_a_ring():
    memory = GuestMemory([(0, 1 << 16)])
    driver = DriverRing(memory, 16, 0, 0x2000, 0x3000)
    device = SplitRing(memory, 16, 0, 0x2000, 0x3000)

    def grow() -> None:
        for _ in range(60):
            DriverRing(memory, 2, 0x4000, 0x5000, 0x6000)

    def use() -> int:
        done = 0
        for _ in range(2000):
            driver.add([(0x8000, 64)], [])
            driver.publish()
            head = device.pop().head
            device.push_used(head, 0)
            device.publish()
            done += driver.take_used() == (head, 0)
        return done

    assert together(grow, use)[1] == 2000


def test_threads_take_turns_at_a_channel():
    model = IoatModel(mode="threaded")
    channel = IoatChannel(model, ring_size=4096)
    source, target = np.arange(4096, dtype=np.uint8), np.zeros(4096, dtype=np.uint8)
    channel.map(0x100000, source)
    channel.map(0x200000, target)

    def copies() -> list[int]:
        return [channel.copy(0x200000 + i, 0x100000 + i, 16) for i in range(0, 4096, 16)]

    assert sorted(chain.from_iterable(together(*[copies] * THREADS))) == list(range(THREADS * 256))
    channel.submit()
    done: list[tuple[int, str]] = []
    while channel.outstanding:
        done += channel.poll()
    assert done == [(n, "ok") for n in range(THREADS * 256)]
    assert (source == target).all()


def test_threads_take_turns_at_a_guest(linked):
    port, guest = linked(guest={"ring_size": 1024})
    sent = 800

    def send() -> int:
        return sum(guest.send(0, [b"x" * 60]) for _ in range(sent // THREADS))

    assert sum(together(*[send] * THREADS)) == sent
    received = 0
    while received < sent:
        received += port.tx_burst(0, port.rx_burst(0, 64))

    def receive() -> int:
        return sum(len(guest.recv(0, 1)) for _ in range(sent))

    assert sum(together(*[receive] * THREADS)) == sent
