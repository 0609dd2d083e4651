# SPDX-License-Identifier: BSD-3-Clause
"""A port between its script and an embedded guest: sending, receiving and reconnecting in any order."""

from collections import deque
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from traffic import packets_of, until
from vhost_ioat import Burst, EthVhost
from vhost_ioat.guest import Guest
from vhost_ioat.testing import strategies
from watchdog import WATCHDOG

QUEUES = 2
queues = st.integers(0, QUEUES - 1)
packet_lists = st.lists(strategies.packets(20000), max_size=12)


class PortMachine(RuleBasedStateMachine):
    """Packets of each queue and direction come once, in order and unaltered; what was not taken was not sent."""

    @initialize(
        options=st.fixed_dictionaries(
            {"mrg_rxbuf": st.just(True)},
            optional={
                "event_idx": st.booleans(),
                "indirect_desc": st.booleans(),
                "version_1": st.booleans(),
                "in_order": st.booleans(),
                "client": st.booleans(),
                "publish": st.sampled_from(["cpu", "dma"]),
                "sw_mode": st.sampled_from(["threaded", "inline"]),
                "ioats": st.sampled_from([{}, {0: "sw0"}, {0: "sw0", 1: "sw1"}]),
                "ioat_threshold": st.sampled_from([0, 64, 1024, 4096]),
            },
        ),
        ring=st.sampled_from([(16, 2048), (16, 65600), (64, 2048), (256, 256), (256, 2048)]),  # any packet fits
        segment=st.sampled_from([0, 64, 1000]),
    )
    def set_up(self, options, ring, segment):
        self.directory = TemporaryDirectory(prefix="vhost")
        path = str(Path(self.directory.name) / "v.sock")
        self.port = EthVhost(path, queues=QUEUES, **options)
        self.guest = Guest(
            path,
            queues=QUEUES,
            server=self.port.devargs.client,
            ring_size=ring[0],
            rx_buf=ring[1],
            segment=segment,
        )
        self.port.start()
        self.link_up()

    def link_up(self):
        self.guest.connect(timeout=WATCHDOG)
        assert self.port.wait_link(timeout=WATCHDOG)
        self.to_guest = [deque() for _ in range(QUEUES)]
        self.to_port = [deque() for _ in range(QUEUES)]

    @rule(queue=queues, packets=packet_lists, as_burst=st.booleans())
    def port_sends(self, queue, packets, as_burst):
        sent = self.port.tx_burst(queue, Burst.from_packets(packets) if as_burst else packets)
        assert 0 <= sent <= len(packets)
        self.to_guest[queue] += packets[:sent]

    @rule(queue=queues, packets=packet_lists)
    def guest_sends(self, queue, packets):
        sent = self.guest.send(queue, packets)
        assert 0 <= sent <= len(packets)
        self.to_port[queue] += packets[:sent]

    @rule(queue=queues, n=st.integers(1, 40))
    def port_receives(self, queue, n):
        for packet in packets_of(self.port.rx_burst(queue, n)):
            assert packet == self.to_port[queue].popleft()

    @rule(queue=queues, n=st.integers(1, 40))
    def guest_receives(self, queue, n):
        for packet in self.guest.recv(queue, n):
            assert packet == self.to_guest[queue].popleft()

    @rule(queue=queues)
    def everything_arrives(self, queue):
        def receive():
            self.port_receives(queue, 40)
            self.guest_receives(queue, 40)
            return not self.to_port[queue] and not self.to_guest[queue]

        until(receive, "everything arrives")
        assert self.port.tx_drain(queue, 10)  # the engine may show packets before they are reaped

    @rule(queue=queues)
    def reap(self, queue):
        assert self.port.tx_done_cleanup(queue) >= 0

    @rule(restart=st.booleans())
    def reconnect(self, restart):
        if restart:
            self.port.stop()
            self.port.start()
            until(lambda: not self.guest.connected, "the guest notices")
        self.guest.close()
        assert self.port.wait_link(up=False, timeout=WATCHDOG)
        if self.port.devargs.client:  # a closed guest listens no more
            self.guest = Guest(self.port.devargs.iface, queues=QUEUES, server=True)
        self.link_up()

    @invariant()
    def nothing_is_wrong(self):
        stats = self.port.stats()
        assert (stats.ierrors, stats.oerrors, stats.imissed, stats.rx_nombuf) == (0, 0, 0, 0)

    def teardown(self):
        self.guest.close()
        self.port.close()
        self.directory.cleanup()


TestPort = PortMachine.TestCase
TestPort.settings = settings(max_examples=40)
