// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>

#include "memory/packet_arena.hpp"
#include "virtio/burst.hpp"

namespace vhost_ioat::port {

/// Packets to send: entries of a burst, all of them or every k-th. Entry j has its length and header at j and its bytes
/// in row j, or in row rows[j] when rows were chosen. It owns nothing.
struct PacketView {
  const uint8_t* data = nullptr;  // row 0
  uint32_t stride = 0;            // bytes from row to row
  uint32_t count = 0;             // packets
  ptrdiff_t step = 1;             // entries from packet to packet
  const uint32_t* rows = nullptr;
  const uint32_t* lengths = nullptr;
  const virtio::NetHeader* headers = nullptr;
  const memory::Block* block = nullptr;  // what the rows lie in; without it the CPU copies

  ptrdiff_t entry(uint32_t i) const { return step * ptrdiff_t{i}; }
  const uint8_t* packet(uint32_t i) const {
    const ptrdiff_t row = rows ? ptrdiff_t{rows[entry(i)]} : entry(i);
    return data + row * ptrdiff_t{stride};
  }
  uint32_t length(uint32_t i) const { return lengths[entry(i)]; }
  const virtio::NetHeader& header(uint32_t i) const { return headers[entry(i)]; }

  /// Without the first n packets.
  PacketView from(uint32_t n) const {
    PacketView rest = *this;
    rest.count -= n;
    rest.lengths += entry(n);
    rest.headers += entry(n);
    if (rows) {
      rest.rows += entry(n);
    } else {
      rest.data += entry(n) * ptrdiff_t{stride};
    }
    return rest;
  }

  static PacketView of(const virtio::Burst& burst) {
    return {burst.data, burst.stride, burst.count, 1, nullptr, burst.lengths, burst.headers, &burst.block};
  }
};

}  // namespace vhost_ioat::port
