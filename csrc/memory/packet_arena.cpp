// SPDX-License-Identifier: BSD-3-Clause
#include "memory/packet_arena.hpp"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <system_error>
#include <utility>

namespace vhost_ioat::memory {

void PacketArena::SpinLock::lock() noexcept {
  for (unsigned spins = 0; taken_.exchange(true, std::memory_order_acquire); ++spins) {  // pairs with unlock()
    // The holder may have lost its core in these few instructions: let it have ours.
    if (spins % 1024 == 1023) sched_yield();
    __builtin_ia32_pause();
  }
}

Block::Block(Block&& other) noexcept
    : arena_(std::exchange(other.arena_, nullptr)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

Block& Block::operator=(Block&& other) noexcept {
  if (this != &other) {
    reset();
    arena_ = std::exchange(other.arena_, nullptr);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

Block Block::share() const noexcept {
  Block again;
  if (!arena_) return again;
  arena_->frame_of(data_).references.fetch_add(1, std::memory_order_relaxed);  // we hold one: it cannot be 0
  again.arena_ = arena_;
  again.data_ = data_;
  again.size_ = size_;
  return again;
}

void Block::reset() noexcept {
  PacketArena* arena = std::exchange(arena_, nullptr);
  if (!arena) return;
  // What every holder did with the memory comes before its next use: release by all, acquire by the last.
  if (arena->frame_of(data_).references.fetch_sub(1, std::memory_order_acq_rel) == 1) arena->release(data_, size_);
  data_ = nullptr;
  size_ = 0;
}

std::shared_ptr<PacketArena> PacketArena::create(size_t size) {
  constexpr size_t smallest = size_t{1} << 20;
  constexpr size_t largest = size_t{1} << 43;  // 2^31 frames: frame numbers are 32 bits
  if (size > largest) throw std::bad_alloc();
  return {new PacketArena(std::bit_ceil(std::max(size, smallest))), [](PacketArena* arena) { arena->let_go(); }};
}

PacketArena::PacketArena(size_t size)
    : size_(size),
      top_order_(static_cast<unsigned>(std::countr_zero(size / min_block))),
      frames_(std::make_unique<Frame[]>(size / min_block)) {
  free_.fill(no_frame);
  void* map = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap of packet memory");
  data_ = static_cast<uint8_t*>(map);
  push_free(0, top_order_);
}

PacketArena::~PacketArena() { munmap(data_, size_); }

void PacketArena::let_go() noexcept {
  if (users_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
}

Block PacketArena::allocate(size_t bytes) noexcept {
  Block block;
  if (bytes > size_) return block;
  const size_t taken = block_size(bytes);
  const unsigned order = order_of(taken);
  uint32_t frame = no_frame;
  {
    const LockGuard guard(lock_);
    frame = take_free(order);
  }
  if (frame == no_frame) return block;
  frames_[frame].references.store(1, std::memory_order_relaxed);  // ours alone until the Block is handed on
  users_.fetch_add(1, std::memory_order_relaxed);                 // the caller's own use keeps it above 0
  in_use_.fetch_add(taken, std::memory_order_relaxed);
  block.arena_ = this;
  block.data_ = data_ + frame * min_block;
  block.size_ = taken;
  return block;
}

size_t PacketArena::largest_free() noexcept {
  const LockGuard guard(lock_);
  for (unsigned order = top_order_ + 1; order-- != 0;)
    if (free_[order] != no_frame) return min_block << order;
  return 0;
}

void PacketArena::release(uint8_t* data, size_t size) noexcept {
  in_use_.fetch_sub(size, std::memory_order_relaxed);
  {
    const LockGuard guard(lock_);
    give_back(frame_number(data), order_of(size));
  }
  let_go();
}

/// A block of this order, cut from the smallest larger one that is free.
uint32_t PacketArena::take_free(unsigned order) noexcept {
  unsigned from = order;
  while (from <= top_order_ && free_[from] == no_frame) ++from;
  if (from > top_order_) return no_frame;
  const uint32_t frame = free_[from];
  remove_free(frame, from);
  while (from > order) {
    --from;
    push_free(frame + (1u << from), from);
  }
  return frame;
}

/// Joins the block with its buddy while that is free as a whole.
void PacketArena::give_back(uint32_t frame, unsigned order) noexcept {
  for (; order < top_order_; ++order) {
    const uint32_t buddy = frame ^ (1u << order);
    if (frames_[buddy].free_order != order) break;
    remove_free(buddy, order);
    frame &= ~(1u << order);
  }
  push_free(frame, order);
}

void PacketArena::push_free(uint32_t frame, unsigned order) noexcept {
  const uint32_t next = free_[order];
  frames_[frame].free_order = static_cast<uint8_t>(order);
  frames_[frame].previous = no_frame;
  frames_[frame].next = next;
  if (next != no_frame) frames_[next].previous = frame;
  free_[order] = frame;
}

void PacketArena::remove_free(uint32_t frame, unsigned order) noexcept {
  const Frame& gone = frames_[frame];
  if (gone.previous == no_frame) {
    free_[order] = gone.next;
  } else {
    frames_[gone.previous].next = gone.next;
  }
  if (gone.next != no_frame) frames_[gone.next].previous = gone.previous;
  frames_[frame].free_order = not_free;
}

}  // namespace vhost_ioat::memory
