# SPDX-License-Identifier: BSD-3-Clause
"""A child of fork(): the parent's objects raise, their memory stays readable, and the child may make its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-W", "ignore:This process", "-c"]  # Python 3.12 warns of forks beside threads

BEGIN = """
import gc, multiprocessing, os, sys
import numpy as np
import vhost_ioat
from vhost_ioat import Burst, EthVhost, VhostIoatError, dma
from vhost_ioat.guest import Guest
from vhost_ioat.virtio import DriverRing, GuestMemory, SplitRing

path = sys.argv[1]
memory = GuestMemory([(0, 65536)])
driver = DriverRing(memory, 4, 0, 64, 128)
driver.add([(4096, 60)], [])
driver.publish()
device = SplitRing(memory, 4, 0, 64, 128)
view, writable = memory.view(4096, 60), memory.view(8192, 4, writable=True)
writable[:] = 7
port = EthVhost(path, ioats={0: "sw0"})
port.start()
guest = Guest(path)
guest.connect(timeout=60)
assert port.wait_link(timeout=60)
guest_memory = guest.memory
guest.send(0, [b"a" * 60, b"b" * 70])
burst = Burst.from_packets([])
while not burst:
    burst = port.rx_burst(0)
models = {mode: dma.IoatModel(mode=mode) for mode in ("inline", "stepped", "threaded")}
channels = [dma.IoatChannel(model) for model in models.values()]
probed = dma.probe()
chain = device.pop()

def in_child(body):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def run(script, *arguments):
    done = subprocess.run(
        [*COMMAND, BEGIN + script, *arguments], check=False, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    "call",
    [
        "memory.view(0, 4)",
        "device.pop()",
        "device.push_used(0, 0)",
        "device.broken",
        "driver.add([(4096, 60)], [])",
        "driver.publish()",
        "driver.take_used()",
        "SplitRing(memory, 4, 0, 64, 128)",
        "models['inline'].read(0, 4)",
        "models['threaded'].write(0, 0, 4)",
        "models['stepped'].step()",
        "models['threaded'].map(65536, bytearray(4096))",
        "dma.IoatChannel(models['inline'])",
        "channels[0].copy(0, 0, 1)",
        "channels[2].submit()",
        "channels[2].poll()",
        "channels[2].reset()",
        "channels[1].stats()",
        "guest.send(0, [b'x' * 60])",
        "guest.recv(0)",
        "guest.connect(timeout=0)",
        "guest.disconnect()",
        "guest.connected",
        "guest.memory",
        "guest.rings()",
        "port.start()",
        "port.stop()",
        "port.rx_burst(0)",
        "port.tx_burst(0, [b'x' * 60])",
        "port.tx_drain(0)",
        "port.wait_link(timeout=0)",
        "port.events()",
        "port.info()",
        "port.stats()",
        "port.xstats()",
        "port.rx_intr_enable(0)",
        "port.rx_fileno(0)",
        "port.engine_model(0)",
        "vhost_ioat.forward(port, port, seconds=0)",
    ],
)
def test_what_the_parent_made_raises_in_the_child(call, socket_path):
    script = f"""
def body():
    try:
        {call}
    except VhostIoatError as error:
        print(error)
assert in_child(body) == 0
"""
    assert "parent process" in run(script, socket_path)


def test_views_stay_readable_and_the_childs_writes_are_its_own(socket_path):
    script = """
def body():
    assert view.sum() == 0 and writable.tolist() == [7] * 4
    writable[:] = 9
    assert writable.tolist() == [9] * 4
    assert burst.tobytes(0) == b"a" * 60 and burst[1].tobytes() == b"b" * 70
    burst.data[:] = 0
    assert chain.readable == [(4096, 60)] and repr(chain) and [repr(device) for device in probed] is not None
    assert guest_memory[:64].shape == (64,)
    print("read")
assert in_child(body) == 0
assert writable.tolist() == [7] * 4 and burst.tobytes(0) == b"a" * 60
"""
    assert run(script, socket_path) == "read\n"


def test_a_child_collects_the_parents_objects(socket_path):
    script = """
def body():
    global port, guest, memory, driver, device, models, channels, view, writable, guest_memory, burst
    port.close()
    guest.close()
    repr(port)
    model = port_model = None
    port = guest = memory = driver = device = models = channels = view = writable = guest_memory = burst = None
    gc.collect()
assert in_child(body) == 0
packet = b"z" * 60
assert port.tx_burst(0, [packet]) == 1
got = []
while not got:
    got = guest.recv(0)
assert got == [packet] and os.path.exists(path)
print("on")
"""
    assert run(script, socket_path) == "on\n"


def test_a_child_opens_a_port_of_its_own_and_collects_the_inherited_one(socket_path):
    script = """
def body(connection):
    global port, guest, models, channels
    port = guest = models = channels = None
    gc.collect()
    with EthVhost(path + "c", ioats={0: "sw0"}) as own, Guest(path + "c") as peer:
        peer.connect(timeout=60)
        assert own.wait_link(timeout=60)
        large = bytes(range(256)) * 16
        assert own.tx_burst(0, [large]) == 1
        got = []
        while not got:
            got = peer.recv(0)
        assert got == [large]
        assert peer.send(0, [b"y" * 60]) == 1
        took = []
        while not took:
            took = own.rx_burst(0)
        memory = GuestMemory([(0, 4096)])
        memory.view(0, 1)
        model = dma.IoatModel(mode="threaded")
        dma.IoatChannel(model).reset()
    gc.collect()
    connection.send("done")

context = multiprocessing.get_context("fork")
ours, theirs = context.Pipe()
child = context.Process(target=body, args=(theirs,))
child.start()
child.join()
print(child.exitcode, ours.recv() if ours.poll() else None)
"""
    assert run(script, socket_path) == "0 done\n"


def test_a_child_of_a_child(socket_path):
    script = """
def grandchild():
    try:
        own.view(0, 4)
    except VhostIoatError as error:
        print("parent" in str(error))
    GuestMemory([(0, 4096)]).view(0, 4)

def child():
    global own
    own = GuestMemory([(0, 4096)])
    assert in_child(grandchild) == 0
    own.view(0, 4)

assert in_child(child) == 0
"""
    assert run(script, socket_path) == "True\n"


def test_a_child_that_leaves_the_with_block_leaves_everything_to_its_parent(socket_path):
    script = """
with EthVhost(path + "w") as inherited, Guest(path + "w") as peer:
    pid = os.fork()
    if pid:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), os.path.exists(path + "w"), inherited.info().state)
if pid == 0:
    sys.exit(0)
"""
    assert run(script, socket_path) == "0 True listening\n"
    assert not Path(socket_path).exists()
