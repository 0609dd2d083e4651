// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>

#include "memory/packet_arena.hpp"
#include "virtio/burst.hpp"

namespace vhost_ioat::port {

/// Packets to send: rows of a burst, all of them, every k-th, or chosen ones. It owns nothing.
struct PacketView {
  const uint8_t* data = nullptr;   // row 0
  uint32_t stride = 0;             // bytes from row to row
  uint32_t count = 0;              // packets
  ptrdiff_t step = 1;              // rows (and lengths, headers) from packet to packet
  const uint32_t* rows = nullptr;  // chosen rows; then lengths and headers are dense
  const uint32_t* lengths = nullptr;
  const virtio::NetHeader* headers = nullptr;
  const memory::Block* block = nullptr;  // what the rows lie in; without it the CPU copies

  const uint8_t* packet(uint32_t i) const {
    return data + (rows ? ptrdiff_t{rows[i]} : step * ptrdiff_t{i}) * ptrdiff_t{stride};
  }
  uint32_t length(uint32_t i) const { return lengths[rows ? ptrdiff_t{i} : step * ptrdiff_t{i}]; }
  const virtio::NetHeader& header(uint32_t i) const { return headers[rows ? ptrdiff_t{i} : step * ptrdiff_t{i}]; }

  static PacketView of(const virtio::Burst& burst) {
    return {burst.data, burst.stride, burst.count, 1, nullptr, burst.lengths, burst.headers, &burst.block};
  }
};

}  // namespace vhost_ioat::port
