// SPDX-License-Identifier: BSD-3-Clause
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "virtio/control_queue.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::virtio;

namespace {

using Bytes = std::vector<uint8_t>;

constexpr uint8_t untouched = 0xaa;

struct Bench {
  ControlQueue queue;
  Bytes reply{untouched, untouched};

  explicit Bench(FeatureSet features = supported_features, uint32_t pairs = 4) { queue.reset(features, pairs); }

  ControlQueue::Answer send(Bytes command) {
    reply.assign(2, untouched);
    const memory::Piece in{command.data(), command.size()}, out{reply.data(), reply.size()};
    return queue.handle({&in, 1}, {&out, 1});
  }
  /// The answer's byte; whatever it is, nothing after it is written.
  uint8_t ack(Bytes command) {
    const auto answer = send(std::move(command));
    CHECK(answer.acknowledged);
    CHECK(reply[0] == answer.ack);
    CHECK(reply[1] == untouched);
    return answer.ack;
  }
  std::string change(Bytes command) {
    auto answer = send(std::move(command));
    CHECK(answer.ack == ControlQueue::ok);
    return answer.change;
  }
  void refused(Bytes command) {
    const ControlState before = queue.state();
    CHECK(ack(std::move(command)) == ControlQueue::err);
    CHECK(queue.state().mac == before.mac);
    CHECK(queue.state().unicast == before.unicast);
    CHECK(queue.state().multicast == before.multicast);
    CHECK(queue.state().vlans == before.vlans);
    CHECK(queue.state().queue_pairs == before.queue_pairs);
  }
};

Bytes table(uint32_t unicast, uint32_t multicast, uint32_t unicast_there, uint32_t multicast_there) {
  Bytes bytes{1, 0};
  for (const auto& [said, there] : {std::pair(unicast, unicast_there), std::pair(multicast, multicast_there)}) {
    for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<uint8_t>(said >> shift));
    for (uint32_t i = 0; i < there; ++i) {
      for (uint32_t byte = 0; byte < 6; ++byte) bytes.push_back(static_cast<uint8_t>(i + byte));
    }
  }
  return bytes;
}

}  // namespace

TEST_CASE("control queue: receive modes are kept, and told when they change") {
  Bench bench;
  CHECK(bench.change({0, 0, 1}) == "promiscuous on");
  CHECK(bench.queue.state().promiscuous);
  CHECK(bench.change({0, 0, 1}) == "");
  CHECK(bench.change({0, 0, 0}) == "promiscuous off");
  CHECK(bench.change({0, 1, 1}) == "all multicast on");
  CHECK(bench.change({0, 2, 1}) == "all unicast on");
  CHECK(bench.change({0, 3, 1}) == "no multicast on");
  CHECK(bench.change({0, 4, 1}) == "no unicast on");
  CHECK(bench.change({0, 5, 7}) == "no broadcast on");
  CHECK(bench.queue.state().no_broadcast);
  bench.refused({0, 6, 1});
}

