# SPDX-License-Identifier: BSD-3-Clause
"""The pytest plugin, in a pytest of its own."""

import subprocess
import sys

from watchdog import WATCHDOG

RING = """
from vhost_ioat.testing import Driver, Memory, RingView

def ring():
    view = RingView(Memory([(0, bytearray(0x4000))]), 4, 0, 0x1000, 0x2000)
    driver = Driver(view, start=65535)
    driver.add([(0x3000, 60)], [])
    driver.publish()
    return view
"""


def run(directory, source):
    (directory / "test_it.py").write_text(RING + source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=directory, timeout=WATCHDOG).stdout


def test_a_ring_in_a_variable_of_a_failed_test_is_explained(tmp_path):
    output = run(tmp_path, "def test_it():\n    view = ring()\n    assert view.used_idx == 7\n")
    assert "split ring of 4" in output
    assert "avail[3] (index 65535) = head 3" in output
    assert "addr 0x3000 len 60" in output


def test_a_ring_in_an_attribute_is_explained_once(tmp_path):
    output = run(
        tmp_path,
        "class Thing:\n    pass\n\ndef check(thing):\n    assert False\n\n"
        "def test_it():\n    thing = Thing()\n    thing.view = ring()\n    check(thing)\n",
    )
    assert output.count("split ring of 4") == 1


def test_a_passing_test_is_left_alone(tmp_path):
    output = run(tmp_path, "def test_it():\n    view = ring()\n    assert view\n")
    assert "1 passed" in output
    assert "split ring" not in output


def test_the_fixtures_are_there(tmp_path):
    output = run(
        tmp_path,
        "def test_it(linked):\n    port, guest = linked(queues=2, guest={'ring_size': 64})\n"
        "    assert port.tx_burst(1, [b'x' * 60]) == 1\n    assert port.link()\n",
    )
    assert "1 passed" in output
