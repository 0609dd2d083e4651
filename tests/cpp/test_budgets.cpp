// SPDX-License-Identifier: BSD-3-Clause
// What one call may be made to walk. Steps are counted, not time: benchmarks/cpp/bench_hostile.cpp has the time.
#include "doctest/doctest.h"
#include "hostile_ring.hpp"
#include "queue_rig.hpp"

using namespace rig;
using port::PacketView;
using port::RxQueue;
using port::TxQueue;
using virtio::Fault;
using virtio::Feature;

namespace {

constexpr uint32_t largest = virtio::max_ring_size;
const auto apart = virtio::supported_features.without(Feature::MRG_RXBUF);

struct Sender {
  std::shared_ptr<memory::PacketArena> arena = memory::PacketArena::create(16 << 20);
  TxQueue queue;

  explicit Sender(const HostileRing& ring) { queue.setup(ring.setup()); }
  uint32_t send(const std::vector<uint32_t>& lengths) {
    virtio::Burst burst = virtio::Burst::allocate(*arena, static_cast<uint32_t>(lengths.size()),
                                                  *std::max_element(lengths.begin(), lengths.end()));
    for (uint32_t i = 0; i < burst.count; ++i) {
      burst.lengths[i] = lengths[i];
      burst.headers[i] = {};
      std::memset(burst.row(i), 2, lengths[i]);
    }
    const uint32_t taken = queue.enqueue(PacketView::of(burst));
    CHECK(queue.steps() <= budget::steps_of_call(queue.ring().size()));
    return taken;
  }
};

struct Receiver {
  std::shared_ptr<memory::PacketArena> arena = memory::PacketArena::create(16 << 20);
  RxQueue queue;

  explicit Receiver(const HostileRing& ring) { queue.setup(ring.setup()); }
  virtio::Burst receive(uint32_t n) {
    virtio::Burst burst = queue.dequeue(*arena, n);
    CHECK(queue.steps() <= budget::steps_of_call(queue.ring().size()));
    return burst;
  }
};

/// Chains that give no packet, each as costly as can be; every head names one.
void spread(HostileRing& ring, const std::string& kind) {
  if (kind == "empty") {
    ring.chain(ring.descriptors(), HostileRing::in_order(ring.size()), 0, 0);
    return ring.offer_all(0);
  }
  if (kind == "empty, out of order") {
    ring.chain(ring.descriptors(), HostileRing::shuffled(ring.size()), 0, 0);
    return ring.offer_all(0);
  }
  if (kind == "empty, in one table") {
    ring.chain(ring.table(0), HostileRing::in_order(ring.size()), 0, 0);
    ring.indirect(0, 0, ring.size());
    return ring.offer_all(0);
  }
  if (kind == "empty, in many tables") {
    for (uint16_t i = 0; i < 64; ++i) {
      ring.chain(ring.table(i * ring.size()), HostileRing::shuffled(ring.size()), 0, 0);
      ring.indirect(i, i * ring.size(), ring.size());
    }
    return ring.offer(ring.size(), [](uint32_t i) { return i % 64; });
  }
  // A few bytes of header, then nothing.
  ring.chain(ring.descriptors(), HostileRing::in_order(ring.size()), 0, 0);
  ring.descriptors()[0].len = 11;
  ring.offer_all(0);
}
const std::vector<std::string> kinds{"empty", "empty, out of order", "empty, in one table", "empty, in many tables",
                                     "header and nothing"};

}  // namespace

TEST_CASE("budget: rx: every head names a chain of as many empty descriptors as the ring has: a call consumes some") {
  for (const uint32_t size : {256u, largest}) {
    for (const std::string& kind : kinds) {
      CAPTURE(kind);
      HostileRing ring(size, false);
      spread(ring, kind);
      Receiver to(ring);
      uint64_t before = 0;
      for (int call = 0; call < 3; ++call) {
        CHECK(to.receive(size).count == 0);
        CHECK(to.queue.counters.errors.get() > before);
        before = to.queue.counters.errors.get();
      }
      CHECK_FALSE(to.queue.fault());
      CHECK(ring.used() == before);
      CHECK(to.queue.counters.empty_dropped.get() == (size == largest ? 0 : before));
      CHECK(to.queue.counters.pieces_dropped.get() == (size == largest ? before : 0));
    }
  }
}

