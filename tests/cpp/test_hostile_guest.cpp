// SPDX-License-Identifier: BSD-3-Clause
// A guest that changes what it wrote while the port reads it. Every region lies between pages that nobody may touch, so
// one byte outside ends the process, with a sanitizer or without.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "base/shared_field.hpp"
#include "doctest/doctest.h"
#include "queue_rig.hpp"

using namespace rig;
using port::PacketView;
using port::Publish;
using virtio::Descriptor;
using virtio::Feature;

namespace {

#ifdef __SANITIZE_THREAD__
constexpr bool races_are_errors = true;  // and a guest that changes packets while they are copied is one
#else
constexpr bool races_are_errors = false;
#endif

constexpr size_t page = 4096;

/// Memory that ends, at both ends, at a page that cannot be touched.
class Guarded {
 public:
  explicit Guarded(size_t pages) : size_(pages * page) {
    map_ = static_cast<uint8_t*>(mmap(nullptr, size_ + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    REQUIRE(mprotect(map_ + page, size_, PROT_READ | PROT_WRITE) == 0);
  }
  ~Guarded() { munmap(map_, size_ + 2 * page); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  uint8_t* data() const { return map_ + page; }
  size_t size() const { return size_; }

 private:
  uint8_t* map_;
  size_t size_;
};

/// Two regions, adjacent for the guest only, and a thread that never stops writing into ring and tables.
struct HostileGuest {
  static constexpr uint32_t ring_size = 64;
  static constexpr uint64_t low_gpa = 0x100000;
  Guarded low{32}, high{8};
  const uint64_t border = low_gpa + low.size(), end = border + high.size();
  virtio::RingAddresses at{reinterpret_cast<Descriptor*>(low.data()), low.data() + 0x1000, low.data() + 0x2000};
  Descriptor* const tables = reinterpret_cast<Descriptor*>(low.data() + 0x3000);
  std::shared_ptr<const memory::RegionTable> table = std::make_shared<memory::RegionTable>(std::vector<memory::Region>{
      {low_gpa, low.size(), low_gpa, low.data(), nullptr}, {border, high.size(), border, high.data(), nullptr}});
  std::atomic<bool> stop{false};
  std::thread writer;

  ~HostileGuest() {
    stop = true;
    if (writer.joinable()) writer.join();
  }
  /// Writes for as long as it lives. `direction` is the flag that buffers of this queue should have.
  void attack(uint16_t direction, uint32_t seed) {
    writer = std::thread([this, direction, seed] {
      std::mt19937 random(seed);
      while (!stop.load(std::memory_order_relaxed)) disturb(random, direction);
    });
  }
  port::RingSetup setup() const {
    port::RingSetup s;
    s.running = s.enabled = true;
    s.at = at;
    s.size = ring_size;
    s.last_avail = RingIndex(load_relaxed<uint16_t>(at.used + 2));
    s.features = virtio::supported_features;
    s.memory = table;
    return s;
  }

 private:
  template <typename T>
  static T one_of(std::mt19937& random, std::initializer_list<T> values) {
    return values.begin()[random() % values.size()];
  }
  void disturb(std::mt19937& random, uint16_t direction) {
    const bool in_table = random() % 2;
    Descriptor* d = (in_table ? tables : at.desc) + random() % ring_size;
    const uint64_t tables_gpa = low_gpa + 0x3000;
    switch (random() % 8) {
      case 0:
        return store_relaxed<uint32_t>(
            &d->len, one_of<uint32_t>(random, {0, 1, 11, 12, 13, 60, 1500, 5000, 65565, 0x20000, UINT32_MAX}));
      case 1:
        return store_relaxed<uint64_t>(
            &d->addr, one_of<uint64_t>(random, {low_gpa + 0x8000, border - 100, border - 1, border, end - 12, end - 60,
                                                end - 1500, end - 1, end, 0, UINT64_MAX - 20, tables_gpa}));
      case 2:
        return store_relaxed<uint16_t>(
            &d->flags, one_of<uint16_t>(random, {direction, direction, static_cast<uint16_t>(direction | 1), 4, 0, 7}));
      case 3:
        return store_relaxed<uint16_t>(
            &d->next, one_of<uint16_t>(random, {0, 1, 63, 64, 65535, static_cast<uint16_t>(random() % ring_size)}));
      case 4:
        store_relaxed<uint64_t>(&d->addr, tables_gpa + random() % 64);
        store_relaxed<uint32_t>(&d->len, one_of<uint32_t>(random, {16, 32, 64 * 16, 65 * 16, 0xfffffff0}));
        return store_relaxed<uint16_t>(&d->flags, in_table ? direction : virtio::DESC_F_INDIRECT);
      case 5:
        return store_relaxed<uint16_t>(at.avail + 4 + 2 * (random() % ring_size),
                                       static_cast<uint16_t>(random() % (ring_size + random() % 2)));
      default: {
        const auto used = load_relaxed<uint16_t>(at.used + 2);
        const auto ahead = random() % 1000 == 0 ? random() : random() % ring_size;
        return store_release<uint16_t>(at.avail + 2, static_cast<uint16_t>(used + ahead));
      }
    }
  }
};

constexpr int bursts = 20'000, at_most = 2'000'000;  // on a loaded machine the guest may come late

}  // namespace

TEST_CASE("hostile guest: what changes while it is received never leads outside guest memory (CVE-2026-93683)" *
          doctest::skip(races_are_errors)) {
  HostileGuest guest;
  port::RxQueue queue;
  queue.setup(guest.setup());
  auto arena = memory::PacketArena::create(16 << 20);
  guest.attack(0, 1);
  uint64_t packets = 0, faults = 0;
  for (int n = 0; n < bursts || (faults * packets == 0 && n < at_most); ++n) {
    const virtio::Burst burst = queue.dequeue(*arena, 32);
    if (burst.count == 0) std::this_thread::yield();
    for (uint32_t i = 0; i < burst.count; ++i)
      if (burst.lengths[i] == 0 || burst.lengths[i] > burst.stride) FAIL("length " << burst.lengths[i]);
    packets += burst.count;
    if (queue.fault()) {
      ++faults;
      queue.setup(guest.setup());
    }
  }
  CHECK(packets > 0);
  CHECK(faults > 0);
}

TEST_CASE("hostile guest: a length that changes between two looks is looked at once (CVE-2026-93683)" *
          doctest::skip(races_are_errors)) {
  // The buffer ends with its region: in full for the short length, and not at all for the long one.
  HostileGuest guest;
  auto arena = memory::PacketArena::create(1 << 20);
  port::RxQueue queue;
  guest.at.desc[0] = {guest.end - 72, 72, 0, 0};
  std::thread writer([&] {
    for (uint32_t n = 0; !guest.stop.load(std::memory_order_relaxed); ++n)
      store_relaxed<uint32_t>(&guest.at.desc[0].len, n % 2 ? 72 : 5000);
  });
  uint32_t changes = 0, wrong = 0;
  bool was_short = false;
  for (int n = 0; n < 20'000'000 && changes < 20'000; ++n) {
    if (n == 0 || queue.fault()) queue.setup(guest.setup());
    store_release<uint16_t>(guest.at.avail + 2, static_cast<uint16_t>(queue.ring().base() + 1));
    const virtio::Burst burst = queue.dequeue(*arena, 1);
    wrong += burst.count != 0 && burst.lengths[0] != 60;
    changes += (burst.count != 0) != was_short;
    was_short = burst.count != 0;
  }
  guest.stop = true;
  writer.join();
  CHECK(wrong == 0);
  CHECK(changes != 0);
}

TEST_CASE("hostile guest: what changes while it is sent to never leads outside guest memory (CVE-2026-86562)" *
          doctest::skip(races_are_errors)) {
  for (const char* how : {"cpu", "engine", "engine publishes"}) {
    CAPTURE(how);
    auto arena = memory::PacketArena::create(16 << 20);
    HostileGuest guest;
    port::TxQueue queue;
    if (how[0] == 'e') {
      dma::SoftEngine made = dma::make_soft_engine("sw0", {.mode = dma::IoatModel::Mode::threaded});
      made.engine->map(guest.low.data(), guest.low.size());
      made.engine->map(guest.high.data(), guest.high.size());
      made.engine->map(arena->data(), arena->size());
      queue.pipe().set_engine(std::move(made.engine), 1024, how[6] == 0 ? Publish::cpu : Publish::dma,
                              arena->allocate(2 * 2 * virtio::max_ring_size));
    }
    queue.setup(guest.setup());
    guest.attack(virtio::DESC_F_WRITE, 2);
    uint64_t faults = 0;
    for (int n = 0; n < bursts / 3 || (faults * queue.counters.packets.get() == 0 && n < at_most); ++n) {
      virtio::Burst burst = virtio::Burst::allocate(*arena, 8, 5000);
      if (!burst.block) {
        queue.reap();
        continue;
      }
      for (uint32_t i = 0; i < burst.count; ++i) {
        burst.lengths[i] = i % 2 ? 60 + i : 800 * i + 20;
        burst.headers[i] = {};
        std::memset(burst.row(i), static_cast<int>(i), burst.lengths[i]);
      }
      if (queue.enqueue(PacketView::of(burst)) == 0) std::this_thread::yield();
      queue.reap();
      if (queue.fault()) {
        ++faults;
        while (!queue.idle()) queue.reap();
        queue.setup(guest.setup());
      }
    }
    while (!queue.idle()) queue.reap();
    CHECK(queue.counters.packets.get() > 0);
    CHECK(faults > 0);
  }
}

TEST_CASE(
    "hostile guest: a chain shorter than the header, or the header in crumbs, in both directions (CVE-2022-2132)") {
  for (const auto features : {virtio::supported_features, virtio::supported_features.without(Feature::MRG_RXBUF)}) {
    for (const std::vector<uint32_t>& lens : std::vector<std::vector<uint32_t>>{{12, 1, 1},
                                                                                {11},
                                                                                {11, 1},
                                                                                {11, 1, 2048},
                                                                                {5, 5, 5},
                                                                                {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                                                                                {12},
                                                                                {1},
                                                                                {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                                                                                {13},
                                                                                {6, 2048}}) {
      CAPTURE(lens.size());
      CAPTURE(lens[0]);
      std::vector<virtio::Segment> segments;
      uint32_t sum = 0;
      for (const uint32_t len : lens) {
        segments.push_back({GuestRig::buffers + segments.size() * 4096, len});
        sum += len;
      }
      {  // CVE-2026-86566: the part behind the header was computed below zero
        GuestRig guest(64, features);
        port::TxQueue queue;
        queue.setup(guest.setup());
        std::memset(guest.host(GuestRig::buffers), 0xaa, lens.size() * 4096);
        guest.post_chain(segments);
        guest.post_chain({{GuestRig::buffers + 0x40000, 4096}});
        const Bytes packet = pattern(60, 3);
        CHECK(queue.enqueue(PacketView::of(guest.burst({packet}))) == 1);
        CHECK_FALSE(queue.fault());
        for (size_t i = 0; i < lens.size(); ++i) {  // nothing behind a buffer
          const uint8_t* buffer = guest.host(segments[i].addr);
          CHECK(std::all_of(buffer + lens[i], buffer + 4096, [](uint8_t byte) { return byte == 0xaa; }));
        }
        // Too short for any packet (merged: for the header): given back. Too short for this one: merged.
        CHECK(queue.counters.short_buffers.get() == (sum < (features.has(Feature::MRG_RXBUF) ? 12 : 72)));
        CHECK(queue.counters.packets.get() == 1);
        CHECK(guest.used_idx() == (sum < 72 ? 2 : 1));
      }
      GuestRig guest(64, features);
      port::RxQueue queue;
      queue.setup(guest.setup());
      std::memset(guest.host(GuestRig::buffers), 0, lens.size() * 4096);
      guest.send(segments);
      const virtio::Burst burst = queue.dequeue(*guest.arena(), 32);
      CHECK(burst.count == (sum > 12));
      if (burst.count != 0) CHECK(burst.lengths[0] == sum - 12);
      CHECK(queue.counters.errors.get() == (sum <= 12));
      CHECK(guest.used_idx() == 1);
    }
  }
}

TEST_CASE("hostile guest: buffers taken back while a packet looks for more end in a fault, not in foreign memory") {
  GuestRig guest(16);
  port::TxQueue queue;
  queue.setup(guest.setup());
  for (uint64_t i = 0; i < 4; ++i) guest.post(GuestRig::buffers + i * 4096, 100);
  CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(60, 1)}))) == 1);  // has seen four, uses one
  store_release<uint16_t>(guest.at().avail + 2, 2);
  CHECK(queue.enqueue(PacketView::of(guest.burst({pattern(5000, 1)}))) == 0);
  CHECK(queue.fault().kind == virtio::Fault::Kind::avail_index_back);
  CHECK(guest.used_idx() == 1);
}

