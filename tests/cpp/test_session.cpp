// SPDX-License-Identifier: BSD-3-Clause
#include <cstring>
#include <iterator>
#include <random>
#include <string>

#include "doctest/doctest.h"
#include "open_fds.hpp"
#include "session_bench.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::testing;
using virtio::Feature;
using virtio::FeatureSet;
using Next = BackendSession::Next;

TEST_CASE("session: says what it offers, also before any feature is set") {
  SessionBench bench;
  CHECK(bench.answer(Request::GET_FEATURES) == virtio::supported_features.mask());
  CHECK(bench.answer(Request::GET_PROTOCOL_FEATURES) == 0x1a43d);  // MQ .. STATUS: 0 2 3 4 5 10 13 15 16
  bench.negotiate();
  CHECK(bench.answer(Request::GET_QUEUE_NUM) == 2);
  CHECK(bench.answer(Request::GET_MAX_MEM_SLOTS) == 509);
  CHECK(bench.answer(Request::GET_STATUS) == 0);
  CHECK_FALSE(bench.session.state().owned);
  bench.done(Request::SET_OWNER);
  bench.done(Request::SET_OWNER);  // some front ends repeat themselves
  CHECK(bench.session.state().owned);
}

TEST_CASE("session: acknowledges only when REPLY_ACK was negotiated and a reply is wanted") {
  SessionBench bench;
  REQUIRE(bench.ask(Message(Request::SET_OWNER)) == Next::proceed);
  CHECK_FALSE(bench.reply);
  // From the message on that negotiates it.
  REQUIRE(bench.ask(Message(Request::SET_PROTOCOL_FEATURES, protocol::reply_ack)) == Next::proceed);
  CHECK(bench.replied<uint64_t>() == 0);
  bench.done(Request::SET_OWNER);
  CHECK_FALSE(bench.reply);
  REQUIRE(bench.ask(Message(Request::SET_OWNER)) == Next::proceed);
  CHECK(bench.replied<uint64_t>() == 0);
  // A message with a reply of its own gets that one and no other.
  REQUIRE(bench.ask(Message(Request::GET_FEATURES)) == Next::proceed);
  CHECK(bench.replied<uint64_t>() == virtio::supported_features.mask());
}

TEST_CASE("session: what cannot be done is told to who asked, and ends the connection with others") {
  SessionBench bench;
  bench.negotiate(protocol::reply_ack);
  bench.refused(Message(Request::SET_FEATURES, uint64_t{1} << 34), "0x400000000 were not offered");
  CHECK(bench.answer(Request::GET_FEATURES) != 0);  // and life goes on
  CHECK(bench.send(Request::SET_FEATURES, uint64_t{1} << 34) == Next::close);

  SessionBench never_negotiated;
  CHECK(never_negotiated.ask(Message(Request::SET_FEATURES, uint64_t{1} << 34)) == Next::close);
  CHECK_FALSE(never_negotiated.reply);
}

TEST_CASE("session: a malformed message ends the connection whatever was negotiated") {
  SessionBench bench;
  bench.negotiate();
  Message shorter(Request::SET_FEATURES, uint64_t{0});
  shorter.size = 7;
  CHECK(bench.ask(std::move(shorter)) == Next::close);
  CHECK(bench.session.error() == "SET_FEATURES has a payload of 7 bytes, but needs 8");
  CHECK_FALSE(bench.reply);
}

TEST_CASE("session: messages that were not offered are refused and their fds closed") {
  const size_t fds = open_fds_at_rest();
  SessionBench bench;
  bench.negotiate();
  for (uint32_t id : {0u, 6u, 7u, 22u, 23u, 24u, 31u, 32u, 33u, 35u, 41u, 42u, 44u, 63u, 0xffffffffu}) {
    Message message;
    message.request = id;
    message.size = 24;
    message.fds.push_back(make_eventfd());
    bench.refused(std::move(message), message_name(id) + ": this back end does not offer it");
    Message silent;
    silent.request = id;
    CHECK(bench.send(std::move(silent)) == Next::close);
  }
  CHECK(open_fds() == fds);
}

