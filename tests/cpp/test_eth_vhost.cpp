// SPDX-License-Identifier: BSD-3-Clause
// A whole port and a front end: every way in which a session changes or ends, with a thousand copies in flight.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "base/latch.hpp"
#include "base/shared_field.hpp"
#include "blocked_page.hpp"
#include "doctest/doctest.h"
#include "memory/guest_mapping.hpp"
#include "open_fds.hpp"
#include "port/arenas.hpp"
#include "port/eth_vhost.hpp"
#include "vhost_user/frontend.hpp"
#include "virtio/driver_ring.hpp"
#include "watchdog.hpp"

using namespace vhost_ioat;
using namespace std::chrono_literals;
using port::EthVhost;
using vhost_user::Request;
using virtio::Feature;
using Clock = std::chrono::steady_clock;

namespace {

constexpr uint32_t ring_size = 1024, packet_len = 3000, packets = 1000, buffer_len = 4096;
constexpr uint64_t rings_size = 1 << 20, buffers_size = 8 << 20, buffers_gpa = 0x10000000;

/// Two regions, one for the rings and one for the buffers, so that the buffers' can be taken away.
struct Front {
  std::shared_ptr<memory::GuestMapping> memory = memory::GuestMapping::memfd(rings_size + buffers_size);
  UniqueFd kick = make_eventfd(), call = make_eventfd();
  virtio::DriverRing rx;
  virtio::RingAddresses at;
  std::optional<vhost_user::Frontend> frontend;

  vhost_user::wire::MemRegion rings() const { return {0, rings_size, 0x7f0000000000, 0}; }
  vhost_user::wire::MemRegion buffers() const { return {buffers_gpa, buffers_size, 0x7f1000000000, rings_size}; }

  explicit Front(const std::string& path) {
    const auto features = virtio::FeatureSet::of(Feature::VERSION_1, Feature::MRG_RXBUF, Feature::PROTOCOL_FEATURES);
    frontend = vhost_user::Frontend::connect(path);
    frontend->negotiate(features, vhost_user::protocol::reply_ack | vhost_user::protocol::configure_mem_slots);
    frontend->command(Request::SET_OWNER);
    frontend->set_u64(Request::SET_FEATURES, features.mask());
    frontend->add_mem_region({rings(), memory->fd()});
    frontend->add_mem_region({buffers(), memory->fd()});
    for (uint32_t ring : {0u, 1u}) {
      const uint64_t base = ring * 0x80000ull;
      frontend->set_vring(Request::SET_VRING_NUM, ring, ring_size);
      frontend->set_vring(Request::SET_VRING_BASE, ring, 0);
      frontend->set_vring_addr(
          {ring, 0, rings().uva + base, rings().uva + base + 0x20000, rings().uva + base + 0x10000, 0});
      frontend->set_vring_fd(Request::SET_VRING_CALL, ring, call.get());
      frontend->set_vring_fd(Request::SET_VRING_KICK, ring, kick.get());
      frontend->set_vring(Request::SET_VRING_ENABLE, ring, 1);
    }
    at = {reinterpret_cast<virtio::Descriptor*>(memory->data()), memory->data() + 0x10000, memory->data() + 0x20000};
    rx.start(at, ring_size, features);
    for (uint32_t i = 0; i < packets; ++i) {
      const virtio::Segment buffer{buffers_gpa + uint64_t{i} * buffer_len, buffer_len};
      rx.add({}, {&buffer, 1});
    }
    rx.publish();
  }
  uint16_t used() const { return load_acquire<uint16_t>(at.used + 2); }
  bool has(uint32_t i) const {
    const uint8_t* packet = memory->data() + rings_size + size_t{i} * buffer_len + 12;
    for (uint32_t b = 0; b < packet_len; b += 97)
      if (packet[b] != static_cast<uint8_t>(i * 2)) return false;
    return true;
  }
};

/// A port whose engine does nothing until it is stepped, with `packets` copies in flight.
struct Loaded {
  std::string path;
  EthVhost port;
  std::optional<Front> front;
  std::thread stepper;
  std::atomic<bool> stop{false};

