// SPDX-License-Identifier: BSD-3-Clause
// Every packet that enters is delivered or counted, by name: sums over whole ports and guests.
#include <unistd.h>

#include <map>
#include <set>
#include <string>
#include <thread>

#include "base/error.hpp"
#include "doctest/doctest.h"
#include "guest/guest.hpp"
#include "port/arenas.hpp"
#include "port/eth_vhost.hpp"
#include "port/forward.hpp"
#include "watchdog.hpp"

using namespace vhost_ioat;
using namespace std::chrono_literals;
using port::EthVhost;
using port::Forwarder;
using port::ForwardMode;
using port::OnFull;
using virtio::Feature;
using Clock = std::chrono::steady_clock;

namespace {

template <typename Condition>
void until(Condition&& condition) {
  REQUIRE(testing::eventually(condition));
}

std::string fresh_path() {
  static int n = 0;
  return format("/tmp/vhost_ioat_test_accounting.%d.%d", ::getpid(), ++n);
}

/// A port and its guest.
struct Pair {
  std::string path = fresh_path();
  EthVhost port;
  guest::Guest guest;
  std::shared_ptr<memory::PacketArena> arena = memory::PacketArena::create(8 << 20);
  std::vector<uint8_t> bytes;
  uint64_t sent = 0, got = 0;  // by the guest

  explicit Pair(guest::GuestConfig guest_config = {}, port::PortConfig config = {})
      : port(with_path(config, path)), guest(with_path(guest_config, path)) {
    port.start();
    guest.connect({.timeout = std::chrono::milliseconds(testing::watchdog_ms)});
    until([&] { return port.link_up(); });
  }
  template <typename Config>
  static Config with_path(Config config, const std::string& path) {
    if constexpr (std::is_same_v<Config, guest::GuestConfig>) {
      config.path = path;
    } else {
      config.iface = path;
      config.name = "port";
    }
    return config;
  }
  /// How many of n packets the guest's ring takes.
  uint32_t send(uint32_t n, uint32_t len = 60, virtio::NetHeader header = {}) {
    bytes.assign(len, 2);
    const std::vector<guest::Packet> packets(n, guest::Packet{bytes.data(), len, header});
    const uint32_t taken = guest.send(0, packets);
    sent += taken;
    return taken;
  }
  void receive() {
    for (virtio::Burst burst; (burst = guest.receive(0, 256, *arena)).count != 0;) got += burst.count;
  }
  /// What the port's tx_burst takes of n packets.
  uint32_t transmit(uint32_t n, uint32_t len) {
    virtio::Burst burst = virtio::Burst::allocate(*port::common_arena(), n, len);
    for (uint32_t i = 0; i < n; ++i) {
      burst.lengths[i] = len;
      burst.headers[i] = {};
      std::memset(burst.row(i), 2, len);
    }
    return port.tx_burst(0, port::PacketView::of(burst));
  }
  uint64_t xstat(const std::string& name) const {
    for (const auto& [key, value] : port.xstats())
      if (key == name) return value;
    FAIL("no xstat " << name);
    return 0;
  }
  /// Received, or dropped for one of the reasons that have a name.
  uint64_t entered() const {
    const auto s = port.stats();
    CHECK(s.ierrors == xstat("rx_q0_empty_dropped") + xstat("rx_q0_oversize_dropped") + xstat("rx_q0_pieces_dropped") +
                           xstat("rx_q0_header_dropped") + xstat("rx_q0_gso_dropped") +
                           xstat("rx_q0_gso_no_csum_dropped"));
    return s.ipackets + s.ierrors + s.imissed + xstat("rx_q0_nombuf_dropped");
  }
};

void run(Forwarder& forwarder) { forwarder.run(Clock::time_point::min()); }  // 64 rounds

guest::GuestConfig deaf(uint32_t ring_size = 64) {
  guest::GuestConfig config;
  config.ring_size = ring_size;
  return config;
}

uint64_t dropped(const Forwarder& forwarder) { return forwarder.sides()[0].dropped() + forwarder.sides()[1].dropped(); }

}  // namespace

