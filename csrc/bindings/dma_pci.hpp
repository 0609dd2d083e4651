// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include "bindings/bindings.hpp"

namespace vhost_ioat::bindings {

/// The part of the submodule dma that has to do with PCI: what is in this machine, and the model as a card for a VM.
void register_dma_pci(py::module_& dma);

}  // namespace vhost_ioat::bindings
