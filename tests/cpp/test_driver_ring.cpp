// SPDX-License-Identifier: BSD-3-Clause
#include <array>
#include <deque>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "base/shared_field.hpp"
#include "doctest/doctest.h"
#include "memory/guest_mapping.hpp"
#include "virtio/driver_ring.hpp"
#include "virtio/split_ring.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::virtio;

namespace {

constexpr uint64_t data_gpa = 0x10000;

/// A ring with a driver at one side and a device at the other, over one mapping.
struct Bench {
  Bench(uint32_t ring_size, FeatureSet features, uint16_t index = 0)
      : size(ring_size), mapping(memory::GuestMapping::anonymous(4 << 20)) {
    uint8_t* base = mapping->data();
    space = memory::AddressSpace(std::make_shared<memory::RegionTable>(
        std::vector<memory::Region>{{data_gpa, mapping->size(), data_gpa, base, mapping}}));
    at.desc = reinterpret_cast<Descriptor*>(base);
    at.avail = base + desc_bytes(size);
    at.used = at.avail + ((avail_bytes(size, true) + 63) & ~size_t{63});
    constexpr size_t tables_at = 2 << 20;
    driver.start(at, size, features, RingIndex(index),
                 {reinterpret_cast<Descriptor*>(base + tables_at), data_gpa + tables_at, 8});
    device.start(at, size, features, RingIndex(index));
  }

  UsedElement* element(uint32_t i) { return reinterpret_cast<UsedElement*>(at.used + 4) + (i & (size - 1)); }
  /// What a device that does not keep the rules writes.
  void return_raw(uint32_t slot, uint32_t id, uint32_t len, uint16_t idx) {
    *element(slot) = {id, len};
    store_release<uint16_t>(at.used + 2, idx);
  }
  uint32_t device_descriptors(uint16_t head) {
    uint32_t n = 0;
    CHECK(device.walk(head, space, [&](uint64_t, uint32_t, bool) { return ++n, true; }));
    return n;
  }

  uint32_t size;
  std::shared_ptr<memory::GuestMapping> mapping;
  memory::AddressSpace space;
  RingAddresses at;
  DriverRing driver;
  SplitRing device;
};

using Segments = std::vector<Segment>;
constexpr Segment out{data_gpa, 100}, in{data_gpa, 200};

}  // namespace

TEST_CASE("a chain reaches the device as it was added, directly or through a table") {
  Bench bench(8, FeatureSet::of(Feature::INDIRECT_DESC));
  const Segments readable{{0x11000, 10}, {0x12000, 20}}, writable{{0x13000, 30}};
  const auto direct = bench.driver.add(readable, writable);
  const auto indirect = bench.driver.add_indirect(readable, writable);
  REQUIRE(direct);
  REQUIRE(indirect);
  CHECK(bench.driver.free_descriptors() == 4);
  CHECK(bench.device.look_again() == 0);  // not shown yet
  CHECK(bench.driver.publish());
  REQUIRE(bench.device.look_again() == 2);
  for (const uint32_t k : {0u, 1u}) {
    CHECK(bench.device.head(k) == (k == 0 ? *direct : *indirect));
    std::vector<std::tuple<uint64_t, uint32_t, bool>> seen;
    CHECK(bench.device.walk(bench.device.head(k), bench.space, [&](uint64_t addr, uint32_t len, bool w) {
      return seen.emplace_back(addr, len, w), true;
    }));
    CHECK(seen == decltype(seen){{0x11000, 10, false}, {0x12000, 20, false}, {0x13000, 30, true}});
  }
}

TEST_CASE("a ring takes as many descriptors as it has, and none for nothing") {
  Bench bench(4, FeatureSet::of(Feature::INDIRECT_DESC));
  CHECK_FALSE(bench.driver.add({}, {}));
  CHECK_FALSE(bench.driver.add_indirect({}, {}));
  CHECK_FALSE(bench.driver.add(Segments(5, out), {}));
  CHECK_FALSE(bench.driver.add_indirect(Segments(5, out), {}));  // a chain is no longer than the ring
  CHECK(bench.driver.add(Segments(4, out), {}));
  CHECK_FALSE(bench.driver.add(Segments(1, out), {}));
  CHECK_FALSE(bench.driver.add_indirect(Segments(1, out), {}));
  CHECK_FALSE(Bench(16, FeatureSet()).driver.add_indirect(Segments(9, out), {}));  // longer than a table
}

