// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>

#include "base/shared_field.hpp"
#include "doctest/doctest.h"
#include "queue_rig.hpp"

using namespace rig;
using port::RxQueue;
using virtio::Burst;
using virtio::Feature;

namespace {
Bytes row(const Burst& burst, uint32_t i) { return {burst.row(i), burst.row(i) + burst.lengths[i]}; }
}  // namespace

TEST_CASE("rx: packets come out whole, in order, and their chains go back with length 0") {
  GuestRig guest;
  RxQueue queue;
  queue.setup(guest.setup());
  guest.send({guest.place(GuestRig::buffers, pattern(60, 1))});
  guest.send({guest.place(GuestRig::buffers + 8192, pattern(1514, 2))});
  const Burst burst = queue.dequeue(*guest.arena(), 32);
  REQUIRE(burst.count == 2);
  CHECK(row(burst, 0) == pattern(60, 1));
  CHECK(row(burst, 1) == pattern(1514, 2));
  CHECK(burst.stride == 1536);
  CHECK(guest.driver().take_used()->len == 0);
  CHECK(guest.used_idx() == 2);
  CHECK(queue.dequeue(*guest.arena(), 32).count == 0);
}

TEST_CASE("rx: the header may be spread over any descriptors, in a table or not, at 10 and at 12 bytes") {
  const auto legacy = virtio::supported_features.without(Feature::VERSION_1).without(Feature::MRG_RXBUF);
  for (auto features : {virtio::supported_features, legacy}) {
    for (bool indirect : {false, true}) {
      for (uint32_t first = 1; first < 14; ++first) {
        GuestRig guest(256, features);
        RxQueue queue;
        queue.setup(guest.setup());
        const Bytes packet = pattern(100, 4);
        const virtio::Segment whole = guest.place(GuestRig::buffers, packet);
        guest.send({{whole.addr, first}, {whole.addr + first, 1}, {whole.addr + first + 1, whole.len - first - 1}},
                   indirect);
        const Burst burst = queue.dequeue(*guest.arena(), 32);
        REQUIRE(burst.count == 1);
        CHECK(row(burst, 0) == packet);
      }
    }
  }
}

TEST_CASE("rx: a chain that holds no packet is consumed and counted, and the queue goes on") {
  GuestRig guest;
  RxQueue queue;
  queue.setup(guest.setup());
  guest.send({{GuestRig::buffers, 11}});
  guest.send({{GuestRig::buffers, 12}});
  guest.send({{GuestRig::buffers, 12}, {GuestRig::buffers + 4096, 70000}});
  guest.send({guest.place(GuestRig::buffers, pattern(60, 1))});
  const Burst burst = queue.dequeue(*guest.arena(), 32);
  CHECK(burst.count == 1);
  CHECK(queue.counters.errors.get() == 3);
  CHECK(guest.used_idx() == 4);
}

TEST_CASE("rx: an offload header reaches the burst when it is valid and negotiated, else the packet is dropped") {
  virtio::NetHeader header;
  header.flags = virtio::NET_HDR_F_NEEDS_CSUM;
  header.gso_type = virtio::NET_HDR_GSO_TCPV4;
  header.gso_size = 1448;
  header.hdr_len = 54;
  header.csum_start = 34;
  header.csum_offset = 16;
  auto accepted = [](virtio::NetHeader h, virtio::FeatureSet features = virtio::supported_features) {
    GuestRig guest(256, features);
    RxQueue queue;
    queue.setup(guest.setup());
    guest.send({guest.place(GuestRig::buffers, pattern(3000, 1), h)});
    const Burst burst = queue.dequeue(*guest.arena(), 32);
    CHECK(guest.used_idx() == 1);
    CHECK(queue.counters.errors.get() == (burst.count == 1 ? 0 : 1));
    return burst.count == 1 && std::memcmp(&burst.headers[0], &h, sizeof h) == 0;
  };
  CHECK(accepted(header));
  CHECK_FALSE(accepted(header, virtio::supported_features.without(Feature::HOST_TSO4)));
  auto with = [&](auto change) {
    virtio::NetHeader h = header;
    change(h);
    return h;
  };
  CHECK_FALSE(accepted(with([](auto& h) { h.csum_start = 0xffff; })));
  CHECK_FALSE(accepted(with([](auto& h) { h.csum_offset = 2966; })));
  CHECK_FALSE(accepted(with([](auto& h) { h.gso_size = 0; })));
  CHECK_FALSE(accepted(with([](auto& h) { h.hdr_len = 3001; })));
  CHECK_FALSE(accepted(with([](auto& h) { h.gso_type = 7; })));
  CHECK_FALSE(accepted(with([](auto& h) { h.flags = 0; })));
}

