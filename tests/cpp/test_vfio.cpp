// SPDX-License-Identifier: BSD-3-Clause
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <set>

#include "base/error.hpp"
#include "dma/vfio.hpp"
#include "doctest/doctest.h"
#include "fake_pci.hpp"

using namespace vhost_ioat;
using dma::VfioDevice;

namespace {

constexpr off_t kConfigOffset = off_t{7} << 40;  // as Linux numbers its regions

/// Stands in for a kernel with one I/OAT: answers as Linux does, writes down what was asked.
class FakeKernel final : public dma::VfioCalls {
 public:
  std::vector<std::string> log;
  std::map<unsigned long, int> errors;  // errno by request
  std::map<std::string, int> open_errors;
  std::map<uint64_t, uint64_t> mapped;
  uint32_t group_flags = VFIO_GROUP_FLAGS_VIABLE;
  uint32_t device_flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
  uint64_t bar_size = 0x4000;
  int extension = 1;
  bool gone = false;
  bool short_unmap = false;
  bool knows_ranges = true;
  std::vector<std::byte> bar = std::vector<std::byte>(0x4000);
  uint16_t command = 0;

  int open(const char* path) override {
    const std::string name = std::filesystem::path(path).filename().string();
    log.push_back("open " + name);
    if (open_errors.contains(name)) return refuse(open_errors[name]);
    return ::open("/dev/null", O_RDWR | O_CLOEXEC);
  }
  int ioctl(int, unsigned long request, void* argument) override {
    log.push_back(name(request));
    if (errors.contains(request)) return refuse(errors[request]);
    switch (request) {
      case VFIO_GET_API_VERSION:
        return VFIO_API_VERSION;
      case VFIO_CHECK_EXTENSION:
        return extension;
      case VFIO_GROUP_GET_STATUS:
        static_cast<vfio_group_status*>(argument)->flags = group_flags;
        return 0;
      case VFIO_GROUP_GET_DEVICE_FD:
        return ::open("/dev/null", O_RDWR | O_CLOEXEC);
      case VFIO_DEVICE_GET_INFO:
        static_cast<vfio_device_info*>(argument)->flags = device_flags;
        return 0;
      case VFIO_DEVICE_GET_REGION_INFO:
        return describe(*static_cast<vfio_region_info*>(argument));
      case VFIO_IOMMU_GET_INFO:
        return describe(static_cast<vfio_iommu_type1_info*>(argument));
      case VFIO_IOMMU_MAP_DMA: {
        const auto& map = *static_cast<vfio_iommu_type1_dma_map*>(argument);
        mapped[map.iova] = map.size;
        return 0;
      }
      case VFIO_IOMMU_UNMAP_DMA: {
        auto& unmap = *static_cast<vfio_iommu_type1_dma_unmap*>(argument);
        if (short_unmap || !mapped.erase(unmap.iova)) unmap.size = 0;
        return 0;
      }
      default:
        return 0;
    }
  }
  void* mmap(size_t size, int, off_t offset) override {
    log.push_back("mmap " + std::to_string(size) + " at " + std::to_string(offset));
    return bar.data();
  }
  void munmap(void*, size_t) override { log.push_back("munmap"); }
  ssize_t pread(int, void* buffer, size_t size, off_t offset) override {
    if (gone) return -1;
    if (offset == kConfigOffset + PCI_COMMAND) std::memcpy(buffer, &command, size);
    return static_cast<ssize_t>(size);
  }
  ssize_t pwrite(int, const void* buffer, size_t size, off_t offset) override {
    if (gone) return -1;
    if (offset == kConfigOffset + PCI_COMMAND) {
      std::memcpy(&command, buffer, size);
      log.push_back(command & PCI_COMMAND_MASTER ? "bus master on" : "bus master off");
    }
    return static_cast<ssize_t>(size);
  }

