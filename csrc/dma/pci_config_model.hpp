// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstdint>

namespace vhost_ioat::dma {

/// The PCI configuration space of the software device: identity, BAR0, power management, PCI Express (a root-complex
/// integrated endpoint with function-level reset), MSI-X with one vector, and I/OAT's own error registers.
/// The model's lock guards it.
class PciConfigModel {
 public:
  static constexpr uint32_t size = 4096;

  explicit PciConfigModel(uint16_t device_id);

  uint32_t read(uint32_t offset, uint32_t size) const noexcept;
  /// True when the write asked for a function-level reset.
  bool write(uint32_t offset, uint32_t value, uint32_t size) noexcept;
  /// May the function read and write memory, MSI-X included? Not in D3, nor unless it is a bus master.
  bool may_master() const noexcept;
  /// CHANERR_INT and what it shows of CHANERR.
  uint32_t chanerr_int() const noexcept;
  void raise_chanerr_int(uint32_t bits) noexcept;

 private:
  void set(uint32_t offset, uint32_t value, uint32_t size, uint32_t writable = 0, uint32_t write_1_clears = 0);

  std::array<uint8_t, size> bytes_{}, writable_{}, write_1_clears_{};
};

}  // namespace vhost_ioat::dma