TEST_CASE("budget: rx: honest packets after such chains come through") {
  HostileRing ring(256, false);
  spread(ring, "empty");
  Receiver to(ring);
  uint32_t calls = 0;
  for (; to.queue.counters.empty_dropped.get() < 256; ++calls) {
    REQUIRE(calls < 256);
    to.receive(256);
  }
  CHECK(calls >= 256 * 256 / budget::steps_of_call(256));
  ring.descriptors()[7] = {HostileRing::data, 72, 0, 0};
  ring.offer(1, [](uint32_t) { return 7; });
  CHECK(to.receive(32).count == 1);
}

TEST_CASE("budget: tx: chains of empty descriptors are given back, some in each call, and the queue goes on") {
  for (const auto features : {virtio::supported_features, apart}) {
    for (const uint32_t size : {256u, 4096u}) {
      for (const std::string& kind : kinds) {
        CAPTURE(kind);
        HostileRing ring(size, true, features);
        spread(ring, kind);
        Sender from(ring);
        uint64_t before = 0;
        for (int call = 0; call < 3; ++call) {
          CHECK(from.send({60, 1514, 60}) == 0);
          CHECK(from.queue.counters.short_buffers.get() > before);
          before = from.queue.counters.short_buffers.get();
        }
        CHECK_FALSE(from.queue.fault());
        CHECK(ring.used() == before);
        CHECK(ring.used_element(0).len == 0);
      }
    }
  }
}

TEST_CASE("budget: tx: a packet for which the whole budget finds no buffers breaks the ring, in words and for good") {
  for (const uint32_t size : {256u, 4096u, largest}) {
    HostileRing ring(size, true);
    // The first buffer is useful; what should be merged with it is nothing but empty descriptors.
    ring.chain(ring.table(0), HostileRing::in_order(size), 0, 0);
    ring.descriptors()[0] = {HostileRing::data, 20, virtio::DESC_F_WRITE, 0};
    ring.indirect(1, 0, size);
    ring.offer(size, [](uint32_t i) { return i == 0 ? 0 : 1; });
    Sender from(ring);
    CHECK(from.send({60}) == 0);
    CHECK(from.queue.steps() == budget::steps_of_call(size));
    const Fault fault = from.queue.fault();
    CHECK(fault.kind == Fault::Kind::walk);
    CHECK(fault.value == budget::steps_of_call(size));
    CHECK(fault.limit == 72);
    CHECK(fault.text().find(std::to_string(fault.value)) != std::string::npos);
    CHECK(from.send({60}) == 0);
    CHECK(from.queue.steps() == 0);
    CHECK(ring.used() == 0);
  }
  for (const std::string& kind : kinds) {  // or the first buffer is that already
    CAPTURE(kind);
    HostileRing ring(largest, true);
    spread(ring, kind);
    Sender from(ring);
    CHECK(from.send({60, 1514, 60}) == 0);
    CHECK(from.queue.fault().kind == Fault::Kind::walk);
  }
}

TEST_CASE("budget: tx: a call that has got somewhere ends early instead, and the packet has the next call to itself") {
  HostileRing ring(256, true);
  ring.chain(ring.table(0), HostileRing::in_order(256), 0, 0);
  ring.table(255)->len = 2048;  // all but the last are empty
  ring.indirect(0, 0, 256);
  ring.offer_all(0);
  Sender from(ring);
  const uint32_t in_one_call = budget::steps_of_call(256) / 257;
  const std::vector<uint32_t> packets(100, 60);
  CHECK(from.send(packets) == in_one_call);
  CHECK(from.send(packets) == in_one_call);
  CHECK_FALSE(from.queue.fault());
}

