// SPDX-License-Identifier: BSD-3-Clause
#include "dma/pci_config_model.hpp"

#include "dma/ioat_spec.hpp"

namespace vhost_ioat::dma {
namespace {

constexpr uint32_t msix_cap = 0x80, pcie_cap = 0x90, pm_cap = 0xe0;
constexpr uint32_t device_control = pcie_cap + 8;
constexpr uint32_t power_control = pm_cap + 4;
constexpr uint16_t power_state = 0x3;   // in it: 0 is D0
constexpr uint8_t initiate_flr = 0x80;  // in the upper byte of Device Control

}  // namespace

PciConfigModel::PciConfigModel(uint16_t device_id) {
  set(0x00, spec::vendor_id | uint32_t{device_id} << 16, 4);
  set(spec::cfg_command, 0, 2, 0x0546);
  set(0x06, 0x0010, 2);                      // status: there is a capability list
  set(0x08, 0x08800000, 4);                  // class 0880: system peripheral, other
  set(0x0c, 0, 1, 0xff);                     // cache line size
  set(0x10, 0x4, 4, ~(spec::bar_size - 1));  // BAR0: memory, 64 bits; sizing reads back the writable bits
  set(0x14, 0, 4, 0xffffffff);
  set(0x2c, spec::vendor_id, 4);
  set(0x34, msix_cap, 1);
  set(0x3c, 0, 1, 0xff);        // interrupt line
  set(0x3d, 0, 1);              // no INTx: MSI-X is the only interrupt
  set(0x48, 0, 4, 0xffffffff);  // DMACTRL
  set(0x60, 0, 4, 0xffffffff);  // DEVCFG

  set(msix_cap, 0x11 | pcie_cap << 8, 2);
  set(msix_cap + 2, 0, 2, 0xc000);  // one vector; enable and function mask
  set(msix_cap + 4, spec::msix_table, 4);
  set(msix_cap + 8, spec::msix_pba, 4);

  set(pcie_cap, 0x10 | pm_cap << 8, 2);
  set(pcie_cap + 2, 0x0092, 2);      // version 2, root-complex integrated endpoint
  set(pcie_cap + 4, 0x10008000, 4);  // function-level reset, role-based error reporting
  set(device_control, 0x0010, 2, 0x7fff);
  set(pcie_cap + 0xa, 0, 2, 0, 0x000f);
  set(pcie_cap + 0x28, 0, 2, 0xffff);  // Device Control 2

  set(pm_cap, 0x01, 2);
  set(pm_cap + 2, 0x0003, 2);
  set(power_control, 0x0008, 2, power_state);  // D0; no soft reset

  set(0x148, 0, 4, 0, 0xffffffff);  // DMAUNCERRSTS
  set(0x14c, 0, 4, 0xffffffff);
  set(0x150, 0, 4, 0xffffffff);
  set(spec::cfg_chanerr_int, 0, 4, 0, 0xffffffff);
  set(spec::cfg_chanerrmsk_int, 0x60000, 4, 0xffffffff);
  set(0x188, 0x10000, 4, 0xffffffff);
}

void PciConfigModel::set(uint32_t offset, uint32_t value, uint32_t bytes, uint32_t writable, uint32_t write_1_clears) {
  for (uint32_t i = 0; i < bytes; ++i) {
    bytes_[offset + i] = static_cast<uint8_t>(value >> 8 * i);
    writable_[offset + i] = static_cast<uint8_t>(writable >> 8 * i);
    write_1_clears_[offset + i] = static_cast<uint8_t>(write_1_clears >> 8 * i);
  }
}

uint32_t PciConfigModel::read(uint32_t offset, uint32_t bytes) const noexcept {
  uint32_t value = 0;
  for (uint32_t i = 0; i < bytes && i < 4 && offset < size - i; ++i) value |= uint32_t{bytes_[offset + i]} << 8 * i;
  return value;
}

bool PciConfigModel::write(uint32_t offset, uint32_t value, uint32_t bytes) noexcept {
  bool reset = false;
  for (uint32_t i = 0; i < bytes && i < 4 && offset < size - i; ++i) {
    const uint32_t at = offset + i;
    const auto byte = static_cast<uint8_t>(value >> 8 * i);
    const uint8_t kept = bytes_[at] & static_cast<uint8_t>(~writable_[at] & ~(byte & write_1_clears_[at]));
    bytes_[at] = static_cast<uint8_t>(kept | (byte & writable_[at]));
    if (at == device_control + 1 && (byte & initiate_flr)) reset = true;
  }
  return reset;
}

bool PciConfigModel::may_master() const noexcept {
  return (read(spec::cfg_command, 2) & spec::cfg_command_bus_master) != 0 &&
         (read(power_control, 2) & power_state) == 0;
}

uint32_t PciConfigModel::chanerr_int() const noexcept { return read(spec::cfg_chanerr_int, 4); }

void PciConfigModel::raise_chanerr_int(uint32_t bits) noexcept {
  for (uint32_t i = 0; i < 4; ++i) bytes_[spec::cfg_chanerr_int + i] |= static_cast<uint8_t>(bits >> 8 * i);
}

}  // namespace vhost_ioat::dma