TEST_CASE("hostile guest: a head beyond the table is not looked at, even if what lies there looks like a descriptor") {
  for (const uint16_t head : {uint16_t{16}, uint16_t{0x1000}, uint16_t{0xffff}}) {
    GuestRig guest(16);
    guest.at().desc[head % 0x2000] = {GuestRig::buffers, 4096, virtio::DESC_F_WRITE, 0};
    port::TxQueue tx;
    tx.setup(guest.setup());
    store_relaxed<uint16_t>(guest.at().avail + 4, head);
    store_release<uint16_t>(guest.at().avail + 2, 1);
    CHECK(tx.enqueue(PacketView::of(guest.burst({pattern(60, 1)}))) == 0);
    CHECK(tx.fault().kind == virtio::Fault::Kind::head);
    guest.at().desc[head % 0x2000].flags = 0;
    port::RxQueue rx;
    rx.setup(guest.setup());
    CHECK(rx.dequeue(*guest.arena(), 4).count == 0);
    CHECK(rx.fault().kind == virtio::Fault::Kind::head);
    CHECK(guest.used_idx() == 0);
  }
}

TEST_CASE("hostile guest: offload fields beyond the packet reach nothing (CVE-2024-11614, CVE-2026-100236)") {
  for (const uint16_t start : {uint16_t{0}, uint16_t{59}, uint16_t{60}, uint16_t{0xffff}}) {
    for (const uint16_t offset : {uint16_t{0}, uint16_t{1}, uint16_t{16}, uint16_t{0xffff}}) {
      for (const uint16_t hdr_len : {uint16_t{54}, uint16_t{60}, uint16_t{61}, uint16_t{0xffff}}) {
        GuestRig guest(16, virtio::supported_features.without(Feature::GUEST_CSUM));
        virtio::NetHeader header;
        header.flags = virtio::NET_HDR_F_NEEDS_CSUM;
        header.gso_type = virtio::NET_HDR_GSO_TCPV4;
        header.gso_size = 1;
        header.hdr_len = hdr_len;
        header.csum_start = start;
        header.csum_offset = offset;
        const bool valid = start + offset + 2 <= 60 && hdr_len <= 60;
        port::RxQueue rx;
        rx.setup(guest.setup());
        guest.send({guest.place(GuestRig::buffers, pattern(60, 1), header)});
        CHECK(rx.dequeue(*guest.arena(), 4).count == valid);
        // A program that passes on what it did not check cannot make the port sum up foreign memory either.
        port::TxQueue tx;
        GuestRig other(16, virtio::supported_features.without(Feature::GUEST_CSUM));
        tx.setup(other.setup());
        other.post(GuestRig::buffers, 4096);
        header.gso_type = 0;
        CHECK(tx.enqueue(PacketView::of(other.burst({pattern(60, 1)}, header))) == 1);
        CHECK(tx.counters.gso_dropped.get() == (start + offset + 2 > 60));
      }
    }
  }
}
