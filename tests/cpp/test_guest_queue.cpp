// SPDX-License-Identifier: BSD-3-Clause
#include <array>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "doctest/doctest.h"
#include "guest/queue.hpp"
#include "memory/guest_mapping.hpp"
#include "virtio/net_header.hpp"
#include "virtio/split_ring.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::guest;
using virtio::Feature;
using virtio::FeatureSet;

namespace {

using Bytes = std::vector<uint8_t>;
constexpr uint64_t gpa = 0x40000000;

Bytes numbers(size_t n, uint8_t first) {
  Bytes bytes(n);
  std::iota(bytes.begin(), bytes.end(), first);
  return bytes;
}

/// A queue of the guest in memory of its own, and the device at its other end.
template <typename GuestQueue>
struct Bench {
  explicit Bench(QueueShape shape)
      : size(shape.ring_size),
        memory(memory::GuestMapping::anonymous(shape.bytes())),
        space(std::make_shared<memory::RegionTable>(
            std::vector<memory::Region>{{gpa, memory->size(), gpa, memory->data(), memory}})),
        queue(shape, memory->data(), gpa) {
    device.start(queue.addresses(), shape.ring_size, shape.features, shape.start);
  }

  struct Piece {
    uint8_t* host;
    uint32_t len;
  };
  /// The next chain's pieces; its head goes to `head`.
  std::vector<Piece> next(bool writable) {
    REQUIRE(device.available() != 0);
    head = device.head(0);
    std::vector<Piece> pieces;
    const bool walked = device.walk(head, space, [&](uint64_t addr, uint32_t len, bool w) {
      CHECK(w == writable);
      pieces.push_back({space.translate(addr, len), len});
      return true;
    });
    REQUIRE(walked);
    device.consume(1);
    return pieces;
  }
  void give_back(uint32_t written) {
    device.push_used(head, written);
    device.publish(device.filled());
  }
  Bytes read() {
    Bytes all;
    for (const Piece& piece : next(false)) all.insert(all.end(), piece.host, piece.host + piece.len);
    give_back(0);
    return all;
  }
  /// Fills the next buffer as a device does: with the header, num_buffers and data, over all pieces.
  void write(const Bytes& content) {
    size_t at = 0;
    for (const Piece& piece : next(true)) {
      const size_t n = std::min<size_t>(piece.len, content.size() - at);
      std::memcpy(piece.host, content.data() + at, n);
      at += n;
    }
    REQUIRE(at == content.size());
    give_back(static_cast<uint32_t>(at));
  }

