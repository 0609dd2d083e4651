# SPDX-License-Identifier: BSD-3-Clause
import dataclasses

import pytest

from vhost_ioat.records import Link, Stats


def test_a_link_is_true_when_it_is_up():
    assert Link(True, 10000, True)
    assert not Link(False, 10000, True)


def test_stats_of_a_time_are_a_difference():
    before = Stats(ipackets=3, ibytes=300, q_ipackets=(1, 2))
    after = Stats(ipackets=10, ibytes=1000, opackets=5, q_ipackets=(4, 6))
    assert after - before == Stats(ipackets=7, ibytes=700, opackets=5, q_ipackets=(3, 4))
    assert (after - before) + before == after


def test_stats_of_ports_with_different_queues_add_up():
    assert Stats(q_obytes=(1, 2)) + Stats(q_obytes=(10,)) == Stats(q_obytes=(11, 2))
    assert Stats() + Stats(q_obytes=(10,)) == Stats(q_obytes=(10,))


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Stats().ipackets = 1