TEST_CASE("session: messages of a protocol feature need that feature") {
  SessionBench bench;
  bench.negotiate(protocol::reply_ack);
  CHECK(bench.send(Request::GET_QUEUE_NUM) == Next::close);
  CHECK(bench.send(Request::GET_MAX_MEM_SLOTS) == Next::close);
  bench.refused(Message(Request::NET_SET_MTU, uint64_t{1500}), "needs protocol feature 0x10");
  bench.refused(Message(Request::SEND_RARP, uint64_t{0}), "needs protocol feature 0x4");
  bench.refused(Message(Request::RESET_DEVICE), "needs protocol feature");
  bench.refused(Message(Request::SET_STATUS, uint64_t{0}), "needs protocol feature");
  bench.refused(Message(Request::SET_PROTOCOL_FEATURES, uint64_t{2}), "0x2 were not offered");
}

TEST_CASE("session: without bit 30 every ring is enabled at once, with it SET_VRING_ENABLE does it") {
  SessionBench old_style;
  old_style.done(Request::SET_FEATURES, FeatureSet::of(Feature::VERSION_1).mask());
  for (uint32_t i = 0; i < 4; ++i) CHECK(old_style.ring(i).enabled);

  SessionBench bench;
  const uint64_t features = FeatureSet::of(Feature::VERSION_1, Feature::PROTOCOL_FEATURES).mask();
  bench.done(Request::SET_VRING_ENABLE, wire::VringState{1, 1});  // QEMU enables before it sets features
  bench.done(Request::SET_FEATURES, features);
  CHECK_FALSE(bench.ring(0).enabled);
  CHECK(bench.ring(1).enabled);
  bench.done(Request::SET_VRING_ENABLE, wire::VringState{0, 1});
  bench.done(Request::SET_VRING_ENABLE, wire::VringState{1, 0});
  CHECK(bench.ring(0).enabled);
  CHECK_FALSE(bench.ring(1).enabled);
  CHECK(bench.session.state().features.mask() == features);
}

TEST_CASE("session: features may be repeated but not changed while a ring runs") {
  SessionBench bench;
  bench.negotiate();
  const uint64_t features = FeatureSet::of(Feature::VERSION_1, Feature::PROTOCOL_FEATURES).mask();
  bench.done(Request::SET_FEATURES, features);
  bench.done(Request::SET_VRING_KICK, uint64_t{wire::vring_fd_none | 0});
  bench.done(Request::SET_FEATURES, features);  // QEMU, for its second queue pair
  bench.refused(Message(Request::SET_FEATURES, features | 1), "while rings run");
  CHECK(bench.session.state().features.mask() == features);
  bench.done(Request::GET_VRING_BASE, wire::VringState{0, 0});
  bench.done(Request::SET_FEATURES, features | 1);
}

TEST_CASE("session: MTU and status are stored within their limits") {
  SessionBench bench;
  bench.negotiate();
  for (uint64_t mtu : {68u, 1500u, 9000u, 65535u}) {
    bench.done(Request::NET_SET_MTU, mtu);
    CHECK(bench.session.state().mtu == mtu);
  }
  for (uint64_t mtu : {uint64_t{0}, uint64_t{67}, uint64_t{65536}, UINT64_MAX}) {
    bench.refused(Message(Request::NET_SET_MTU, mtu), "MTU");
  }
  CHECK(bench.session.state().mtu == 65535);
  bench.done(Request::SET_STATUS, uint64_t{0xf});
  CHECK(bench.answer(Request::GET_STATUS) == 0xf);
  bench.refused(Message(Request::SET_STATUS, uint64_t{256}), "more than 8 bits");
}

TEST_CASE("session: SEND_RARP reaches the device with its address") {
  SessionBench bench;
  bench.negotiate();
  const uint8_t body[8] = {0x52, 0x54, 0, 1, 2, 3, 0xff, 0xff};
  bench.done(Request::SEND_RARP, body);
  CHECK(bench.device.announced == std::vector<uint8_t>(body, body + 6));
}

TEST_CASE("session: the back-end channel is kept, one at a time, and closed with the session") {
  const size_t fds = open_fds_at_rest();
  {
    SessionBench bench;
    bench.negotiate();
    for (int i = 0; i < 3; ++i) {
      Message message(Request::SET_BACKEND_REQ_FD);
      message.fds.push_back(make_eventfd());
      REQUIRE(bench.send(std::move(message)) == Next::proceed);
      CHECK(open_fds() == fds + 1);
    }
  }
  CHECK(open_fds() == fds);
}

