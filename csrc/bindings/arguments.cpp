// SPDX-License-Identifier: BSD-3-Clause
#include "bindings/arguments.hpp"

#include <climits>
#include <cmath>

#include "base/error.hpp"

namespace vhost_ioat::bindings {

long long clamped(PyObject* number) {
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number, &overflow);
  if (overflow != 0) return overflow < 0 ? LLONG_MIN : LLONG_MAX;
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

uint64_t whole_within(py::handle number, long long low, uint64_t high) {
  if (!PyIndex_Check(number.ptr()) || PyBool_Check(number.ptr()))
    throw py::type_error(format("%s is not a whole number; give an int", Py_TYPE(number.ptr())->tp_name));
  const auto integer = py::reinterpret_steal<py::object>(PyNumber_Index(number.ptr()));
  if (!integer) throw py::error_already_set();
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(integer.ptr(), &overflow);
  if (overflow == 0 && value >= low && (value < 0 || static_cast<uint64_t>(value) <= high))
    return static_cast<uint64_t>(value);
  if (overflow > 0 && high > LLONG_MAX) {
    const unsigned long long large = PyLong_AsUnsignedLongLong(integer.ptr());
    if (!PyErr_Occurred() && large <= high) return large;
    PyErr_Clear();
  }
  throw ConfigError(format("%s: must be a whole number from %lld to %llu", std::string(py::str(integer)).c_str(), low,
                           static_cast<unsigned long long>(high)));
}

Seconds seconds_of(py::handle timeout) {
  if (timeout.is_none()) return {};
  const double value = PyFloat_AsDouble(timeout.ptr());
  if (value == -1.0 && PyErr_Occurred()) {
    if (!PyErr_ExceptionMatches(PyExc_OverflowError)) throw py::error_already_set();
    PyErr_Clear();  // a whole number beyond all floats
    return {};
  }
  if (std::isnan(value)) throw ConfigError("nan is not a time: give seconds, or None to wait for ever");
  if (value > Seconds::longest) return {};
  return {false, value < 0 ? 0 : value};
}

std::string path_of(py::handle path) {
  PyObject* bytes = nullptr;
  if (PyUnicode_FSConverter(path.ptr(), static_cast<void*>(&bytes)) == 0) throw py::error_already_set();
  return py::reinterpret_steal<py::bytes>(bytes);
}

}  // namespace vhost_ioat::bindings
