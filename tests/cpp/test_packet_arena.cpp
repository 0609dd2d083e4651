// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "doctest/doctest.h"
#include "memory/packet_arena.hpp"

using vhost_ioat::memory::Block;
using vhost_ioat::memory::PacketArena;

TEST_CASE("blocks are powers of two, inside the arena, aligned, and apart") {
  auto arena = PacketArena::create(3 << 20);
  CHECK(arena->size() == 4 << 20);
  Block small = arena->allocate(1);
  Block large = arena->allocate(4097);
  REQUIRE(small);
  REQUIRE(large);
  CHECK(small.size() == 4096);
  CHECK(large.size() == 8192);
  CHECK(reinterpret_cast<uintptr_t>(small.data()) % 64 == 0);
  std::memset(small.data(), 1, small.size());
  std::memset(large.data(), 2, large.size());
  CHECK(small.data()[4095] == 1);
  CHECK(arena->bytes_in_use() == 12288);
  small.reset();
  large.reset();
  CHECK(arena->bytes_in_use() == 0);
}

TEST_CASE("the whole arena can be had as one block, again and again") {
  auto arena = PacketArena::create(1);
  for (int i = 0; i < 3; ++i) {
    Block all = arena->allocate(arena->size());
    CHECK(all);
    CHECK_FALSE(arena->allocate(1));
  }
  CHECK_FALSE(arena->allocate(arena->size() + 1));
}

TEST_CASE("an exhausted arena gives an empty block, and what was freed comes together again") {
  auto arena = PacketArena::create(1);
  std::vector<Block> blocks;
  while (Block block = arena->allocate(PacketArena::min_block)) blocks.push_back(std::move(block));
  CHECK(blocks.size() == 256);
  std::ranges::shuffle(blocks, std::mt19937(3));
  blocks.clear();
  CHECK(arena->allocate(arena->size()));
}

TEST_CASE("the block freed last is given first") {
  auto arena = PacketArena::create(1);
  std::vector<Block> blocks;
  for (int i = 0; i < 256; ++i) blocks.push_back(arena->allocate(1));
  uint8_t* warm = blocks[100].data();
  blocks[7].reset();
  blocks[100].reset();
  CHECK(arena->allocate(1).data() == warm);
}

TEST_CASE("a shared block is freed by its last holder") {
  auto arena = PacketArena::create(1);
  Block first = arena->allocate(100);
  Block second = first.share();
  CHECK(second.data() == first.data());
  first.reset();
  CHECK(arena->bytes_in_use() == 4096);
  Block third = std::move(second);
  CHECK_FALSE(second);
  third = Block();
  CHECK(arena->bytes_in_use() == 0);
}

TEST_CASE("an arena outlives its owner while a block is in use") {
  auto arena = PacketArena::create(1);
  Block block = arena->allocate(100);
  arena.reset();
  std::memset(block.data(), 5, block.size());
  Block again = block.share();
  block.reset();
  CHECK(again.data()[99] == 5);
}

TEST_CASE("random blocks never overlap and never get lost") {
  auto arena = PacketArena::create(4 << 20);
  std::mt19937 random(11);
  std::vector<std::pair<Block, uint8_t>> held;
  for (int i = 0; i < 20000; ++i) {
    if (held.empty() || random() % 2) {
      if (Block block = arena->allocate(1 + random() % (128 << 10))) {
        const auto mark = static_cast<uint8_t>(random());
        block.data()[0] = block.data()[block.size() - 1] = mark;
        held.emplace_back(std::move(block), mark);
      }
    } else {
      std::swap(held[random() % held.size()], held.back());
      auto& [block, mark] = held.back();
      REQUIRE(block.data()[0] == mark);
      REQUIRE(block.data()[block.size() - 1] == mark);
      held.pop_back();
    }
  }
  held.clear();
  CHECK(arena->allocate(arena->size()));
}

TEST_CASE("threads that allocate, hand over and free blocks do not disturb each other") {
  auto arena = PacketArena::create(2 << 20);
  std::mutex mutex;
  std::vector<std::pair<Block, int>> shelf;  // blocks change hands here
  auto work = [&](int id) {
    std::mt19937 random(static_cast<unsigned>(id));
    for (int i = 0; i < 4000; ++i) {
      Block block = arena->allocate(1 + random() % 30000);
      if (!block) continue;
      const int mark = id * 1000000 + i;
      std::memcpy(block.data(), &mark, sizeof mark);
      Block reader = block.share();
      const std::lock_guard lock(mutex);
      shelf.emplace_back(std::move(reader), mark);
      if (shelf.size() < 8) continue;
      auto [other, expected] = std::move(shelf[random() % shelf.size()]);
      std::erase_if(shelf, [](const auto& entry) { return !entry.first; });
      int found = 0;
      std::memcpy(&found, other.data(), sizeof found);
      if (found != expected) FAIL_CHECK("block changed while held");
    }
  };
  std::thread a(work, 1), b(work, 2), c(work, 3);
  a.join();
  b.join();
  c.join();
  shelf.clear();
  CHECK(arena->bytes_in_use() == 0);
  CHECK(arena->allocate(arena->size()));
}
