// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/error.hpp"
#include "bindings/burst.hpp"

namespace vhost_ioat::bindings {

struct Packet {
  Py_ssize_t index;
  uint8_t* data;
  uint32_t length;
};

/// The i-th packet, from the end when negative. Its length is anybody's to write: read once, checked, and used as read.
inline Packet checked_packet(PyBurst* self, Py_ssize_t i) {
  const Py_ssize_t index = i < 0 ? i + self->count : i;
  if (index < 0 || index >= Py_ssize_t{self->count})
    throw py::index_error(format("packet %zd is out of range: the burst has %u packets", i, self->count));
  const uint32_t length = std::atomic_ref(self->length(index)).load(std::memory_order_relaxed);
  if (length > self->stride)
    throw py::value_error(format("packet %zd: length %u is above the burst's stride of %u", i, length, self->stride));
  return {index, self->packet(index), length};
}

inline uint32_t longest_packet(PyBurst* self) {
  uint32_t longest = 0;
  for (Py_ssize_t i = 0; i < Py_ssize_t{self->count}; ++i) longest = std::max(longest, checked_packet(self, i).length);
  return longest;
}

/// `longest` is what longest_packet() said; the lengths may have changed since.
inline void copy_packets(PyBurst* self, uint32_t longest, const virtio::Burst& to) {
  for (Py_ssize_t i = 0; i < Py_ssize_t{self->count}; ++i) {
    const Packet packet = checked_packet(self, i);
    to.lengths[i] = std::min(packet.length, longest);
    to.headers[i] = self->headers[self->step * i];
    std::memcpy(to.row(static_cast<uint32_t>(i)), packet.data, to.lengths[i]);
  }
}

}  // namespace vhost_ioat::bindings