  explicit Loaded(port::Publish publish)
      : path(format("/tmp/vhost_ioat_test_port.%d", ::getpid())), port(config(path, publish)) {
    port.start();
    front.emplace(path);
    REQUIRE(port.wait_link(true, testing::watchdog_end()));
    uint32_t sent = 0;
    while (sent < packets) {
      virtio::Burst burst = virtio::Burst::allocate(*port::common_arena(), 50, packet_len);
      for (uint32_t i = 0; i < burst.count; ++i) {
        burst.lengths[i] = packet_len;
        burst.headers[i] = {};
        std::memset(burst.row(i), static_cast<int>((sent + i) * 2), packet_len);
      }
      sent += port.tx_burst(0, port::PacketView::of(burst));
    }
    REQUIRE(port.tx_pending(0) >= packets - 50);  // the index writes of publish=dma need a place, too
    CHECK(front->used() < packets);
  }
  ~Loaded() {
    stop = true;
    if (stepper.joinable()) stepper.join();
  }
  /// From now on the engine works, slowly, beside everything else.
  void let_engine_work() {
    stepper = std::thread([this, model = port.engine_model(0)] {
      while (!stop) {
        model->step(10);
        std::this_thread::yield();
      }
    });
  }
  void check_all_published() const {
    CHECK(front->used() == packets);
    bool whole = true;
    for (uint32_t i = 0; i < packets; ++i) whole &= front->has(i);
    CHECK(whole);
  }
  static port::PortConfig config(const std::string& path, port::Publish publish) {
    port::common_arena();  // made before the engine, which knows it from the start
    port::PortConfig config;
    config.name = "port";
    config.iface = path;
    config.ioats = {{0, "sw0"}};
    config.sw_mode = "stepped";
    config.publish = publish;
    return config;
  }
};

/// Each call makes one more look at the engine, as a caller does that has something to send.
std::optional<port::Event> event_of(EthVhost& port, const char* part) {
  port.tx_done_cleanup(0);
  for (const port::Event& event : port.reports().take_events())
    if (event.text.find(part) != std::string::npos) return event;
  return std::nullopt;
}

/// Waits for an event of the engine of queue 0.
void check_engine_event(EthVhost& port, const char* part, bool enabled, port::Subject::Level level) {
  std::optional<port::Event> event;
  REQUIRE(testing::eventually([&] { return (event = event_of(port, part)).has_value(); }));
  CHECK(event->kind == port::Subject::Kind::engine);
  CHECK(event->queue == port::tx_queue(0));
  CHECK(event->enabled == enabled);
  CHECK(event->level == level);
  const auto log = port.reports().take_log();
  CHECK(std::ranges::any_of(log, [&](const port::Event& line) { return line.text == event->text; }));
}

/// A packet of several pages goes to the guest of a port without an engine.
void passes_a_packet(EthVhost& port, Front& front) {
  const uint16_t before = front.used();
  virtio::Burst burst = virtio::Burst::allocate(*port::common_arena(), 1, 9000);
  burst.lengths[0] = 9000;
  burst.headers[0] = {};
  std::memset(burst.row(0), 0, 9000);
  REQUIRE(testing::eventually([&] { return port.tx_burst(0, port::PacketView::of(burst)) == 1; }));
  CHECK(front.used() == static_cast<uint16_t>(before + 3));
}

template <typename Ending>
void with_copies_in_flight(Ending&& ending) {
  for (auto publish : {port::Publish::cpu, port::Publish::dma}) {
    Loaded loaded(publish);
    loaded.let_engine_work();
    ending(loaded);
  }
}

}  // namespace