TEST_CASE("accounting: forward: on_full=drop: what the destination does not take is counted, to the packet") {
  Pair a, b(deaf());
  Forwarder forwarder(a.port, b.port, ForwardMode::io, 64);
  for (int i = 0; i < 100; ++i) {
    a.send(64);
    run(forwarder);
  }
  until([&] {
    run(forwarder);
    return a.entered() == a.sent;
  });
  b.receive();
  const auto& to_b = forwarder.sides()[1];
  CHECK(a.sent > 1000);
  CHECK(forwarder.sides()[0].received == a.sent);
  CHECK(to_b.dropped_full == a.sent - b.got);
  CHECK(to_b.dropped_full > 0);
  CHECK(to_b.dropped_down == 0);
  CHECK(to_b.sent == b.got);
  CHECK(b.port.stats().opackets == b.got);
}

TEST_CASE("accounting: forward: on_full=retry: nothing is dropped, the source's guest waits, one burst is kept") {
  Pair a(deaf()), b(deaf());
  Forwarder forwarder(a.port, b.port, ForwardMode::io, 32, OnFull::retry);
  uint32_t taken = 1;
  for (int i = 0; i < 50; ++i) {
    taken = a.send(16);
    run(forwarder);
  }
  CHECK(taken == 0);  // back-pressure
  const uint64_t inside = forwarder.sides()[0].received - forwarder.sides()[1].sent;
  CHECK(inside > 0);
  CHECK(inside <= 32);
  CHECK(dropped(forwarder) == 0);
  until([&] {
    run(forwarder);
    b.receive();
    return b.got == a.sent;
  });
  CHECK(dropped(forwarder) == 0);
}

TEST_CASE("accounting: forward: on_full=retry: ends where sending again is in vain: link down, port stopped, the end") {
  enum class How { guest_leaves, port_stops, port_closes, run_ends };
  for (const How how : {How::guest_leaves, How::port_stops, How::port_closes, How::run_ends}) {
    CAPTURE(static_cast<int>(how));
    Pair a, b(deaf());
    Forwarder forwarder(a.port, b.port, ForwardMode::io, 32, OnFull::retry);
    until([&] {
      a.send(16);
      run(forwarder);
      return forwarder.sides()[0].received > forwarder.sides()[1].sent;
    });
    for (int i = 0; i < 10; ++i) run(forwarder);
    CHECK(dropped(forwarder) == 0);
    switch (how) {
      case How::guest_leaves:
        b.guest.close();
        until([&] { return !b.port.link_up(); });
        run(forwarder);
        break;
      case How::port_stops:
        b.port.stop();
        run(forwarder);
        break;
      case How::port_closes:
        b.port.close();
        CHECK_THROWS_AS(run(forwarder), Error);
        forwarder.finish();
        break;
      case How::run_ends:
        forwarder.finish();
        break;
    }
    const auto& to_b = forwarder.sides()[1];
    CHECK(to_b.dropped() > 0);
    CHECK((how == How::run_ends ? to_b.dropped_full : to_b.dropped_down) == to_b.dropped());
    CHECK(forwarder.sides()[0].received == to_b.sent + to_b.dropped());
  }
}

TEST_CASE("accounting: forward: to a port whose link never was up: dropped, counted as that, with either policy") {
  for (const auto policy : {OnFull::drop, OnFull::retry}) {
    Pair a;
    port::PortConfig config;
    config.iface = fresh_path();
    EthVhost nobody(config);
    nobody.start();
    Forwarder forwarder(a.port, nobody, ForwardMode::io, 64, policy);
    until([&] {
      if (a.sent < 500) a.send(50);
      run(forwarder);
      return a.sent >= 500 && forwarder.sides()[0].received == a.sent;
    });
    CHECK(forwarder.sides()[1].dropped_down == a.sent);
    CHECK(forwarder.sides()[1].dropped_full == 0);
  }
}

TEST_CASE("accounting: forward: every mode, to another port and to itself") {
  for (const auto mode : {ForwardMode::io, ForwardMode::macswap, ForwardMode::icmpecho, ForwardMode::rxonly}) {
    for (const auto policy : {OnFull::drop, OnFull::retry}) {
      for (const bool itself : {false, true}) {
        CAPTURE(static_cast<int>(mode));
        Pair a(deaf()), b(deaf());
        Forwarder forwarder(a.port, itself ? a.port : b.port, mode, 16, policy);
        for (int i = 0; i < 30; ++i) {
          a.send(20, i % 2 ? 60 : 1514);
          run(forwarder);
          if (policy == OnFull::retry) a.receive(), b.receive();
        }
        until([&] {
          run(forwarder);
          if (policy == OnFull::retry) a.receive(), b.receive();
          return forwarder.sides()[0].received == a.sent;
        });
        forwarder.finish();
        a.receive();
        b.receive();
        uint64_t sent = 0, consumed = 0;
        for (const auto& side : forwarder.sides()) {
          sent += side.sent;
          consumed += side.consumed;
        }
        CHECK(a.sent == sent + consumed + dropped(forwarder));
        CHECK(a.got + b.got == sent);
        const bool kept = mode == ForwardMode::rxonly || mode == ForwardMode::icmpecho;
        CHECK(consumed == (kept ? a.sent : 0));
        if (itself) CHECK(forwarder.sides()[1].received + forwarder.sides()[1].sent == 0);
      }
    }
  }
  Pair a(deaf()), b(deaf());
  Forwarder forwarder(a.port, b.port, ForwardMode::txonly, 16);
  for (int i = 0; i < 20; ++i) run(forwarder);
  a.receive();
  b.receive();
  CHECK(forwarder.sides()[0].sent == a.got);
  CHECK(forwarder.sides()[1].sent == b.got);
  CHECK(dropped(forwarder) == 0);
}

