// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <memory>
#include <string_view>

#include "dma/engine.hpp"
#include "dma/ioat_channel.hpp"

namespace vhost_ioat::dma {

/// The I/OAT channel at a PCI address ("00:04.0"), opened through VFIO, started and proven. Takes some milliseconds.
/// Throws ConfigError (not an address), DmaError (says what stands in the way and what to do about it).
std::unique_ptr<DmaEngine> make_hardware_engine(std::string_view address, const ChannelOptions& options = {});

}  // namespace vhost_ioat::dma
