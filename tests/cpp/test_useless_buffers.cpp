// SPDX-License-Identifier: BSD-3-Clause
// Buffers that are of no use: they must not stop a queue.
#include "base/shared_field.hpp"
#include "doctest/doctest.h"
#include "queue_rig.hpp"

using namespace rig;
using port::Notice;
using port::PacketView;
using port::Publish;
using port::RxQueue;
using port::TxQueue;
using virtio::Feature;

namespace {

const auto apart = virtio::supported_features.without(Feature::MRG_RXBUF);
const auto legacy = apart.without(Feature::VERSION_1);

uint32_t notices(port::VringQueue& queue, Notice::Kind wanted) {
  uint32_t n = 0;
  queue.notices().take([&](Notice::Kind kind, const Notice& notice) {
    n += kind == wanted;
    CHECK_FALSE(Notice::text(kind, notice).empty());
  });
  return n;
}

/// Ways of giving a buffer of `bytes` bytes.
std::vector<std::vector<virtio::Segment>> shapes(uint32_t bytes) {
  const uint64_t at = GuestRig::buffers + 0x40000;
  std::vector<std::vector<virtio::Segment>> all{{{at, bytes}}, {{at, 0}, {at, bytes}, {at + 4096, 0}}};
  if (bytes > 1) all.push_back({{at, 1}, {at + 100, bytes - 1}});
  return all;
}

}  // namespace

TEST_CASE(
    "useless buffer: too short for header and 60 bytes at the front: given back with length 0, counted, told once") {
  for (const auto features : {apart, legacy}) {
    for (const uint32_t bytes : {0u, 1u, 9u, 10u, 12u, 40u, 69u, 71u}) {
      for (const auto& shape : shapes(bytes)) {
        GuestRig guest(64, features);
        if (bytes >= guest.header_size() + 60) continue;
        CAPTURE(bytes);
        TxQueue queue;
        queue.setup(guest.setup());
        guest.post_chain(shape);
        guest.post_chain(shape);
        guest.post(GuestRig::buffers, 2048);
        guest.post_chain(shape);
        guest.post(GuestRig::buffers + 4096, 2048);
        CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(60, 1), pattern(1000, 2)}))) == 2);
        CHECK(queue.counters.packets.get() == 2);
        CHECK(queue.counters.errors.get() == 0);
        CHECK(queue.counters.short_buffers.get() == 3);
        for (const uint32_t len : {0u, 0u, guest.header_size() + 60, 0u, guest.header_size() + 1000})
          CHECK(guest.driver().take_used().value().len == len);
        CHECK(notices(queue, Notice::Kind::short_buffer) == 1);
        guest.post_chain(shape);
        CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(60, 1)}))) == 0);
        CHECK(queue.counters.short_buffers.get() == 4);
        CHECK(notices(queue, Notice::Kind::short_buffer) == 0);
        CHECK(guest.used_idx() == 6);  // shown to the guest, though no packet was
      }
    }
  }
}

TEST_CASE("useless buffer: in the guest's table of descriptors or in one of its own") {
  GuestRig guest(64, apart);
  TxQueue queue;
  queue.setup(guest.setup());
  const std::vector<virtio::Segment> crumbs{{GuestRig::buffers, 10}, {GuestRig::buffers + 64, 0}};
  guest.driver().add_indirect({}, crumbs).value();
  guest.driver().publish();
  guest.post(GuestRig::buffers + 4096, 2048);
  CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(60, 1)}))) == 1);
  CHECK(queue.counters.short_buffers.get() == 1);
  CHECK(queue.counters.packets.get() == 1);
}

