// SPDX-License-Identifier: BSD-3-Clause
// Packets given as a sequence of bytes-like objects.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "base/error.hpp"
#include "bindings/burst.hpp"
#include "port/arenas.hpp"
#include "virtio/net_header.hpp"

namespace vhost_ioat::bindings {

namespace {

/// Buffers of a sequence, open until it goes.
class Buffers {
 public:
  explicit Buffers(PyObject* packets) {
    if (PyObject_CheckBuffer(packets) && !PyObject_HasAttrString(packets, "__array_interface__"))
      fail("expected a Burst or a sequence of bytes-like packets; for one packet give [packet]");
    const auto fast = py::reinterpret_steal<py::object>(
        PySequence_Fast(packets, "expected a Burst or a sequence of bytes-like packets"));
    // Not the caller's list itself: it may change meanwhile, by another thread or by an item's own __buffer__().
    if (fast) packets_ = py::reinterpret_steal<py::tuple>(PySequence_Tuple(fast.ptr()));
    if (!packets_) throw py::error_already_set();
    const auto n = static_cast<Py_ssize_t>(packets_.size());
    buffers_.reserve(packets_.size());
    for (Py_ssize_t i = 0; i < n; ++i) {
      Py_buffer buffer;
      PyObject* packet = PyTuple_GET_ITEM(packets_.ptr(), i);
      if (PyObject_GetBuffer(packet, &buffer, PyBUF_SIMPLE) != 0) {
        PyErr_Clear();
        fail(format("packet %zd is a %s; packets are bytes-like and contiguous", i, Py_TYPE(packet)->tp_name));
      }
      buffers_.push_back(buffer);
    }
  }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  ~Buffers() { release(); }
  const std::vector<Py_buffer>& get() const { return buffers_; }

 private:
  [[noreturn]] void fail(const std::string& text) {
    release();
    throw py::type_error(text);
  }
  void release() {
    for (Py_buffer& buffer : buffers_) PyBuffer_Release(&buffer);
    buffers_.clear();
  }
  py::tuple packets_{py::reinterpret_steal<py::tuple>(py::handle())};
  std::vector<Py_buffer> buffers_;
};

}  // namespace

virtio::Burst gather_packets(PyObject* packets, uint32_t limit, std::unique_ptr<uint8_t[]>* spill) {
  using virtio::Burst;
  const Buffers buffers(packets);
  const auto count = static_cast<uint32_t>(std::min<size_t>(buffers.get().size(), limit));
  if (count == 0) return {};
  uint32_t longest = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const auto len = static_cast<uint64_t>(buffers.get()[i].len);
    if (len > INT32_MAX) throw py::value_error(format("packet %u has more than 2^31 bytes", i));
    // One too long for any queue is dropped and counted when sent; its bytes are not needed for that.
    longest = std::max(longest, static_cast<uint32_t>(spill ? std::min<uint64_t>(len, virtio::max_packet + 1) : len));
  }
  Burst burst = Burst::allocate(*port::common_arena(), count, longest);
  if (!burst.block) {
    if (!spill) throw std::bad_alloc();
    burst.stride = Burst::stride_for(longest);
    burst.count = count;
    *spill = std::make_unique<uint8_t[]>(Burst::prefix_bytes(count) + size_t{count} * burst.stride);
    burst.lengths = reinterpret_cast<uint32_t*>(spill->get());
    burst.headers = reinterpret_cast<virtio::NetHeader*>(spill->get() + sizeof(uint32_t) * count);
    burst.data = spill->get() + Burst::prefix_bytes(count);
  }
  for (uint32_t i = 0; i < count; ++i) {
    const Py_buffer& buffer = buffers.get()[i];
    burst.lengths[i] = static_cast<uint32_t>(buffer.len);
    burst.headers[i] = {};
    std::memcpy(burst.row(i), buffer.buf, std::min<size_t>(static_cast<size_t>(buffer.len), burst.stride));
  }
  return burst;
}

PacketArgument::PacketArgument(PyObject* packets, uint32_t limit) {
  if (is_burst(packets)) {
    view_ = reinterpret_cast<PyBurst*>(packets)->view();
    for (uint32_t i = 0; i < view_.count; ++i) {
      if (view_.length(i) > view_.stride) [[unlikely]]
        throw py::value_error(
            format("packet %u: length %u is above the burst's stride of %u", i, view_.length(i), view_.stride));
    }
    return;
  }
  gathered_ = gather_packets(packets, limit, &spill_);
  view_ = port::PacketView::of(gathered_);
  if (!gathered_.block) view_.block = nullptr;
}

uint64_t PacketArgument::bytes() const {
  uint64_t sum = 0;
  for (uint32_t i = 0; i < view_.count; ++i) sum += view_.length(i);
  return sum;
}

}  // namespace vhost_ioat::bindings
