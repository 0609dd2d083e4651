// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <random>

#include "base/error.hpp"
#include "base/shared_field.hpp"
#include "doctest/doctest.h"
#include "queue_rig.hpp"
#include "virtio/net_header.hpp"

using namespace rig;
using port::PacketView;
using port::Publish;
using port::TxQueue;
using virtio::Feature;

namespace {

constexpr auto stepped = dma::IoatModel::Mode::stepped;

/// Takes the next used chain and compares what lies in its buffer.
bool received(GuestRig& guest, uint64_t gpa, const Bytes& packet) {
  const auto used = guest.driver().take_used();
  return used && used->len == guest.header_size() + packet.size() &&
         std::equal(packet.begin(), packet.end(), guest.host(gpa) + guest.header_size());
}

}  // namespace

TEST_CASE("tx: a packet is written behind a zero header whose num_buffers is 1") {
  GuestRig guest;
  TxQueue queue;
  queue.setup(guest.setup());
  std::memset(guest.host(GuestRig::buffers), 0xaa, 2048);
  guest.post(GuestRig::buffers, 2048);
  const Bytes packet = pattern(60, 1);
  CHECK(queue.enqueue(PacketView::of(guest.burst({packet}))) == 1);
  CHECK(received(guest, GuestRig::buffers, packet));
  const uint8_t header[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0};
  CHECK(std::memcmp(guest.host(GuestRig::buffers), header, 12) == 0);
  CHECK(guest.host(GuestRig::buffers)[72] == 0xaa);  // nothing behind the packet
}

TEST_CASE("tx: a packet is written behind its header whichever bytes of it were in the buffer before") {
  for (const bool modern : {true, false}) {
    const auto features = modern ? virtio::supported_features
                                 : virtio::supported_features.without(Feature::VERSION_1).without(Feature::MRG_RXBUF);
    GuestRig guest(256, features);
    TxQueue queue;
    queue.setup(guest.setup());
    const uint8_t header[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0};
    const uint32_t size = guest.header_size();
    CHECK(size == (modern ? 12 : 10));
    for (uint32_t i = 0; i < size; ++i) {
      const uint64_t buffer = GuestRig::buffers + i * 2048;
      std::memcpy(guest.host(buffer), header, size);
      guest.host(buffer)[i] ^= 0xa5;
      guest.post(buffer, 2048);
      const Bytes packet = pattern(60, static_cast<uint8_t>(i));
      CHECK(queue.enqueue(PacketView::of(guest.burst({packet}))) == 1);
      CHECK(received(guest, buffer, packet));
      CHECK(std::memcmp(guest.host(buffer), header, size) == 0);
    }
  }
}

TEST_CASE("tx: the burst ends at the first packet without a buffer, and nothing is lost") {
  GuestRig guest;
  TxQueue queue;
  queue.setup(guest.setup());
  guest.post(GuestRig::buffers, 2048);
  CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(60, 1), pattern(60, 2)}))) == 1);
  CHECK(queue.counters.errors.get() == 0);
}

TEST_CASE("tx: a long packet is spread over merged buffers, each used for what was written") {
  GuestRig guest;
  TxQueue queue;
  queue.setup(guest.setup());
  for (uint64_t i = 0; i < 4; ++i) guest.post(GuestRig::buffers + i * 4096, 1000);
  const Bytes packet = pattern(2500, 3);
  CHECK(queue.enqueue(PacketView::of(guest.burst({packet}))) == 1);
  CHECK(guest.used_idx() == 3);
  CHECK(guest.driver().take_used()->len == 1000);
  CHECK(guest.driver().take_used()->len == 1000);
  CHECK(guest.driver().take_used()->len == 512);
  CHECK(guest.host(GuestRig::buffers)[10] == 3);  // num_buffers
  Bytes got(guest.host(GuestRig::buffers) + 12, guest.host(GuestRig::buffers) + 1000);
  got.insert(got.end(), guest.host(GuestRig::buffers + 4096), guest.host(GuestRig::buffers + 4096) + 1000);
  got.insert(got.end(), guest.host(GuestRig::buffers + 8192), guest.host(GuestRig::buffers + 8192) + 512);
  CHECK(got == packet);
}

