// SPDX-License-Identifier: BSD-3-Clause
// Packet memory that is short or cut up, as an rx queue meets it.
#include "doctest/doctest.h"
#include "queue_rig.hpp"

using namespace rig;
using memory::Block;
using memory::PacketArena;
using port::Notice;
using port::RxQueue;

namespace {

constexpr size_t arena_size = 1 << 20;

struct Rig {
  GuestRig guest;
  RxQueue queue;
  std::shared_ptr<PacketArena> arena = PacketArena::create(arena_size);
  std::vector<Block> held;
  uint64_t slot = 0;

  Rig() { queue.setup(guest.setup()); }
  /// Takes all the memory, in blocks of 4 KiB.
  void exhaust() {
    while (Block block = arena->allocate(1)) held.push_back(std::move(block));
  }
  /// Frees every other run of `run` blocks: half of the memory, in pieces.
  void cut_up(size_t run) {
    exhaust();
    std::sort(held.begin(), held.end(), [](const Block& a, const Block& b) { return a.data() < b.data(); });
    for (size_t i = 0; i < held.size(); ++i)
      if (i / run % 2 == 0) held[i].reset();
  }
  void send(uint32_t len, uint8_t seed) {
    guest.send({guest.place(GuestRig::buffers + slot++ % 100 * 0x20000, pattern(len, seed))});
  }
  uint32_t told(Notice::Kind wanted) {
    uint32_t n = 0;
    queue.notices().take([&](Notice::Kind kind, const Notice&) { n += kind == wanted; });
    return n;
  }
};

std::vector<uint32_t> lengths(const virtio::Burst& burst) { return {burst.lengths, burst.lengths + burst.count}; }

}  // namespace

TEST_CASE("packet memory: the largest free piece") {
  auto arena = PacketArena::create(arena_size);
  CHECK(arena->largest_free() == arena_size);
  Block one = arena->allocate(1);
  CHECK(arena->largest_free() == arena_size / 2);
  CHECK(arena->allocate(arena->largest_free()));
  std::vector<Block> all;
  while (Block block = arena->allocate(1)) all.push_back(std::move(block));
  CHECK(arena->largest_free() == 0);
  all[10].reset();
  CHECK(arena->largest_free() == 4096);
}

TEST_CASE("packet memory: cut up: small packets pass, a large one at the front is dropped, counted, and told once") {
  Rig rig;
  rig.cut_up(1);
  CHECK(rig.arena->bytes_in_use() == arena_size / 2);
  rig.send(60, 1);
  rig.send(9000, 2);
  rig.send(100, 3);
  rig.send(9000, 4);
  rig.send(9000, 5);
  rig.send(200, 6);
  // What stands before the large one passes; then it is at the front, where there is no piece for it either.
  CHECK(lengths(rig.queue.dequeue(*rig.arena, 32)) == std::vector<uint32_t>{60});
  CHECK(rig.queue.counters.nombuf_dropped.get() == 0);
  CHECK(lengths(rig.queue.dequeue(*rig.arena, 32)) == std::vector<uint32_t>{100});
  CHECK(rig.queue.counters.nombuf_dropped.get() == 1);
  CHECK(lengths(rig.queue.dequeue(*rig.arena, 32)) == std::vector<uint32_t>{200});
  CHECK(rig.queue.counters.nombuf_dropped.get() == 3);
  CHECK(rig.queue.counters.nombuf.get() == 3);
  CHECK(rig.queue.counters.errors.get() == 0);
  CHECK(rig.queue.counters.packets.get() == 3);
  CHECK(rig.guest.used_idx() == 6);
  CHECK(rig.told(Notice::Kind::memory_cut_up) == 1);
  rig.send(9000, 7);
  CHECK(rig.queue.dequeue(*rig.arena, 32).count == 0);
  CHECK(rig.queue.counters.nombuf_dropped.get() == 4);
  CHECK(rig.told(Notice::Kind::memory_cut_up) == 0);
}

TEST_CASE("packet memory: cut up: bursts get shorter, and nothing is lost or out of order") {
  for (const size_t run : {1u, 2u, 4u, 8u}) {
    CAPTURE(run);
    Rig rig;
    rig.cut_up(run);
    for (uint32_t i = 0; i < 64; ++i) rig.send(1000 + i, static_cast<uint8_t>(i));
    std::vector<uint32_t> got;
    for (int calls = 0; got.size() < 64; ++calls) {
      REQUIRE(calls < 64);
      const virtio::Burst burst = rig.queue.dequeue(*rig.arena, 64);
      REQUIRE(burst.count > 0);
      for (uint32_t i = 0; i < burst.count; ++i) {
        got.push_back(burst.lengths[i]);
        CHECK(burst.lengths[i] == 999 + got.size());
        const Bytes sent = pattern(burst.lengths[i], static_cast<uint8_t>(got.size() - 1));
        CHECK(std::memcmp(burst.row(i), sent.data(), sent.size()) == 0);
      }
    }
    CHECK(rig.queue.counters.nombuf.get() == 0);  // no packet had to wait
    CHECK(rig.guest.used_idx() == 64);
  }
}