TEST_CASE("useless buffer: merged buffers need room for the header alone; what is shorter is given back") {
  for (const uint32_t bytes : {0u, 1u, 11u, 12u, 13u, 71u}) {
    for (const auto& shape : shapes(bytes)) {
      GuestRig guest(64);
      CAPTURE(bytes);
      TxQueue queue;
      queue.setup(guest.setup());
      guest.post_chain(shape);
      guest.post(GuestRig::buffers, 2048);
      const Bytes packet = pattern(60, 1);
      CHECK(queue.enqueue(PacketView::of(guest.burst({packet}))) == 1);
      CHECK(queue.counters.short_buffers.get() == (bytes < 12));
      CHECK(queue.counters.packets.get() == 1);
      CHECK(guest.used_idx() == 2);
      CHECK(guest.driver().take_used()->len == (bytes < 12 ? 0 : bytes));
      CHECK(guest.driver().take_used()->len == (bytes < 12 ? 72 : 72 - bytes));
      if (bytes < 12) CHECK(std::memcmp(guest.host(GuestRig::buffers) + 12, packet.data(), 60) == 0);
    }
  }
}

TEST_CASE("useless buffer: a short packet may use a short buffer, and a long one does not cost it") {
  GuestRig guest(64, apart);
  TxQueue queue;
  queue.setup(guest.setup());
  guest.post(GuestRig::buffers, 12 + 20);
  CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(20, 1)}))) == 1);
  CHECK(queue.counters.packets.get() == 1);
  // Sane, but too small for this packet: the packet is dropped, not the buffer.
  guest.post(GuestRig::buffers, 12 + 60);
  CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(61, 1), pattern(60, 1)}))) == 2);
  CHECK(queue.counters.oversize_dropped.get() == 1);
  CHECK(queue.counters.short_buffers.get() == 0);
  CHECK(queue.counters.packets.get() == 2);
}

TEST_CASE("useless buffer: it goes back in its place among copies in flight") {
  for (const auto publish : {Publish::cpu, Publish::dma}) {
    GuestRig guest(16, apart);
    TxQueue queue;
    auto model = attach_engine(queue, guest, dma::IoatModel::Mode::stepped, publish);
    queue.setup(guest.setup());
    guest.post(GuestRig::buffers, 16384);
    guest.post(GuestRig::buffers + 0x8000, 4);
    guest.post(GuestRig::buffers + 0x10000, 16384);
    guest.post(GuestRig::buffers + 0x8000, 4);
    CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(4000, 1), pattern(5000, 2)}))) == 2);
    CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(4000, 1)}))) == 0);
    CHECK(queue.counters.short_buffers.get() == 2);
    CHECK(guest.used_idx() == 0);
    CHECK(queue.pending_packets() == 2);
    CHECK(queue.unfinished());
    for (int i = 0; i < 8; ++i) {
      model->step(1);
      queue.reap();
    }
    CHECK(queue.idle());
    CHECK_FALSE(queue.unfinished());
    CHECK(queue.pending_packets() == 0);
    for (const uint32_t len : {4012u, 0u, 5012u, 0u}) CHECK(guest.driver().take_used().value().len == len);
    CHECK(std::memcmp(guest.host(GuestRig::buffers + 0x10000) + 12, pattern(5000, 2).data(), 5000) == 0);
  }
}

TEST_CASE("useless buffer: only such buffers, more often than the in-flight list has entries, behind a copy") {
  for (const auto publish : {Publish::cpu, Publish::dma}) {
    GuestRig guest(16, apart);
    TxQueue queue;
    auto model = attach_engine(queue, guest, dma::IoatModel::Mode::stepped, publish);
    queue.setup(guest.setup());
    guest.post(GuestRig::buffers, 16384);
    CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(4000, 1)}))) == 1);
    for (int i = 0; i < 15; ++i) {
      guest.post(GuestRig::buffers + 0x8000, 4);
      CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(4000, 1)}))) == 0);
    }
    // Given out once more, though nothing of it came back.
    store_release<uint16_t>(guest.at().avail + 2, 24);
    CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(4000, 1)}))) == 0);
    CHECK(queue.counters.short_buffers.get() == 15);
    model->step(64);
    queue.reap();
    CHECK(guest.used_idx() == 16);
    CHECK(queue.idle());
  }
}

TEST_CASE("useless buffer: told again after the ring was stopped and started") {
  GuestRig guest(64, apart);
  TxQueue queue;
  for (int i = 0; i < 2; ++i) {
    port::RingSetup setup = guest.setup();
    setup.last_avail = RingIndex(guest.used_idx());
    queue.setup(std::move(setup));
    guest.post(GuestRig::buffers, 4);
    queue.enqueue(PacketView::of(guest.burst({pattern(60, 1)})));
    CHECK(notices(queue, Notice::Kind::short_buffer) == 1);
    queue.setup({});
  }
}

