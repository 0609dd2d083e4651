// SPDX-License-Identifier: BSD-3-Clause
#include "dma/hardware_engine.hpp"

#include "dma/ioat_engine.hpp"
#include "dma/vfio.hpp"

namespace vhost_ioat::dma {

std::unique_ptr<DmaEngine> make_hardware_engine(std::string_view address, const ChannelOptions& options) {
  auto device = std::make_shared<VfioDevice>(normalise_address(address));
  const std::shared_ptr<Mmio> registers(device, &device->registers());
  const IoatEngine::Identity identity{.name = device->address(), .description = "I/OAT", .hardware = true};
  return std::make_unique<IoatEngine>(registers, std::move(device), identity, options);
}

}  // namespace vhost_ioat::dma