TEST_CASE("packet memory: exhausted: packets wait, are told of once, and come when something is free") {
  Rig rig;
  rig.exhaust();
  rig.send(9000, 1);
  rig.send(60, 2);
  for (int i = 0; i < 3; ++i) CHECK(rig.queue.dequeue(*rig.arena, 32).count == 0);
  CHECK(rig.queue.counters.nombuf.get() == 3);
  CHECK(rig.queue.counters.nombuf_dropped.get() == 0);
  CHECK(rig.guest.used_idx() == 0);
  CHECK(rig.told(Notice::Kind::memory_exhausted) == 1);
  CHECK(rig.queue.steps() == 0);
  rig.held.clear();
  CHECK(lengths(rig.queue.dequeue(*rig.arena, 32)) == std::vector<uint32_t>{9000, 60});
  // Much was free in between: a second shortage is another one.
  rig.exhaust();
  rig.send(60, 3);
  CHECK(rig.queue.dequeue(*rig.arena, 32).count == 0);
  CHECK(rig.told(Notice::Kind::memory_exhausted) == 1);
}

TEST_CASE("packet memory: a program that lives at the limit is told once, not at each burst") {
  Rig rig;
  rig.exhaust();
  uint32_t told = 0;
  for (int i = 0; i < 50; ++i) {
    rig.send(60, 1);
    CHECK(rig.queue.dequeue(*rig.arena, 32).count == 0);
    rig.held.pop_back();
    virtio::Burst burst = rig.queue.dequeue(*rig.arena, 32);
    CHECK(burst.count == 1);
    rig.held.push_back(std::move(burst.block));
    told += rig.told(Notice::Kind::memory_exhausted);
  }
  CHECK(told == 1);
}

TEST_CASE("packet memory: exhausted: packets of a disabled ring are dropped all the same") {
  Rig rig;
  rig.exhaust();
  rig.send(60, 1);
  CHECK(rig.queue.dequeue(*rig.arena, 32).count == 0);
  port::RingSetup setup = rig.guest.setup(false);
  rig.queue.setup(std::move(setup));
  CHECK(rig.queue.dequeue(*rig.arena, 32).count == 0);
  CHECK(rig.queue.counters.missed.get() == 1);
  CHECK(rig.guest.used_idx() == 1);
}

TEST_CASE(
    "packet memory: malformed chains before a packet without memory are given back, in order, each counted once") {
  Rig rig;
  rig.cut_up(1);
  rig.guest.send({{GuestRig::buffers, 5}});
  rig.send(9000, 1);
  rig.guest.send({{GuestRig::buffers, 5}});
  rig.send(60, 2);
  CHECK(lengths(rig.queue.dequeue(*rig.arena, 32)) == std::vector<uint32_t>{60});
  CHECK(rig.queue.counters.errors.get() == 2);
  CHECK(rig.queue.counters.nombuf_dropped.get() == 1);
  CHECK(rig.guest.used_idx() == 4);
}

TEST_CASE("packet memory: an announcement comes through when only the smallest pieces are free") {
  Rig rig;
  rig.cut_up(1);
  const Bytes frame = pattern(60, 9);
  rig.queue.inject(frame.data(), 60);
  rig.send(9000, 1);
  CHECK(lengths(rig.queue.dequeue(*rig.arena, 32)) == std::vector<uint32_t>{60});
  CHECK(rig.queue.counters.rarp_lost.get() == 0);
}

TEST_CASE("rarp: an announcement that is replaced, or that nobody takes before the ring stops, is counted") {
  Rig rig;
  const Bytes frame = pattern(60, 9);
  rig.queue.inject(frame.data(), 60);
  rig.queue.inject(frame.data(), 60);
  CHECK(rig.queue.counters.rarp_lost.get() == 1);
  rig.queue.setup({});
  CHECK(rig.queue.counters.rarp_lost.get() == 2);
  rig.queue.setup(rig.guest.setup());
  CHECK(rig.queue.dequeue(*rig.arena, 32).count == 0);  // it was about a guest that is gone
}
