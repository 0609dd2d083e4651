// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <chrono>
#include <new>
#include <system_error>

#include "base/error.hpp"
#include "bindings/bindings.hpp"

namespace vhost_ioat::bindings {

namespace {

/// The classes of vhost_ioat/errors.py, where a reader looks for them; looked up once, and never let go of.
struct Classes {
  PyObject *base, *config, *guest, *dma, *protocol, *disconnected;
};
Classes classes;

/// The Python class for a C++ exception.
PyObject* python_class(const Error& error) {
  if (dynamic_cast<const ConfigError*>(&error)) return classes.config;
  if (dynamic_cast<const GuestError*>(&error)) return classes.guest;
  if (dynamic_cast<const DmaError*>(&error)) return classes.dma;
  if (dynamic_cast<const ProtocolError*>(&error)) return classes.protocol;
  if (dynamic_cast<const Disconnected*>(&error)) return classes.disconnected;
  return classes.base;
}

void set_os_error(const std::system_error& error) {
  // OSError(errno, text) picks FileNotFoundError, PermissionError and so on by itself.
  py::object value = py::reinterpret_borrow<py::object>(PyExc_OSError)(error.code().value(), error.what());
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(value.ptr())), value.ptr());
}

void translate(std::exception_ptr pointer) {  // NOLINT(performance-unnecessary-value-param): pybind11's signature
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const Error& error) {
    PyErr_SetString(python_class(error), error.what());
  } catch (const std::system_error& error) {
    set_os_error(error);
  }
}

}  // namespace

void register_errors(py::module_&) {
  const auto errors = py::module_::import("vhost_ioat.errors");
  auto named = [&](const char* name) { return py::object(errors.attr(name)).release().ptr(); };
  classes = {named("VhostIoatError"), named("ConfigError"),   named("GuestError"),
             named("DmaError"),       named("ProtocolError"), named("Disconnected")};
  py::register_local_exception_translator(&translate);
}

void set_python_error() noexcept {
  try {
    throw;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const Error& error) {
    PyErr_SetString(python_class(error), error.what());
  } catch (const std::system_error& error) {
    set_os_error(error);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

bool wait_in_slices(const Seconds& timeout, const std::function<bool(double)>& body) {
  using Clock = std::chrono::steady_clock;
  constexpr double longest_slice = 0.05;  // how long Ctrl-C may go unnoticed
  const auto begin = Clock::now();
  for (;;) {
    const double left = timeout.value - std::chrono::duration<double>(Clock::now() - begin).count();
    bool reached;
    {
      const Unlocked unlocked;
      reached = body(timeout.forever ? longest_slice : std::clamp(left, 0.0, longest_slice));
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (reached || (!timeout.forever && left <= 0)) return reached;
  }
}

}  // namespace vhost_ioat::bindings
