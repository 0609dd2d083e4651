// SPDX-License-Identifier: BSD-3-Clause
#include <poll.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/budget.hpp"
#include "base/event_loop.hpp"
#include "base/shared_field.hpp"
#include "doctest/doctest.h"
#include "memory/guest_mapping.hpp"
#include "port/control_ring.hpp"
#include "ring_fd.hpp"
#include "virtio/driver_ring.hpp"
#include "watchdog.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::port;
using testing::ring_fd;
using virtio::Feature;

namespace {

constexpr uint64_t gpa = 0x40000000;
constexpr uint32_t ring_size = 128, slot = 256;
constexpr uint8_t untouched = 0xaa;
using Bytes = std::vector<uint8_t>;

/// A driver's control queue, and the device's end of it on the event loop.
struct Bench {
  std::shared_ptr<EventLoop> loop = EventLoop::get();
  std::shared_ptr<memory::GuestMapping> mapping = memory::GuestMapping::anonymous(1 << 20);
  virtio::FeatureSet features = virtio::supported_features.without(Feature::EVENT_IDX);
  virtio::RingAddresses at{reinterpret_cast<virtio::Descriptor*>(mapping->data()), mapping->data() + 0x2000,
                           mapping->data() + 0x3000};
  virtio::DriverRing driver;
  UniqueFd kick = make_eventfd(), call = make_eventfd(), err = make_eventfd();
  std::mutex mutex;
  std::vector<std::string> changes, faults;
  std::unique_ptr<ControlRing> ring;
  uint32_t next_slot = 0;

  explicit Bench(bool event_idx = false) {
    if (event_idx) features = virtio::supported_features;
    driver.start(at, ring_size, features);
    ring = std::make_unique<ControlRing>(loop, 4,
                                         ControlRing::Listener{[this](const char* change) {
                                                                 std::lock_guard lock(mutex);
                                                                 changes.emplace_back(change);
                                                               },
                                                               [this](const char* fault) {
                                                                 std::lock_guard lock(mutex);
                                                                 faults.emplace_back(fault);
                                                               },
                                                               [] {}});
  }
  ~Bench() {
    stop();
    loop->run([&] { ring.reset(); });
  }
  void start(bool with_kick = true) {
    RingSetup setup;
    setup.running = true;
    setup.at = at;
    setup.size = ring_size;
    setup.features = features;
    setup.last_avail = RingIndex(load_relaxed<uint16_t>(at.used + 2));
    setup.memory = std::make_shared<memory::RegionTable>(
        std::vector<memory::Region>{{gpa, 1 << 20, gpa, mapping->data(), mapping}});
    setup.call = ring_fd(call, PeerFd::Use::signal);
    setup.err = ring_fd(err, PeerFd::Use::signal);
    loop->run([&] { ring->setup(setup, with_kick ? ring_fd(kick, PeerFd::Use::wait) : nullptr); });
  }
  void stop() {
    loop->run([&] { ring->setup({}, nullptr); });
  }
  /// Where command `n` and its answer lie.
  uint64_t place(uint32_t n) const { return 0x10000 + uint64_t{n} * slot; }
  /// Cut into pieces of `cut` bytes; its number.
  uint32_t give(const Bytes& command, uint32_t cut = slot) {
    const uint32_t n = next_slot++;
    std::memcpy(mapping->data() + place(n), command.data(), command.size());
    mapping->data()[place(n) + slot - 1] = untouched;
    std::vector<virtio::Segment> out;
    for (uint32_t from = 0; from < command.size(); from += cut)
      out.push_back({gpa + place(n) + from, std::min(cut, static_cast<uint32_t>(command.size()) - from)});
    const virtio::Segment in{gpa + place(n) + slot - 1, 1};
    driver.add(out, {&in, 1});
    driver.publish();
    return n;
  }
  uint16_t used() const { return load_acquire<uint16_t>(at.used + 2); }
  bool answered(uint32_t commands) const {
    return testing::eventually([&] { return used() == commands; });
  }
  uint8_t answer(uint32_t n) const { return mapping->data()[place(n) + slot - 1]; }
};

const Bytes promiscuous_on{0, 0, 1}, unknown{9, 9};

}  // namespace

