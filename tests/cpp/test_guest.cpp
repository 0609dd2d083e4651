// SPDX-License-Identifier: BSD-3-Clause
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "doctest/doctest.h"
#include "guest/guest.hpp"
#include "port/eth_vhost.hpp"
#include "virtio/net_header.hpp"
#include "watchdog.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::guest;
using namespace std::chrono_literals;
using virtio::Feature;
using virtio::FeatureSet;

namespace {

using Bytes = std::vector<uint8_t>;

std::string socket_path() {
  static int n = 0;
  return format("/tmp/vhost_ioat_test_guest.%d.%d", getpid(), n++);
}

const vhost_user::Patience patience{testing::watchdog, [] {}};

/// A port and a guest, linked.
struct Pair {
  explicit Pair(GuestConfig guest_config = {}, port::PortConfig port_config = {})
      : port(with_path(port_config, guest_config)), guest(guest_config) {
    port.start();
    connect();
  }
  static port::PortConfig with_path(port::PortConfig config, GuestConfig& guest) {
    config.name = "port";
    config.iface = guest.path = socket_path();
    config.queues = guest.queues;
    config.client = guest.server;
    return config;
  }
  void connect() {
    guest.connect(patience);
    REQUIRE(port.wait_link(true, testing::watchdog_end()));
  }

  bool send(const Bytes& packet, const virtio::NetHeader& header = {}, uint32_t queue = 0) {
    const Packet one{packet.data(), static_cast<uint32_t>(packet.size()), header};
    return guest.send(queue, {&one, 1}) == 1;
  }
  virtio::Burst receive(uint32_t queue = 0) {
    virtio::Burst burst;
    testing::eventually([&] { return (burst = guest.receive(queue, 32, *arena)).count != 0; });
    return burst;
  }

  port::EthVhost port;
  Guest guest;
  std::shared_ptr<memory::PacketArena> arena = memory::PacketArena::create(16 << 20);
};

/// Sends packets to the port, which returns them, until all are back.
void check_round_trip(Pair& pair, const std::vector<Bytes>& packets, uint32_t queue = 0) {
  testing::Watchdog dog;
  size_t sent = 0, back = 0;
  std::vector<std::pair<virtio::Burst, uint32_t>> at_port;  // and how many of it were sent on
  while (back < packets.size()) {
    REQUIRE(dog.watches());
    while (sent < packets.size() && pair.send(packets[sent], {}, queue)) ++sent;
    if (virtio::Burst burst = pair.port.rx_burst(queue, 32); burst.count != 0)
      at_port.emplace_back(std::move(burst), 0);
    while (!at_port.empty()) {
      auto& [burst, done] = at_port.front();
      port::PacketView view = port::PacketView::of(burst);
      view.data += size_t{done} * view.stride;
      view.lengths += done;
      view.headers += done;
      view.count -= done;
      done += pair.port.tx_burst(queue, view);
      if (done < burst.count) break;
      at_port.erase(at_port.begin());
    }
    const virtio::Burst burst = pair.guest.receive(queue, 32, *pair.arena);
    for (uint32_t i = 0; i < burst.count; ++i, ++back) {
      REQUIRE(burst.lengths[i] == packets[back].size());
      REQUIRE(std::memcmp(burst.row(i), packets[back].data(), burst.lengths[i]) == 0);
    }
  }
}

std::vector<Bytes> random_packets(size_t n, const std::vector<size_t>& sizes) {
  std::mt19937 random(17);
  std::vector<Bytes> packets;
  for (size_t i = 0; i < n; ++i) {
    Bytes packet(sizes[random() % sizes.size()]);
    for (auto& byte : packet) byte = static_cast<uint8_t>(random());
    packets.push_back(std::move(packet));
  }
  return packets;
}

}  // namespace

TEST_CASE("packets go round unaltered and in order, whatever was negotiated and however buffers are cut") {
  constexpr auto v1 = Feature::VERSION_1;
  constexpr auto mrg = Feature::MRG_RXBUF;
  const auto packets = random_packets(150, {1, 60, 1514, 9000});
  for (const FeatureSet features :
       {FeatureSet(), FeatureSet::of(Feature::ANY_LAYOUT), FeatureSet::of(mrg), FeatureSet::of(v1),
        FeatureSet::of(v1, mrg), FeatureSet::of(v1, Feature::IN_ORDER, Feature::PROTOCOL_FEATURES),
        FeatureSet::of(v1, mrg, Feature::EVENT_IDX, Feature::INDIRECT_DESC), default_features}) {
    for (const uint32_t segment : {0u, 500u}) {
      for (const bool server : {false, true}) {
        CAPTURE(features.mask());
        CAPTURE(segment);
        CAPTURE(server);
        Pair pair(
            {.server = server, .features = features, .rx_buf = features.has(mrg) ? 2048u : 9100u, .segment = segment});
        CHECK(pair.guest.features() == features);
        check_round_trip(pair, packets);
      }
    }
  }
}

