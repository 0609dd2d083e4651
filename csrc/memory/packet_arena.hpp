// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/mutex.hpp"

namespace vhost_ioat::memory {

class PacketArena;

/// A piece of an arena, shared by counting: bursts that show it and copies that read it each hold one reference.
/// Move-only handle; share() makes another. The last one gives the memory back, and the arena lives as long as any.
class Block {
 public:
  Block() = default;
  Block(Block&& other) noexcept;
  Block& operator=(Block&& other) noexcept;
  ~Block() { reset(); }

  Block share() const noexcept;
  void reset() noexcept;
  /// Lets go of the memory without giving it back: something that cannot be stopped may still use it.
  void leak() noexcept { arena_ = nullptr; }
  explicit operator bool() const { return arena_ != nullptr; }
  uint8_t* data() const { return data_; }  // 64-byte aligned
  size_t size() const { return size_; }    // at least what was asked for

 private:
  friend class PacketArena;
  PacketArena* arena_ = nullptr;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

/// Memory for packets: one mapping, cut into blocks of powers of two from 4 KiB up (a buddy allocator).
///
/// allocate() and the release of a block neither allocate nor make a system call; both are short and thread safe (a
/// spin lock held for some tens of nanoseconds). Blocks freed last are given first, they are warm in the cache.
class PacketArena {
 public:
  static constexpr size_t min_block = 4096;

  /// `size` is rounded up to a power of two of at least 1 MiB. Throws std::bad_alloc / std::system_error.
  /// Lives while the returned pointer or any Block lives. A forked child has a copy, so that bursts stay readable
  /// there.
  static std::shared_ptr<PacketArena> create(size_t size);

  /// An empty Block when the arena is exhausted.
  Block allocate(size_t bytes) noexcept;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  size_t bytes_in_use() const noexcept { return in_use_.load(std::memory_order_relaxed); }
  /// What a block of so many bytes really takes.
  static constexpr size_t block_size(size_t bytes) { return std::bit_ceil(bytes < min_block ? min_block : bytes); }
  /// The largest block that allocate() would give now; 0 when all is in use.
  size_t largest_free() noexcept;

 private:
  friend class Block;
  static constexpr uint32_t no_frame = UINT32_MAX;
  static constexpr uint8_t not_free = UINT8_MAX;

  /// One for each min_block of memory; that of a block's first piece speaks for the block. Kept apart from the memory
  /// itself, which callers and devices write to.
  struct Frame {
    std::atomic<uint32_t> references{0};
    uint32_t previous = no_frame, next = no_frame;  // in a list of free blocks
    uint8_t free_order = not_free;                  // of the free block that begins here
  };

  class CAPABILITY("mutex") SpinLock {
   public:
    void lock() noexcept ACQUIRE();
    void unlock() noexcept RELEASE() {
      taken_.store(false, std::memory_order_release);
    }  // pairs with the exchange in lock()

   private:
    std::atomic<bool> taken_{false};
  };

  explicit PacketArena(size_t size);
  ~PacketArena();

  void let_go() noexcept;
  void release(uint8_t* data, size_t size) noexcept;
  uint32_t take_free(unsigned order) noexcept REQUIRES(lock_);
  void give_back(uint32_t frame, unsigned order) noexcept REQUIRES(lock_);
  void push_free(uint32_t frame, unsigned order) noexcept REQUIRES(lock_);
  void remove_free(uint32_t frame, unsigned order) noexcept REQUIRES(lock_);

  uint32_t frame_number(const uint8_t* data) const {
    return static_cast<uint32_t>(static_cast<size_t>(data - data_) / min_block);
  }
  Frame& frame_of(const uint8_t* data) const { return frames_[frame_number(data)]; }
  static unsigned order_of(size_t block_size) {
    return static_cast<unsigned>(std::countr_zero(block_size / min_block));
  }

  uint8_t* data_ = nullptr;
  const size_t size_;
  const unsigned top_order_;
  std::unique_ptr<Frame[]> frames_;
  SpinLock lock_;                                    // guards the links of the frames, too
  std::array<uint32_t, 32> free_ GUARDED_BY(lock_);  // by order: the block freed last
  std::atomic<size_t> in_use_{0};                    // bytes
  std::atomic<uint32_t> users_{1};                   // the shared_ptr of create() and each block in use
};

}  // namespace vhost_ioat::memory
