// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <pybind11/pybind11.h>

#include <functional>

// One register_* for each family of classes; module.cpp calls them. No other folder includes Python or pybind11.
namespace vhost_ioat::bindings {

namespace py = pybind11;

void register_errors(py::module_& m);
void register_burst(py::module_& m);
void register_port(py::module_& m);
void register_virtio(py::module_& m);  // submodule virtio
void register_guest(py::module_& m);   // submodule guest
void register_dma(py::module_& m);     // submodule dma

/// Sets the Python error for the C++ exception being handled; for functions that Python calls without pybind11.
void set_python_error() noexcept;

/// Runs `body(slice)` with growing patience until it returns true or `timeout` (None: never) has passed; without the
/// GIL, and looking for Ctrl-C between slices. Returns what the last call returned.
bool wait_in_slices(const py::object& timeout, const std::function<bool(double slice_seconds)>& body);

}  // namespace vhost_ioat::bindings
