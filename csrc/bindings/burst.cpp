// SPDX-License-Identifier: BSD-3-Clause
#include "bindings/burst.hpp"

#include <pybind11/numpy.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/error.hpp"
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

template <typename Body>
PyObject* guarded(Body&& body) noexcept {
  try {
    return body();
  } catch (...) {
    set_python_error();
    return nullptr;
  }
}

py::dtype header_dtype() {
  static py::gil_safe_call_once_and_store<py::object> storage;
  return py::reinterpret_borrow<py::dtype>(storage
                                               .call_once_and_store_result([] {
                                                 py::list fields;
                                                 auto add = [&](const char* name, const char* type) {
                                                   fields.append(py::make_tuple(name, type));
                                                 };
                                                 add("flags", "u1");
                                                 add("gso_type", "u1");
                                                 add("hdr_len", "<u2");
                                                 add("gso_size", "<u2");
                                                 add("csum_start", "<u2");
                                                 add("csum_offset", "<u2");
                                                 return py::object(py::dtype::from_args(fields));
                                               })
                                               .get_stored());
}

Py_ssize_t burst_length(PyObject* self) { return of(self)->count; }

struct Packet {
  Py_ssize_t index;
  uint8_t* data;
  uint32_t length;
};

/// The i-th packet, from the end when negative. Its length is anybody's to write: read once, checked, and used as read.
Packet checked_packet(PyBurst* self, Py_ssize_t i) {
  const Py_ssize_t index = i < 0 ? i + self->count : i;
  if (index < 0 || index >= Py_ssize_t{self->count})
    throw py::index_error(format("packet %zd, but the burst has %u", i, self->count));
  const uint32_t length = std::atomic_ref(self->length(index)).load(std::memory_order_relaxed);
  if (length > self->stride)
    throw py::value_error(format("packet %zd: length %u is above the burst's stride of %u", i, length, self->stride));
  return {index, self->packet(index), length};
}

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
  PyObject* owner = self->arrays_of ? self->arrays_of : self->own_arrays ? reinterpret_cast<PyObject*>(self) : nullptr;
  Py_XINCREF(owner);
  part->arrays_of = owner;
  return part;
}

/// Sub-burst of these packets, in this order; lengths and headers are copied, the bytes are shared.
PyBurst* choose(PyBurst* self, const py::array_t<int64_t>& indices) {
  const auto count = static_cast<size_t>(indices.size());
  const int64_t* index = indices.data();
  for (size_t i = 0; i < count; ++i) checked_packet(self, static_cast<Py_ssize_t>(index[i]));
  PyBurst* part = make();
  if (count == 0) return part;
  part->own_arrays = std::malloc(count * (2 * sizeof(uint32_t) + sizeof(virtio::NetHeader)));
  if (!part->own_arrays) {
    Py_DECREF(part);
    throw std::bad_alloc();
  }
  part->block = self->block.share();
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

py::array_t<int64_t> mask_to_indices(PyBurst* self, PyObject* key) {
  py::array mask = py::array::ensure(py::reinterpret_borrow<py::object>(key));
  if (!mask) {
    PyErr_Clear();
    throw py::type_error(
        "a Burst is indexed by an integer, a slice, or a one-dimensional mask of booleans or integers");
  }
  if (mask.ndim() != 1) throw py::index_error("a mask of a Burst has one dimension");
  if (mask.dtype().kind() == 'b') {
    if (mask.size() != py::ssize_t{self->count})
      throw py::index_error(format("boolean mask of %zd for a burst of %u packets", mask.size(), self->count));
    return mask.attr("nonzero")().cast<py::tuple>()[0].cast<py::array_t<int64_t>>();
  }
  if (mask.size() == 0) return py::array_t<int64_t>(0);
  if (mask.dtype().kind() != 'i' && mask.dtype().kind() != 'u')
    throw py::index_error("a mask of a Burst is of booleans or integers");
  return mask.attr("astype")("int64").cast<py::array_t<int64_t>>();
}

PyObject* burst_subscript(PyObject* object, PyObject* key) {
  return guarded([&]() -> PyObject* {
    PyBurst* self = of(object);
    if (PyIndex_Check(key) && !py::isinstance<py::array>(key)) {  // an ndarray has __index__ too
      const Py_ssize_t i = PyNumber_AsSsize_t(key, PyExc_IndexError);
      if (i == -1 && PyErr_Occurred()) throw py::error_already_set();
      return packet_view(self, i);
    }
    if (PySlice_Check(key)) {
      Py_ssize_t start, stop, step;
      if (PySlice_Unpack(key, &start, &stop, &step) != 0) throw py::error_already_set();
      const Py_ssize_t count = PySlice_AdjustIndices(self->count, &start, &stop, step);
      return reinterpret_cast<PyObject*>(share(self, start, step, static_cast<uint32_t>(count)));
    }
    return reinterpret_cast<PyObject*>(choose(self, mask_to_indices(self, key)));
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
                      "the packets of a masked burst are not one array; gather() copies them to one");
      throw py::error_already_set();
    }
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
    const Py_ssize_t i = PyNumber_AsSsize_t(index, PyExc_IndexError);
    if (i == -1 && PyErr_Occurred()) throw py::error_already_set();
    const Packet packet = checked_packet(of(object), i);
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(packet.data), packet.length);
  });
}

