// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>

/// vfio-user 0.0 (QEMU, docs/interop/vfio-user.rst): VFIO's requests as messages on a socket. Little-endian.
namespace vhost_ioat::dma::vfio_user {

enum class Command : uint16_t {
  version = 1,
  dma_map = 2,
  dma_unmap = 3,
  device_get_info = 4,
  device_get_region_info = 5,
  device_get_region_io_fds = 6,
  device_get_irq_info = 7,
  device_set_irqs = 8,
  region_read = 9,
  region_write = 10,
  device_reset = 13,
};

struct Header {
  uint16_t id;
  uint16_t command;
  uint32_t size;  // of the whole message
  uint32_t flags;
  uint32_t error;  // errno, in a reply with flag_error
};
constexpr uint32_t flag_type = 0xf, type_command = 0, type_reply = 1, flag_no_reply = 0x10, flag_error = 0x20;

struct Version {
  uint16_t major;
  uint16_t minor;
};

struct DmaMap {
  uint32_t argsz;
  uint32_t flags;
  uint64_t offset;  // in the file
  uint64_t address;
  uint64_t size;
};
constexpr uint32_t map_read = 1, map_write = 2;

struct DmaUnmap {
  uint32_t argsz;
  uint32_t flags;
  uint64_t address;
  uint64_t size;
};
constexpr uint32_t unmap_all = 2;

struct DeviceInfo {
  uint32_t argsz;
  uint32_t flags;
  uint32_t regions;
  uint32_t irqs;
};
constexpr uint32_t device_can_reset = 1, device_is_pci = 2;

struct RegionInfo {
  uint32_t argsz;
  uint32_t flags;
  uint32_t index;
  uint32_t cap_offset;
  uint64_t size;
  uint64_t offset;
};
constexpr uint32_t region_bar0 = 0, region_config = 7, regions = 9;
constexpr uint32_t region_read_write = 3;

struct IrqInfo {
  uint32_t argsz;
  uint32_t flags;
  uint32_t index;
  uint32_t count;
};
constexpr uint32_t irq_msix = 2, irqs = 5;
constexpr uint32_t irq_eventfd = 1;

struct IrqSet {
  uint32_t argsz;
  uint32_t flags;
  uint32_t index;
  uint32_t start;
  uint32_t count;
};
constexpr uint32_t set_none = 1, set_eventfd = 4, set_trigger = 0x20;

struct RegionAccess {  // data follows
  uint64_t offset;
  uint32_t region;
  uint32_t count;
};

static_assert(sizeof(Header) == 16 && sizeof(Version) == 4 && sizeof(DmaMap) == 32 && sizeof(DmaUnmap) == 24);
static_assert(sizeof(DeviceInfo) == 16 && sizeof(RegionInfo) == 32 && sizeof(IrqInfo) == 16);
static_assert(sizeof(IrqSet) == 20 && sizeof(RegionAccess) == 16);

}  // namespace vhost_ioat::dma::vfio_user
