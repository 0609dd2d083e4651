// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace vhost_ioat::dma {

/// Where the kernel shows its devices. Tests put a tree of their own here.
struct SystemTree {
  std::filesystem::path sys = "/sys";
  std::filesystem::path dev = "/dev";
};

/// One I/OAT channel, as sysfs shows it.
struct DmaDevice {
  std::string address;  // "0000:00:04.0"
  uint16_t device_id = 0;
  std::string driver;    // "" when none is bound
  int numa_node = -1;    // -1: unknown
  int iommu_group = -1;  // -1: none
  bool usable = false;
  std::string missing;  // what stands in the way and what to do about it; "" when usable
};

/// "04:00.0" or "0000:04:00.0", any case, to "0000:04:00.0". Throws ConfigError.
std::string normalise_address(std::string_view address);
/// Whether 8086:`device_id` is an I/OAT channel of version 3.2 or later.
bool is_ioat(uint16_t device_id);

/// What is at `address`. Throws DmaError when there is no such device or it is not an I/OAT channel.
DmaDevice inspect(const std::string& address, const SystemTree& tree = {});
/// Every I/OAT channel of this machine, by address.
std::vector<DmaDevice> probe(const SystemTree& tree = {});

/// What to do where the kernel says no, for probe() and for the opening that finds out later.
std::string permission_hint(const std::string& node);
std::string viability_hint(int iommu_group, const std::vector<std::string>& obstacles);
/// Devices of a group that a driver of the kernel holds, so that the group cannot be given to a program:
/// "0000:00:04.1 (ioatdma)".
std::vector<std::string> group_obstacles(int iommu_group, const SystemTree& tree = {});

}  // namespace vhost_ioat::dma
