// SPDX-License-Identifier: BSD-3-Clause
#include "bindings/burst_index.hpp"

#include <cstring>

#include "base/error.hpp"

namespace vhost_ioat::bindings {

Py_ssize_t integer_index(PyObject* key) {
  if (PyBool_Check(key))
    throw py::index_error("a bool is not an index of a Burst; a mask needs one bool for each packet");
  const Py_ssize_t i = PyNumber_AsSsize_t(key, PyExc_IndexError);
  if (i == -1 && PyErr_Occurred()) throw py::error_already_set();
  return i;
}

namespace {

/// numpy takes [True, 2] for packets 1 and 2, which nobody means.
void refuse_mixed_list(PyObject* key) {
  if (!PyList_Check(key)) return;
  Py_ssize_t bools = 0;
  const Py_ssize_t n = PyList_GET_SIZE(key);
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* item = PyList_GET_ITEM(key, i);
    bools += PyBool_Check(item) || std::strcmp(Py_TYPE(item)->tp_name, "numpy.bool") == 0;
  }
  if (bools != 0 && bools != n) throw py::index_error("a mask of a Burst must have booleans or integers, not both");
}

py::array_t<int64_t> unsigned_indices(const py::array& mask, uint32_t count) {
  const auto given = py::array_t<uint64_t, py::array::c_style | py::array::forcecast>::ensure(mask);
  py::array_t<int64_t> indices(given.size());
  for (py::ssize_t i = 0; i < given.size(); ++i) {
    if (given.data()[i] >= count)  // else 2^64 - 1 would become -1
      throw py::index_error(format("packet %llu is out of range: the burst has %u packets",
                                   static_cast<unsigned long long>(given.data()[i]), count));
    indices.mutable_data()[i] = static_cast<int64_t>(given.data()[i]);
  }
  return indices;
}

}  // namespace

py::array_t<int64_t> mask_to_indices(PyObject* key, uint32_t count) {
  constexpr const char* what =
      "a Burst is indexed by an integer, a slice, or a one-dimensional mask of booleans or integers; for a byte of a "
      "packet write b[i][j]";
  if (PyTuple_Check(key) || key == Py_None || key == Py_Ellipsis) throw py::index_error(what);
  refuse_mixed_list(key);
  const py::array mask = py::array::ensure(py::reinterpret_borrow<py::object>(key));
  if (!mask) {
    PyErr_Clear();
    throw py::index_error(what);
  }
  if (mask.ndim() != 1) throw py::index_error(what);
  const char kind = mask.dtype().kind();
  if (kind == 'b') {
    if (mask.size() != py::ssize_t{count})
      throw py::index_error(format("a boolean mask has %zd entries, but the burst has %u packets", mask.size(), count));
    return mask.attr("nonzero")().cast<py::tuple>()[0].cast<py::array_t<int64_t>>();
  }
  if (mask.size() == 0 && !py::isinstance<py::array>(key)) return py::array_t<int64_t>(0);  // [] has no kind of its own
  if (kind == 'u') return unsigned_indices(mask, count);
  if (kind != 'i') throw py::index_error(what);
  return py::array_t<int64_t, py::array::c_style | py::array::forcecast>::ensure(mask);
}

}  // namespace vhost_ioat::bindings
