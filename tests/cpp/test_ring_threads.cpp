// SPDX-License-Identifier: BSD-3-Clause
// Both sides of a ring in threads of their own, over one mapping: ThreadSanitizer sees every release that is missing.
// Fences it does not see; those are tried by many meetings of two threads.
#include <atomic>
#include <chrono>
#include <thread>

#include "doctest/doctest.h"
#include "queue_rig.hpp"
#include "virtio/split_ring.hpp"

using namespace rig;
using port::PacketView;
using port::Publish;
using virtio::Feature;

namespace {

constexpr uint64_t buffer_size = 8192;
constexpr uint32_t total = 3000;

/// The n-th packet: every fourth is long enough for the engine.
Bytes numbered(uint32_t n) { return pattern(n % 4 == 3 ? 1024 + n % 4000 : 60 + n % 200, static_cast<uint8_t>(n)); }
uint64_t buffer_of(uint32_t n, uint32_t ring_size) { return GuestRig::buffers + n % ring_size * buffer_size; }

/// The driver of a tx queue: lends buffers and takes packets back, each of which must be whole.
void take_packets(GuestRig& guest, uint32_t ring_size) {
  uint32_t lent = 0, taken = 0, wrong = 0;
  while (taken < total) {
    for (; guest.driver().free_descriptors() != 0; ++lent) guest.post(buffer_of(lent, ring_size), buffer_size);
    const auto used = guest.driver().take_used();
    if (!used) {
      REQUIRE_FALSE(guest.driver().fault());
      std::this_thread::yield();
      continue;
    }
    const Bytes expected = numbered(taken);
    const uint8_t* got = guest.host(buffer_of(taken, ring_size)) + guest.header_size();
    wrong += used->len != guest.header_size() + expected.size() || !std::equal(expected.begin(), expected.end(), got);
    ++taken;
  }
  CHECK(wrong == 0);
}

void send_packets(GuestRig& guest, port::TxQueue& queue) {
  for (uint32_t sent = 0; sent < total || !queue.idle();) {
    std::vector<Bytes> packets;
    for (uint32_t n = sent; n < total && n < sent + 8; ++n) packets.push_back(numbered(n));
    const uint32_t more = packets.empty() ? 0 : queue.enqueue(PacketView::of(guest.burst(packets)));
    queue.reap();
    sent += more;
    if (more == 0) std::this_thread::yield();
  }
}

/// Two threads that begin each round at the same moment, as nearly as can be.
class Meeting {
 public:
  void operator()(uint32_t& round) {
    const uint32_t both = 2 * ++round;
    arrived_.fetch_add(1);
    for (uint32_t spins = 0; arrived_.load() < both;)
      if (++spins % 4096 == 0) std::this_thread::yield();
  }

 private:
  std::atomic<uint32_t> arrived_{0};
};

constexpr uint32_t meetings = 100'000;

/// Stores to lines that are in no cache: what is stored next stays in the store buffer behind them for a while. Without
/// them two cores that share a cache would hardly ever see each other's stores late, and a missing fence would not
/// show.
class SlowStores {
 public:
  void operator()() {
    for (int i = 0; i < 24; ++i) {
      at_ = (at_ + 17 * 4160) % memory_.size();
      static_cast<volatile char&>(memory_[at_]) = 1;
    }
  }

 private:
  std::vector<char> memory_ = std::vector<char>(32 << 20);
  size_t at_ = 0;
};

}  // namespace

TEST_CASE("threads: packets reach the driver whole and in order, whoever copies and whoever publishes") {
  constexpr uint32_t ring_size = 64;
  for (const char* how : {"cpu", "engine", "engine publishes"}) {
    CAPTURE(how);
    GuestRig guest(ring_size, virtio::supported_features, 32 << 20, RingIndex(65000));
    port::TxQueue queue;
    std::shared_ptr<dma::IoatModel> model;
    if (how[0] == 'e') {
      const auto publish = how[6] == 0 ? Publish::cpu : Publish::dma;
      model = attach_engine(queue, guest, dma::IoatModel::Mode::threaded, publish);
    }
    queue.setup(guest.setup());
    std::thread driver([&] { take_packets(guest, ring_size); });
    send_packets(guest, queue);
    driver.join();
    CHECK(queue.counters.packets.get() == total);
    if (model) CHECK(queue.counters.dma_bytes.get() != 0);
  }
}

