// SPDX-License-Identifier: BSD-3-Clause
#include "bindings/bindings.hpp"

namespace vhost_ioat::bindings {

// Without a GIL, ports and models lock themselves as they do against their own threads, and a Burst is one thread's.
PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "The native part of vhost_ioat; use the package, not this.";
  m.attr("__version__") = VHOST_IOAT_VERSION;
  register_errors(m);
  register_burst(m);
  register_port(m);
  register_virtio(m);
  register_guest(m);
  register_dma(m);
}

}  // namespace vhost_ioat::bindings