TEST_CASE("rx: a burst ends before it would exceed 1 MiB, and the rest comes next") {
  GuestRig guest;
  RxQueue queue;
  queue.setup(guest.setup());
  for (uint64_t i = 0; i < 40; ++i)
    guest.send({guest.place(GuestRig::buffers + i * 69632, pattern(60000, static_cast<uint8_t>(i)))});
  uint32_t seen = 0;
  while (seen < 40) {
    const Burst burst = queue.dequeue(*guest.arena(), 64);
    REQUIRE(burst.count > 0);
    CHECK(size_t{burst.count} * burst.stride <= Burst::max_bytes);
    for (uint32_t i = 0; i < burst.count; ++i) CHECK(row(burst, i) == pattern(60000, static_cast<uint8_t>(seen++)));
  }
}

TEST_CASE("rx: without packet memory nothing is consumed, and it is counted") {
  GuestRig guest;
  RxQueue queue;
  queue.setup(guest.setup());
  auto small = memory::PacketArena::create(1 << 20);
  memory::Block all = small->allocate(1 << 20);
  guest.send({guest.place(GuestRig::buffers, pattern(60, 1))});
  CHECK(queue.dequeue(*small, 32).count == 0);
  CHECK(queue.counters.nombuf.get() == 1);
  CHECK(guest.used_idx() == 0);
  all.reset();
  CHECK(queue.dequeue(*small, 32).count == 1);
}

TEST_CASE("rx: a started but disabled ring is emptied, not left waiting") {
  GuestRig guest;
  RxQueue queue;
  queue.setup(guest.setup(false));
  guest.send({guest.place(GuestRig::buffers, pattern(60, 1))});
  CHECK(queue.dequeue(*guest.arena(), 32).count == 0);
  CHECK(queue.counters.missed.get() == 1);
  CHECK(guest.used_idx() == 1);
}

TEST_CASE("rx: an injected frame comes first") {
  GuestRig guest;
  RxQueue queue;
  queue.setup(guest.setup());
  const Bytes frame = pattern(60, 9);
  queue.inject(frame.data(), 60);
  guest.send({guest.place(GuestRig::buffers, pattern(100, 1))});
  const Burst burst = queue.dequeue(*guest.arena(), 32);
  REQUIRE(burst.count == 2);
  CHECK(row(burst, 0) == frame);
  CHECK(row(burst, 1) == pattern(100, 1));
  CHECK(queue.dequeue(*guest.arena(), 32).count == 0);
}

TEST_CASE("rx: kicks are asked for, and packets that came meanwhile are seen") {
  for (auto features : {virtio::supported_features, virtio::supported_features.without(Feature::EVENT_IDX)}) {
    GuestRig guest(256, features);
    RxQueue queue;
    queue.setup(guest.setup());
    CHECK_FALSE(queue.enable_kicks());
    guest.driver().add(std::vector{guest.place(GuestRig::buffers, pattern(60, 1))}, {});
    CHECK(guest.driver().publish());  // wants a kick
    CHECK(queue.enable_kicks());
    CHECK(queue.dequeue(*guest.arena(), 32).count == 1);
    queue.disable_kicks();
    guest.driver().add(std::vector{guest.place(GuestRig::buffers, pattern(60, 1))}, {});
    CHECK_FALSE(guest.driver().publish());
  }
}