TEST_CASE("useless buffer: rx: a chain without a byte of a packet, in any shape, does not stop those after it") {
  for (const bool indirect : {false, true}) {
    GuestRig guest(64);
    RxQueue queue;
    queue.setup(guest.setup());
    const uint64_t at = GuestRig::buffers + 0x10000;
    guest.send({{at, 0}}, indirect);
    guest.send({{at, 0}, {at, 0}}, indirect);
    guest.send({{at, 12}, {at, 0}}, indirect);
    guest.send({guest.place(GuestRig::buffers, pattern(60, 1))});
    CHECK(queue.dequeue(*guest.arena(), 32).count == 1);
    CHECK(queue.counters.empty_dropped.get() == 3);
    CHECK(queue.counters.errors.get() == 3);
  }
}

TEST_CASE("useless header: each reason to drop a packet has its counter, and they add up to the errors") {
  virtio::NetHeader good;
  good.flags = virtio::NET_HDR_F_NEEDS_CSUM;
  good.gso_type = virtio::NET_HDR_GSO_TCPV4;
  good.gso_size = 1448;
  good.hdr_len = 54;
  good.csum_start = 34;
  good.csum_offset = 16;
  auto with = [&](auto change) {
    virtio::NetHeader h = good;
    change(h);
    return h;
  };
  GuestRig guest(64, virtio::supported_features.without(Feature::HOST_TSO6));
  RxQueue queue;
  queue.setup(guest.setup());
  uint32_t slot = 0;
  auto send = [&](virtio::NetHeader header) {
    guest.send({guest.place(GuestRig::buffers + 4096 * slot++, pattern(3000, 1), header)});
  };
  send(good);
  send(with([](auto& h) { h.gso_type = virtio::NET_HDR_GSO_TCPV6; }));
  send(with([](auto& h) { h.gso_type = 9; }));
  send(with([](auto& h) { h.csum_start = 2990; }));
  send(with([](auto& h) { h.flags = 0; }));
  send(with([](auto& h) { h.flags = virtio::NET_HDR_F_DATA_VALID; }));
  guest.send({{GuestRig::buffers, 12}, {GuestRig::buffers, 70000}});
  guest.send({{GuestRig::buffers, 12}});
  CHECK(queue.dequeue(*guest.arena(), 32).count == 1);
  const port::RxCounters& c = queue.counters;
  CHECK(c.gso_dropped.get() == 1);
  CHECK(c.header_dropped.get() == 2);
  CHECK(c.gso_no_csum_dropped.get() == 2);
  CHECK(c.oversize_dropped.get() == 1);
  CHECK(c.empty_dropped.get() == 1);
  CHECK(c.errors.get() == 7);
  CHECK(notices(queue, Notice::Kind::gso_without_checksum) == 1);
}

TEST_CASE("useless header: segmentation without NEEDS_CSUM passes as a plain packet when it needs no cutting") {
  for (const uint8_t type : {virtio::NET_HDR_GSO_TCPV4, virtio::NET_HDR_GSO_TCPV6, virtio::NET_HDR_GSO_UDP_L4}) {
    for (const uint32_t len : {54u, 60u, 1502u, 1503u, 9000u}) {
      GuestRig guest(64);
      RxQueue queue;
      queue.setup(guest.setup());
      virtio::NetHeader header;
      header.gso_type = type;
      header.gso_size = 1448;
      header.hdr_len = 54;
      guest.send({guest.place(GuestRig::buffers, pattern(len, 1), header)});
      const virtio::Burst burst = queue.dequeue(*guest.arena(), 32);
      const bool fits = len <= 1502;
      CHECK(burst.count == fits);
      if (fits)
        CHECK(std::memcmp(&burst.headers[0], &static_cast<const virtio::NetHeader&>(virtio::NetHeader{}), 10) == 0);
      CHECK(queue.counters.gso_no_csum_dropped.get() == !fits);
      CHECK(notices(queue, Notice::Kind::gso_without_checksum) == !fits);
    }
  }
}