TEST_CASE("the largest packets go round in small buffers and in large ones") {
  const auto packets = random_packets(20, {64, virtio::max_packet});
  Pair mergeable;
  check_round_trip(mergeable, packets);
  Pair large({.features = FeatureSet::of(Feature::VERSION_1), .rx_buf = 66000});
  check_round_trip(large, packets);
}

TEST_CASE("each queue pair is a way of its own") {
  Pair pair({.queues = 3, .ring_size = 64});
  const auto packets = random_packets(100, {60, 1514});
  for (const uint32_t queue : {2u, 0u, 1u}) check_round_trip(pair, packets, queue);
  CHECK(pair.guest.rings().size() == 6);
}

TEST_CASE("checksum and segmentation requests pass both ways") {
  Pair pair;
  Bytes frame(4000, 0x55);
  const virtio::NetHeader header{virtio::NET_HDR_F_NEEDS_CSUM, virtio::NET_HDR_GSO_TCPV4, 54, 1448, 34, 16};
  REQUIRE(pair.send(frame, header));
  const virtio::Burst at_port = pair.port.rx_burst(0, 1);
  REQUIRE(at_port.count == 1);
  CHECK(std::memcmp(&at_port.headers[0], &header, sizeof header) == 0);
  CHECK(pair.port.tx_burst(0, port::PacketView::of(at_port)) == 1);
  const virtio::Burst back = pair.receive();
  REQUIRE(back.count == 1);
  CHECK(std::memcmp(&back.headers[0], &header, sizeof header) == 0);
  CHECK(back.lengths[0] == 4000);
}

TEST_CASE("a guest asks for more queues than there are, and is told") {
  port::PortConfig config;
  config.name = "port";
  config.iface = socket_path();
  port::EthVhost port(config);
  port.start();
  Guest guest({.path = config.iface, .queues = 2});
  CHECK_THROWS_AS(guest.connect(patience), ConfigError);
  CHECK_FALSE(guest.connected());
}

TEST_CASE("a bad configuration is refused") {
  const std::string path = socket_path();
  CHECK_THROWS_AS(Guest({.path = ""}), ConfigError);
  CHECK_THROWS_AS(Guest({.path = path, .queues = 0}), ConfigError);
  CHECK_THROWS_AS(Guest({.path = path, .queues = 129}), ConfigError);
  CHECK_THROWS_AS(Guest({.path = path, .queues = UINT32_MAX / 2}), ConfigError);  // before memory is asked for
  CHECK_THROWS_AS(Guest({.path = path, .ring_size = 100}), ConfigError);
  CHECK_THROWS_AS(Guest({.path = path, .ring_size = 65536}), ConfigError);
  CHECK_THROWS_AS(Guest({.path = path, .rx_buf = 63}), ConfigError);
  CHECK_THROWS_AS(Guest({.path = path, .mtu = 67}), ConfigError);
  CHECK_THROWS_AS(Guest({.path = path, .features = FeatureSet(1ull << 34)}), ConfigError);
}

TEST_CASE("a guest that is not connected says so, and so does one whose back end left") {
  {
    Guest alone({.path = socket_path()});
    const Packet nothing{};
    CHECK_THROWS_AS(alone.send(0, {&nothing, 1}), Disconnected);
    CHECK_THROWS_AS(alone.connect({20ms, [] {}}), Disconnected);
  }
  Pair pair;
  CHECK(pair.guest.connected());
  CHECK_THROWS_AS(pair.connect(), Error);  // twice
  pair.port.stop();
  CHECK_THROWS_AS(pair.guest.receive(0, 32, *pair.arena), Disconnected);
  CHECK_FALSE(pair.guest.connected());
  CHECK_THROWS_AS(while (pair.send(Bytes(60))){}, Disconnected);
}

