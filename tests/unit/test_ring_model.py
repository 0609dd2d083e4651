# SPDX-License-Identifier: BSD-3-Clause
import mmap

import pytest

from vhost_ioat.testing import BadRing, Device, Driver, Memory, RingView, explain
from vhost_ioat.testing.layout import INDIRECT, NEXT, WRITE, Descriptor
from vhost_ioat.testing.model import EVENT_IDX, INDIRECT_DESC, Chain, need_event, wrap

DATA = 0x8000


def make_ring(size=4, features=0, start=0):
    view = RingView(Memory([(0, bytearray(0x4000)), (DATA, bytearray(0x1000))]), size, 0, 0x1000, 0x2000)
    driver = Driver(view, features=features, start=start, tables=0x3000, table_size=4)
    return view, driver, Device(view, features=features, last_avail=start)


@pytest.mark.parametrize("start", [0, 1, 65534, 65535])
@pytest.mark.parametrize("size", [1, 2, 4, 256])
def test_a_chain_goes_round(size, start):
    _, driver, device = make_ring(size, start=start)
    for n in range(3 * size):
        head = driver.add([(DATA, n + 1)], [])
        driver.publish()
        assert device.pop() == Chain(head, [(DATA, n + 1)], [])
        assert device.pop() is None
        device.push_used(head, 0)
        assert driver.take_used() is None
        device.publish()
        assert driver.take_used() == (head, 0)


def test_a_chain_may_have_as_many_descriptors_as_the_ring():
    _, driver, device = make_ring(4)
    buffers = [(DATA + 16 * n, 16) for n in range(4)]
    head = driver.add(buffers[:2], buffers[2:])
    driver.publish()
    assert driver.add([(DATA, 1)], []) is None
    assert device.pop() == Chain(head, buffers[:2], buffers[2:])


def test_an_indirect_table_has_its_limit():
    _, driver, _ = make_ring(8, INDIRECT_DESC)
    assert driver.add([(DATA, 1)] * 5, [], indirect=True) is None
    assert driver.add([(DATA, 1)] * 4, [], indirect=True) is not None


def test_a_chain_has_at_most_4_gib():
    view = RingView(Memory([(0, bytearray(0x3000)), (1 << 32, mmap.mmap(-1, 1 << 31))]), 4, 0, 0x1000, 0x2000)
    driver, device = Driver(view), Device(view)
    head = driver.add([(1 << 32, 1 << 31)], [(1 << 32, 1 << 31)])
    driver.publish()
    assert device.pop().head == head
    driver.add([(1 << 32, 1)], [(1 << 32, 1 << 31)] * 1)
    view.set_descriptor(view.avail_head(1), Descriptor(1 << 32, 1 << 31, NEXT, view.avail_head(1)))
    driver.publish()
    assert device.pop() is None
    assert "6442450944 bytes" in device.broken


def test_publish_says_how_many():
    view, driver, device = make_ring(4, start=65535)
    for _ in range(2):
        driver.add([(DATA, 1)], [])
    driver.publish()
    for _ in range(2):
        device.push_used(device.pop().head, 0)
    assert device.publish() == 2
    assert device.publish() == 0
    assert view.used_idx == 1


def test_an_indirect_table_takes_one_descriptor():
    _, driver, device = make_ring(4, INDIRECT_DESC)
    buffers = [(DATA + 16 * n, 16) for n in range(4)]
    heads = [driver.add(buffers[:2], buffers[2:], indirect=True) for _ in range(4)]
    driver.publish()
    assert [device.pop() for _ in range(4)] == [Chain(head, buffers[:2], buffers[2:]) for head in heads]


def test_memory_is_read_and_written_across_regions():
    memory = Memory([(100, bytearray(b"cd")), (98, bytearray(b"ab")), (103, bytearray(b"x"))])
    assert memory.read(98, 4) == b"abcd"
    memory.write(99, b"BC")
    assert memory.read(98, 4) == b"aBCd"
    for gpa, n in [(97, 1), (98, 5), (102, 1), (103, 2)]:
        with pytest.raises(BadRing, match="not in guest memory"):
            memory.read(gpa, n)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([(0, (DATA, 1, NEXT, 4))], "descriptor 4 is outside its table of 4"),
        ([(0, (DATA, 1, NEXT, 0))], "loops"),
        ([(0, (DATA, 0, NEXT, 1)), (1, (DATA, 0, NEXT, 0))], "loops"),
        ([(0, (DATA, 1, WRITE | NEXT, 1)), (1, (DATA, 1, 0, 0))], "readable descriptor follows a writable one"),
        ([(0, (DATA, 0, WRITE | NEXT, 1)), (1, (DATA, 1, 0, 0))], "readable descriptor follows a writable one"),
        ([(0, (DATA + 0x1000, 1, 0, 0))], "not in guest memory"),
        ([(0, (DATA + 0xFFF, 2, 0, 0))], "not in guest memory"),
        ([(0, (2**64 - 1, 2, 0, 0))], "not in guest memory"),
        ([(0, (0x3000, 0, INDIRECT, 0))], "indirect table cannot have 0 bytes"),
        ([(0, (0x3000, 17, INDIRECT, 0))], "indirect table cannot have 17 bytes"),
        ([(0, (0x3000, 80, INDIRECT, 0))], "indirect table cannot have 80 bytes"),
        ([(0, (DATA, 1, NEXT, 1)), (1, (0x3000, 64, INDIRECT, 0))], "indirect table cannot have 64 bytes"),
        ([(0, (0x3000, 16, INDIRECT | NEXT, 1))], "with NEXT"),
        ([(0, (0, 16, INDIRECT, 0))], "nested"),
    ],
)
def test_a_bad_chain_breaks_the_ring(entries, reason):
    view, driver, device = make_ring(4, INDIRECT_DESC)
    driver.add([(DATA, 1)], [])
    for n, entry in entries:
        view.set_descriptor(n, Descriptor(*entry))
    view.set_avail_head(0, 0)
    driver.publish()
    assert device.pop() is None
    assert reason in device.broken
    view.set_descriptor(0, Descriptor(DATA, 1, 0, 0))
    assert device.pop() is None