TEST_CASE("control queue: MAC address and filter") {
  Bench bench;
  CHECK(bench.change({1, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56}) == "MAC 52:54:00:12:34:56");
  CHECK(bench.change({1, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56}) == "");
  CHECK(bench.change(table(2, 3, 2, 3)) == "MAC filter of 2 unicast and 3 multicast addresses");
  CHECK(bench.queue.state().multicast[2] == MacAddress{2, 3, 4, 5, 6, 7});
  CHECK(bench.change(table(2, 3, 2, 3)) == "");
  CHECK(bench.change(table(0, 0, 0, 0)) == "MAC filter of 0 unicast and 0 multicast addresses");
  bench.refused({1, 2, 0, 0, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("control queue: a table is taken whole or not at all, and has a bound") {
  Bench bench;
  const uint32_t most = ControlQueue::max_macs;
  CHECK(bench.ack(table(most, most, most, most)) == ControlQueue::ok);
  CHECK(bench.queue.state().unicast.size() == most);
  bench.refused(table(most + 1, 0, most + 1, 0));
  bench.refused(table(0, most + 1, 0, most + 1));
  bench.refused(table(UINT32_MAX, 0, 3, 0));
  bench.refused(table(0x2aaaaaab, 0, 1, 0));  // times 6 wraps to 2
  bench.refused(table(2, 0, 1, 0));
  bench.refused(table(1, 2, 1, 1));
  bench.refused({1, 0});
  bench.refused({1, 0, 0, 0, 0, 0});  // the second table is missing
  Bytes longer = table(1, 1, 1, 1);
  longer.resize(longer.size() + 100);  // room to spare is no mistake
  CHECK(bench.ack(longer) == ControlQueue::ok);
}

TEST_CASE("control queue: VLANs from 0 to 4095") {
  Bench bench;
  CHECK(bench.change({2, 0, 0xff, 0x0f}) == "VLAN 4095 added");
  CHECK(bench.queue.state().vlans[4095]);
  CHECK(bench.change({2, 0, 0xff, 0x0f}) == "");
  CHECK(bench.change({2, 1, 0xff, 0x0f}) == "VLAN 4095 removed");
  CHECK(bench.change({2, 1, 0xff, 0x0f}) == "");
  bench.refused({2, 0, 0x00, 0x10});
  bench.refused({2, 0, 0xff, 0xff});
  bench.refused({2, 2, 1, 0});
}

TEST_CASE("control queue: queue pairs from 1 to what the port has") {
  Bench bench(supported_features, 4);
  CHECK(bench.change({4, 0, 4, 0}) == "queue pairs 4");
  CHECK(bench.change({4, 0, 4, 0}) == "");
  bench.refused({4, 0, 0, 0});
  bench.refused({4, 0, 5, 0});
  bench.refused({4, 0, 4, 1});
  bench.refused({4, 1, 1, 0});  // RSS
  CHECK(bench.change({4, 0, 1, 0}) == "queue pairs 1");
}

TEST_CASE("control queue: an announcement is acknowledged, guest offloads only when they were negotiated") {
  Bench bench;
  CHECK(bench.change({3, 0}) == "");
  bench.refused({3, 1});
  bench.refused({5, 0, 0, 0, 0, 0, 0, 0, 0, 0});

  const auto features = FeatureSet::of(Feature::CTRL_GUEST_OFFLOADS, Feature::GUEST_CSUM);
  Bench offloads(features);
  CHECK(offloads.change({5, 0, 2, 0, 0, 0, 0, 0, 0, 0}) == "guest offloads 0x2");
  offloads.refused({5, 0, 0x80, 0, 0, 0, 0, 0, 0, 0});  // GUEST_TSO4 was not
  offloads.refused({5, 1, 2, 0, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("control queue: what nobody knows, and commands cut short, are refused") {
  Bench bench;
  for (unsigned group = 6; group < 256; ++group)
    bench.refused({static_cast<uint8_t>(group), 0, 1, 0, 0, 0, 0, 0, 0, 0});
  const Bytes whole[] = {{0, 0, 1}, {1, 1, 1, 2, 3, 4, 5, 6}, {2, 0, 1, 0}, {3, 0}, {4, 0, 2, 0}, table(2, 2, 2, 2)};
  for (const Bytes& command : whole) {
    for (size_t length = 0; length < command.size(); ++length) {
      CAPTURE(length);
      bench.refused(Bytes(command.begin(), command.begin() + static_cast<std::ptrdiff_t>(length)));
    }
    CHECK(bench.ack(command) == ControlQueue::ok);
  }
}

TEST_CASE("control queue: a command may be cut into pieces of any length, empty ones too") {
  const Bytes command = table(5, 5, 5, 5);
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    Bench bench;
    Bytes bytes = command;
    std::vector<memory::Piece> pieces;
    for (size_t at = 0; at < bytes.size();) {
      const size_t n = std::min<size_t>(random() % 5, bytes.size() - at);
      pieces.push_back({bytes.data() + at, n});
      at += n;
    }
    uint8_t ack[2] = {untouched, untouched};
    const memory::Piece reply[] = {{nullptr, 0}, {ack, 1}, {ack + 1, 1}};
    const auto answer = bench.queue.handle(pieces, reply);
    REQUIRE(answer.ack == ControlQueue::ok);
    CHECK(ack[0] == ControlQueue::ok);
    CHECK(ack[1] == untouched);
    CHECK(bench.queue.state().unicast.size() == 5);
  }
}

TEST_CASE("control queue: without room for the answer nothing is done") {
  Bench bench;
  Bytes command{0, 0, 1};
  const memory::Piece in{command.data(), command.size()}, empty{nullptr, 0};
  CHECK_FALSE(bench.queue.handle({&in, 1}, {}).acknowledged);
  CHECK_FALSE(bench.queue.handle({&in, 1}, {&empty, 1}).acknowledged);
  CHECK_FALSE(bench.queue.state().promiscuous);
}

TEST_CASE("control queue: only as much of a command is read as the longest one has") {
  Bench bench;
  Bytes command{0, 0, 1};
  // 2^40 bytes, of which the first are there; a copy of all would leave the block.
  const std::vector<uint8_t> rest(ControlQueue::max_command);
  const memory::Piece in[] = {{command.data(), command.size()}, {const_cast<uint8_t*>(rest.data()), uint64_t{1} << 40}};
  uint8_t ack = untouched;
  const memory::Piece out{&ack, 1};
  CHECK(bench.queue.handle(in, {&out, 1}).ack == ControlQueue::ok);
}

TEST_CASE("control queue: a reset forgets what the driver of before asked for") {
  Bench bench;
  bench.ack({0, 0, 1});
  bench.ack({4, 0, 3, 0});
  bench.ack({2, 0, 7, 0});
  bench.queue.reset(supported_features, 4);
  CHECK_FALSE(bench.queue.state().promiscuous);
  CHECK(bench.queue.state().queue_pairs == 1);
  CHECK(bench.queue.state().vlans.none());
}