TEST_CASE("rx: broken rings give nothing, say why, and touch nothing outside guest memory") {
  using Kind = virtio::Fault::Kind;
  auto fault_of = [](auto&& breakage) {
    GuestRig guest(16);
    RxQueue queue;
    queue.setup(guest.setup());
    guest.send({guest.place(GuestRig::buffers, pattern(60, 1))});
    breakage(guest);
    CHECK(queue.dequeue(*guest.arena(), 32).count == 0);
    return queue.fault().kind;
  };
  const auto indirect = [](uint64_t addr, uint32_t len, uint16_t flags) {
    return [=](GuestRig& g) {
      g.at().desc[0] = {addr, len, static_cast<uint16_t>(flags | virtio::DESC_F_INDIRECT), 0};
      auto* table = reinterpret_cast<virtio::Descriptor*>(g.host(GuestRig::buffers + 0x10000));
      table[0] = {GuestRig::buffers, 72, virtio::DESC_F_INDIRECT, 0};
    };
  };
  const uint64_t table = GuestRig::buffers + 0x10000;
  CHECK(fault_of([](GuestRig& g) { store_relaxed<uint16_t>(g.at().avail + 2, 0xffff); }) == Kind::avail_index);
  CHECK(fault_of([](GuestRig& g) { store_relaxed<uint16_t>(g.at().avail + 4, 0xffff); }) == Kind::head);
  CHECK(fault_of([](GuestRig& g) { g.at().desc[0].flags = virtio::DESC_F_WRITE; }) == Kind::direction);
  CHECK(fault_of([](GuestRig& g) { g.at().desc[0].addr = 0; }) == Kind::unmapped);
  CHECK(fault_of([](GuestRig& g) { g.at().desc[0].addr = g.end() - 71; }) == Kind::unmapped);
  CHECK(fault_of([](GuestRig& g) { g.at().desc[0] = {GuestRig::buffers, 72, virtio::DESC_F_NEXT, 0}; }) ==
        Kind::chain_length);
  CHECK(fault_of(indirect(table, 0, 0)) == Kind::indirect_length);
  CHECK(fault_of(indirect(table, 17, 0)) == Kind::indirect_length);
  CHECK(fault_of(indirect(table, 16 * 17, 0)) == Kind::indirect_length);
  CHECK(fault_of(indirect(table, 16, virtio::DESC_F_NEXT)) == Kind::indirect_flags);
  CHECK(fault_of(indirect(table, 16, 0)) == Kind::nested_indirect);
  CHECK(fault_of(indirect(UINT64_MAX - 8, 16, 0)) == Kind::unmapped);
}

TEST_CASE("rx: buffers and tables may lie across region borders") {
  // Two regions, adjacent for the guest and apart for us; the border at every byte of header and packet.
  auto left = memory::GuestMapping::anonymous(0x200000), right = memory::GuestMapping::anonymous(0x10000);
  const uint64_t border = 0x300000;
  auto table = std::make_shared<memory::RegionTable>(std::vector<memory::Region>{
      {0x100000, 0x200000, 0x100000, left->data(), left}, {border, 0x10000, border, right->data(), right}});
  const Bytes packet = pattern(80, 3);
  auto put = [&](uint64_t gpa, const void* bytes, size_t n) {
    for (size_t i = 0; i < n; ++i, ++gpa)
      *(gpa < border ? left->data() + (gpa - 0x100000) : right->data() + (gpa - border)) =
          static_cast<const uint8_t*>(bytes)[i];
  };
  for (uint64_t shift = 1; shift < 92; ++shift) {
    port::RingSetup setup;
    setup.running = setup.enabled = true;
    setup.at.desc = reinterpret_cast<virtio::Descriptor*>(left->data());
    setup.at.avail = left->data() + 0x1000;
    setup.at.used = left->data() + 0x2000;
    setup.size = 16;
    setup.features = virtio::supported_features;
    setup.memory = table;
    std::memset(left->data(), 0, 0x3000);
    virtio::DriverRing driver;
    driver.start(setup.at, 16, setup.features);
    RxQueue queue;
    queue.setup(std::move(setup));
    const uint8_t header[12] = {};
    put(border - shift, header, 12);
    put(border - shift + 12, packet.data(), packet.size());
    driver.add(std::vector<virtio::Segment>{{border - shift, 92}}, {});
    driver.publish();
    auto arena = memory::PacketArena::create(1 << 20);
    Burst burst = queue.dequeue(*arena, 4);
    REQUIRE(burst.count == 1);
    CHECK(row(burst, 0) == packet);

    const virtio::Descriptor entry{0x180000, 92, 0, 0};
    put(0x180000, header, 12);
    put(0x180000 + 12, packet.data(), packet.size());
    put(border - shift % 16, &entry, sizeof entry);
    auto* desc = reinterpret_cast<virtio::Descriptor*>(left->data());
    desc[5] = {border - shift % 16, 16, virtio::DESC_F_INDIRECT, 0};
    store_relaxed<uint16_t>(left->data() + 0x1000 + 4 + 2, 5);
    store_release<uint16_t>(left->data() + 0x1000 + 2, 2);
    burst = queue.dequeue(*arena, 4);
    REQUIRE(burst.count == 1);
    CHECK(row(burst, 0) == packet);
  }
}
