// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <filesystem>
#include <fstream>
#include <string>

#include "dma/pci.hpp"

namespace vhost_ioat::test {

/// A little /sys and /dev of our own, with the PCI devices and IOMMU groups a test asks for.
class FakeTree {
 public:
  FakeTree() {
    char name[] = "/tmp/vhost-ioat-pci-XXXXXX";
    root_ = ::mkdtemp(name);
    std::filesystem::create_directories(tree().sys / "bus/pci/devices");
  }
  FakeTree(const FakeTree&) = delete;
  FakeTree& operator=(const FakeTree&) = delete;
  ~FakeTree() { std::filesystem::remove_all(root_); }

  dma::SystemTree tree() const { return {root_ / "sys", root_ / "dev"}; }

  void device(const std::string& address, const std::string& ids, const std::string& driver, int group) {
    const auto folder = tree().sys / "bus/pci/devices" / address;
    std::filesystem::create_directories(folder);
    write(folder / "vendor", "0x" + ids.substr(0, 4));
    write(folder / "device", "0x" + ids.substr(5));
    write(folder / "numa_node", "1");
    if (!driver.empty()) std::filesystem::create_symlink("../../../../bus/pci/drivers/" + driver, folder / "driver");
    if (group < 0) return;
    const auto number = std::to_string(group);
    std::filesystem::create_symlink("../../../kernel/iommu_groups/" + number, folder / "iommu_group");
    std::filesystem::create_directories(tree().sys / "kernel/iommu_groups" / number / "devices" / address);
  }
  void no_iommu(int group) {
    write(tree().sys / "kernel/iommu_groups" / std::to_string(group) / "name", "vfio-noiommu");
  }
  void node(const std::string& name) {
    std::filesystem::create_directories(tree().dev / "vfio");
    write(tree().dev / "vfio" / name, "");
  }

 private:
  static void write(const std::filesystem::path& file, const std::string& text) { std::ofstream(file) << text << '\n'; }
  std::filesystem::path root_;
};

}  // namespace vhost_ioat::test
