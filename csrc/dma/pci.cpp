// SPDX-License-Identifier: BSD-3-Clause
#include "dma/pci.hpp"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <optional>
#include <string_view>

#include "base/error.hpp"

namespace vhost_ioat::dma {
namespace {

namespace fs = std::filesystem;

constexpr uint16_t kIntel = 0x8086;

fs::path device_folder(const SystemTree& tree, const std::string& address) {
  return tree.sys / "bus/pci/devices" / address;
}

std::optional<long> parse_number(std::string_view digits, int base) {
  if (base == 16 && digits.starts_with("0x")) digits.remove_prefix(2);
  long value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return value;
}

std::optional<long> read_number(const fs::path& file, int base) {
  std::ifstream in(file);
  std::string text;
  if (!(in >> text)) return std::nullopt;
  return parse_number(text, base);
}

std::string link_target(const fs::path& link) {
  std::error_code error;
  return fs::read_symlink(link, error).filename().string();
}

std::string bind_commands(const DmaDevice& device) {
  const char* address = device.address.c_str();
  const std::string unbind =
      device.driver.empty() ? "" : format("echo %s > /sys/bus/pci/drivers/%s/unbind; ", address, device.driver.c_str());
  return "as root: modprobe vfio-pci; " + unbind +
         format("echo vfio-pci > /sys/bus/pci/devices/%s/driver_override; echo %s > /sys/bus/pci/drivers_probe",
                address, address);
}

// The first thing in the way, in the order in which they are fixed: firmware and kernel, binding, group, permission.
std::string find_missing(const DmaDevice& device, const SystemTree& tree) {
  if (device.iommu_group < 0) {
    return "it has no IOMMU group: turn the IOMMU on in the firmware (VT-d) and boot with intel_iommu=on";
  }
  const fs::path group_name = tree.sys / "kernel/iommu_groups" / std::to_string(device.iommu_group) / "name";
  std::string name;
  std::getline(std::ifstream(group_name) >> std::ws, name);
  if (name == "vfio-noiommu") {
    return "VFIO is in no-IOMMU mode, in which a wrong address can overwrite any memory: turn the IOMMU on "
           "(intel_iommu=on)";
  }
  if (device.driver.find("uio") != std::string::npos) {
    return "it is bound to " + device.driver + ", which does not confine the device to the guest's memory; " +
           bind_commands(device);
  }
  if (device.driver.empty()) return "it has no driver; " + bind_commands(device);
  if (device.driver != "vfio-pci") return "it is bound to " + device.driver + "; " + bind_commands(device);
  if (const auto others = group_obstacles(device.iommu_group, tree); !others.empty()) {
    return viability_hint(device.iommu_group, others);
  }
  const fs::path container = tree.dev / "vfio/vfio";
  const fs::path group = tree.dev / "vfio" / std::to_string(device.iommu_group);
  for (const fs::path& node : {container, group}) {
    if (::access(node.c_str(), F_OK) != 0) return node.string() + " does not exist; as root: modprobe vfio-pci";
    if (::access(node.c_str(), R_OK | W_OK) != 0) {
      return permission_hint(node.string());
    }
  }
  return "";
}

bool all_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isxdigit(c) != 0; });
}

}  // namespace

std::string normalise_address(std::string_view address) {
  const std::string full = address.size() == 7 ? "0000:" + std::string(address) : std::string(address);
  const std::string_view text = full;
  const bool right = text.size() == 12 && text[4] == ':' && text[7] == ':' && text[10] == '.' &&
                     all_hex(text.substr(0, 4)) && all_hex(text.substr(5, 2)) && all_hex(text.substr(8, 2)) &&
                     text[11] >= '0' && text[11] <= '7';
  if (!right) {
    throw ConfigError("\"" + std::string(address) +
                      "\" is not a PCI address: write one such as 00:04.0 or 0000:00:04.0");
  }
  std::string lower = full;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return lower;
}