TEST_CASE("port: GET_VRING_BASE is answered when everything in flight is published") {
  with_copies_in_flight([](Loaded& loaded) {
    CHECK(loaded.front->frontend->get_vring_base(0) == packets);
    loaded.check_all_published();
    CHECK(loaded.port.tx_pending(0) == 0);
  });
}

TEST_CASE("port: disabling a queue waits for what is in flight") {
  with_copies_in_flight([](Loaded& loaded) {
    loaded.front->frontend->set_vring(Request::SET_VRING_ENABLE, 0, 0);
    loaded.check_all_published();
  });
}

TEST_CASE("port: a region is removed when no copy uses it any more") {
  with_copies_in_flight([](Loaded& loaded) {
    loaded.front->frontend->remove_mem_region(loaded.front->buffers());
    loaded.check_all_published();
    // The acknowledgement goes out before the port has told itself.
    CHECK(testing::eventually([&] { return loaded.port.info().regions.size() == 1; }));
  });
}

TEST_CASE("port: a front end that vanishes is let go after its copies, and the next one is served") {
  with_copies_in_flight([](Loaded& loaded) {
    loaded.front->frontend.reset();
    CHECK(loaded.port.wait_link(false, testing::watchdog_end()));
    loaded.check_all_published();  // the memory is still ours to look at
    Front next(loaded.path);
    CHECK(loaded.port.wait_link(true, testing::watchdog_end()));
  });
}

TEST_CASE("port: close() ends when the copies have") {
  with_copies_in_flight([](Loaded& loaded) {
    loaded.port.close();
    loaded.check_all_published();
    CHECK_THROWS_AS(loaded.port.rx_burst(0, 1), Error);
  });
}

TEST_CASE("port: each queue has a packet arena, and a port that is gone or was never made leaves none known") {
  size_t generation;
  const size_t before = port::registered_arenas(generation).size();
  port::PortConfig config;
  config.iface = "/nowhere";  // never started
  config.queues = 2;
  {
    const EthVhost port(config);
    CHECK(port.arena(0) != port.arena(1));
    CHECK(port::registered_arenas(generation).size() == before + 2);
  }
  CHECK(port::registered_arenas(generation).size() == before);
  config.ioats[0] = "ffff:ff:1f.7";  // no such device
  config.ioat_fallback = false;
  CHECK_THROWS_AS(EthVhost{config}, Error);
  CHECK(port::registered_arenas(generation).size() == before);
}

TEST_CASE("port: an engine that hangs in its reset is revoked, and the CPU makes its copies") {
  for (auto publish : {port::Publish::cpu, port::Publish::dma}) {
    Loaded loaded(publish);
    loaded.port.engine_model(0)->inject(dma::IoatModel::Fault::reset_hang);
    loaded.port.engine_model(0)->inject(dma::IoatModel::Fault::error, 100, 8);
    loaded.let_engine_work();
    REQUIRE(testing::eventually([&] { return loaded.port.tx_pending(0) == 0; }));
    loaded.check_all_published();
    const auto engines = loaded.port.info().engines;
    REQUIRE(engines.size() == 1);
    CHECK_FALSE(engines[0].active);
    CHECK(loaded.port.link_up());
  }
}

