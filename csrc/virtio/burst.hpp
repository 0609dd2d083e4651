// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "memory/packet_arena.hpp"
#include "virtio/net_header.hpp"

namespace vhost_ioat::virtio {

/// Packets in one arena block: lengths, then net headers, then rows of `stride` bytes.
///
///   | Begin | lengths: u32[n] | headers: NetHeader[n] | pad to 64 | row 0 | row 1 | ...
///
/// The layout is chosen once all lengths are known, so that the longest packet is one contiguous row.
struct Burst {
  static constexpr uint32_t max_bytes = 1 << 20;  // rx_burst ends early rather than exceed it

  memory::Block block;
  uint32_t count = 0;
  uint32_t stride = 0;
  uint32_t* lengths = nullptr;
  NetHeader* headers = nullptr;
  uint8_t* data = nullptr;

  uint8_t* row(uint32_t i) const { return data + size_t{stride} * i; }

  /// Longest packet rounded up to a cache line, kept off multiples of 4 KiB, where rows would share cache sets.
  static constexpr uint32_t stride_for(uint32_t longest) {
    uint32_t stride = std::max(64u, (longest + 63) & ~63u);
    return stride % 4096 == 0 ? stride + 64 : stride;
  }
  static constexpr size_t prefix_bytes(uint32_t count) {
    return (sizeof(Begin) + size_t{count} * (sizeof(uint32_t) + sizeof(NetHeader)) + 63) & ~size_t{63};
  }

  static constexpr size_t bytes_for(uint32_t count, uint32_t longest) {
    return prefix_bytes(count) + size_t{count} * stride_for(longest);
  }

  /// A burst of uninitialised rows; count is 0 when the arena is exhausted.
  static Burst allocate(memory::PacketArena& arena, uint32_t count, uint32_t longest) noexcept {
    Burst burst;
    uint32_t stride = stride_for(longest);
    burst.block = arena.allocate(bytes_for(count, longest));
    if (!burst.block) return burst;
    burst.place(burst.block.data(), count, stride);
    return burst;
  }

  /// Lays the burst out in memory of prefix_bytes(count) + count * stride bytes.
  void place(uint8_t* memory, uint32_t rows, uint32_t row_bytes) noexcept {
    count = rows;
    stride = row_bytes;
    *reinterpret_cast<Begin*>(memory) = {rows, Begin::leftovers};
    lengths = reinterpret_cast<uint32_t*>(memory + sizeof(Begin));
    headers = reinterpret_cast<NetHeader*>(memory + sizeof(Begin) + sizeof(uint32_t) * rows);
    data = memory + prefix_bytes(rows);
  }

  /// What lies in a row after its packet was somebody else's packet. This zeroes it, once for all bursts that share the
  /// block, and has to come before anyone may see whole rows or change a length.
  static void clear_padding(const memory::Block& block, uint32_t stride) noexcept {
    if (!block) return;
    auto* begin = reinterpret_cast<Begin*>(block.data());
    const std::atomic_ref state(begin->padding);
    if (state.load(std::memory_order_acquire) == Begin::clear) return;  // pairs with the store below
    uint32_t expected = Begin::leftovers;
    if (!state.compare_exchange_strong(expected, Begin::clearing, std::memory_order_relaxed)) {
      while (state.load(std::memory_order_acquire) != Begin::clear) {  // another thread of the program is at it
      }
      return;
    }
    Burst burst;
    const uint32_t rows = begin->rows;
    burst.lengths = reinterpret_cast<uint32_t*>(block.data() + sizeof(Begin));
    burst.data = block.data() + prefix_bytes(rows);
    burst.stride = stride;
    for (uint32_t i = 0; i < rows; ++i) {
      const uint32_t length = std::min(burst.lengths[i], stride);
      std::memset(burst.row(i) + length, 0, stride - length);
    }
    state.store(Begin::clear, std::memory_order_release);
  }

 private:
  struct Begin {
    static constexpr uint32_t leftovers = 0, clearing = 1, clear = 2;
    uint32_t rows;
    uint32_t padding;  // one of these
  };
};

}  // namespace vhost_ioat::virtio