bool is_ioat(uint16_t id) {
  struct Range {
    uint16_t first, last;
  };
  static constexpr Range known[] = {
      {0x0b00, 0x0b00},                                      // Ice Lake-SP
      {0x2021, 0x2021},                                      // Skylake-SP, Cascade Lake-SP
      {0x6f20, 0x6f27}, {0x6f2e, 0x6f2f}, {0x6f50, 0x6f53},  // Broadwell-EP, Broadwell-DE
      {0x2f20, 0x2f27}, {0x2f2e, 0x2f2f},                    // Haswell-EP
      {0x0e20, 0x0e27}, {0x0e2e, 0x0e2f},                    // Ivy Bridge-EP
      {0x3c20, 0x3c27}, {0x3c2e, 0x3c2f},                    // Sandy Bridge-EP
      {0x0c50, 0x0c53},                                      // Atom C2000
  };
  return std::ranges::any_of(known, [id](Range range) { return id >= range.first && id <= range.last; });
}

std::string permission_hint(const std::string& node) {
  return format("no permission on %s; as root: chown %u %s", node.c_str(), ::geteuid(), node.c_str());
}

std::string viability_hint(int iommu_group, const std::vector<std::string>& obstacles) {
  std::string names;
  for (const std::string& name : obstacles) names += (names.empty() ? "" : ", ") + name;
  return format("IOMMU group %d is not viable because kernel drivers hold %s: unbind them or bind them to vfio-pci",
                iommu_group, names.empty() ? "another device in it" : names.c_str());
}

std::vector<std::string> group_obstacles(int iommu_group, const SystemTree& tree) {
  // A bridge's port driver and pci-stub make no DMA of their own: the kernel lets them share a group.
  static constexpr std::string_view harmless[] = {"", "vfio-pci", "pci-stub", "pcieport"};
  std::vector<std::string> found;
  std::error_code error;
  const fs::path members = tree.sys / "kernel/iommu_groups" / std::to_string(iommu_group) / "devices";
  for (const auto& member : fs::directory_iterator(members, error)) {
    const std::string address = member.path().filename().string();
    const std::string driver = link_target(device_folder(tree, address) / "driver");
    if (std::ranges::find(harmless, driver) == std::end(harmless))
      found.push_back(format("%s (%s)", address.c_str(), driver.c_str()));
  }
  std::ranges::sort(found);
  return found;
}

DmaDevice inspect(const std::string& address, const SystemTree& tree) {
  const fs::path folder = device_folder(tree, address);
  std::error_code error;
  if (!fs::exists(folder, error)) {
    throw DmaError(address + ": there is no such PCI device here; `vhost-ioat devices` lists the I/OAT channels");
  }
  const long vendor = read_number(folder / "vendor", 16).value_or(0);
  const long id = read_number(folder / "device", 16).value_or(0);
  if (vendor != kIntel || !is_ioat(static_cast<uint16_t>(id))) {
    throw DmaError(format("%s: %04lx:%04lx is not an I/OAT channel; `vhost-ioat devices` lists the I/OAT channels",
                          address.c_str(), vendor, id));
  }
  DmaDevice device;
  device.address = address;
  device.device_id = static_cast<uint16_t>(id);
  device.driver = link_target(folder / "driver");
  device.numa_node = static_cast<int>(read_number(folder / "numa_node", 10).value_or(-1));
  const std::string group = link_target(folder / "iommu_group");
  device.iommu_group = static_cast<int>(parse_number(group, 10).value_or(-1));
  device.missing = find_missing(device, tree);
  device.usable = device.missing.empty();
  return device;
}

std::vector<DmaDevice> probe(const SystemTree& tree) {
  std::vector<DmaDevice> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(tree.sys / "bus/pci/devices", error)) {
    const long vendor = read_number(entry.path() / "vendor", 16).value_or(0);
    const long id = read_number(entry.path() / "device", 16).value_or(0);
    if (vendor != kIntel || !is_ioat(static_cast<uint16_t>(id))) continue;
    try {
      found.push_back(inspect(entry.path().filename().string(), tree));
    } catch (const DmaError&) {
      // Unplugged since the folder was listed.
    }
  }
  std::ranges::sort(found, {}, &DmaDevice::address);
  return found;
}

}  // namespace vhost_ioat::dma