TEST_CASE("session: RESET_DEVICE stops and forgets the rings, but keeps what belongs to the connection") {
  SessionBench bench;
  GuestFile file(0x10000);
  bench.negotiate();
  bench.done(Request::SET_OWNER);
  REQUIRE(bench.send(file.table({{0, 0x10000, 0x7000, 0}})) == Next::proceed);
  bench.done(Request::SET_FEATURES, FeatureSet::of(Feature::VERSION_1, Feature::PROTOCOL_FEATURES).mask());
  bench.done(Request::SET_VRING_NUM, wire::VringState{0, 256});
  bench.done(Request::SET_VRING_ENABLE, wire::VringState{0, 1});
  REQUIRE(bench.send(Request::SET_VRING_ERR, uint64_t{0}, make_eventfd()) == Next::proceed);
  REQUIRE(bench.send(Request::SET_VRING_KICK, uint64_t{0}, make_eventfd()) == Next::proceed);
  bench.done(Request::SET_STATUS, uint64_t{0xf});
  bench.done(Request::RESET_DEVICE);
  CHECK_FALSE(bench.ring(0).started);
  CHECK_FALSE(bench.ring(0).enabled);
  CHECK_FALSE(bench.ring(0).kick);
  CHECK(bench.ring(0).size == 0);
  CHECK(bench.ring(0).err);
  const SessionState& state = bench.session.state();
  CHECK(state.features == FeatureSet());
  CHECK(state.status == 0);
  CHECK(state.owned);
  CHECK(state.protocol_features == protocol::supported);
  CHECK(state.memory->regions().size() == 1);
}

TEST_CASE("session: RESET_OWNER disables all rings") {
  SessionBench bench;
  bench.done(Request::SET_OWNER);
  bench.done(Request::SET_VRING_ENABLE, wire::VringState{2, 1});
  bench.done(Request::RESET_OWNER);
  CHECK_FALSE(bench.ring(2).enabled);
  CHECK_FALSE(bench.session.state().owned);
}

TEST_CASE("session: while the device holds rings nothing has changed yet, and the reply waits") {
  SessionBench bench;
  bench.negotiate();
  bench.done(Request::SET_VRING_KICK, wire::vring_fd_none);
  bench.device.holds_at_once = false;
  bench.device.bases[0] = 0;
  REQUIRE(bench.ask(Message(Request::SET_VRING_NUM, wire::VringState{0, 64})) == Next::suspended);
  CHECK_FALSE(bench.reply);
  CHECK(bench.ring(0).size == 0);
  REQUIRE(bench.session.resume(bench.reply) == Next::proceed);
  CHECK(bench.replied<uint64_t>() == 0);
  CHECK(bench.ring(0).size == 64);

  bench.device.bases[0] = 65535;
  REQUIRE(bench.send(Request::GET_VRING_BASE, wire::VringState{0, 0}) == Next::suspended);
  CHECK(bench.ring(0).started);
  bench.device.bases[0] = 2;  // what was in flight went out meanwhile
  REQUIRE(bench.session.resume(bench.reply) == Next::proceed);
  CHECK(bench.replied<wire::VringState>().num == 2);
}

TEST_CASE("session: stop holds and forgets everything, at once or when the device is done") {
  const size_t fds = open_fds_at_rest();
  GuestFile file(0x10000);
  for (bool at_once : {true, false}) {
    SessionBench bench;
    REQUIRE(bench.send(file.table({{0, 0x10000, 0x7000, 0}})) == Next::proceed);
    REQUIRE(bench.send(Request::SET_VRING_KICK, uint64_t{3}, make_eventfd()) == Next::proceed);
    bench.device.holds_at_once = at_once;
    if (at_once) {
      CHECK(bench.session.stop() == Next::close);
    } else {
      CHECK(bench.session.stop() == Next::suspended);
      CHECK(bench.ring(3).started);
      CHECK(bench.session.resume(bench.reply) == Next::close);
    }
    CHECK(bench.device.released.back() == RingSet(0x1f));
    CHECK_FALSE(bench.ring(3).started);
    CHECK_FALSE(bench.device.memory);
    CHECK(open_fds() == fds + 1);
  }
}

TEST_CASE("session: a change that cannot be prepared is refused, and nothing has changed or was held") {
  SessionBench bench;
  bench.negotiate();
  bench.done(Request::SET_VRING_NUM, wire::VringState{1, 256});
  bench.done(Request::SET_VRING_KICK, wire::vring_fd_none | 1);
  GuestFile file(0x2000);
  bench.device.fails_to_prepare = true;
  bench.refused(Message(Request::SET_VRING_NUM, wire::VringState{1, 64}), "bad_alloc");
  bench.refused(file.table({{0, 0x1000, 0x70000, 0}}), "bad_alloc");
  bench.refused(Message(Request::SET_VRING_ENABLE, wire::VringState{1, 1}), "bad_alloc");
  CHECK(bench.ring(1).size == 256);
  CHECK_FALSE(bench.ring(1).enabled);
  CHECK(bench.session.state().memory->regions().empty());
  bench.device.fails_to_prepare = false;
  bench.done(Request::SET_VRING_NUM, wire::VringState{1, 64});
  CHECK(bench.ring(1).size == 64);
}