TEST_CASE("budget: tx: too few buffers are looked at once, not in each call") {
  HostileRing ring(256, true);
  // 8 chains of 256 descriptors, a byte each: not enough for a packet of 9000 bytes, and all there is.
  ring.chain(ring.table(0), HostileRing::in_order(256), 1, 1);
  ring.indirect(0, 0, 256);
  ring.offer(8, [](uint32_t) { return 0; });
  Sender from(ring);
  CHECK(from.send({9000}) == 0);
  CHECK(from.queue.steps() == 8 * 257);
  CHECK(from.send({9000}) == 0);
  CHECK(from.queue.steps() == 0);
  CHECK(from.send({2100}) == 0);  // neither
  CHECK(from.queue.steps() == 0);
  CHECK(from.send({1500}) == 1);
  CHECK(from.send({9000}) == 0);  // fewer buffers now
  ring.descriptors()[1] = {HostileRing::data, 16384, virtio::DESC_F_WRITE, 0};
  ring.offer(1, [](uint32_t) { return 1; });
  CHECK(from.send({9000}) == 1);
  CHECK_FALSE(from.queue.fault());
}

TEST_CASE("budget: region borders count: packets in crumbs between hundreds of regions, both ways") {
  // 500 regions of 128 bytes: a descriptor of 64000 bytes lies in all of them.
  constexpr uint32_t regions = 500, bytes = regions * 128;
  for (const uint32_t size : {256u, largest}) {
    HostileRing receive(size, false, virtio::supported_features, regions, bytes);
    receive.descriptors()[0] = {HostileRing::data, bytes, 0, 0};
    receive.offer_all(0);
    Receiver to(receive);
    uint32_t got = 0;
    for (int call = 0; call < 4; ++call) got += to.receive(size).count;
    CHECK(got > 0);
    CHECK_FALSE(to.queue.fault());

    HostileRing send(size, true, virtio::supported_features, regions, bytes);
    send.descriptors()[0] = {HostileRing::data, bytes, virtio::DESC_F_WRITE, 0};
    send.offer_all(0);
    Sender from(send);
    const uint32_t sent = from.send(std::vector<uint32_t>(100, 60000));
    CHECK(sent > 0);
    CHECK(sent < 100);
    CHECK_FALSE(from.queue.fault());
  }
}

TEST_CASE("budget: rx: one packet in more pieces than any sane layout is dropped by name, and the queue goes on") {
  // 256 descriptors of 250 bytes, each over 50 regions of 5: 12800 pieces.
  HostileRing ring(256, false, virtio::supported_features, 500, 2500);
  ring.chain(ring.descriptors(), HostileRing::in_order(256), 250, 1);
  ring.offer(1, [](uint32_t) { return 0; });
  Receiver to(ring);
  CHECK(to.receive(32).count == 0);
  CHECK(to.queue.counters.pieces_dropped.get() == 1);
  CHECK(to.queue.counters.errors.get() == 1);
  CHECK(ring.used() == 1);
  ring.descriptors()[0] = {HostileRing::data, 1000, 0, 0};
  ring.offer(1, [](uint32_t) { return 0; });
  CHECK(to.receive(32).count == 1);
}

// ---- What an honest driver may do, however odd it looks: no budget may touch it.

TEST_CASE("budget: honest: a packet of as many descriptors of one byte as the ring has passes whole, both ways") {
  for (const uint32_t size : {256u, 1024u, 4096u}) {
    HostileRing receive(size, false);
    receive.chain(receive.descriptors(), HostileRing::in_order(size), 1, 1);
    for (uint32_t i = 12; i < size; ++i) *(receive.front(HostileRing::data) + i) = static_cast<uint8_t>(i * 3);
    receive.offer(1, [](uint32_t) { return 0; });
    Receiver to(receive);
    const virtio::Burst burst = to.receive(32);
    REQUIRE(burst.count == 1);
    REQUIRE(burst.lengths[0] == size - 12);
    CHECK(std::memcmp(burst.row(0), receive.front(HostileRing::data) + 12, size - 12) == 0);

    HostileRing send(size, true, apart);
    send.chain(send.descriptors(), HostileRing::in_order(size), 1, 1);
    send.offer(1, [](uint32_t) { return 0; });
    Sender from(send);
    CHECK(from.send({size - 12}) == 1);
    CHECK(send.used_element(0).len == size);
    CHECK(from.queue.counters.packets.get() == 1);
  }
}

