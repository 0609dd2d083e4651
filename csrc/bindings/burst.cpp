// SPDX-License-Identifier: BSD-3-Clause
#include "bindings/burst.hpp"

#include <pybind11/numpy.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "base/error.hpp"
#include "bindings/burst_index.hpp"
#include "bindings/burst_rows.hpp"
#include "bindings/net_header.hpp"
#include "port/arenas.hpp"

namespace vhost_ioat::bindings {

namespace {

PyTypeObject* burst_type = nullptr;

/// Freed bursts, so that a polling loop makes its bursts without the allocator. Guarded by the GIL; without one
/// nothing is kept, as CPython's allocator for small objects is each thread's own then.
#ifdef Py_GIL_DISABLED
constexpr bool keep_freed = false;
#else
constexpr bool keep_freed = true;
#endif
constexpr size_t free_list_capacity = 32;
PyBurst* free_list[free_list_capacity];
size_t free_list_size = 0;

PyBurst* make() {
  PyBurst* self;
  if (free_list_size != 0) {
    self = free_list[--free_list_size];
    PyObject_Init(reinterpret_cast<PyObject*>(self), burst_type);
  } else {
    self = PyObject_New(PyBurst, burst_type);
    if (!self) throw py::error_already_set();
  }
  new (&self->block) memory::Block;
  self->data = nullptr;
  self->stride = self->count = 0;
  self->step = 1;
  self->rows = self->lengths = nullptr;
  self->headers = nullptr;
  self->arrays_of = nullptr;
  self->own_arrays = nullptr;
  return self;
}

PyBurst* of(PyObject* object) { return reinterpret_cast<PyBurst*>(object); }

void burst_dealloc(PyObject* object) {
  PyBurst* self = of(object);
  self->block.~Block();
  Py_XDECREF(self->arrays_of);
  std::free(self->own_arrays);
  if (keep_freed && free_list_size < free_list_capacity) {
    free_list[free_list_size++] = self;
  } else {
    PyObject_Free(self);
  }
  Py_DECREF(burst_type);  // instances of heap types own their type
}

Py_ssize_t burst_length(PyObject* self) { return of(self)->count; }

PyObject* packet_view(PyBurst* self, Py_ssize_t i) {
  const Packet packet = checked_packet(self, i);
  // The base is the burst: numpy keeps it, it keeps the memory.
  return py::array(py::dtype::of<uint8_t>(), {py::ssize_t{packet.length}}, {py::ssize_t{1}}, packet.data,
                   py::handle(reinterpret_cast<PyObject*>(self)))
      .release()
      .ptr();
}

PyBurst* share(PyBurst* self, Py_ssize_t first, Py_ssize_t step, uint32_t count) {
  PyBurst* part = make();
  part->block = self->block.share();
  part->stride = self->stride;
  part->count = count;
  part->step = self->step * step;
  const Py_ssize_t entry = count != 0 ? self->step * first : 0;
  part->rows = self->rows ? self->rows + entry : nullptr;
  part->data = self->rows ? self->data : self->data + entry * Py_ssize_t{self->stride};
  part->lengths = self->lengths + entry;
  part->headers = self->headers + entry;
  part->arrays_of = Py_XNewRef(self->own_arrays ? reinterpret_cast<PyObject*>(self) : self->arrays_of);
  return part;
}

/// Who keeps the rows of a detached burst, which lie in no block.
PyObject* owner_of_rows(PyBurst* self) {
  PyBurst* arrays = self->own_arrays ? self : of(self->arrays_of);
  return arrays->arrays_of ? arrays->arrays_of : reinterpret_cast<PyObject*>(arrays);
}

/// Sub-burst of these packets, in this order; lengths and headers are copied, the bytes are shared.
PyBurst* choose(PyBurst* self, const py::array_t<int64_t>& indices) {
  const auto count = static_cast<size_t>(indices.size());
  const int64_t* index = indices.data();
  for (size_t i = 0; i < count; ++i) checked_packet(self, static_cast<Py_ssize_t>(index[i]));
  PyBurst* part = make();
  if (count == 0) return part;
  if (count > INT32_MAX) {
    Py_DECREF(part);
    throw std::bad_alloc();
  }
  part->own_arrays = std::malloc(count * (2 * sizeof(uint32_t) + sizeof(virtio::NetHeader)));
  if (!part->own_arrays) {
    Py_DECREF(part);
    throw std::bad_alloc();
  }
  part->block = self->block.share();
  if (!self->block) part->arrays_of = Py_NewRef(owner_of_rows(self));
  part->data = self->data;
  part->stride = self->stride;
  part->count = static_cast<uint32_t>(count);
  part->rows = static_cast<uint32_t*>(part->own_arrays);
  part->lengths = part->rows + count;
  part->headers = reinterpret_cast<virtio::NetHeader*>(part->lengths + count);
  if (!self->rows && self->step < 0) {  // rows count from the lowest address
    part->data = self->packet(self->count - 1);
  }
  for (size_t i = 0; i < count; ++i) {
    const Packet packet = checked_packet(self, static_cast<Py_ssize_t>(index[i]));
    part->rows[i] = static_cast<uint32_t>((packet.data - part->data) / Py_ssize_t{self->stride});
    part->lengths[i] = packet.length;
    part->headers[i] = self->headers[self->step * packet.index];
  }
  return part;
}

PyObject* burst_subscript(PyObject* object, PyObject* key) {
  return guarded([&]() -> PyObject* {
    PyBurst* self = of(object);
    if (PyIndex_Check(key)) {  // an ndarray has __index__ too, and means it when it has no dimensions
      if (!py::isinstance<py::array>(key)) return packet_view(self, integer_index(key));
      const auto array = py::reinterpret_borrow<py::array>(key);
      if (array.ndim() == 0 && (array.dtype().kind() == 'i' || array.dtype().kind() == 'u'))
        return packet_view(self, integer_index(key));
    }
    if (PySlice_Check(key)) {
      Py_ssize_t start, stop, step;
      if (PySlice_Unpack(key, &start, &stop, &step) != 0) throw py::error_already_set();
      const Py_ssize_t count = PySlice_AdjustIndices(self->count, &start, &stop, step);
      return reinterpret_cast<PyObject*>(share(self, start, step, static_cast<uint32_t>(count)));
    }
    return reinterpret_cast<PyObject*>(choose(self, mask_to_indices(key, self->count)));
  });
}

PyObject* burst_item(PyObject* object, Py_ssize_t i) {
  return guarded([&] { return packet_view(of(object), i); });
}

PyObject* burst_iter(PyObject* object) {
  return guarded([&] {
    PyBurst* self = of(object);
    py::list views(self->count);
    for (Py_ssize_t i = 0; i < Py_ssize_t{self->count}; ++i) PyList_SET_ITEM(views.ptr(), i, packet_view(self, i));
    return PyObject_GetIter(views.ptr());  // a list iterator ends without an exception through C++
  });
}

PyObject* burst_repr(PyObject* object) {
  uint64_t bytes = 0;
  for (Py_ssize_t i = 0; i < Py_ssize_t{of(object)->count}; ++i) bytes += of(object)->length(i);
  return PyUnicode_FromFormat("<Burst of %u packets, %llu bytes>", of(object)->count,
                              static_cast<unsigned long long>(bytes));
}

PyObject* burst_data(PyObject* object, void*) {
  return guarded([&] {
    PyBurst* self = of(object);
    if (self->rows) {
      PyErr_SetString(PyExc_BufferError,
                      "the packets of a masked burst are not one array; gather() copies them into one");
      throw py::error_already_set();
    }
    virtio::Burst::clear_padding(self->block, self->stride);
    return py::array(py::dtype::of<uint8_t>(), {py::ssize_t{self->count}, py::ssize_t{self->stride}},
                     {py::ssize_t{self->step} * py::ssize_t{self->stride}, py::ssize_t{1}}, self->data,
                     py::handle(object))
        .release()
        .ptr();
  });
}

PyObject* burst_lengths(PyObject* object, void*) {
  return guarded([&] {
    PyBurst* self = of(object);
    virtio::Burst::clear_padding(self->block, self->stride);  // the lengths may grow now
    return py::array(py::dtype::of<uint32_t>(), {py::ssize_t{self->count}},
                     {self->step * py::ssize_t{sizeof(uint32_t)}}, self->lengths, py::handle(object))
        .release()
        .ptr();
  });
}

PyObject* burst_net_hdr(PyObject* object, void*) {
  return guarded([&] {
    PyBurst* self = of(object);
    return py::array(header_dtype(), {py::ssize_t{self->count}}, {self->step * py::ssize_t{sizeof(virtio::NetHeader)}},
                     self->headers, py::handle(object))
        .release()
        .ptr();
  });
}

PyObject* burst_tobytes(PyObject* object, PyObject* index) {
  return guarded([&] {
    const Packet packet = checked_packet(of(object), integer_index(index));
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(packet.data), packet.length);
  });
}

int burst_set_net_hdr(PyObject* object, PyObject* given, void*) {
  PyObject* done = guarded([&] {
    PyBurst* self = of(object);
    if (!given) throw py::attribute_error("net_hdr of a Burst cannot be deleted");
    const py::array headers = headers_by_name(given);
    if (headers.size() != py::ssize_t{self->count})
      throw py::value_error(
          format("net_hdr has %zd entries, but the burst has %u packets", headers.size(), self->count));
    for (Py_ssize_t i = 0; i < Py_ssize_t{self->count}; ++i)
      std::memcpy(&self->headers[self->step * i], headers.data(i), sizeof(virtio::NetHeader));
    return Py_None;  // borrowed: only whether it is null matters
  });
  return done ? 0 : -1;
}

PyObject* burst_gather(PyObject* object, PyObject*) {
  return guarded([&] {
    PyBurst* self = of(object);
    if (self->count == 0) return new_burst({});
    const uint32_t longest = longest_packet(self);
    virtio::Burst copy = virtio::Burst::allocate(*port::common_arena(), self->count, longest);
    if (!copy.block) {
      const size_t rows = size_t{self->count} * virtio::Burst::stride_for(longest);
      no_packet_memory(virtio::Burst::prefix_bytes(self->count) + rows);
    }
    copy_packets(self, longest, copy);
    return new_burst(std::move(copy));
  });
}

PyObject* burst_detach(PyObject* object, PyObject*) {
  return guarded([&] {
    PyBurst* self = of(object);
    if (self->count == 0) return new_burst({});
    const uint32_t longest = longest_packet(self);
    const uint32_t stride = virtio::Burst::stride_for(longest);
    const size_t bytes = virtio::Burst::prefix_bytes(self->count) + size_t{self->count} * stride;
    std::unique_ptr<void, decltype(&std::free)> memory(std::calloc(bytes, 1), &std::free);
    if (!memory) throw std::bad_alloc();
    virtio::Burst copy;
    copy.place(static_cast<uint8_t*>(memory.get()), self->count, stride);
    copy_packets(self, longest, copy);
    PyObject* detached = new_burst(std::move(copy));
    if (detached) of(detached)->own_arrays = memory.release();
    return detached;
  });
}

PyObject* burst_from_packets(PyObject*, PyObject* packets) {
  return guarded([&] { return new_burst(gather_packets(packets, UINT32_MAX, nullptr)); });
}

PyMethodDef burst_methods[] = {
    {"from_packets", burst_from_packets, METH_O | METH_STATIC,
     "from_packets(packets)\n--\n\n"
     "Copy a sequence of packets into a new Burst; net_hdr is all zero.\n\n"
     "A packet is bytes, bytearray, a memoryview of bytes, or a 1-D array of uint8 or int8 in C order; the sequence\n"
     "may be a 2-D array of such rows. Raises TypeError for anything else, and MemoryError when the memory that such\n"
     "bursts share (64 MiB) is exhausted."},
    {"tobytes", burst_tobytes, METH_O,
     "tobytes($self, index, /)\n--\n\nReturn a copy of packet `index`, without padding. Raises IndexError."},
    {"gather", burst_gather, METH_NOARGS,
     "gather($self, /)\n--\n\n"
     "Copy all packets into a new Burst whose `.data` is one array, even if this burst is masked.\n\n"
     "The copy is in packet memory from which an engine can copy, 64 MiB for all such bursts; raises MemoryError when\n"
     "that is exhausted. To keep packets for long, use detach()."},
    {"detach", burst_detach, METH_NOARGS,
     "detach($self, /)\n--\n\n"
     "Copy all packets into a new Burst with memory of its own, only as large as they need.\n\n"
     "Use it for packets that are kept: a received Burst, and any view or slice of it, holds the whole block in which\n"
     "the packets arrived (at most 1 MiB of `mempool`). For one packet: b[i:i + 1].detach(), or b[i].copy() for an\n"
     "array. A detached Burst may be sent; the CPU copies it. Raises MemoryError."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef burst_properties[] = {
    {"data", burst_data, nullptr,
     "uint8 array (n, stride), writable, zero copy; row i holds packet i.\n\n"
     "Bytes past lengths[i] are 0 at first, and then what the program writes there; they never come from other\n"
     "packets. The array keeps the memory alive. Raises BufferError for a masked burst, whose rows are not adjacent.",
     nullptr},
    {"lengths", burst_lengths, nullptr,
     "uint32 array (n,): the bytes of each packet. Writable, so that packets can grow (by zeros) or shrink within the\n"
     "stride.",
     nullptr},
    {"net_hdr", burst_net_hdr, burst_set_net_hdr,
     "Structured array (n,): flags, gso_type, hdr_len, gso_size, csum_start, csum_offset (VIRTIO 1.2, 5.1.6);\n"
     "writable.\n\n"
     "`burst.net_hdr = other` assigns fields by name, in whatever order they are. It raises TypeError when the\n"
     "dtype of `other` has other fields or integers that do not fit, and ValueError when the number of entries\n"
     "differs. (`burst.net_hdr[:] = other` is numpy's assignment, and goes by position.)",
     nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot burst_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(burst_dealloc)},
    {Py_tp_doc, const_cast<char*>(
                    "Packets in one block of memory, as returned by rx_burst.\n\n"
                    "len(), bool() and iteration work as for a sequence. b[i] is a 1-D uint8 view of a whole packet;\n"
                    "b[i:j] and masks of booleans or integers are sub-bursts that share the memory.\n\n"
                    "A Burst may outlive its port. Holding it, or one view of it, holds all of its memory, at most\n"
                    "1 MiB; use detach() for packets that are kept for long. One thread at a time may read and write\n"
                    "it. A burst that was sent may be written again when tx_pending() is 0.")},
    {Py_tp_methods, burst_methods},
    {Py_tp_getset, burst_properties},
    {Py_tp_iter, reinterpret_cast<void*>(burst_iter)},
    {Py_tp_repr, reinterpret_cast<void*>(burst_repr)},
    {Py_mp_length, reinterpret_cast<void*>(burst_length)},
    {Py_mp_subscript, reinterpret_cast<void*>(burst_subscript)},
    {Py_sq_length, reinterpret_cast<void*>(burst_length)},
    {Py_sq_item, reinterpret_cast<void*>(burst_item)},
    {0, nullptr},
};

PyType_Spec burst_spec = {"vhost_ioat.Burst", sizeof(PyBurst), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, burst_slots};

}  // namespace

bool is_burst(PyObject* object) { return Py_TYPE(object) == burst_type; }

PyObject* new_burst(virtio::Burst burst) {
  PyBurst* self;
  try {
    self = make();
  } catch (...) {
    set_python_error();
    return nullptr;
  }
  self->block = std::move(burst.block);
  self->data = burst.data;
  self->stride = burst.stride;
  self->count = burst.count;
  self->lengths = burst.lengths;
  self->headers = burst.headers;
  return reinterpret_cast<PyObject*>(self);
}

void register_burst(py::module_& m) {
  // numpy comes with the module. The first view would import it else, in the middle of the data path.
  py::detail::npy_api::get();
  header_dtype();
  register_packets();
  PyObject* type = PyType_FromSpec(&burst_spec);
  if (!type) throw py::error_already_set();
  burst_type = reinterpret_cast<PyTypeObject*>(type);
  m.attr("Burst") = py::reinterpret_steal<py::object>(type);
  Py_INCREF(burst_type);
}

}  // namespace vhost_ioat::bindings
