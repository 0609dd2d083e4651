// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <pybind11/numpy.h>

#include "bindings/bindings.hpp"

namespace vhost_ioat::bindings {

/// Of Burst.net_hdr, and of virtio::NetHeader.
py::dtype header_dtype();

/// An array (n,) of header_dtype() with the values of `given`, field by field, by name. Another order of fields,
/// another byte order and narrower unsigned integers are converted; everything else is a TypeError that names the
/// dtype.
py::array headers_by_name(py::handle given);

}  // namespace vhost_ioat::bindings