TEST_CASE("tx: header and packet may lie in descriptors of any size") {
  for (uint32_t first = 1; first < 14; ++first) {
    GuestRig guest(256, virtio::supported_features.without(Feature::MRG_RXBUF));
    TxQueue queue;
    queue.setup(guest.setup());
    guest.post_chain({{GuestRig::buffers, first}, {GuestRig::buffers + 100, 1}, {GuestRig::buffers + 200, 3000}});
    const Bytes packet = pattern(100, 9);
    CHECK(queue.enqueue(PacketView::of(guest.burst({packet}))) == 1);
    Bytes got(guest.host(GuestRig::buffers), guest.host(GuestRig::buffers) + first);
    got.push_back(*guest.host(GuestRig::buffers + 100));
    got.insert(got.end(), guest.host(GuestRig::buffers + 200), guest.host(GuestRig::buffers + 200) + 112 - first - 1);
    CHECK(Bytes(got.begin() + 12, got.end()) == packet);
    CHECK(got[10] == 1);
  }
}

TEST_CASE("tx: a packet the queue can never take is dropped, counted, and costs no buffer") {
  GuestRig guest(4, virtio::supported_features.without(Feature::MRG_RXBUF));
  TxQueue queue;
  queue.setup(guest.setup());
  guest.post(GuestRig::buffers, 128);
  CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(1000, 1), Bytes{}, pattern(100, 2)}))) == 3);
  CHECK(queue.counters.oversize_dropped.get() == 2);
  CHECK(queue.counters.errors.get() == 2);
  CHECK(received(guest, GuestRig::buffers, pattern(100, 2)));
}

TEST_CASE("tx: larger than the whole ring of merged buffers is never, fewer buffers than that is not now") {
  GuestRig guest(4);
  TxQueue queue;
  queue.setup(guest.setup());
  for (uint64_t i = 0; i < 3; ++i) guest.post(GuestRig::buffers + i * 4096, 100);
  virtio::Burst packets = guest.burst({pattern(1000, 1)});
  CHECK(queue.enqueue(PacketView::of(packets)) == 0);
  guest.post(GuestRig::buffers + 3 * 4096, 100);
  CHECK(queue.enqueue(PacketView::of(packets)) == 1);
  CHECK(queue.counters.oversize_dropped.get() == 1);
  CHECK(guest.used_idx() == 0);
}

TEST_CASE("tx: a checksum the guest does not take is completed, in the guest's copy only") {
  GuestRig guest(256, virtio::supported_features.without(Feature::GUEST_CSUM));
  TxQueue queue;
  queue.setup(guest.setup());
  guest.post(GuestRig::buffers, 2048);
  Bytes packet = pattern(64, 5);
  virtio::NetHeader header;
  header.flags = virtio::NET_HDR_F_NEEDS_CSUM;
  header.csum_start = 34;
  header.csum_offset = 6;
  CHECK(queue.enqueue(PacketView::of(guest.burst({packet}, header))) == 1);
  const uint16_t sum = virtio::internet_checksum(packet.data() + 34, 30);
  std::memcpy(packet.data() + 40, &sum, 2);
  CHECK(received(guest, GuestRig::buffers, packet));
  CHECK(*guest.host(GuestRig::buffers) == 0);
}

TEST_CASE("tx: a segment passes to a guest that negotiated it, and is dropped for one that did not") {
  virtio::NetHeader header;
  header.flags = virtio::NET_HDR_F_NEEDS_CSUM;
  header.gso_type = virtio::NET_HDR_GSO_TCPV4;
  header.gso_size = 1448;
  header.hdr_len = 54;
  header.csum_start = 34;
  header.csum_offset = 16;
  for (bool takes : {true, false}) {
    auto features = takes ? virtio::supported_features : virtio::supported_features.without(Feature::GUEST_TSO4);
    GuestRig guest(256, features);
    TxQueue queue;
    queue.setup(guest.setup());
    guest.post(GuestRig::buffers, 65600);
    CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(64000, 1)}, header))) == 1);
    CHECK(queue.counters.gso_dropped.get() == (takes ? 0 : 1));
    CHECK(guest.used_idx() == takes);
    if (takes) CHECK(std::memcmp(guest.host(GuestRig::buffers), &header, sizeof header) == 0);
  }
}