TEST_CASE("port: an engine whose copy never ends costs its own port the session, and nobody anything else") {
  const auto path = [](const char* name) { return format("/tmp/vhost_ioat_test_%s.%d", name, ::getpid()); };
  port::PortConfig config = Loaded::config(path("stuck"), port::Publish::cpu);
  config.sw_mode = "threaded";
  std::optional<EthVhost> port(config), neighbour;
  port->start();
  config.iface = path("neighbour");
  config.ioats.clear();
  neighbour.emplace(config);
  neighbour->start();
  Front front(path("stuck")), next_door(path("neighbour"));
  REQUIRE(port->wait_link(true, testing::watchdog_end()));
  REQUIRE(neighbour->wait_link(true, testing::watchdog_end()));

  virtio::Burst burst = virtio::Burst::allocate(*port::common_arena(), 1, 9000);
  burst.lengths[0] = 9000;
  burst.headers[0] = {};
  std::memset(burst.row(0), 0, 9000);
  const auto row = reinterpret_cast<uintptr_t>(burst.row(0));
  constexpr uintptr_t page = testing::BlockedPage::size;
  testing::BlockedPage blocked(burst.row(0) + ((row + 64 + page - 1) / page * page - row));
  REQUIRE(port->tx_burst(0, port::PacketView::of(burst)) == 1);
  REQUIRE(testing::eventually([&] { return blocked.touched(); }));
  SUBCASE("when the ladder has come to its end") {
    check_engine_event(*port, "could not be stopped", false, port::Subject::Level::error);
    REQUIRE(port->wait_link(false, testing::watchdog_end()));
    passes_a_packet(*neighbour, next_door);
    Front again(path("stuck"));  // the next front end is served, by the CPU
    REQUIRE(port->wait_link(true, testing::watchdog_end()));
    passes_a_packet(*port, again);
    port->close();
  }
  SUBCASE("when it is closed") {
    port->close();
    CHECK(port->info().engines.empty());
  }
  passes_a_packet(*neighbour, next_door);
  port.reset();
  neighbour.reset();
  blocked.release();  // only now
  CHECK(testing::eventually([] { return testing::threads() == testing::threads_at_start; }));
}

TEST_CASE("port: close() does not wait for the thread of an engine that was given up") {
  port::PortConfig config = Loaded::config(format("/tmp/vhost_ioat_test_port.%d", ::getpid()), port::Publish::cpu);
  config.sw_mode = "threaded";
  const auto called = std::make_shared<Latch>(), let_go = std::make_shared<Latch>();
  std::optional<EthVhost> port(config);
  {
    const auto model = port->engine_model(0);
    model->on_interrupt([called, let_go] {
      called->open();
      let_go->wait();
    });
    model->inject(dma::IoatModel::Fault::reset_hang);
    model->inject(dma::IoatModel::Fault::error, 0, 8);
    model->write16(dma::spec::CHANCTRL, dma::spec::chanctrl::error_completion | dma::spec::chanctrl::any_error_abort |
                                            dma::spec::chanctrl::error_interrupt);
  }
  port->start();
  Front front(config.iface);
  REQUIRE(port->wait_link(true, testing::watchdog_end()));
  virtio::Burst burst = virtio::Burst::allocate(*port::common_arena(), 1, packet_len);
  burst.lengths[0] = packet_len;
  burst.headers[0] = {};
  std::memset(burst.row(0), 0, packet_len);
  REQUIRE(port->tx_burst(0, port::PacketView::of(burst)) == 1);
  called->wait();  // the worker stands, without a copy at work
  check_engine_event(*port, "is given up", false, port::Subject::Level::error);
  CHECK(front.has(0));  // the CPU made the copy
  port->close();
  port.reset();
  let_go->open();
  CHECK(testing::eventually([] { return testing::threads() == testing::threads_at_start; }));
}

TEST_CASE("port: memory that an engine cannot reach is an event, and the CPU copies there") {
  EthVhost port(Loaded::config(format("/tmp/vhost_ioat_test_port.%d", ::getpid()), port::Publish::cpu));
  auto& reachable = port.engine_model(0)->memory();
  uint8_t somewhere;
  for (uint64_t iova = uint64_t{1} << 60; reachable.size() < dma::IovaMap::max_pieces; iova += 4096)
    reachable.map(iova, &somewhere, 1);
  port.start();
  Front front(format("/tmp/vhost_ioat_test_port.%d", ::getpid()));
  REQUIRE(port.wait_link(true, testing::watchdog_end()));
  check_engine_event(port, "sw0 cannot reach 1048576 bytes of guest memory", true, port::Subject::Level::warning);
  passes_a_packet(port, front);
}
