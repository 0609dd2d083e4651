# SPDX-License-Identifier: BSD-3-Clause
import gc
import os
import socket
import stat
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from resources import expect_resources, resources
from traffic import at_port, until
from vhost_ioat import ConfigError, EthVhost, VhostIoatError
from vhost_ioat.testing import RawFrontend
from watchdog import WATCHDOG


def test_listens_from_start_to_stop(socket_path):
    port = EthVhost(socket_path)
    assert not Path(socket_path).exists()
    port.start()
    assert stat.S_ISSOCK(Path(socket_path).stat().st_mode)
    with RawFrontend(socket_path) as frontend:
        assert frontend.is_answering()
        port.stop()
        assert not frontend.is_answering()
    assert not Path(socket_path).exists()
    port.start()
    with RawFrontend(socket_path) as frontend:
        assert frontend.is_answering()
    port.close()
    assert not Path(socket_path).exists()


def test_with_starts_and_closes(socket_path):
    with EthVhost(socket_path) as port, RawFrontend(socket_path) as frontend:
        assert frontend.is_answering()
    with pytest.raises(VhostIoatError, match="closed"):
        port.start()


def test_start_stop_and_close_may_be_repeated(socket_path):
    port = EthVhost(socket_path)
    port.stop()
    port.start()
    port.start()
    port.stop()
    port.stop()
    port.close()
    port.close()
    port.stop()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_socket_has_the_permissions_asked_for(socket_path, mode):
    previous = os.umask(0o077)
    try:
        with EthVhost(socket_path, socket_mode=mode):
            assert stat.S_IMODE(Path(socket_path).stat().st_mode) == mode
    finally:
        os.umask(previous)


def test_a_missing_directory_is_named(socket_path):
    port = EthVhost(f"{socket_path}.d/v.sock")
    with pytest.raises(OSError, match=f"{socket_path}.d"):
        port.start()
    port.close()


def test_an_address_in_use_is_refused(socket_path):
    with EthVhost(socket_path):
        other = EthVhost(socket_path)
        with pytest.raises(OSError, match="in use"):
            other.start()
        other.close()
        with RawFrontend(socket_path) as frontend:
            assert frontend.is_answering()


def test_a_stale_socket_is_replaced(socket_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(socket_path)
    with EthVhost(socket_path), RawFrontend(socket_path) as frontend:
        assert frontend.is_answering()


def test_another_file_is_not_replaced(socket_path):
    Path(socket_path).write_text("precious")
    port = EthVhost(socket_path)
    with pytest.raises(OSError, match=socket_path):
        port.start()
    port.close()
    assert Path(socket_path).read_text() == "precious"


def test_a_client_may_start_before_its_peer_is_there(socket_path):
    with EthVhost(socket_path, client=True) as port:
        with RawFrontend(socket_path, server=True) as frontend:
            assert frontend.is_answering()
        assert not port.link()


def test_every_option_is_checked_when_the_port_is_made(socket_path):
    with pytest.raises(ConfigError, match="queues=0"):
        EthVhost(socket_path, queues=0)
    with pytest.raises(ConfigError, match="unknown option 'queue'"):
        EthVhost(socket_path, queue=1)
    with pytest.raises(ConfigError, match="txq0 is given twice"):
        EthVhost.from_devargs(f"iface={socket_path},ioats=(txq0@sw0;txq0@sw1)")


def test_packet_memory_is_no_more_than_there_is_memory(socket_path):
    there_is = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    with pytest.raises(ConfigError, match=f"this machine has {there_is} bytes"):
        EthVhost(socket_path, mempool=there_is + 1)


def test_ports_have_names_of_their_own(socket_path):
    with EthVhost(socket_path) as a, EthVhost(socket_path + "2") as b, EthVhost(socket_path + "3", name="left") as c:
        assert a.name.startswith("eth_vhost_ioat")
        assert a.name != b.name
        assert c.name == "left"
        assert repr(c) == f"<EthVhost left,iface={socket_path}3: listening>"


def test_a_port_of_devargs(socket_path):
    with EthVhost.from_devargs(f"eth_vhost_ioat7,iface={socket_path},queues=2,ioats=(txq1@sw0)") as port:
        assert port.name == "eth_vhost_ioat7"
        assert port.devargs.queues == 2
        assert [engine.name for engine in port.info().engines] == ["sw0"]


def test_a_port_that_is_dropped_is_closed(socket_path):
    port = EthVhost(socket_path)
    port.start()
    dropped = weakref.ref(port)
    del port
    gc.collect()
    assert dropped() is None
    assert not Path(socket_path).exists()


def test_nothing_is_left_open(linked, socket_path):
    EthVhost(socket_path + "0").close()
    gc.collect()
    before = resources()
    for n in range(5):
        with EthVhost(f"{socket_path}x{n}", queues=4, ioats={0: "sw0"}), RawFrontend(f"{socket_path}x{n}") as frontend:
            assert frontend.is_answering()
    gc.collect()
    expect_resources(before)


def test_a_port_left_open_is_closed_at_exit(socket_path):
    script = f"import vhost_ioat; p = vhost_ioat.EthVhost({socket_path!r}); p.start()"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=WATCHDOG)
    assert (done.returncode, done.stderr) == (0, "")
    assert not Path(socket_path).exists()


