// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

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
/// allocate() and the release of a block neither allocate nor make a system call; both are short and thread safe (a spin
/// lock held for some tens of nanoseconds). Blocks freed last are given first, they are warm in the cache.
class PacketArena {
 public:
  static constexpr size_t min_block = 4096;

  /// `size` is rounded up to a power of two of at least 1 MiB. Throws std::bad_alloc / std::system_error.
  /// Lives while the returned pointer or any Block lives. MADV_DONTFORK.
  static std::shared_ptr<PacketArena> create(size_t size);

  /// An empty Block when the arena is exhausted.
  Block allocate(size_t bytes) noexcept;

  uint8_t* data() const;
  size_t size() const;
  size_t bytes_in_use() const noexcept;
};

}  // namespace vhost_ioat::memory
