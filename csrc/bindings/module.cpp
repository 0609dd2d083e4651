// SPDX-License-Identifier: BSD-3-Clause
#include "bindings/bindings.hpp"

namespace vhost_ioat::bindings {

namespace {

/// Threads, forks and the GIL are the main interpreter's; a second one would wait for ever in pybind11's set-up.
bool in_main_interpreter() {
  if (PyInterpreterState_Get() == PyInterpreterState_Main()) return true;
  PyErr_SetString(
      PyExc_ImportError,
      "vhost_ioat works in the main interpreter only, and this is a sub-interpreter; use threads or processes instead");
  return false;
}

}  // namespace

// Without a GIL, ports and models lock themselves as they do against their own threads, and a Burst is one thread's.
PYBIND11_MODULE(_core_unchecked, m, py::mod_gil_not_used()) {
  if (!in_main_interpreter()) throw py::error_already_set();
  m.doc() = "The native part of vhost_ioat; use the package instead.";
  m.attr("__version__") = VHOST_IOAT_VERSION;
  register_errors(m);
  register_burst(m);
  register_port(m);
  register_forward(m);
  register_virtio(m);
  register_guest(m);
  register_dma(m);
  guard_instances(m);
}

}  // namespace vhost_ioat::bindings

/// What Python calls first; pybind11's own comes too late to ask which interpreter this is.
extern "C" PYBIND11_EXPORT PyObject* PyInit__core() {  // NOLINT(bugprone-reserved-identifier): Python's name for it
  return vhost_ioat::bindings::in_main_interpreter() ? vhost_ioat::bindings::PyInit__core_unchecked() : nullptr;
}