TEST_CASE("control ring: commands are answered at a kick, the guest is called and the change is told") {
  for (const bool event_idx : {false, true}) {
    Bench bench(event_idx);
    bench.start();
    const uint32_t first = bench.give(promiscuous_on), second = bench.give(unknown);
    eventfd_signal(bench.kick.get());
    REQUIRE(bench.answered(2));
    CHECK(bench.answer(first) == virtio::ControlQueue::ok);
    CHECK(bench.answer(second) == virtio::ControlQueue::err);
    CHECK(testing::eventually([&] { return eventfd_clear(bench.call.get()) != 0; }));
    bench.loop->run([&] { CHECK(bench.ring->state().promiscuous); });
    CHECK(bench.changes == std::vector<std::string>{"promiscuous on"});
    const uint32_t third = bench.give({0, 0, 0});
    eventfd_signal(bench.kick.get());
    REQUIRE(bench.answered(3));
    CHECK(bench.answer(third) == virtio::ControlQueue::ok);
  }
}

TEST_CASE("control ring: a kick that stays readable, as a semaphore does, is taken once") {
  Bench bench;
  bench.kick.reset(::eventfd(1 << 20, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE));
  bench.start();
  bench.give(promiscuous_on);
  eventfd_signal(bench.kick.get());
  REQUIRE(bench.answered(1));
  bench.loop->run([] {});
  uint64_t left = 0;
  while (eventfd_clear(bench.kick.get()) != 0) ++left;
  CHECK(left == (1 << 20) + 1);
}

TEST_CASE("control ring: what waited before the ring started needs no kick, and a ring without a kick fd is polled") {
  for (const bool with_kick : {true, false}) {
    Bench bench;
    bench.give(promiscuous_on);
    bench.start(with_kick);
    CHECK(bench.answered(1));
    if (with_kick) continue;
    bench.give(unknown);
    CHECK(bench.answered(2));
  }
}

TEST_CASE("control ring: one kick for more commands than a turn takes") {
  Bench bench;
  bench.start();
  for (uint32_t i = 0; i < 3 * budget::commands_a_turn; ++i) bench.give({0, 0, static_cast<uint8_t>(i & 1)});
  eventfd_signal(bench.kick.get());
  CHECK(bench.answered(3 * budget::commands_a_turn));
}

TEST_CASE("control ring: a command in more pieces than are looked at is refused, and the next one is served") {
  Bench bench;
  bench.start();
  Bytes vlan{2, 0, 7, 0};
  vlan.resize(budget::pieces_of_control_buffer + 1);
  const uint32_t whole = bench.give(vlan, 2), cut_up = bench.give(vlan, 1);
  eventfd_signal(bench.kick.get());
  REQUIRE(bench.answered(2));
  CHECK(bench.answer(whole) == virtio::ControlQueue::ok);
  CHECK(bench.answer(cut_up) == virtio::ControlQueue::err);
}

TEST_CASE("control ring: a command that lies nowhere breaks the ring until it is set up again") {
  Bench bench;
  bench.start();
  const virtio::Segment nowhere{0x1000, 3}, in{gpa + 0x8000, 1};
  bench.driver.add({&nowhere, 1}, {&in, 1});
  bench.driver.publish();
  eventfd_signal(bench.kick.get());
  CHECK(testing::eventually([&] { return eventfd_clear(bench.err.get()) != 0; }));
  bench.loop->run([&] { CHECK(bench.faults.size() == 1); });
  CHECK(bench.used() == 0);
  eventfd_signal(bench.kick.get());
  bench.loop->run([&] { CHECK(bench.ring->ring().fault()); });
  bench.stop();
  bench.driver.start(bench.at, ring_size, bench.features);
  bench.start();
  bench.give(promiscuous_on);
  eventfd_signal(bench.kick.get());
  CHECK(bench.answered(1));
  CHECK(bench.faults.size() == 1);
}

TEST_CASE("control ring: what the driver had asked for is forgotten when the ring stops") {
  Bench bench;
  bench.start();
  bench.give(promiscuous_on);
  eventfd_signal(bench.kick.get());
  REQUIRE(bench.answered(1));
  bench.stop();
  bench.loop->run([&] { CHECK_FALSE(bench.ring->state().promiscuous); });
}
