// SPDX-License-Identifier: BSD-3-Clause
// What a queue keeps and what it forgets when its ring is set up again; and when its guest is told.
#include "doctest/doctest.h"
#include "queue_rig.hpp"
#include "ring_fd.hpp"
#include "virtio/net_header.hpp"

using namespace rig;
using port::PacketView;
using port::Publish;
using virtio::Feature;

namespace {

constexpr auto stepped = dma::IoatModel::Mode::stepped;

bool signalled(int eventfd) {
  uint64_t count = 0;
  return ::read(eventfd, &count, sizeof count) == sizeof count;
}

port::RingSetup with_call(const GuestRig& guest, const UniqueFd& call) {
  port::RingSetup setup = guest.setup();
  setup.call = testing::ring_fd(call, PeerFd::Use::signal);
  return setup;
}

}  // namespace

TEST_CASE("setup: nothing of an old memory table is used after a new one came") {
  // The old table stays alive here, so that a stale address writes to old memory instead of crashing.
  GuestRig guest;
  auto moved = memory::GuestMapping::memfd(guest.mapping()->size());
  auto table = std::make_shared<memory::RegionTable>(
      std::vector<memory::Region>{{GuestRig::base, moved->size(), GuestRig::base, moved->data(), moved}});
  for (const uint32_t len : {60u, 3000u}) {
    port::TxQueue tx;
    tx.setup(guest.setup());
    guest.post(GuestRig::buffers, 2048);
    guest.post(GuestRig::buffers + 4096, 4096);
    const Bytes packet = pattern(len, 1);
    CHECK(tx.enqueue(PacketView::of(guest.burst({pattern(60, 9)}))) == 1);
    std::memset(guest.host(GuestRig::buffers + 4096), 0, 4096);
    port::RingSetup setup = guest.setup();
    setup.last_avail = RingIndex(tx.ring().base());
    setup.memory = table;
    tx.setup(std::move(setup));
    CHECK(tx.enqueue(PacketView::of(guest.burst({packet}))) == 1);
    const uint8_t* there = moved->data() + (GuestRig::buffers + 4096 - GuestRig::base);
    CHECK(std::equal(packet.begin(), packet.end(), there + 12));
    CHECK(guest.host(GuestRig::buffers + 4096)[12] == 0);
    while (guest.driver().take_used()) {
    }
    guest.driver().start(guest.at(), 256, virtio::supported_features);
  }
}

TEST_CASE("setup: a queue whose engine was abandoned after its ring was to go on stays stopped") {
  GuestRig guest;
  port::TxQueue queue;
  dma::SoftEngine made = dma::make_soft_engine("sw0", {.mode = dma::IoatModel::Mode::inline_});
  queue.pipe().set_engine(std::move(made.engine), 1024, port::Publish::cpu, {});  // without slots, which would leak
  queue.setup(guest.setup());
  REQUIRE(queue.goes_on(guest.setup()));  // so nothing is prepared
  queue.abandon();
  queue.setup(guest.setup(), {});
  CHECK_FALSE(queue.running());
  const virtio::Burst burst = guest.burst({pattern(60, 1)});
  CHECK(queue.enqueue(port::PacketView::of(burst)) == 0);
  CHECK(queue.reap() == 0);
  CHECK_FALSE(queue.call_due());
  queue.setup(guest.setup());  // the next session
  guest.post(GuestRig::buffers, 2048);
  CHECK(queue.enqueue(port::PacketView::of(burst)) == 1);
}