 private:
  static int refuse(int error) {
    errno = error;
    return -1;
  }
  int describe(vfio_region_info& info) const {
    const bool config = info.index == VFIO_PCI_CONFIG_REGION_INDEX;
    info.size = config ? 4096 : bar_size;
    info.offset = static_cast<uint64_t>(info.index) << 40;
    info.flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    if (!config) info.flags |= VFIO_REGION_INFO_FLAG_MMAP;
    return 0;
  }
  int describe(vfio_iommu_type1_info* info) const {
    // Linux on a PC: all of 39 bits, but for the interrupt window.
    const vfio_iova_range ranges[] = {{0, 0xfedfffff}, {0xfef00000, 0x7fffffffff}};
    vfio_iommu_type1_info_cap_iova_range capability{};
    const size_t whole = sizeof *info + sizeof capability + sizeof ranges;
    if (info->argsz >= whole && knows_ranges) {
      info->flags |= VFIO_IOMMU_INFO_CAPS;
      info->cap_offset = sizeof *info;
      capability.header.id = VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE;
      capability.nr_iovas = 2;
      std::memcpy(info + 1, &capability, sizeof capability);
      std::memcpy(reinterpret_cast<char*>(info + 1) + sizeof capability, ranges, sizeof ranges);
    }
    info->argsz = static_cast<uint32_t>(whole);
    return 0;
  }
  static std::string name(unsigned long request) {
    switch (request) {
      case VFIO_GET_API_VERSION:
        return "api version";
      case VFIO_CHECK_EXTENSION:
        return "check extension";
      case VFIO_GROUP_GET_STATUS:
        return "group status";
      case VFIO_GROUP_SET_CONTAINER:
        return "set container";
      case VFIO_SET_IOMMU:
        return "set iommu";
      case VFIO_IOMMU_GET_INFO:
        return "iommu info";
      case VFIO_GROUP_GET_DEVICE_FD:
        return "device fd";
      case VFIO_DEVICE_GET_INFO:
        return "device info";
      case VFIO_DEVICE_GET_REGION_INFO:
        return "region info";
      case VFIO_IOMMU_MAP_DMA:
        return "map";
      case VFIO_IOMMU_UNMAP_DMA:
        return "unmap";
      case VFIO_DEVICE_RESET:
        return "reset";
      case VFIO_DEVICE_SET_IRQS:
        return "set irqs";
      default:
        return "unknown";
    }
  }
};

struct Machine {
  test::FakeTree tree;
  FakeKernel kernel;
  Machine() {
    tree.device("0000:00:04.0", "8086:2021", "vfio-pci", 3);
    tree.node("vfio");
    tree.node("3");
  }
  auto open() { return std::make_unique<VfioDevice>("0000:00:04.0", kernel, tree.tree()); }
  std::string failure() {
    try {
      open();
    } catch (const DmaError& error) {
      return error.what();
    }
    return "";
  }
};

bool says(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a device is opened in the order VFIO wants, and may use the bus only when all else is done") {
  Machine machine;
  auto device = machine.open();
  CHECK(machine.kernel.log == std::vector<std::string>{"open vfio", "api version", "check extension", "open 3",
                                                       "group status", "set container", "set iommu", "iommu info",
                                                       "iommu info", "device fd", "device info", "region info",
                                                       "region info", "mmap 16384 at 0", "bus master on"});
  CHECK((machine.kernel.command & (PCI_COMMAND_MEMORY | PCI_COMMAND_INTX_DISABLE)) ==
        (PCI_COMMAND_MEMORY | PCI_COMMAND_INTX_DISABLE));
  const auto usable = device->usable();
  REQUIRE(usable.size() == 2);
  CHECK(usable[0].last == 0xfedfffff);
  CHECK(usable[1].first == 0xfef00000);
  machine.kernel.log.clear();
  device.reset();
  CHECK(machine.kernel.log == std::vector<std::string>{"bus master off", "munmap"});
}

TEST_CASE("registers are those of BAR0 and of configuration space") {
  Machine machine;
  auto device = machine.open();
  device->registers().write16(0x86, 0x1234);
  CHECK(machine.kernel.bar[0x86] == std::byte{0x34});
  CHECK(device->registers().read32(0x84) == 0x12340000);
  CHECK(device->registers().config_read(PCI_COMMAND, 2) == machine.kernel.command);
  machine.kernel.gone = true;
  CHECK(device->registers().config_read(PCI_COMMAND, 2) == UINT32_MAX);
}

TEST_CASE("memory is mapped at the address asked for and taken back whole") {
  Machine machine;
  auto device = machine.open();
  alignas(4096) static char page[8192];
  device->map(0x10000, page, sizeof page);
  CHECK(machine.kernel.mapped == std::map<uint64_t, uint64_t>{{0x10000, 8192}});
  device->unmap(0x10000, sizeof page);
  CHECK(machine.kernel.mapped.empty());
  device->map(0x10000, page, sizeof page);
  machine.kernel.short_unmap = true;
  CHECK_THROWS_AS(device->unmap(0x10000, sizeof page), DmaError);
}

TEST_CASE("a refused mapping says which limit and how to raise it") {
  Machine machine;
  auto device = machine.open();
  alignas(4096) static char page[4096];
  machine.kernel.errors[VFIO_IOMMU_MAP_DMA] = ENOMEM;
  try {
    device->map(0x10000, page, sizeof page);
    FAIL("mapped");
  } catch (const DmaError& error) {
    CHECK(says(error.what(), "cannot pin 4 KiB: the limit of locked memory is "));
    CHECK(says(error.what(), "ulimit -l unlimited"));
  }
  machine.kernel.errors[VFIO_IOMMU_MAP_DMA] = ENOSPC;
  CHECK_THROWS_WITH_AS(device->map(0x10000, page, sizeof page),
                       "0000:00:04.0: VFIO accepts no more mappings (dma_entry_limit of vfio_iommu_type1): use larger "
                       "regions",
                       DmaError);
  CHECK(device->revoke() == dma::Step::done);  // nothing is mapped
}

TEST_CASE("revoking takes the bus, resets and unmaps everything, in this order") {
  Machine machine;
  auto device = machine.open();
  alignas(4096) static char page[8192];
  device->map(0x10000, page, 4096);
  device->map(0x20000, page + 4096, 4096);
  machine.kernel.log.clear();
  CHECK(device->revoke() == dma::Step::done);
  CHECK(machine.kernel.log == std::vector<std::string>{"bus master off", "reset", "unmap", "unmap"});
  CHECK(machine.kernel.mapped.empty());
}

TEST_CASE("revoking a device that is gone still unmaps, and fails when the kernel keeps a mapping") {
  Machine machine;
  auto device = machine.open();
  alignas(4096) static char page[4096];
  device->map(0x10000, page, 4096);
  machine.kernel.gone = true;
  std::ranges::fill(machine.kernel.bar, std::byte{0xff});
  machine.kernel.short_unmap = true;
  machine.kernel.log.clear();
  CHECK(device->revoke() == dma::Step::failed);
  CHECK(machine.kernel.log == std::vector<std::string>{"unmap"});  // Linux would wait a minute in a reset
  machine.kernel.short_unmap = false;
  CHECK(device->revoke() == dma::Step::done);
}

TEST_CASE("a device without function reset is not asked for one") {
  Machine machine;
  machine.kernel.device_flags = VFIO_DEVICE_FLAGS_PCI;
  auto device = machine.open();
  machine.kernel.log.clear();
  CHECK_FALSE(device->reset());
  CHECK(machine.kernel.log.empty());
}

TEST_CASE("each refusal on the way to the device says what to do") {
  Machine machine;
  FakeKernel& kernel = machine.kernel;
  SUBCASE("another owner") {
    kernel.open_errors["3"] = EBUSY;
    CHECK(says(machine.failure(), "vfio/3 is open already, in another program or for another queue"));
  }
  SUBCASE("permission") {
    kernel.open_errors["3"] = EACCES;
    CHECK(says(machine.failure(), "no permission on "));
    CHECK(says(machine.failure(), "; as root: chown "));
  }
  SUBCASE("no container") {
    kernel.open_errors["vfio"] = ENODEV;
    CHECK(says(machine.failure(), "vfio/vfio: No such device"));
  }
  SUBCASE("no type 1") {
    kernel.extension = 0;
    CHECK(says(machine.failure(), "modprobe vfio_iommu_type1"));
  }
  SUBCASE("another device of the group was bound meanwhile") {
    machine.tree.device("0000:00:04.1", "8086:2021", "", 3);
    kernel.group_flags = 0;
    CHECK(says(machine.failure(), "IOMMU group 3 is not viable"));
  }
  SUBCASE("interrupt remapping") {
    kernel.errors[VFIO_SET_IOMMU] = EPERM;
    CHECK(says(machine.failure(), "turn on interrupt remapping"));
  }
  SUBCASE("old kernel") {
    kernel.knows_ranges = false;
    CHECK(says(machine.failure(), "Linux 5.4 or later"));
  }
  SUBCASE("not a channel's BAR") {
    kernel.bar_size = 0x80;
    CHECK(says(machine.failure(), "BAR0 has 128 bytes"));
  }
  SUBCASE("unplugged") {
    kernel.errors[VFIO_GROUP_GET_DEVICE_FD] = ENODEV;
    CHECK(says(machine.failure(), "cannot open the device in its group: No such device"));
  }
  CHECK(kernel.command == 0);  // never became a bus master
}
