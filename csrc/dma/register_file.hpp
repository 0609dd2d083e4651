// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>

namespace vhost_ioat::dma {

/// The registers of one I/OAT channel: BAR0 and the PCI configuration space of its function.
///
/// Sizes are 1, 2, 4 or 8 bytes (configuration space: 1, 2, 4) and offsets are naturally aligned. A device that has
/// left the bus reads as all ones. No call fails, and none waits,
/// but one that turns bus mastering off, for the copy at work.
class Mmio {
 public:
  virtual ~Mmio() = default;
  virtual uint64_t read(uint32_t offset, uint32_t size) noexcept = 0;
  /// Everything this thread stored before is visible to the device before the write is: write() is a release.
  virtual void write(uint32_t offset, uint64_t value, uint32_t size) noexcept = 0;
  virtual uint32_t config_read(uint32_t offset, uint32_t size) noexcept = 0;
  virtual void config_write(uint32_t offset, uint32_t value, uint32_t size) noexcept = 0;

  uint8_t read8(uint32_t offset) noexcept { return static_cast<uint8_t>(read(offset, 1)); }
  uint16_t read16(uint32_t offset) noexcept { return static_cast<uint16_t>(read(offset, 2)); }
  uint32_t read32(uint32_t offset) noexcept { return static_cast<uint32_t>(read(offset, 4)); }
  uint64_t read64(uint32_t offset) noexcept { return read(offset, 8); }
  void write8(uint32_t offset, uint8_t value) noexcept { write(offset, value, 1); }
  void write16(uint32_t offset, uint16_t value) noexcept { write(offset, value, 2); }
  void write32(uint32_t offset, uint32_t value) noexcept { write(offset, value, 4); }
  void write64(uint32_t offset, uint64_t value) noexcept { write(offset, value, 8); }
};

/// A BAR that is memory: mapped from a device, or plain memory in a test. The configuration space is reached some other
/// way (VFIO: through the device's fd), so a subclass overrides it; here it reads as zero.
class PlainBar : public Mmio {
 public:
  explicit PlainBar(void* bar) : bar_(static_cast<uint8_t*>(bar)) {}

  uint64_t read(uint32_t offset, uint32_t size) noexcept override {
    switch (size) {
      case 1:
        return *at<uint8_t>(offset);
      case 2:
        return *at<uint16_t>(offset);
      case 4:
        return *at<uint32_t>(offset);
      default:
        return *at<uint64_t>(offset);
    }
  }
  void write(uint32_t offset, uint64_t value, uint32_t size) noexcept override {
    // x86 keeps stores to write-back memory before a later store to an uncached BAR, so only the compiler is held back.
    asm volatile("" ::: "memory");
    switch (size) {
      case 1:
        *at<uint8_t>(offset) = static_cast<uint8_t>(value);
        break;
      case 2:
        *at<uint16_t>(offset) = static_cast<uint16_t>(value);
        break;
      case 4:
        *at<uint32_t>(offset) = static_cast<uint32_t>(value);
        break;
      default:
        *at<uint64_t>(offset) = value;
        break;
    }
  }
  uint32_t config_read(uint32_t, uint32_t) noexcept override { return 0; }
  void config_write(uint32_t, uint32_t, uint32_t) noexcept override {}

 private:
  template <typename T>
  volatile T* at(uint32_t offset) const {
    return reinterpret_cast<volatile T*>(bar_ + offset);
  }
  uint8_t* bar_;
};

}  // namespace vhost_ioat::dma