TEST_CASE("the device asks for kicks by flag or by event index") {
  for (const bool event_idx : {false, true}) {
    CAPTURE(event_idx);
    Bench bench(8, event_idx ? FeatureSet::of(Feature::EVENT_IDX) : FeatureSet());
    auto add_and_publish = [&](int n) {
      for (int i = 0; i < n; ++i) bench.driver.add({&out, 1}, {});
      return bench.driver.publish();
    };
    CHECK(add_and_publish(1));
    CHECK_FALSE(bench.driver.publish());  // nothing new
    bench.device.set_kicks(false);
    CHECK_FALSE(add_and_publish(2));
    bench.device.look_again();
    bench.device.consume(3);
    bench.device.set_kicks(true);
    CHECK(add_and_publish(2));
    CHECK(add_and_publish(1) == !event_idx);  // the event index was passed before
  }
}

TEST_CASE("the driver asks for a signal, and learns of what came before it asked") {
  for (const bool event_idx : {false, true}) {
    CAPTURE(event_idx);
    Bench bench(8, event_idx ? FeatureSet::of(Feature::EVENT_IDX) : FeatureSet(), 65535);
    auto device_returns = [&] {
      const uint16_t head = *bench.driver.add({&out, 1}, {});
      bench.driver.publish();
      bench.device.look_again();
      bench.device.consume(1);
      bench.device.push_used(head, 0);
      bench.device.publish(bench.device.filled());
      return bench.device.should_notify();
    };
    CHECK_FALSE(bench.driver.set_interrupts(true));
    CHECK(device_returns());
    CHECK(bench.driver.set_interrupts(true));  // one waits
    CHECK(bench.driver.take_used());
    bench.driver.set_interrupts(false);
    CHECK_FALSE(device_returns());
    CHECK(bench.driver.take_used());
    CHECK_FALSE(bench.driver.set_interrupts(true));
    CHECK(device_returns());
  }
}

TEST_CASE("what a device may not return is a fault, and stays one") {
  using Kind = DeviceFault::Kind;
  struct Case {
    uint32_t id, len;
    uint16_t idx;
    Kind kind;
  };
  for (const Case& c : {Case{0, 0, 3, Kind::used_index}, Case{0, 0, 65535, Kind::used_index}, Case{8, 0, 1, Kind::head},
                        Case{1u << 16, 0, 1, Kind::head}, Case{5, 0, 1, Kind::not_given},
                        Case{2, 0, 1, Kind::not_given}, Case{0, 201, 1, Kind::length}}) {
    CAPTURE(c.id);
    Bench bench(8, FeatureSet());
    CHECK(bench.driver.add({}, {&in, 1}) == 0);
    CHECK(bench.driver.add({}, {&in, 1}) == 1);
    bench.driver.publish();
    CHECK(bench.driver.add({}, {&in, 1}) == 2);  // not shown: not the device's yet
    bench.return_raw(0, c.id, c.len, c.idx);
    CHECK_FALSE(bench.driver.take_used());
    CHECK(bench.driver.fault().kind == c.kind);
    CHECK_FALSE(bench.driver.fault().text().empty());
    bench.return_raw(0, 0, 10, 1);
    CHECK_FALSE(bench.driver.take_used());
    CHECK(bench.driver.fault().kind == c.kind);
  }
}

TEST_CASE("a head comes back once") {
  Bench bench(8, FeatureSet());
  bench.driver.add({}, {&in, 1});
  bench.driver.add({}, {&in, 1});
  bench.driver.publish();
  bench.return_raw(0, 1, 7, 1);
  const auto used = bench.driver.take_used();
  REQUIRE(used);
  CHECK(used->head == 1);
  CHECK(used->len == 7);
  bench.return_raw(1, 1, 7, 2);
  CHECK_FALSE(bench.driver.take_used());
  CHECK(bench.driver.fault().kind == DeviceFault::Kind::not_given);
}

TEST_CASE("with IN_ORDER one used element may speak for a batch, whose first chains were used to the full") {
  Bench bench(8, FeatureSet::of(Feature::IN_ORDER), 65533);
  for (int round = 0; round < 5; ++round) {
    std::vector<uint16_t> heads;
    for (int i = 0; i < 6; ++i) heads.push_back(*bench.driver.add({}, {&in, 1}));
    for (size_t i = 1; i < heads.size(); ++i) CHECK(heads[i] == (heads[i - 1] + 1) % 8);  // 2.7.9
    bench.driver.publish();
    const RingIndex begin = bench.driver.last_used();
    bench.return_raw(begin.value(), heads[3], 50, (begin + 4).value());
    bench.return_raw((begin + 4).value(), heads[5], 60, (begin + 6).value());
    for (size_t i = 0; i < 6; ++i) {
      const auto used = bench.driver.take_used();
      REQUIRE(used);
      CHECK(used->head == heads[i]);
      CHECK(used->len == (i == 3 ? 50u : i == 5 ? 60u : 200u));
    }
    CHECK_FALSE(bench.driver.take_used());
    CHECK_FALSE(bench.driver.fault());
  }
}