TEST_CASE("session: the end of a session does not wait for memory that is still being mapped") {
  SessionBench bench;
  GuestFile file(0x2000);
  std::optional<Message> reply;
  REQUIRE(bench.session.receive(file.table({{0, 0x1000, 0x70000, 0}}), reply) == Next::suspended);
  const std::shared_ptr<MemoryWork> work = bench.session.work();
  REQUIRE(work);
  CHECK(bench.session.stop() == Next::close);
  work->run(nullptr);  // ends later, and has all it needs
  CHECK(bench.session.state().memory->regions().empty());
}

TEST_CASE("session: stop while suspended finishes the request first and answers nothing") {
  SessionBench bench;
  bench.negotiate();
  bench.done(Request::SET_VRING_KICK, wire::vring_fd_none | 1);
  bench.device.holds_at_once = false;
  REQUIRE(bench.send(Request::GET_VRING_BASE, wire::VringState{1, 0}) == Next::suspended);
  CHECK(bench.session.stop() == Next::suspended);
  CHECK(bench.session.resume(bench.reply) == Next::suspended);  // now for all rings
  CHECK(bench.device.held == RingSet(0x1f));
  CHECK(bench.session.resume(bench.reply) == Next::close);
  CHECK_FALSE(bench.reply);
}

TEST_CASE("session: any messages in any order leave rings released, fds owned once, and limits kept") {
  const size_t fds = open_fds_at_rest();
  GuestFile file(0x20000);
  std::mt19937 random(2);
  const auto one_of = [&](auto... values) {
    const uint64_t all[] = {static_cast<uint64_t>(values)...};
    return all[random() % std::size(all)];
  };
  size_t refused = 0, closed = 0, suspended = 0;
  for (int run = 0; run < 300; ++run) {
    SessionBench bench({.queue_pairs = 2, .max_guest_mem = 0x20000});
    bench.negotiate();
    for (int step = 0; step < 100; ++step) {
      bench.device.holds_at_once = random() % 4 != 0;
      const MessageType& type = message_types[random() % std::size(message_types)];
      Message message(type.id);
      message.size = type.size;
      for (uint32_t at = 0; at < message.size; at += 8) {  // words that mean something somewhere
        const uint64_t word = one_of(0, 1, 2, 0x100, 0x101, 0x1000, 0x10000, uint64_t{1} << 32, uint64_t{256} << 32 | 1,
                                     virtio::supported_features.mask(), random());
        std::memcpy(message.payload.data() + at, &word, 8);
      }
      for (size_t n = random() % (type.max_fds + 1u); n > 0; --n) {
        message.fds.push_back(random() % 2 ? make_eventfd() : file.fd());
      }
      if (message.is(Request::SET_MEM_TABLE)) {
        message = file.table({{one_of(0, 0x1000), 0x1000, one_of(0, 0x70000), 0}, {0x4000, 0x2000, 0x90000, 0x1000}});
      }
      Next next = random() % 8 ? bench.ask(std::move(message)) : bench.send(std::move(message));
      if (next == Next::suspended) {
        ++suspended;
        if (random() % 8 == 0) break;  // the front end leaves meanwhile
        next = bench.session.resume(bench.reply);
      }
      REQUIRE(bench.device.held.none());
      if (next == Next::close) {
        ++closed;
        break;
      }
      refused += !bench.session.error().empty();
      uint64_t total = 0;
      for (const memory::Region& region : bench.session.state().memory->regions()) total += region.size;
      REQUIRE(total <= 0x20000);
    }
    Next next = bench.session.stop();
    while (next == Next::suspended) next = bench.session.resume(bench.reply);
    REQUIRE(next == Next::close);
    REQUIRE(bench.device.held.none());
    REQUIRE_FALSE(bench.device.memory);
    for (uint32_t i = 0; i < 4; ++i) REQUIRE_FALSE((bench.ring(i).started || bench.ring(i).call));
  }
  CHECK(refused > 100);
  CHECK(closed > 100);
  CHECK(suspended > 20);
  CHECK(open_fds() == fds + 1);  // of `file`
}
