// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "memory/packet_arena.hpp"
#include "virtio/spec.hpp"

namespace vhost_ioat::virtio {

/// Packets in one arena block: lengths, then net headers, then rows of `stride` bytes.
///
///   | lengths: u32[n] | headers: NetHeader[n] | pad to 64 | row 0 | row 1 | ...
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
    return (size_t{count} * (sizeof(uint32_t) + sizeof(NetHeader)) + 63) & ~size_t{63};
  }

  /// A burst of uninitialised rows; count is 0 when the arena is exhausted.
  static Burst allocate(memory::PacketArena& arena, uint32_t count, uint32_t longest) noexcept {
    Burst burst;
    uint32_t stride = stride_for(longest);
    burst.block = arena.allocate(prefix_bytes(count) + size_t{count} * stride);
    if (!burst.block) return burst;
    burst.count = count;
    burst.stride = stride;
    burst.lengths = reinterpret_cast<uint32_t*>(burst.block.data());
    burst.headers = reinterpret_cast<NetHeader*>(burst.block.data() + sizeof(uint32_t) * count);
    burst.data = burst.block.data() + prefix_bytes(count);
    return burst;
  }
};

}  // namespace vhost_ioat::virtio
