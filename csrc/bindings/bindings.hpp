// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <pybind11/critical_section.h>
#include <pybind11/pybind11.h>

#include <functional>
#include <utility>

#include "bindings/arguments.hpp"
#include "bindings/interpreter.hpp"

// One register_* for each family of classes; module.cpp calls them. No other folder includes Python or pybind11.
namespace vhost_ioat::bindings {

namespace py = pybind11;

void register_errors(py::module_& m);
void register_burst(py::module_& m);
void register_port(py::module_& m);
void register_forward(py::module_& m);
void register_virtio(py::module_& m);  // submodule virtio
void register_guest(py::module_& m);   // submodule guest
void register_dma(py::module_& m);     // submodule dma

/// One call of an object at a time, for objects that know nothing of threads. With a GIL it does nothing, as no two
/// calls overlap; without one it is CPython's lock of that object and, like the GIL, let go where the call waits.
class Turn {
 public:
#ifdef Py_GIL_DISABLED
  template <typename T>
  explicit Turn(const T& object) : self_(py::cast(&object, py::return_value_policy::reference)), section_(self_) {}

 private:
  py::object self_;
  py::scoped_critical_section section_;
#else
  template <typename T>
  explicit Turn(const T&) {}
  ~Turn() {}  // so that nobody is told of an unused variable
#endif
};

/// A method for Python whose calls take turns. Whole numbers are checked against the range of the argument's type.
template <typename Class, typename Return, typename... Arguments>
auto in_turn(Return (Class::*method)(Arguments...)) {
  return [method](Class& self, FromPython<Arguments>... arguments) -> Return {
    const Turn turn(self);
    return (self.*method)(static_cast<Arguments&&>(arguments)...);
  };
}

template <typename Class, typename Return, typename... Arguments>
auto in_turn(Return (Class::*method)(Arguments...) const) {
  return [method](const Class& self, FromPython<Arguments>... arguments) -> Return {
    const Turn turn(self);
    return (self.*method)(static_cast<Arguments&&>(arguments)...);
  };
}

/// Runs `body(slice)` again and again until it returns true or `timeout` has passed; without the GIL, and looking for
/// Ctrl-C between slices. Returns what the last call returned.
bool wait_in_slices(const Seconds& timeout, const std::function<bool(double slice_seconds)>& body);

}  // namespace vhost_ioat::bindings