TEST_CASE("tx: broken rings stop at once, say why, and stay broken until they are set up again") {
  using Kind = virtio::Fault::Kind;
  auto fault_of = [](auto&& breakage) {
    GuestRig guest(16, virtio::supported_features.without(Feature::INDIRECT_DESC));
    TxQueue queue;
    queue.setup(guest.setup());
    guest.post(GuestRig::buffers, 2048);
    breakage(guest);
    CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(60, 1)}))) == 0);
    const auto kind = queue.fault().kind;
    CHECK_FALSE(queue.fault().text().empty());
    CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(60, 1)}))) == 0);
    queue.setup(guest.setup());
    CHECK_FALSE(queue.fault());
    return kind;
  };
  CHECK(fault_of([](GuestRig& g) { store_relaxed<uint16_t>(g.at().avail + 2, 17); }) == Kind::avail_index);
  CHECK(fault_of([](GuestRig& g) { store_relaxed<uint16_t>(g.at().avail + 4, 16); }) == Kind::head);
  CHECK(fault_of([](GuestRig& g) { g.at().desc[0].flags = 0; }) == Kind::direction);
  CHECK(fault_of([](GuestRig& g) { g.at().desc[0].addr = 1; }) == Kind::unmapped);
  CHECK(fault_of([](GuestRig& g) { g.at().desc[0].addr = g.end() - 20; }) == Kind::unmapped);
  CHECK(fault_of([](GuestRig& g) { g.at().desc[0].addr = UINT64_MAX; }) == Kind::unmapped);
  CHECK(fault_of([](GuestRig& g) { g.at().desc[0].flags = virtio::DESC_F_INDIRECT; }) == Kind::indirect_feature);
  CHECK(fault_of([](GuestRig& g) { g.at().desc[0] = {GuestRig::buffers, 0, 3, 0}; }) == Kind::chain_length);
  CHECK(fault_of([](GuestRig& g) { g.at().desc[0] = {GuestRig::buffers, 1, 3, 99}; }) == Kind::next);
}

TEST_CASE("tx: order is kept however CPU and engine copies mix, and only a finished prefix is shown") {
  GuestRig guest;
  TxQueue queue;
  auto model = attach_engine(queue, guest, stepped);
  queue.setup(guest.setup());
  for (uint64_t i = 0; i < 6; ++i) guest.post(GuestRig::buffers + i * 65536, 65536);
  const std::vector<Bytes> packets{pattern(60, 1),   pattern(5000, 2), pattern(60, 3),
                                   pattern(9000, 4), pattern(64, 5),   pattern(2000, 6)};
  CHECK(queue.enqueue(PacketView::of(guest.burst(packets))) == 6);
  CHECK(guest.used_idx() == 1);  // what stands before the first copy in flight
  CHECK(queue.pending_packets() == 5);
  CHECK(queue.reap() == 0);
  model->step(1);
  CHECK(queue.reap() == 2);
  CHECK(guest.used_idx() == 3);
  model->step(2);
  CHECK(queue.reap() == 3);
  CHECK(queue.idle());
  for (uint64_t i = 0; i < 6; ++i) CHECK(received(guest, GuestRig::buffers + i * 65536, packets[i]));
}

TEST_CASE("tx: publish=dma: the engine writes the used index behind the data, the CPU keeps off it") {
  GuestRig guest;
  TxQueue queue;
  auto model = attach_engine(queue, guest, stepped, Publish::dma);
  queue.setup(guest.setup());
  for (uint64_t i = 0; i < 4; ++i) guest.post(GuestRig::buffers + i * 65536, 65536);
  const std::vector<Bytes> packets{pattern(5000, 1), pattern(60, 2), pattern(5000, 3), pattern(60, 4)};
  CHECK(queue.enqueue(PacketView::of(guest.burst({packets[0], packets[1]}))) == 2);
  CHECK(queue.enqueue(PacketView::of(guest.burst({packets[2], packets[3]}))) == 2);
  model->step(1);
  CHECK(queue.reap() == 0);  // both packets are whole, but the index is the engine's
  CHECK(queue.pending_packets() == 4);
  CHECK(guest.used_idx() == 0);
  model->step(1);
  CHECK(guest.used_idx() == 2);  // before anybody reaps
  CHECK(queue.reap() == 2);
  CHECK(queue.pending_packets() == 2);
  model->step(2);
  CHECK(guest.used_idx() == 4);
  CHECK(queue.reap() == 2);
  CHECK(queue.pending_packets() == 0);
  CHECK(queue.idle());
  CHECK(queue.ring().used_base() == 4);
  for (uint64_t i = 0; i < 4; ++i) CHECK(received(guest, GuestRig::buffers + i * 65536, packets[i]));
}

TEST_CASE("tx: what the engine refuses is the CPU's, in the same order, and counted by reason") {
  GuestRig guest;
  TxQueue queue;
  auto model = attach_engine(queue, guest, stepped);
  queue.setup(guest.setup());
  for (uint64_t i = 0; i < 2; ++i) guest.post(GuestRig::buffers + i * 65536, 65536);
  auto foreign = memory::PacketArena::create(1 << 20);  // an arena the engine does not know
  virtio::Burst burst = virtio::Burst::allocate(*foreign, 1, 5000);
  const Bytes packet = pattern(5000, 7);
  burst.lengths[0] = 5000;
  burst.headers[0] = {};
  std::memcpy(burst.row(0), packet.data(), packet.size());
  CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(3000, 1)}))) == 1);
  CHECK(queue.enqueue(PacketView::of(burst)) == 1);
  CHECK(queue.counters.fallback_unmapped.get() == 1);
  CHECK(queue.pipe().maps_wanted());
  CHECK(guest.used_idx() == 0);
  model->step(1);
  queue.reap();
  CHECK(received(guest, GuestRig::buffers, pattern(3000, 1)));
  CHECK(received(guest, GuestRig::buffers + 65536, packet));
}

