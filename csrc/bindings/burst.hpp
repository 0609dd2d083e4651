// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include "bindings/bindings.hpp"
#include "memory/packet_arena.hpp"
#include "port/packet_view.hpp"
#include "virtio/burst.hpp"

namespace vhost_ioat::bindings {

/// `Burst` in Python: a C-API type, since making one is all the work of Python that rx_burst does.
///
/// Entries are lengths[step * i], headers[step * i] and the rows they name (port::PacketView). A slice shares the
/// arrays of its parent, a masked burst has its own; both keep the packets alive through `block`.
struct PyBurst {
  PyObject_HEAD memory::Block block;
  uint8_t* data;
  uint32_t stride;
  uint32_t count;
  Py_ssize_t step;
  uint32_t* rows;  // null: entry j is row j
  uint32_t* lengths;
  virtio::NetHeader* headers;
  PyObject* arrays_of;  // of a slice, the burst that owns the arrays; of a masked burst, the one that owns the rows
  void* own_arrays;     // malloc'ed: the three arrays of a masked burst, or everything of a detached one

  port::PacketView view() const {
    return {data, stride, count, step, rows, lengths, headers, block ? &block : nullptr};
  }
  uint32_t& length(Py_ssize_t i) const { return lengths[step * i]; }
  uint8_t* packet(Py_ssize_t i) const {
    const Py_ssize_t entry = step * i;
    return data + (rows ? Py_ssize_t{rows[entry]} : entry) * Py_ssize_t{stride};
  }
};

bool is_burst(PyObject* object);
/// A new Burst of these packets; null with a Python error set. An empty one for a burst without memory.
PyObject* new_burst(virtio::Burst burst);

/// Makes ready what from_packets() and PacketArgument compare types with.
void register_packets();

/// Sets MemoryError and throws: `wanted` bytes are not free in the arena of bursts without a port.
[[noreturn]] void no_packet_memory(size_t wanted);

/// Packets out of a Burst or a sequence of packets (bytes, bytearray, memoryview, or arrays of 8-bit integers), ready
/// to send. Keeps them alive. Throws a Python TypeError or ValueError (as py::error_already_set) before anything was
/// done.
class PacketArgument {
 public:
  /// At most `limit` packets are gathered from a sequence; all are checked.
  explicit PacketArgument(PyObject* packets, uint32_t limit = UINT32_MAX);
  const port::PacketView& view() const { return view_; }
  uint64_t bytes() const;

 private:
  port::PacketView view_;
  virtio::Burst gathered_;
  std::unique_ptr<uint8_t[]> spill_;  // when the common arena is exhausted
};

/// Gathers a sequence of packets into one burst of the common arena, or of the heap (`spill`) when that is exhausted.
virtio::Burst gather_packets(PyObject* packets, uint32_t limit, std::unique_ptr<uint8_t[]>* spill);

}  // namespace vhost_ioat::bindings
