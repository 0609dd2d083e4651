// SPDX-License-Identifier: BSD-3-Clause
#include "bindings/net_header.hpp"

#include <pybind11/gil_safe_call_once.h>

#include <string>
#include <vector>

#include "base/error.hpp"
#include "virtio/net_header.hpp"

namespace vhost_ioat::bindings {

namespace {

struct Field {
  const char* name;
  const char* type;
  py::ssize_t bytes;
};
constexpr Field fields[] = {{"flags", "u1", 1},     {"gso_type", "u1", 1},    {"hdr_len", "<u2", 2},
                            {"gso_size", "<u2", 2}, {"csum_start", "<u2", 2}, {"csum_offset", "<u2", 2}};

/// All fields are there, no others, and each holds unsigned integers that fit.
bool fits(const py::dtype& dtype) {
  if (!dtype.has_fields() || py::len(dtype.attr("names")) != std::size(fields)) return false;
  const auto known = dtype.attr("fields");
  for (const Field& field : fields) {
    if (!known.contains(field.name)) return false;
    const auto type = dtype[py::str(field.name)].cast<py::dtype>();
    if (type.kind() != 'u' || type.itemsize() > field.bytes) return false;
  }
  return true;
}

}  // namespace

py::dtype header_dtype() {
  static py::gil_safe_call_once_and_store<py::object> storage;
  return py::reinterpret_borrow<py::dtype>(storage
                                               .call_once_and_store_result([] {
                                                 py::list list;
                                                 for (const Field& field : fields)
                                                   list.append(py::make_tuple(field.name, field.type));
                                                 return py::object(py::dtype::from_args(list));
                                               })
                                               .get_stored());
}

py::array headers_by_name(py::handle given) {
  // A masked array would give what lies under its mask.
  if (!py::isinstance<py::array>(given) || py::hasattr(given, "mask"))
    throw py::type_error(
        format("net_hdr must be an array with the dtype of Burst.net_hdr, not a %s", Py_TYPE(given.ptr())->tp_name));
  const auto array = py::reinterpret_borrow<py::array>(given);
  if (!fits(array.dtype()))
    throw py::type_error(
        format("net_hdr of dtype %s: the fields must be flags and gso_type of uint8, and hdr_len, gso_size, "
               "csum_start and csum_offset of at most uint16, in any order",
               std::string(py::str(array.dtype())).c_str()));
  if (array.ndim() != 1)
    throw py::value_error(
        format("net_hdr has %zd dimensions, but must have one: an entry for each packet", array.ndim()));
  py::array headers(header_dtype(), std::vector<py::ssize_t>{array.size()});
  for (const Field& field : fields) headers[py::str(field.name)] = array[py::str(field.name)];
  return headers;
}

}  // namespace vhost_ioat::bindings
