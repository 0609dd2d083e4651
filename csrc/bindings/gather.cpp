// SPDX-License-Identifier: BSD-3-Clause
// Packets given as a sequence of bytes-like objects.
#include <pybind11/numpy.h>

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

/// Types that packets are of. numpy and array are loaded with the module, and never go.
struct {
  PyTypeObject *ndarray, *memmap, *scalar, *array;
} types;

bool is_plain_array(PyObject* object) { return Py_TYPE(object) == types.ndarray || Py_TYPE(object) == types.memmap; }

bool has_bytes(const py::array& array) {
  const char kind = array.dtype().kind();
  return array.itemsize() == 1 && (kind == 'u' || kind == 'i');
}

/// The format of a buffer names items of 8 bits. (No format means bytes; a byte order means nothing here.)
bool is_byte_format(const char* format) {
  if (!format) return true;
  if (*format && std::strchr("@=<>!", *format)) ++format;
  return *format && std::strchr("Bbc", *format) && format[1] == '\0';
}

/// What an object is, for those who gave the wrong one.
std::string described(PyObject* object) {
  const char* name = Py_TYPE(object)->tp_name;
  if (PyObject_TypeCheck(object, types.ndarray)) {
    const auto array = py::reinterpret_borrow<py::array>(object);
    return format("a %s of dtype %s and %zd dimensions%s", name, std::string(py::str(array.dtype())).c_str(),
                  array.ndim(), (array.flags() & py::array::c_style) ? "" : ", not contiguous");
  }
  if (PyObject_TypeCheck(object, types.scalar) || PyObject_TypeCheck(object, types.array)) {
    const auto dtype = py::getattr(object, PyObject_TypeCheck(object, types.array) ? "typecode" : "dtype");
    return format("a %s of type %s", name, std::string(py::str(dtype)).c_str());
  }
  Py_buffer buffer;
  if (!PyMemoryView_Check(object)) return format("a %s", name);
  if (PyObject_GetBuffer(object, &buffer, PyBUF_FULL_RO) != 0) {
    PyErr_Clear();
    return "a released memoryview";
  }
  const std::string text = format("a memoryview of format '%s' and %d dimensions%s", buffer.format, buffer.ndim,
                                  PyBuffer_IsContiguous(&buffer, 'C') ? "" : ", not contiguous");
  PyBuffer_Release(&buffer);
  return text;
}

/// Opens the buffer of a packet; false, without a Python error, for anything else.
bool open_packet(PyObject* packet, Py_buffer* buffer) {
  int failed = -1;
  if (PyBytes_CheckExact(packet) || (PyBytes_Check(packet) && !PyObject_TypeCheck(packet, types.scalar))) {
    failed = PyBytes_Type.tp_as_buffer->bf_getbuffer(packet, buffer, PyBUF_SIMPLE);
  } else if (PyByteArray_Check(packet)) {
    failed = PyByteArray_Type.tp_as_buffer->bf_getbuffer(packet, buffer, PyBUF_SIMPLE);
  } else if (is_plain_array(packet)) {
    const auto array = py::reinterpret_borrow<py::array>(packet);
    if (array.ndim() == 1 && has_bytes(array)) failed = PyObject_GetBuffer(packet, buffer, PyBUF_SIMPLE);
  } else if (PyMemoryView_Check(packet) || PyObject_TypeCheck(packet, types.array)) {
    const PyTypeObject* type = PyMemoryView_Check(packet) ? &PyMemoryView_Type : types.array;
    failed = type->tp_as_buffer->bf_getbuffer(packet, buffer, PyBUF_FULL_RO);
    if (failed == 0 && (buffer->ndim != 1 || buffer->itemsize != 1 || !is_byte_format(buffer->format) ||
                        !PyBuffer_IsContiguous(buffer, 'C'))) {
      PyBuffer_Release(buffer);
      failed = -1;
    }
  }
  if (failed != 0) PyErr_Clear();
  return failed == 0;
}

constexpr const char* what_packets_are =
    "a packet is bytes, bytearray, a memoryview of bytes, or a 1-D array of uint8 or int8 in C order";