TEST_CASE("threads: packets of the driver come out whole and in order") {
  constexpr uint32_t ring_size = 64;
  GuestRig guest(ring_size, virtio::supported_features, 32 << 20, RingIndex(65000));
  port::RxQueue queue;
  queue.setup(guest.setup());
  std::thread driver([&] {
    for (uint32_t sent = 0; sent < total;) {
      while (guest.driver().take_used()) {
      }
      if (guest.driver().free_descriptors() == 0) {
        std::this_thread::yield();
        continue;
      }
      guest.send({guest.place(buffer_of(sent, ring_size), numbered(sent))});
      ++sent;
    }
  });
  uint32_t received = 0, wrong = 0;
  while (received < total) {
    const virtio::Burst burst = queue.dequeue(*guest.arena(), 32);
    for (uint32_t i = 0; i < burst.count; ++i)
      wrong += Bytes(burst.row(i), burst.row(i) + burst.lengths[i]) != numbered(received++);
    REQUIRE_FALSE(queue.fault());
    if (burst.count == 0) std::this_thread::yield();
  }
  driver.join();
  CHECK(wrong == 0);
}

TEST_CASE("threads: what one owner of a queue left is what the next one finds") {
  port::Owner owner;
  uint32_t plain = 0;
  constexpr uint32_t turns = 20'000;
  std::thread control([&] {
    for (uint32_t n = 0; n < turns; owner.give_back(), ++n) {
      while (!owner.try_take()) std::this_thread::yield();
      ++plain;
    }
  });
  for (uint32_t n = 0; n < turns;) {
    if (owner.enter() != port::Owner::Entry::entered) {
      std::this_thread::yield();
      continue;
    }
    ++plain;
    ++n;
    owner.leave();
  }
  control.join();
  CHECK(plain == 2 * turns);
}

TEST_CASE("ring rule 19: a driver that asks for a signal while buffers are returned sees them, or is told") {
  for (const auto features : {virtio::supported_features, virtio::supported_features.without(Feature::EVENT_IDX)}) {
    GuestRig guest(256, features);
    for (int i = 0; i < 256; ++i) guest.post(GuestRig::buffers, 64);
    Meeting meet;
    std::atomic<bool> told{false};
    std::thread device([&] {
      virtio::SplitRing ring;
      ring.start(guest.at(), 256, features, RingIndex());
      SlowStores slow_stores;
      for (uint32_t n = 0, round = 0; n < meetings; ++n) {
        while (ring.look_again() == 0) std::this_thread::yield();
        ring.push_used(ring.head(0), 0);
        ring.consume(1);
        meet(round);
        if (n % 2) slow_stores();
        ring.publish(ring.filled());
        told.store(ring.should_notify(), std::memory_order_relaxed);
        meet(round);
      }
    });
    uint32_t lost = 0;
    SlowStores slow_stores;
    for (uint32_t n = 0, round = 0; n < meetings; ++n) {
      guest.driver().set_interrupts(false);
      meet(round);
      if (n % 2 == 0) slow_stores();
      const bool seen = guest.driver().set_interrupts(true);
      meet(round);
      lost += !seen && !told.load(std::memory_order_relaxed);
      while (guest.driver().take_used()) guest.post(GuestRig::buffers, 64);
    }
    device.join();
    CHECK(lost == 0);
  }
}

TEST_CASE("ring rule 19: a device that asks for kicks while buffers are made available sees them, or is kicked") {
  for (const auto features : {virtio::supported_features, virtio::supported_features.without(Feature::EVENT_IDX)}) {
    GuestRig guest(256, features);
    Meeting meet;
    std::atomic<bool> kicked{false};
    std::thread driver([&] {
      const std::vector<virtio::Segment> out{{GuestRig::buffers, 64}};
      SlowStores slow_stores;
      for (uint32_t n = 0, round = 0; n < meetings; ++n) {
        while (guest.driver().take_used()) {
        }
        guest.driver().add(out, {});
        meet(round);
        if (n % 2) slow_stores();
        kicked.store(guest.driver().publish(), std::memory_order_relaxed);
        meet(round);
      }
    });
    virtio::SplitRing ring;
    ring.start(guest.at(), 256, features, RingIndex());
    uint32_t lost = 0;
    SlowStores slow_stores;
    for (uint32_t n = 0, round = 0; n < meetings; ++n) {
      ring.set_kicks(false);
      meet(round);
      if (n % 2 == 0) slow_stores();
      ring.set_kicks(true);
      const bool seen = ring.look_again() != 0;
      meet(round);
      lost += !seen && !kicked.load(std::memory_order_relaxed);
      if (ring.look_again() == 1) {
        ring.push_used(ring.head(0), 0);
        ring.consume(1);
        ring.publish(ring.filled());
      }
    }
    driver.join();
    CHECK(lost == 0);
  }
}