TEST_CASE("a guest comes back after it left in any way, or after the port did") {
  for (const bool server : {false, true}) {
    CAPTURE(server);
    Pair pair({.server = server});
    const auto packets = random_packets(40, {60, 3000});
    const auto leave_and_return = [&](auto leave) {
      leave();
      REQUIRE(pair.port.wait_link(false, testing::watchdog_end()));
      pair.connect();
      check_round_trip(pair, packets);
    };
    check_round_trip(pair, packets);
    leave_and_return([&] { pair.guest.disconnect(); });
    leave_and_return([&] { pair.guest.close(); });
    pair.port.stop();
    pair.port.start();
    pair.connect();
    check_round_trip(pair, packets);
  }
}

TEST_CASE("after an orderly leave the rings go on at their index, after another one they begin again") {
  Pair pair;
  for (int i = 0; i < 5; ++i) REQUIRE(pair.send(Bytes(60)));
  while (pair.port.rx_burst(0, 32).count != 0) {
  }
  pair.guest.disconnect();
  pair.connect();
  CHECK(pair.guest.rings()[1].avail_index == 5);
  check_round_trip(pair, random_packets(30, {60}));
  pair.guest.close();
  pair.connect();
  CHECK(pair.guest.rings()[1].avail_index == 0);
  check_round_trip(pair, random_packets(30, {60}));
}

TEST_CASE("ring indices go round") {
  Pair pair({.ring_size = 64});
  const Bytes packet(60, 1);
  const std::vector<Packet> burst(32, {packet.data(), 60, {}});
  uint32_t sent = 0, at_port = 0, back = 0;
  while (back < 70000) {
    sent += pair.guest.send(0, std::span(burst).first(std::min(32u, 70000 - sent)));
    const virtio::Burst received = pair.port.rx_burst(0, 32);
    at_port += received.count;
    if (received.count != 0) REQUIRE(pair.port.tx_burst(0, port::PacketView::of(received)) == received.count);
    back += pair.guest.receive(0, 32, *pair.arena).count;
  }
  CHECK(at_port == 70000);
}

TEST_CASE("a guest sleeps until a packet comes") {
  Pair pair;
  CHECK_FALSE(pair.guest.enable_interrupt(0));
  pollfd call{pair.guest.receive_fd(0), POLLIN, 0};
  CHECK(poll(&call, 1, 0) == 0);
  virtio::Burst burst = virtio::Burst::allocate(*pair.arena, 1, 60);
  std::memset(burst.data, 7, 60);
  burst.lengths[0] = 60;
  burst.headers[0] = {};
  REQUIRE(pair.port.tx_burst(0, port::PacketView::of(burst)) == 1);
  CHECK(poll(&call, 1, testing::watchdog_ms) == 1);
  CHECK(pair.receive().count == 1);
}

TEST_CASE("a guest that sleeps is told of a packet that an engine copied, even if nobody calls the port again") {
  for (const auto publish : {port::Publish::cpu, port::Publish::dma}) {
    port::PortConfig config;
    config.ioats[0] = "sw0";
    config.publish = publish;
    Pair pair({}, config);
    const virtio::Burst burst = virtio::Burst::allocate(*pair.port.arena(), 1, 9000);
    std::memset(burst.data, 7, 9000);
    burst.lengths[0] = 9000;
    burst.headers[0] = {};
    for (int n = 0; n < 50; ++n) {
      REQUIRE_FALSE(pair.guest.enable_interrupt(0));
      REQUIRE(pair.port.tx_burst(0, port::PacketView::of(burst)) == 1);
      pollfd call{pair.guest.receive_fd(0), POLLIN, 0};
      REQUIRE(poll(&call, 1, testing::watchdog_ms) == 1);
      REQUIRE(pair.receive().count == 1);
    }
    CHECK(pair.port.tx_pending(0) == 0);
  }
}

TEST_CASE("a forked child can neither use the guest nor disturb it") {
  Pair pair;
  const pid_t child = fork();
  if (child == 0) {
    int refusals = 0;
    for (const auto& use : {std::function<void()>([&] { pair.send(Bytes(60)); }),
                            std::function<void()>([&] { pair.guest.receive(0, 1, *pair.arena); }),
                            std::function<void()>([&] { pair.guest.disconnect(); }),
                            std::function<void()>([&] { pair.guest.connect(patience); })}) {
      try {
        use();
      } catch (const Error&) {
        ++refusals;
      }
    }
    pair.guest.close();
    _exit(refusals);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WEXITSTATUS(status) == 4);
  check_round_trip(pair, random_packets(10, {60}));
}