TEST_CASE("accounting: forward: icmpecho answers requests, keeps the rest, and retries the answers in order") {
  Pair a(deaf());
  Forwarder forwarder(a.port, a.port, ForwardMode::icmpecho, 32, OnFull::retry);
  std::vector<uint8_t> arp(60, 0);
  arp[12] = 8, arp[13] = 6, arp[21] = 1;
  std::vector<uint8_t> other(60, 2);
  for (int i = 0; i < 200; ++i) {
    arp[59] = static_cast<uint8_t>(i);
    const guest::Packet packets[] = {{other.data(), 60, {}}, {arp.data(), 60, {}}};
    until([&] {
      run(forwarder);
      const uint32_t n = a.guest.send(0, std::span(packets).subspan(a.sent % 2));
      a.sent += n;
      if (n == 0 || a.sent % 2) {
        const virtio::Burst burst = a.guest.receive(0, 8, *a.arena);
        for (uint32_t k = 0; k < burst.count; ++k) CHECK(burst.row(k)[59] == static_cast<uint8_t>(a.got++));
      }
      return n != 0 && a.sent % 2 == 0;
    });
  }
  until([&] {
    run(forwarder);
    const virtio::Burst burst = a.guest.receive(0, 8, *a.arena);
    for (uint32_t k = 0; k < burst.count; ++k) CHECK(burst.row(k)[59] == static_cast<uint8_t>(a.got++));
    return a.got == 200;
  });
  CHECK(forwarder.sides()[0].consumed == 200);
  CHECK(dropped(forwarder) == 0);
}

TEST_CASE("accounting: rx_burst: good packets, and each kind of bad ones") {
  guest::GuestConfig config;
  config.features = guest::default_features.without(Feature::HOST_TSO6);
  Pair a(config);
  virtio::NetHeader header;
  header.flags = virtio::NET_HDR_F_NEEDS_CSUM;
  header.csum_start = 34;
  header.csum_offset = 16;
  header.gso_size = 1448;
  header.hdr_len = 54;
  for (int i = 0; i < 20; ++i) {
    a.send(5);
    for (const uint8_t type : std::initializer_list<uint8_t>{0, 1, 4, 5, 77}) {
      header.gso_type = type;
      header.flags = i % 2 ? virtio::NET_HDR_F_NEEDS_CSUM : uint8_t{0};
      a.send(1, 3000, header);
    }
    until([&] {
      a.port.rx_burst(0, 32);
      return a.entered() == a.sent;
    });
  }
  CHECK(a.port.stats().ierrors > 0);
  CHECK(a.xstat("rx_q0_gso_no_csum_dropped") > 0);
  CHECK(a.xstat("rx_q0_header_dropped") > 0);
  a.port.stats_reset();
  a.port.xstats_reset();
  CHECK(a.entered() == 0);
}

TEST_CASE("accounting: rx_burst: with the memory cut up: received, waiting, or dropped by name") {
  port::PortConfig config;
  config.mempool = 1 << 20;
  Pair a({}, config);
  std::vector<virtio::Burst> held;
  until([&] {  // all the memory, a packet at a time
    a.send(1);
    virtio::Burst burst = a.port.rx_burst(0, 1);
    if (burst.count != 0) held.push_back(std::move(burst));
    return a.port.stats().rx_nombuf != 0;
  });
  for (size_t i = 0; i < held.size(); i += 2) held[i] = {};
  const uint64_t waiting = a.sent - a.entered();
  CHECK(waiting > 0);
  a.send(1, 9000);
  a.send(1);
  until([&] {
    a.port.rx_burst(0, 32);
    return a.entered() == a.sent;
  });
  CHECK(a.xstat("rx_q0_nombuf_dropped") == 1);
  CHECK(a.port.info().mempools.at(0).largest_free < 16384);
  CHECK(a.port.info().mempools.at(0).in_use >= a.port.info().mempools.at(0).size / 4);
  until([&] {
    for (const auto& event : a.port.reports().take_events())
      if (event.text.find("cut up") != std::string::npos) {
        CHECK(event.kind == port::Subject::Kind::peer);
        CHECK(event.queue == port::rx_queue(0));
        CHECK(event.text.find("16384") != std::string::npos);
        return true;
      }
    return false;
  });
}

