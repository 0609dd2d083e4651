// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <pybind11/numpy.h>

#include "bindings/bindings.hpp"

namespace vhost_ioat::bindings {

// What stands in b[...], as numpy reads it for an array of one dimension. Each throws IndexError.

/// The number that an object which numpy would take for an index stands for.
Py_ssize_t integer_index(PyObject* key);
/// The entries, of `count`, that a mask of booleans or integers chooses; integers may be out of range.
py::array_t<int64_t> mask_to_indices(PyObject* key, uint32_t count);

}  // namespace vhost_ioat::bindings