TEST_CASE("with IN_ORDER a chain beyond the used index is a fault") {
  Bench bench(8, FeatureSet::of(Feature::IN_ORDER));
  for (int i = 0; i < 4; ++i) bench.driver.add({}, {&in, 1});
  bench.driver.publish();
  bench.return_raw(0, 3, 50, 3);
  CHECK_FALSE(bench.driver.take_used());
  CHECK(bench.driver.fault().kind == DeviceFault::Kind::order);
}

TEST_CASE(
    "random chains over several turns of the indices come back each once, in any order, and no descriptor gets lost") {
  std::mt19937 random(5);
  for (const FeatureSet features : {FeatureSet(), FeatureSet::of(Feature::INDIRECT_DESC, Feature::EVENT_IDX),
                                    FeatureSet::of(Feature::IN_ORDER, Feature::INDIRECT_DESC)}) {
    Bench bench(32, features, 65500);
    std::deque<uint16_t> at_device;
    std::set<uint16_t> out_there;
    for (int step = 0; step < 150000; ++step) {
      const Segments readable(random() % 4, out), writable(random() % 4, in);
      const bool indirect = features.has(Feature::INDIRECT_DESC) && random() % 2;
      if (const auto head =
              indirect ? bench.driver.add_indirect(readable, writable) : bench.driver.add(readable, writable)) {
        REQUIRE(out_there.insert(*head).second);
      }
      if (random() % 4 == 0) bench.driver.publish();
      if (random() % 4 == 0) {
        const uint16_t n = bench.device.look_again();
        for (uint16_t k = 0; k < n; ++k) at_device.push_back(bench.device.head(k));
        bench.device.consume(n);
      }
      while (!at_device.empty() && random() % 3) {
        if (!features.has(Feature::IN_ORDER)) std::swap(at_device.front(), at_device[random() % at_device.size()]);
        REQUIRE(bench.device_descriptors(at_device.front()) > 0);
        bench.device.push_used(at_device.front(), 0);
        at_device.pop_front();
        if (random() % 2) bench.device.publish(bench.device.filled());
      }
      while (const auto used = bench.driver.take_used()) REQUIRE(out_there.erase(used->head) == 1);
      REQUIRE_FALSE(bench.driver.fault());
      REQUIRE_FALSE(bench.device.fault());
      REQUIRE(bench.driver.in_flight() == out_there.size());
    }
    bench.driver.publish();
    const uint16_t n = bench.device.look_again();
    for (uint16_t k = 0; k < n; ++k) at_device.push_back(bench.device.head(k));
    for (const uint16_t head : at_device) bench.device.push_used(head, 0);
    bench.device.publish(bench.device.filled());
    while (bench.driver.take_used()) {
    }
    CHECK(bench.driver.in_flight() == 0);
    CHECK(bench.driver.free_descriptors() == 32);
  }
}

TEST_CASE("driver and device in threads of their own see whole chains and whole buffers") {
  constexpr uint32_t total = 100000;
  Bench bench(64, FeatureSet::of(Feature::EVENT_IDX));
  std::thread device([&] {
    uint32_t expected = 0;
    while (expected < total) {
      const uint16_t n = bench.device.look_again();
      for (uint16_t k = 0; k < n; ++k) {
        const uint16_t head = bench.device.head(k);
        uint64_t addr = 0;
        bench.device.walk(head, bench.space, [&](uint64_t a, uint32_t, bool) { return addr = a, true; });
        uint32_t* word = reinterpret_cast<uint32_t*>(bench.mapping->data() + (addr - data_gpa));
        if (*word != expected) FAIL_CHECK("buffer " << *word << " where " << expected << " was due");
        *word = ~expected++;
        bench.device.push_used(head, 4);
      }
      bench.device.consume(n);
      if (n != 0) bench.device.publish(bench.device.filled());
      if (n == 0) std::this_thread::yield();
    }
  });
  uint32_t sent = 0, received = 0;
  std::array<uint32_t, 64> number{};
  while (received < total) {
    while (sent < total && bench.driver.free_descriptors() != 0) {
      const uint32_t offset = (1u << 20) + sent % 64 * 64;
      *reinterpret_cast<uint32_t*>(bench.mapping->data() + offset) = sent;
      const Segment segment{data_gpa + offset, 64};
      number[*bench.driver.add({}, {&segment, 1})] = sent++;
    }
    bench.driver.publish();
    const auto used = bench.driver.take_used();
    if (!used) {
      std::this_thread::yield();
      continue;
    }
    const uint32_t n = number[used->head];
    if (*reinterpret_cast<uint32_t*>(bench.mapping->data() + (1u << 20) + n % 64 * 64) != ~n) FAIL_CHECK("lost " << n);
    ++received;
  }
  device.join();
  CHECK_FALSE(bench.driver.fault());
}