  uint32_t size;
  std::shared_ptr<memory::GuestMapping> memory;
  memory::AddressSpace space;
  GuestQueue queue;
  virtio::SplitRing device;
  uint16_t head = 0;
  std::shared_ptr<memory::PacketArena> arena = memory::PacketArena::create(1 << 20);
};

const FeatureSet modern = FeatureSet::of(Feature::VERSION_1);
const FeatureSet mergeable = FeatureSet::of(Feature::VERSION_1, Feature::MRG_RXBUF);

Bytes with_header(const Bytes& packet, uint16_t num_buffers) {
  Bytes all(12 + packet.size());
  std::memcpy(&all[10], &num_buffers, 2);
  std::ranges::copy(packet, all.begin() + 12);
  return all;
}

std::string protocol_error(const std::function<void()>& call) {
  try {
    call();
  } catch (const ProtocolError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a packet leaves the guest behind its header, in as many descriptors as were asked for") {
  struct Case {
    FeatureSet features;
    bool header_apart;
    uint32_t segment;
    size_t pieces;
  };
  for (const Case& c : {Case{modern, false, 0, 1}, Case{modern, true, 0, 2}, Case{modern, true, 100, 6},
                        Case{FeatureSet(), true, 0, 2}, Case{modern.with(Feature::INDIRECT_DESC), true, 100, 6},
                        Case{modern, true, 1, 8}}) {  // never longer than the ring
    CAPTURE(c.pieces);
    Bench<SendQueue> bench({8, c.features, 2048, c.header_apart, c.segment});
    const Bytes data = numbers(500, 1);
    const Packet packet{data.data(), 500, {1, 0, 0, 0, 34, 16}};
    CHECK(bench.queue.send({&packet, 1}) == 1);
    const bool in_table = c.features.has(Feature::INDIRECT_DESC);
    CHECK(bench.queue.state().free_descriptors == (in_table ? 7 : 8 - c.pieces));
    const auto pieces = bench.next(false);
    CHECK(pieces.size() == c.pieces);
    Bytes seen;
    for (const auto& piece : pieces) seen.insert(seen.end(), piece.host, piece.host + piece.len);
    const uint32_t header_size = c.features.net_header_size();
    REQUIRE(seen.size() == header_size + 500);
    CHECK(std::memcmp(seen.data(), &packet.header, sizeof packet.header) == 0);
    CHECK(Bytes(seen.begin() + header_size, seen.end()) == data);
  }
}

TEST_CASE("a ring is broken from the moment on at which the device says so by the err eventfd") {
  Bench<SendQueue> bench({8, modern, 2048, false, 0});
  CHECK_FALSE(bench.queue.state().broken);
  eventfd_signal(bench.queue.err_fd());
  CHECK(bench.queue.state().broken);
  CHECK(bench.queue.state().broken);
}

TEST_CASE("a full ring takes no more packets, and takes them again once the device has read some") {
  Bench<SendQueue> bench({4, modern, 2048, false, 0});
  const Bytes data = numbers(60, 3);
  const std::vector<Packet> six(6, {data.data(), 60, {}});
  CHECK(bench.queue.send(six) == 4);
  CHECK(bench.queue.send(six) == 0);
  bench.read();
  bench.read();
  CHECK(bench.queue.send(six) == 2);
  const Bytes long_packet(virtio::max_packet + 1);
  const Packet too_long{long_packet.data(), virtio::max_packet + 1, {}};
  CHECK_THROWS_AS(bench.queue.send({&too_long, 1}), ConfigError);
  CHECK(bench.queue.state().packets == 6);
}

TEST_CASE("packets reach the guest whole, from one buffer or from several") {
  for (const uint32_t segment : {0u, 40u}) {
    Bench<ReceiveQueue> bench({16, mergeable.with(Feature::INDIRECT_DESC), 128, segment != 0, segment});
    const Bytes small = numbers(20, 1), first = numbers(116, 50), second = numbers(128, 99), third = numbers(7, 7);
    bench.write(with_header(small, 1));
    bench.write(with_header(first, 3));
    bench.write(second);
    CHECK(bench.queue.receive(*bench.arena, 1).count == 1);   // and not more than asked for
    CHECK(bench.queue.receive(*bench.arena, 32).count == 0);  // the last buffer has not come
    bench.write(third);
    bench.write(with_header(small, 1));
    const virtio::Burst burst = bench.queue.receive(*bench.arena, 32);
    REQUIRE(burst.count == 2);
    Bytes whole = first;
    whole.insert(whole.end(), second.begin(), second.end());
    whole.insert(whole.end(), third.begin(), third.end());
    CHECK(Bytes(burst.row(0), burst.row(0) + burst.lengths[0]) == whole);
    CHECK(Bytes(burst.row(1), burst.row(1) + burst.lengths[1]) == small);
    CHECK(bench.queue.state().in_flight == 16);  // all buffers are the device's again
    CHECK(bench.queue.state().packets == 3);
  }
}

TEST_CASE("the offload header comes with the packet") {
  Bench<ReceiveQueue> bench({4, modern, 2048, false, 0});
  const virtio::NetHeader header{1, 1, 54, 1448, 34, 16};
  Bytes content = with_header(numbers(100, 0), 0);  // num_buffers means nothing without MRG_RXBUF
  std::memcpy(content.data(), &header, sizeof header);
  bench.write(content);
  const virtio::Burst burst = bench.queue.receive(*bench.arena, 1);
  REQUIRE(burst.count == 1);
  CHECK(std::memcmp(&burst.headers[0], &header, sizeof header) == 0);
}

TEST_CASE("an exhausted arena costs no packet") {
  Bench<ReceiveQueue> bench({4, modern, 2048, false, 0});
  bench.write(with_header(numbers(100, 0), 1));
  const memory::Block all = bench.arena->allocate(bench.arena->size());
  CHECK(bench.queue.receive(*bench.arena, 1).count == 0);
  auto other = memory::PacketArena::create(1 << 20);
  CHECK(bench.queue.receive(*other, 1).count == 1);
}

TEST_CASE("a burst ends before it gets larger than a burst may be") {
  Bench<ReceiveQueue> bench({64, modern, 65600, false, 0});
  auto arena = memory::PacketArena::create(8 << 20);
  for (int i = 0; i < 20; ++i) bench.write(with_header(numbers(65553, static_cast<uint8_t>(i)), 1));
  CHECK(bench.queue.receive(*arena, 20).count == 15);
  CHECK(bench.queue.receive(*arena, 20).count == 5);
}

TEST_CASE("a device that returns nonsense is refused") {
  const auto refused = [](FeatureSet features, const std::vector<Bytes>& buffers) {
    Bench<ReceiveQueue> bench({128, features, 1024, false, 0});
    for (const Bytes& buffer : buffers) bench.write(buffer);
    return protocol_error([&] { bench.queue.receive(*bench.arena, 32); });
  };
  CHECK(refused(modern, {Bytes(11)}) == "a packet of 11 bytes is shorter than its header of 12");
  CHECK(refused(mergeable, {with_header(Bytes(5), 0)}) == "num_buffers is 0, but the ring has 128 entries");
  CHECK(refused(mergeable, {with_header(Bytes(5), 129)}) == "num_buffers is 129, but the ring has 128 entries");
  std::vector<Bytes> endless(70, Bytes(1024));
  endless[0] = with_header(Bytes(1012), 128);
  CHECK(refused(mergeable, endless) == "a packet has more than 65553 bytes in 128 buffers");

  Bench<ReceiveQueue> bench({4, modern, 1024, false, 0});
  bench.device.push_used(9, 0);
  bench.device.publish(bench.device.filled());
  CHECK_FALSE(protocol_error([&] { bench.queue.receive(*bench.arena, 32); }).empty());
  CHECK_FALSE(protocol_error([&] { bench.queue.receive(*bench.arena, 32); }).empty());  // and stays so
}

TEST_CASE("a guest that polls is not signalled, one that asked is signalled once") {
  for (const bool event_idx : {false, true}) {
    Bench<ReceiveQueue> bench({8, event_idx ? modern.with(Feature::EVENT_IDX) : modern, 1024, false, 0});
    bench.write(Bytes(30));
    bench.device.should_notify();           // the first answer says nothing: it may be unconditional
    CHECK(bench.queue.enable_interrupt());  // one waits already
    CHECK(bench.queue.receive(*bench.arena, 8).count == 1);
    CHECK_FALSE(bench.queue.enable_interrupt());
    bench.write(Bytes(30));
    CHECK(bench.device.should_notify());
    bench.queue.disable_interrupt();
    bench.queue.receive(*bench.arena, 8);
    bench.write(Bytes(30));
    CHECK_FALSE(bench.device.should_notify());
  }
}