FORK = """
import os, sys, vhost_ioat
port = vhost_ioat.EthVhost({path!r}, ioats={{0: "sw0"}})
port.start()
pid = os.fork()
if pid == 0:
    refused = 0
    for call in (port.start, port.stop, lambda: port.rx_burst(0), lambda: port.tx_burst(0, [b"x"]), port.stats):
        try:
            call()
        except vhost_ioat.VhostIoatError as error:
            refused += "fork" in str(error)
    port.close()
    print(refused)
    sys.exit(0)
_, status = os.waitpid(pid, 0)
print(os.WEXITSTATUS(status), os.path.exists({path!r}))
from vhost_ioat.testing import RawFrontend
with RawFrontend({path!r}) as frontend:
    print(frontend.is_answering())
"""


def test_a_forked_child_leaves_the_port_to_its_parent(socket_path):
    script = FORK.format(path=socket_path)
    command = [sys.executable, "-W", "ignore:This process", "-c", script]  # Python 3.12 warns of forks beside threads
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=WATCHDOG)
    assert done.stderr == ""
    refused, *rest = done.stdout.split()
    assert int(refused) >= 3  # start and both bursts
    assert rest == ["0", "True", "True"]


def test_close_from_another_thread_ends_a_wait_for_the_link(socket_path):
    port = EthVhost(socket_path)
    port.start()
    answers = []
    waiters = [
        threading.Thread(target=lambda: answers.append(port.wait_link(timeout=None)), daemon=True) for _ in range(2)
    ]
    for waiter in waiters:
        waiter.start()
    port.close()
    for waiter in waiters:
        waiter.join(WATCHDOG)
        assert not waiter.is_alive()
    assert answers == [False, False]
    assert port.wait_link(up=False)


def test_close_from_another_thread_ends_a_polling_loop(linked):
    port, guest = linked()
    guest.send(0, [b"x" * 60])
    at_port(port, 0, 1)
    closer = threading.Timer(0.05, port.close)
    closer.start()

    def poll():
        while True:
            port.rx_burst(0)

    with pytest.raises(VhostIoatError, match="closed"):
        poll()
    closer.join()


def test_a_second_caller_of_a_queue_gets_an_exception(linked):
    port, guest = linked(guest={"ring_size": 1024})
    caught = []
    stop = threading.Event()
    large = [bytes(60000)] * 12  # above the size where the interpreter is let go

    def hammer():
        while not stop.is_set():
            try:
                port.tx_burst(0, large)
            except VhostIoatError as error:
                caught.append(str(error))

    threads = [threading.Thread(target=hammer, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()

    def drain():
        guest.recv(0)
        return caught

    until(drain, "two threads meet in one queue")
    stop.set()
    for thread in threads:
        thread.join()
    assert "one caller per queue" in caught[0]


def test_different_queues_may_have_different_threads(linked):
    port, guest = linked(queues=2)
    totals = [0, 0]

    def echo(queue):
        while totals[queue] < 500:
            burst = port.rx_burst(queue)
            totals[queue] += port.tx_burst(queue, burst)

    threads = [threading.Thread(target=echo, args=(queue,), daemon=True) for queue in range(2)]
    for thread in threads:
        thread.start()
    back = [0, 0]

    def traffic():
        for queue in range(2):
            guest.send(queue, [b"x" * 60] * 8)
            back[queue] += len(guest.recv(queue))
        return min(totals) >= 500

    until(traffic)
    for thread in threads:
        thread.join()