TEST_CASE("tx: a failed engine stops the queue; once it is stopped the CPU makes its copies, in order, once") {
  for (auto publish : {Publish::cpu, Publish::dma}) {
    GuestRig guest;
    TxQueue queue;
    auto model = attach_engine(queue, guest, stepped, publish);
    queue.setup(guest.setup());
    std::vector<Bytes> packets;
    for (uint64_t i = 0; i < 8; ++i) {
      guest.post(GuestRig::buffers + i * 65536, 65536);
      packets.push_back(pattern(i % 3 == 2 ? 60 : 4000, static_cast<uint8_t>(i)));
    }
    model->inject(dma::IoatModel::Fault::error, 2, 0);
    CHECK(queue.enqueue(PacketView::of(guest.burst(packets))) == 8);
    model->step(100);
    queue.reap();
    CHECK(queue.pipe().engine_failed());
    CHECK(guest.used_idx() < 8);
    CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(60, 1)}))) == 0);
    while (queue.pipe().engine()->reset() == dma::Step::pending) model->step(1);
    queue.reap();
    CHECK(queue.idle());
    CHECK(guest.used_idx() == 8);
    for (uint64_t i = 0; i < 8; ++i) CHECK(received(guest, GuestRig::buffers + i * 65536, packets[i]));
  }
}

TEST_CASE("tx: the burst may be let go as soon as enqueue returns") {
  GuestRig guest;
  TxQueue queue;
  auto model = attach_engine(queue, guest, stepped);
  queue.setup(guest.setup());
  guest.post(GuestRig::buffers, 65536);
  const size_t before = guest.arena()->bytes_in_use();
  CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(9000, 1)}))) == 1);
  CHECK(guest.arena()->bytes_in_use() > before);
  virtio::Burst other = guest.burst({pattern(9000, 2)});  // would take the same memory if it were free
  model->step(1);
  queue.reap();
  CHECK(received(guest, GuestRig::buffers, pattern(9000, 1)));
}

TEST_CASE("tx: a guest that takes back buffers it never got cannot overrun the in-flight list") {
  GuestRig guest(16);
  TxQueue queue;
  auto model = attach_engine(queue, guest, stepped);
  queue.setup(guest.setup());
  for (uint64_t i = 0; i < 16; ++i) guest.post(GuestRig::buffers + i * 8192, 8192);
  std::vector<Bytes> packets(16, pattern(4000, 1));
  CHECK(queue.enqueue(PacketView::of(guest.burst(packets))) == 16);
  store_release<uint16_t>(guest.at().avail + 2, 32);  // the same buffers once more, nothing was returned
  CHECK(queue.enqueue(PacketView::of(guest.burst(packets))) == 0);
  CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(60, 1)}))) == 0);
  model->step(16);
  queue.reap();
  CHECK(guest.used_idx() == 16);
}

TEST_CASE("tx: ring indices may start anywhere") {
  for (uint16_t start : {uint16_t{0}, uint16_t{255}, uint16_t{32767}, uint16_t{65500}, uint16_t{65535}}) {
    GuestRig guest(64, virtio::supported_features, 32 << 20, RingIndex(start));
    TxQueue queue;
    auto model = attach_engine(queue, guest, stepped);
    queue.setup(guest.setup());
    std::mt19937 random(start);
    uint8_t seed = 0;
    for (uint64_t round = 0; round < 50; ++round) {
      std::vector<Bytes> packets;
      while (guest.driver().free_descriptors() != 0 && packets.size() < 20) {
        guest.post(GuestRig::buffers + (packets.size() + 20 * (round % 2)) * 65536, 65536);
        packets.push_back(pattern(random() % 3 != 0 ? 64 : 1024 + random() % 4096, ++seed));
      }
      CHECK(queue.enqueue(PacketView::of(guest.burst(packets))) == packets.size());
      model->step(100);
      queue.reap();
      for (size_t i = 0; i < packets.size(); ++i)
        CHECK(received(guest, GuestRig::buffers + (i + 20 * static_cast<size_t>(round % 2)) * 65536, packets[i]));
    }
  }
}