TEST_CASE("accounting: tx_burst: taken is published, dropped by name, or pending; and a short buffer is an event") {
  for (const bool engine : {false, true}) {
    port::PortConfig config;
    if (engine) config.ioats = {{0, "sw0"}};
    guest::GuestConfig small;
    small.features = guest::default_features.without(Feature::MRG_RXBUF);
    small.rx_buf = 2048;
    Pair a(small, config);
    uint64_t taken = 0;
    for (const uint32_t len : {60u, 1514u, 2036u, 2037u, 9000u, 1u, 66000u}) {
      for (int i = 0; i < 5; ++i) {
        taken += a.transmit(16, len);
        a.receive();
      }
    }
    until([&] {
      a.receive();
      return a.port.tx_pending(0) == 0;
    });
    a.receive();
    const auto s = a.port.stats();
    CHECK(taken == s.opackets + s.oerrors);
    CHECK(s.opackets == a.got);
    CHECK(s.oerrors == a.xstat("tx_q0_oversize_dropped") + a.xstat("tx_q0_gso_dropped"));
    CHECK(s.oerrors > 0);
  }
  guest::GuestConfig useless;
  useless.features = guest::default_features.without(Feature::MRG_RXBUF);
  useless.rx_buf = 64;
  Pair b(useless);
  CHECK(b.transmit(1, 60) == 0);
  CHECK(b.xstat("tx_q0_short_buffers") == 256);
  until([&] {
    for (const auto& event : b.port.reports().take_events())
      if (event.text.find("too short") != std::string::npos) {
        CHECK(event.queue == port::tx_queue(0));
        CHECK(event.text.find("64 bytes") != std::string::npos);
        CHECK(event.text.find("72") != std::string::npos);
        return true;
      }
    return false;
  });
}

TEST_CASE(
    "accounting: a ring that stops with copies in flight: they are published, and what was not taken is not lost") {
  for (const char* engine : {"", "sw0"}) {
    port::PortConfig config;
    if (*engine) config.ioats = {{0, engine}};
    Pair a({}, config);
    uint64_t taken = 0;
    for (int i = 0; i < 4; ++i) taken += a.transmit(32, 4000);
    a.guest.disconnect();
    until([&] { return !a.port.link_up(); });
    CHECK(a.port.tx_pending(0) == 0);
    CHECK(a.port.stats().opackets + a.port.stats().oerrors == taken);
    CHECK(a.xstat("tx_q0_engine_lost") == 0);
    CHECK(a.transmit(1, 60) == 0);
  }
}

TEST_CASE("accounting: no two counters have one name, and a reset reaches each") {
  Pair a;
  std::set<std::string> names;
  for (const auto& [name, value] : a.port.xstats()) CHECK(names.insert(name).second);
  for (const char* name : {"rx_q0_nombuf_dropped", "rx_q0_empty_dropped", "rx_q0_oversize_dropped",
                           "rx_q0_pieces_dropped", "rx_q0_header_dropped", "rx_q0_gso_dropped",
                           "rx_q0_gso_no_csum_dropped", "tx_q0_short_buffers", "tx_q0_engine_lost", "rarp_lost"})
    CHECK(names.contains(name));
  a.send(32);
  until([&] {
    a.port.rx_burst(0, 32);
    return a.entered() == a.sent;
  });
  a.port.xstats_reset();
  for (const auto& [name, value] : a.port.xstats())
    if (name.find("inflight") == std::string::npos) CHECK(value == 0);
}

TEST_CASE("accounting: forward: a policy is drop or retry, and nothing else") {
  CHECK(port::on_full("drop") == OnFull::drop);
  CHECK(port::on_full("retry") == OnFull::retry);
  for (const char* other : {"", "Drop", "wait", "retry "}) CHECK_THROWS_AS(port::on_full(other), ConfigError);
}