def test_indirect_descriptors_must_be_negotiated():
    view, driver, device = make_ring(4)
    driver.add([(DATA, 1)], [])
    view.set_descriptor(view.avail_head(0), Descriptor(0x3000, 16, INDIRECT, 0))
    driver.publish()
    assert device.pop() is None
    assert "not negotiated" in device.broken


def test_an_index_more_than_the_ring_ahead_breaks_it():
    view, _, device = make_ring(4, start=65534)
    view.avail_idx = wrap(65534 + 5)
    assert device.pop() is None
    assert "5 ahead" in device.broken


def test_the_driver_notices_what_it_did_not_lend():
    view, driver, _ = make_ring(4)
    view.used_idx = 1
    with pytest.raises(BadRing, match="does not have"):
        driver.take_used()
    head = driver.add([], [(DATA, 8)])
    view.set_used_element(0, head, 9)
    with pytest.raises(BadRing, match="9 bytes to 8 writable"):
        driver.take_used()


def test_the_driver_notices_a_head_given_back_twice():
    _, driver, device = make_ring(4)
    head = driver.add([], [(DATA, 8)])
    driver.publish()
    for _ in range(2):
        device.push_used(head, 8)
    device.publish()
    assert driver.take_used() == (head, 8)
    with pytest.raises(BadRing, match="does not have"):
        driver.take_used()


def test_notification_by_flag():
    view, driver, device = make_ring(4)
    for suppressed in (0, 1, 0):
        head = driver.add([(DATA, 1)], [])
        driver.publish()
        device.pop()
        device.push_used(head, 0)
        device.publish()
        view.avail_flags = suppressed
        assert device.should_notify() is (not suppressed)
        assert device.should_notify() is False
        driver.take_used()


@pytest.mark.parametrize("old", [0, 7, 65533, 65535])
def test_event_index_formula(old):
    new = wrap(old + 3)
    told = [wrap(old + n) for n in range(-4, 8) if need_event(wrap(old + n), new, old)]
    assert told == [old, wrap(old + 1), wrap(old + 2)]


@pytest.mark.parametrize("start", [0, 65535])
def test_notification_by_event_index(start):
    view, driver, device = make_ring(4, EVENT_IDX, start)

    def use_one():
        head = driver.add([(DATA, 1)], [])
        driver.publish()
        device.pop()
        device.push_used(head, 0)
        device.publish()
        driver.take_used()

    use_one()
    assert device.should_notify()  # the first is unconditional
    view.used_event = wrap(start + 2)
    use_one()
    assert not device.should_notify()
    use_one()
    assert device.should_notify()


def test_kicks_by_flag_and_event_index():
    view, driver, _ = make_ring(4)
    driver.add([(DATA, 1)], [])
    assert driver.publish()
    view.used_flags = 1
    driver.add([(DATA, 1)], [])
    assert not driver.publish()
    view, driver, _ = make_ring(4, EVENT_IDX, start=65535)
    view.avail_event = 0
    driver.add([(DATA, 1)], [])
    assert not driver.publish()
    driver.add([(DATA, 1)], [])
    assert driver.publish()


def test_explain_shows_what_is_in_flight():
    view, driver, device = make_ring(4, INDIRECT_DESC, start=65535)
    driver.add([(DATA, 5)], [(DATA, 7)])
    driver.add([(DATA, 9)], [], indirect=True)
    driver.publish()
    device.push_used(device.pop().head, 7)
    device.publish()
    text = explain(view)
    assert "split ring of 4: desc 0x0, avail 0x1000, used 0x2000" in text
    assert "1 made available and not used" in text
    assert "addr 0x8000 len 9  next 0" in text
    assert "INDIRECT" in text
    assert "used[3] (index 65535) = head 3, 7 bytes written" in text


def test_explain_never_raises():
    view = RingView(Memory([(0, bytearray(16))]), 4, 0, 0x1000, 0x2000)
    assert "not in guest memory" in explain(view)
    view, _, _ = make_ring(4)
    view.avail_idx = 60000
    assert "60000 made available and not used, more than the 4 entries" in explain(view)
