// SPDX-License-Identifier: BSD-3-Clause
#include "bindings/dma_pci.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>

#include "dma/pci.hpp"
#include "dma/vfio_user.hpp"

namespace vhost_ioat::bindings {

using dma::DmaDevice;
using dma::VfioUserServer;

void register_dma_pci(py::module_& m) {
  py::class_<DmaDevice> device(m, "DmaDevice", "An I/OAT channel of this machine, as probe() found it. Immutable.");
  keep_over_fork(device);
  device.def_readonly("address", &DmaDevice::address, "PCI address, such as \"0000:00:04.0\".")
      .def_readonly("device_id", &DmaDevice::device_id, "PCI device id; the vendor id is 0x8086.")
      .def_readonly("driver", &DmaDevice::driver, "Kernel driver to which it is bound, or \"\".")
      .def_readonly("numa_node", &DmaDevice::numa_node, "NUMA node, or -1.")
      .def_readonly("iommu_group", &DmaDevice::iommu_group, "IOMMU group, or -1.")
      .def_readonly("usable", &DmaDevice::usable, "Whether this process can use it through VFIO.")
      .def_readonly("missing", &DmaDevice::missing,
                    "What keeps it from being used, with the commands to fix it; \"\" when it is usable.")
      .def("__repr__", [](const DmaDevice& self) {
        return py::str("<DmaDevice {} 8086:{:04x} {}>")
            .format(self.address, self.device_id, self.usable ? "usable" : self.missing);
      });
  m.def(
      "probe", [] { return dma::probe(); },
      "The I/OAT channels of this machine, as a list of DmaDevice sorted by address. Opens no device; any thread.");

  py::class_<VfioUserServer>(m, "VfioUserServer", "The native part of serve(). One thread at a time.")
      .def(py::init<dma::IoatModel&>(), py::arg("model"), py::keep_alive<1, 2>())
      .def(
          "attach", [](VfioUserServer& server, Whole<int> fd) { server.attach(UniqueFd(fd)); }, py::arg("fd"),
          py::call_guard<Unlocked>())
      .def(
          "serve",
          [](VfioUserServer& server, const Seconds& seconds) {
            const std::chrono::duration<double> timeout(seconds.or_longest());
            return server.serve(std::chrono::ceil<std::chrono::milliseconds>(timeout));
          },
          py::arg("timeout"), py::call_guard<Unlocked>())
      .def_property_readonly("has_room", [](VfioUserServer& server) { return server.has_room(); })
      .def_property_readonly("makes_way", [](const VfioUserServer& server) { return server.makes_way(); })
      .def_property_readonly("why", &VfioUserServer::why)
      .def_property_readonly("maps", [](const VfioUserServer& server) {
        const Unlocked unlocked;  // a descriptor may be at work
        return server.maps();
      });
}

}  // namespace vhost_ioat::bindings