TEST_CASE("setup: a broken ring starts anew in its old place with the scratch that it has") {
  GuestRig guest(64);
  port::RxQueue rx;
  rx.setup(guest.setup());
  port::TxQueue tx;
  tx.setup(guest.setup());
  auto* avail_index = reinterpret_cast<uint16_t*>(guest.at().avail + 2);
  *avail_index = 1000;
  CHECK(rx.dequeue(*guest.arena(), 32).count == 0);
  CHECK(tx.enqueue(PacketView::of(guest.burst({pattern(60, 1)}))) == 0);
  CHECK((rx.fault() && tx.fault()));
  *avail_index = 0;
  // As the port does for a ring whose size, place and features stay: nothing is made ready for it.
  rx.setup(guest.setup(), {});
  CHECK_FALSE(rx.fault());
  guest.send({guest.place(GuestRig::buffers, pattern(60, 1))});
  CHECK(rx.dequeue(*guest.arena(), 32).count == 1);

  GuestRig other(64);
  port::TxQueue again;
  again.setup(other.setup());
  reinterpret_cast<uint16_t*>(other.at().avail + 2)[0] = 1000;
  CHECK(again.enqueue(PacketView::of(other.burst({pattern(60, 1)}))) == 0);
  reinterpret_cast<uint16_t*>(other.at().avail + 2)[0] = 0;
  again.setup(other.setup(), {});
  other.post_chain({{GuestRig::buffers, 100}, {GuestRig::buffers + 200, 200}});  // in pieces: needs the scratch
  CHECK(again.enqueue(PacketView::of(other.burst({pattern(150, 1)}))) == 1);
}

TEST_CASE("setup: a ring that starts anew goes on from its own index, whatever the queue was at before") {
  for (const auto publish : {Publish::cpu, Publish::dma}) {
    port::TxQueue queue;
    GuestRig first(64, virtio::supported_features, 32 << 20, RingIndex(65530));
    auto model = attach_engine(queue, first, stepped, publish);
    queue.setup(first.setup());
    for (int i = 0; i < 10; ++i) first.post(GuestRig::buffers, 8192);
    CHECK(queue.enqueue(PacketView::of(first.burst(std::vector<Bytes>(10, pattern(3000, 1))))) == 10);
    model->step(100);
    queue.reap();
    CHECK(first.used_idx() == 4);

    GuestRig second(64, virtio::supported_features, 32 << 20, RingIndex(100));
    queue.pipe().engine()->map(second.mapping()->data(), second.mapping()->size());
    queue.setup(second.setup());
    CHECK(queue.enqueue(PacketView::of(second.burst({pattern(60, 1)}))) == 0);
    queue.reap();
    CHECK(second.used_idx() == 100);
    second.post(GuestRig::buffers, 8192);
    CHECK(queue.enqueue(PacketView::of(second.burst({pattern(60, 1)}))) == 1);
    model->step(100);
    queue.reap();
    CHECK(second.used_idx() == 101);
    CHECK(first.used_idx() == 4);
  }
}

TEST_CASE("setup: a stopped queue takes no packet and lets guest memory go") {
  GuestRig guest;
  port::TxQueue tx;
  port::RxQueue rx;
  const long before = guest.table().use_count();
  tx.setup(guest.setup());
  rx.setup(guest.setup());
  guest.post(GuestRig::buffers, 2048);
  for (int times = 0; times < 2; ++times) {
    port::RingSetup stopped = guest.setup();
    stopped.running = false;
    times ? rx.setup(std::move(stopped)) : tx.setup(std::move(stopped));
  }
  CHECK(tx.enqueue(PacketView::of(guest.burst({pattern(60, 1)}))) == 0);
  CHECK(rx.dequeue(*guest.arena(), 32).count == 0);
  CHECK(guest.table().use_count() == before);
}

TEST_CASE("setup: without bit MRG_RXBUF but with VERSION_1 the header has 12 bytes, without both 10") {
  const auto plain = virtio::supported_features.without(Feature::MRG_RXBUF);
  CHECK(plain.net_header_size() == 12);
  CHECK(virtio::supported_features.without(Feature::VERSION_1).net_header_size() == 12);
  CHECK(plain.without(Feature::VERSION_1).net_header_size() == 10);
}