PyObject* burst_gather(PyObject* object, PyObject*) {
  return guarded([&] {
    PyBurst* self = of(object);
    uint32_t longest = 0;
    for (Py_ssize_t i = 0; i < Py_ssize_t{self->count}; ++i)
      longest = std::max(longest, checked_packet(self, i).length);
    virtio::Burst copy;
    if (self->count != 0) {
      copy = virtio::Burst::allocate(*port::common_arena(), self->count, longest);
      if (!copy.block) throw std::bad_alloc();
      for (Py_ssize_t i = 0; i < Py_ssize_t{self->count}; ++i) {
        const Packet packet = checked_packet(self, i);
        copy.lengths[i] = std::min(packet.length, longest);  // should it have grown since
        copy.headers[i] = self->headers[self->step * i];
        std::memcpy(copy.row(static_cast<uint32_t>(i)), packet.data, copy.lengths[i]);
      }
    }
    return new_burst(std::move(copy));
  });
}

PyObject* burst_from_packets(PyObject*, PyObject* packets) {
  return guarded([&] { return new_burst(gather_packets(packets, UINT32_MAX, nullptr)); });
}

PyMethodDef burst_methods[] = {
    {"from_packets", burst_from_packets, METH_O | METH_STATIC,
     "from_packets(packets)\n--\n\n"
     "Copy a sequence of bytes-like packets into a new Burst; net_hdr is all zero.\n\n"
     "Raises TypeError when an item is not bytes-like, MemoryError when the arena of such bursts (64 MiB) is "
     "exhausted."},
    {"tobytes", burst_tobytes, METH_O, "tobytes($self, index, /)\n--\n\nCopy packet `index` out, without padding."},
    {"gather", burst_gather, METH_NOARGS,
     "gather($self, /)\n--\n\nCopy all packets into a new Burst whose `.data` is one array, whatever this one is."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef burst_properties[] = {
    {"data", burst_data, nullptr,
     "uint8 array (n, stride), writable, zero copy; row i holds packet i, bytes past lengths[i] are unspecified.\n\n"
     "The array keeps the memory alive. BufferError for a masked burst, whose rows are apart.",
     nullptr},
    {"lengths", burst_lengths, nullptr,
     "uint32 array (n,): bytes of each packet; writable, for packets that grow or shrink within the stride.", nullptr},
    {"net_hdr", burst_net_hdr, nullptr,
     "Structured array (n,): flags, gso_type, hdr_len, gso_size, csum_start, csum_offset (VIRTIO 1.2, 5.1.6); "
     "writable.",
     nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot burst_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(burst_dealloc)},
    {Py_tp_doc, const_cast<char*>("Packets in one piece of memory, as rx_burst returns them.\n\n"
                                  "len, bool and iteration as of a sequence; b[i] is a 1-D uint8 view of a whole "
                                  "packet; b[i:j] and masks of booleans or integers are sub-bursts that share the "
                                  "memory. A Burst may outlive its port. Reading and writing it is up to one thread at "
                                  "a time; what was sent may be written again when tx_pending() is 0.")},
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
  PyObject* type = PyType_FromSpec(&burst_spec);
  if (!type) throw py::error_already_set();
  burst_type = reinterpret_cast<PyTypeObject*>(type);
  m.attr("Burst") = py::reinterpret_steal<py::object>(type);
  Py_INCREF(burst_type);
}

}  // namespace vhost_ioat::bindings