TEST_CASE("budget: honest: more pieces than anybody else takes are dropped by name, both ways, and nothing is broken") {
  HostileRing receive(largest, false);
  receive.chain(receive.descriptors(), HostileRing::in_order(largest), 1, 1);
  receive.offer(2, [](uint32_t) { return 0; });
  Receiver to(receive);
  for (uint32_t n = 1; n <= 2; ++n) {
    CHECK(to.receive(32).count == 0);
    CHECK(to.queue.counters.pieces_dropped.get() == n);
    CHECK(receive.used() == n);
  }
  HostileRing send(largest, true, apart);
  send.chain(send.descriptors(), HostileRing::in_order(largest), 1, 1);
  send.offer(2, [](uint32_t) { return 0; });
  Sender from(send);
  CHECK(from.send({30000}) == 1);
  CHECK(from.queue.counters.oversize_dropped.get() == 1);
  CHECK(from.send({1514}) == 1);
  CHECK(from.queue.counters.packets.get() == 1);
  CHECK_FALSE(from.queue.fault());
}

TEST_CASE("budget: honest: a ring full of chains of the greatest length is worked off, both ways") {
  HostileRing receive(256, false);
  receive.chain(receive.table(0), HostileRing::in_order(256), 6, 6);
  receive.indirect(0, 0, 256);
  receive.offer_all(0);
  Receiver to(receive);
  for (uint32_t got = 0, calls = 0; got < 256; ++calls) {
    REQUIRE(calls < 256);
    const virtio::Burst burst = to.receive(256);
    for (uint32_t i = 0; i < burst.count; ++i) CHECK(burst.lengths[i] == 256 * 6 - 12);
    got += burst.count;
  }
  HostileRing send(256, true, apart);
  send.chain(send.table(0), HostileRing::in_order(256), 6, 6);
  send.indirect(0, 0, 256);
  send.offer_all(0);
  Sender from(send);
  for (uint32_t sent = 0, calls = 0; sent < 256; ++calls) {
    REQUIRE(calls < 256);
    sent += from.send(std::vector<uint32_t>(256 - sent, 1514));
  }
  CHECK(from.queue.counters.packets.get() == 256);
}

TEST_CASE("budget: honest: the longest packet in the shortest merged buffers") {
  HostileRing ring(8192, true);
  for (uint16_t i = 0; i < 8192; ++i) ring.descriptors()[i] = {HostileRing::data + 16 * i, 12, virtio::DESC_F_WRITE, 0};
  ring.offer(8192, [](uint32_t i) { return i; });
  Sender from(ring);
  CHECK(from.send({virtio::max_packet}) == 1);
  CHECK(from.queue.counters.packets.get() == 1);
  CHECK(ring.used() == (virtio::max_packet + 12 + 11) / 12);
}

TEST_CASE("budget: honest: 64 KiB in merged tables of single bytes are more pieces than we keep: dropped, not broken") {
  HostileRing ring(256, true);
  ring.chain(ring.table(0), HostileRing::in_order(256), 1, 1);
  ring.indirect(0, 0, 256);
  ring.offer(255, [](uint32_t) { return 0; });
  Sender from(ring);
  CHECK(from.send({60000}) == 1);
  CHECK(from.queue.counters.oversize_dropped.get() == 1);
  CHECK(ring.used() == 0);
  CHECK(from.send({1514}) == 1);
  CHECK(from.queue.counters.packets.get() == 1);
  CHECK_FALSE(from.queue.fault());
}