TEST_CASE("notification: the guest is told once its packets are published, not before") {
  GuestRig guest;
  const UniqueFd call = make_eventfd();
  port::TxQueue queue;
  queue.setup(with_call(guest, call));
  for (int i = 0; i < 4; ++i) guest.post(GuestRig::buffers, 2048);
  for (int i = 0; i < 4; ++i) {
    CHECK_FALSE(guest.driver().set_interrupts(true));
    CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(60, 1)}))) == 1);
    CHECK(signalled(call.get()));
    CHECK(guest.driver().take_used());
  }
}

TEST_CASE("notification: a guest is not told while its packets are in flight, and is once they are there") {
  for (const auto features : {virtio::supported_features, virtio::supported_features.without(Feature::EVENT_IDX)}) {
    GuestRig guest(256, features);
    const UniqueFd call = make_eventfd();
    port::TxQueue queue;
    auto model = attach_engine(queue, guest, stepped);
    queue.setup(with_call(guest, call));
    guest.post(GuestRig::buffers, 2048);
    guest.post(GuestRig::buffers + 8192, 8192);
    CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(60, 1)}))) == 1);  // the first is told of in any case
    signalled(call.get());
    CHECK(guest.driver().take_used());
    CHECK_FALSE(guest.driver().set_interrupts(true));
    CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(5000, 1)}))) == 1);
    CHECK_FALSE(signalled(call.get()));
    model->step(1);
    queue.reap();
    CHECK(queue.call_due());
  }
}

TEST_CASE("notification: a driver that sends and sleeps is told that its buffers are back") {
  GuestRig guest;
  const UniqueFd call = make_eventfd();
  port::RxQueue queue;
  queue.setup(with_call(guest, call));
  for (int i = 0; i < 4; ++i) {
    CHECK_FALSE(guest.driver().set_interrupts(true));
    guest.send({guest.place(GuestRig::buffers, pattern(60, 1))});
    CHECK(queue.dequeue(*guest.arena(), 32).count == 1);
    CHECK(signalled(call.get()));
    CHECK(guest.driver().take_used());
  }
}

TEST_CASE("setup: each kind of segment needs its own feature, one for each direction") {
  using virtio::FeatureSet;
  struct Kind {
    uint8_t type;
    FeatureSet receive, send;
  };
  const Kind kinds[] = {
      {virtio::NET_HDR_GSO_NONE, {}, {}},
      {virtio::NET_HDR_GSO_TCPV4, FeatureSet::of(Feature::GUEST_TSO4), FeatureSet::of(Feature::HOST_TSO4)},
      {virtio::NET_HDR_GSO_TCPV6, FeatureSet::of(Feature::GUEST_TSO6), FeatureSet::of(Feature::HOST_TSO6)},
      {virtio::NET_HDR_GSO_UDP_L4, FeatureSet::of(Feature::GUEST_USO4, Feature::GUEST_USO6),
       FeatureSet::of(Feature::HOST_USO)},
  };
  for (const Kind& kind : kinds) {
    CAPTURE(int{kind.type});
    virtio::NetHeader h;
    h.gso_type = kind.type;
    const bool none = kind.type == virtio::NET_HDR_GSO_NONE;
    CHECK(virtio::receives_segment(kind.receive, h));
    CHECK(virtio::may_send_segment(kind.send, h));
    CHECK(virtio::receives_segment(kind.send, h) == none);
    CHECK(virtio::may_send_segment(kind.receive, h) == none);
    h.gso_type |= virtio::NET_HDR_GSO_ECN;
    CHECK_FALSE(virtio::receives_segment(kind.receive, h));
    CHECK_FALSE(virtio::may_send_segment(kind.send, h));
    CHECK(virtio::receives_segment(kind.receive.with(Feature::GUEST_ECN), h));
    CHECK(virtio::may_send_segment(kind.send.with(Feature::HOST_ECN), h));
  }
  virtio::NetHeader unknown;
  unknown.gso_type = 3;
  CHECK_FALSE(virtio::receives_segment(virtio::supported_features, unknown));
  CHECK_FALSE(virtio::may_send_segment(virtio::supported_features, unknown));
}