/// A sequence that may hold packets; what would pass for one by accident is refused.
void check_sequence(PyObject* packets) {
  if (PyList_CheckExact(packets) || PyTuple_CheckExact(packets)) return;
  if (is_plain_array(packets)) {
    const auto array = py::reinterpret_borrow<py::array>(packets);
    if (array.ndim() == 2 && has_bytes(array)) return;
    if (array.ndim() == 1 && has_bytes(array))
      throw py::type_error("a 1-D array is one packet, not a sequence of packets: give [packet]");
  } else if (PyObject_CheckBuffer(packets) && !PyObject_TypeCheck(packets, types.ndarray)) {
    throw py::type_error(described(packets) + " is at most one packet, not a sequence of packets: give [packet]");
  } else if (PySequence_Check(packets) && !PyUnicode_Check(packets) && !PyObject_HasAttrString(packets, "keys") &&
             !PyObject_HasAttrString(packets, "__array__")) {
    return;
  }
  throw py::type_error(
      format("packets must be a Burst, a list, tuple or other sequence of packets, or a 2-D array of uint8 or int8, "
             "not %s; %s",
             described(packets).c_str(), what_packets_are));
}

/// Buffers of a sequence, open until it goes.
class Buffers {
 public:
  explicit Buffers(PyObject* packets) {
    check_sequence(packets);
    // Not the caller's list itself: it may change meanwhile, by another thread.
    packets_ = py::reinterpret_steal<py::tuple>(PySequence_Tuple(packets));
    if (!packets_) throw py::error_already_set();
    const auto n = static_cast<Py_ssize_t>(packets_.size());
    buffers_.reserve(packets_.size());
    for (Py_ssize_t i = 0; i < n; ++i) {
      Py_buffer buffer;
      PyObject* packet = PyTuple_GET_ITEM(packets_.ptr(), i);
      if (!open_packet(packet, &buffer)) {
        release();
        throw py::type_error(
            format("packet %zd is %s; %s. Nothing was sent. Convert it, for example with bytes(), "
                   ".astype(numpy.uint8) or numpy.ascontiguousarray()",
                   i, described(packet).c_str(), what_packets_are));
      }
      buffers_.push_back(buffer);
    }
  }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  ~Buffers() { release(); }
  const std::vector<Py_buffer>& get() const { return buffers_; }

 private:
  void release() {
    for (Py_buffer& buffer : buffers_) PyBuffer_Release(&buffer);
    buffers_.clear();
  }
  py::tuple packets_{py::reinterpret_steal<py::tuple>(py::handle())};
  std::vector<Py_buffer> buffers_;
};

}  // namespace

void register_packets() {
  auto type = [](const char* module, const char* name) {
    return reinterpret_cast<PyTypeObject*>(py::object(py::module_::import(module).attr(name)).release().ptr());
  };
  types = {type("numpy", "ndarray"), type("numpy", "memmap"), type("numpy", "generic"), type("array", "array")};
}

void no_packet_memory(size_t wanted) {
  const auto& arena = *port::common_arena();
  PyErr_SetString(
      PyExc_MemoryError,
      format("no memory for %zu bytes of packets: bursts without a port share %zu bytes, of which %zu are in use; drop "
             "bursts and views of them, or keep packets with detach(), which has memory of its own",
             wanted, arena.size(), arena.bytes_in_use())
          .c_str());
  throw py::error_already_set();
}

virtio::Burst gather_packets(PyObject* packets, uint32_t limit, std::unique_ptr<uint8_t[]>* spill) {
  using virtio::Burst;
  const Buffers buffers(packets);
  const auto count = static_cast<uint32_t>(std::min<size_t>(buffers.get().size(), limit));
  if (count == 0) return {};
  uint32_t longest = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const auto len = static_cast<uint64_t>(buffers.get()[i].len);
    if (len > INT32_MAX) throw py::value_error(format("packet %u has more than 2^31 - 1 bytes", i));
    // One too long for any queue is dropped and counted when sent; its bytes are not needed for that.
    longest = std::max(longest, static_cast<uint32_t>(spill ? std::min<uint64_t>(len, virtio::max_packet + 1) : len));
  }
  Burst burst = Burst::allocate(*port::common_arena(), count, longest);
  if (!burst.block) {
    const uint32_t stride = Burst::stride_for(longest);
    const size_t bytes = Burst::prefix_bytes(count) + size_t{count} * stride;
    if (!spill) no_packet_memory(bytes);
    *spill = std::make_unique<uint8_t[]>(bytes);
    burst.place(spill->get(), count, stride);
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
