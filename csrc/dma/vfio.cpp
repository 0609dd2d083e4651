// SPDX-License-Identifier: BSD-3-Clause
#include "dma/vfio.hpp"

#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "base/error.hpp"
#include "dma/ioat_spec.hpp"

namespace vhost_ioat::dma {
namespace {

constexpr size_t kChannelRegisters = 0x100;  // the general block and the block of one channel

class KernelCalls final : public VfioCalls {
 public:
  int open(const char* path) override { return ::open(path, O_RDWR | O_CLOEXEC); }
  int ioctl(int fd, unsigned long request, void* argument) override { return ::ioctl(fd, request, argument); }
  void* mmap(size_t size, int fd, off_t offset) override {
    return ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
  }
  void munmap(void* address, size_t size) override { ::munmap(address, size); }
  ssize_t pread(int fd, void* buffer, size_t size, off_t offset) override { return ::pread(fd, buffer, size, offset); }
  ssize_t pwrite(int fd, const void* buffer, size_t size, off_t offset) override {
    return ::pwrite(fd, buffer, size, offset);
  }
};

/// BAR0 as the device's fd maps it; the configuration space goes through the same fd, where the kernel filters it.
class Registers final : public PlainBar {
 public:
  Registers(VfioCalls& calls, int device, void* bar, size_t size, off_t config)
      : PlainBar(bar), calls_(calls), device_(device), bar_(bar), size_(size), config_(config) {}
  ~Registers() override { calls_.munmap(bar_, size_); }

  // PCI is little-endian, and so is every machine with an I/OAT.
  uint32_t config_read(uint32_t offset, uint32_t size) noexcept override {
    uint32_t value = 0;
    const ssize_t got = calls_.pread(device_, &value, size, config_ + offset);
    return got == static_cast<ssize_t>(size) ? value : UINT32_MAX;
  }
  void config_write(uint32_t offset, uint32_t value, uint32_t size) noexcept override {
    calls_.pwrite(device_, &value, size, config_ + offset);
  }

 private:
  VfioCalls& calls_;
  int device_;
  void* bar_;
  size_t size_;
  off_t config_;
};

// Some VFIO requests take a number in place of the pointer.
void* number(unsigned long value) { return reinterpret_cast<void*>(value); }

std::string memlock_hint(uint64_t size) {
  rlimit limit{};
  ::getrlimit(RLIMIT_MEMLOCK, &limit);
  const std::string now = limit.rlim_cur == RLIM_INFINITY
                              ? "unlimited"
                              : format("%llu KiB", static_cast<unsigned long long>(limit.rlim_cur >> 10));
  return format(
      "cannot pin %llu KiB: the limit of locked memory is %s (all guest memory counts, once for each channel); raise "
      "it with ulimit -l unlimited, or LimitMEMLOCK=infinity in the service",
      static_cast<unsigned long long>(size >> 10), now.c_str());
}

}  // namespace

VfioCalls& VfioCalls::kernel() {
  static KernelCalls calls;
  return calls;
}

VfioDevice::VfioDevice(std::string address, VfioCalls& calls, const SystemTree& tree)
    : address_(std::move(address)), calls_(calls) {
  const DmaDevice found = inspect(address_, tree);
  if (!found.usable) fail(found.missing);
  open_container(tree);
  open_group(tree, found.iommu_group);
  read_iova_ranges();
  open_device();
}

VfioDevice::~VfioDevice() {
  if (!registers_ || ::getpid() != owner_) return;  // in a child of fork() the device is the parent's
  const bool here = answers();
  // The mappings go with the container: a copy still running would fault in the IOMMU, so stop it first.
  set_bus_master(false);
  registers_.reset();
  if (here) return;
  // The last close resets the function too, and waits (see revoke()): nobody else should have to.
  std::thread([device = std::move(device_), group = std::move(group_), container = std::move(container_)] {}).detach();
}

bool VfioDevice::answers() noexcept { return registers_->read8(spec::CBVER) != 0xff; }

void VfioDevice::fail(const std::string& what, int error) const {
  throw DmaError(address_ + ": " + what + (error == 0 ? "" : std::string(": ") + std::strerror(error)));
}

void VfioDevice::open_container(const SystemTree& tree) {
  const std::string path = (tree.dev / "vfio/vfio").string();
  container_ = UniqueFd(calls_.open(path.c_str()));
  if (!container_) fail("cannot open " + path, errno);
  if (const int version = calls_.ioctl(container_.get(), VFIO_GET_API_VERSION, nullptr); version != VFIO_API_VERSION) {
    fail(format("VFIO has API version %d, but version %d is needed: use another kernel", version, VFIO_API_VERSION));
  }
  if (calls_.ioctl(container_.get(), VFIO_CHECK_EXTENSION, number(VFIO_TYPE1v2_IOMMU)) != 1) {
    fail("VFIO has no type 1 IOMMU here; as root: modprobe vfio_iommu_type1");
  }
}

void VfioDevice::open_group(const SystemTree& tree, int iommu_group) {
  const std::string path = (tree.dev / "vfio" / std::to_string(iommu_group)).string();
  group_ = UniqueFd(calls_.open(path.c_str()));
  if (!group_ && errno == EBUSY) {
    fail(path + " is open already, in another program or for another queue: a group can have only one owner");
  }
  if (!group_ && (errno == EACCES || errno == EPERM)) fail(permission_hint(path));
  if (!group_) fail("cannot open " + path, errno);

  vfio_group_status status{};
  status.argsz = sizeof status;
  if (calls_.ioctl(group_.get(), VFIO_GROUP_GET_STATUS, &status) != 0)
    fail("cannot get the status of the group", errno);
  if ((status.flags & VFIO_GROUP_FLAGS_VIABLE) == 0)
    fail(viability_hint(iommu_group, group_obstacles(iommu_group, tree)));
  int container = container_.get();
  if (calls_.ioctl(group_.get(), VFIO_GROUP_SET_CONTAINER, &container) != 0) fail("cannot join a container", errno);
  if (calls_.ioctl(container_.get(), VFIO_SET_IOMMU, number(VFIO_TYPE1v2_IOMMU)) != 0) {
    if (errno == EPERM) {
      fail("the platform does not remap interrupts, so VFIO refuses the device: turn on interrupt remapping (VT-d)");
    }
    fail("cannot set up the IOMMU", errno);
  }
}

void VfioDevice::read_iova_ranges() {
  // Asked twice: the first answer says how long the whole one is.
  vfio_iommu_type1_info head{};
  head.argsz = sizeof head;
  if (calls_.ioctl(container_.get(), VFIO_IOMMU_GET_INFO, &head) != 0)
    fail("cannot get the IOMMU's address ranges", errno);
  std::vector<std::byte> answer(std::max<size_t>(head.argsz, sizeof head));
  head.argsz = static_cast<uint32_t>(answer.size());
  std::memcpy(answer.data(), &head, sizeof head);
  if (calls_.ioctl(container_.get(), VFIO_IOMMU_GET_INFO, answer.data()) != 0) {
    fail("cannot get the IOMMU's address ranges", errno);
  }
  std::memcpy(&head, answer.data(), sizeof head);
  uint32_t next = (head.flags & VFIO_IOMMU_INFO_CAPS) != 0 ? head.cap_offset : 0;
  while (next != 0 && next + sizeof(vfio_info_cap_header) <= answer.size()) {
    vfio_iommu_type1_info_cap_iova_range ranges{};
    std::memcpy(&ranges.header, answer.data() + next, sizeof ranges.header);
    if (ranges.header.id == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE && next + sizeof ranges <= answer.size()) {
      std::memcpy(&ranges, answer.data() + next, sizeof ranges);
      const size_t room = (answer.size() - next - sizeof ranges) / sizeof(vfio_iova_range);
      for (size_t i = 0; i < std::min<size_t>(ranges.nr_iovas, room); ++i) {
        vfio_iova_range range{};
        std::memcpy(&range, answer.data() + next + sizeof ranges + i * sizeof range, sizeof range);
        usable_.push_back({range.start, range.end});
      }
    }
    next = ranges.header.next > next ? ranges.header.next : 0;
  }
  if (usable_.empty()) fail("the kernel does not say which addresses the IOMMU translates: use Linux 5.4 or later");
}

VfioDevice::Region VfioDevice::region(uint32_t index) {
  vfio_region_info info{};
  info.argsz = sizeof info;
  info.index = index;
  if (calls_.ioctl(device_.get(), VFIO_DEVICE_GET_REGION_INFO, &info) != 0) {
    fail(format("cannot get information on region %u", index), errno);
  }
  return {info.size, static_cast<off_t>(info.offset), info.flags};
}

void VfioDevice::open_device() {
  device_ = UniqueFd(calls_.ioctl(group_.get(), VFIO_GROUP_GET_DEVICE_FD, address_.data()));
  if (!device_) fail("cannot open the device in its group", errno);
  vfio_device_info info{};
  info.argsz = sizeof info;
  if (calls_.ioctl(device_.get(), VFIO_DEVICE_GET_INFO, &info) != 0)
    fail("cannot get information on the device", errno);
  can_reset_ = (info.flags & VFIO_DEVICE_FLAGS_RESET) != 0;
  const Region config = region(VFIO_PCI_CONFIG_REGION_INDEX);
  const Region bar = region(VFIO_PCI_BAR0_REGION_INDEX);
  if (bar.size < kChannelRegisters || (bar.flags & VFIO_REGION_INFO_FLAG_MMAP) == 0) {
    fail(format("BAR0 has %llu bytes (flags %#x), but an I/OAT channel has 16384 that can be mapped",
                static_cast<unsigned long long>(bar.size), bar.flags));
  }
  void* mapped = calls_.mmap(bar.size, device_.get(), bar.offset);
  if (mapped == MAP_FAILED) fail("cannot map BAR0", errno);
  registers_ = std::make_unique<Registers>(calls_, device_.get(), mapped, bar.size, config.offset);
  set_bus_master(true);
}

void VfioDevice::set_bus_master(bool on) noexcept {
  const uint32_t command = registers_->config_read(PCI_COMMAND, 2) & ~uint32_t{PCI_COMMAND_MASTER};
  const uint32_t wanted = PCI_COMMAND_MEMORY | PCI_COMMAND_INTX_DISABLE | (on ? PCI_COMMAND_MASTER : 0u);
  registers_->config_write(PCI_COMMAND, command | wanted, 2);
}

void VfioDevice::map(uint64_t iova, void* host, size_t size) {
  vfio_iommu_type1_dma_map request{};
  request.argsz = sizeof request;
  request.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
  request.vaddr = reinterpret_cast<uintptr_t>(host);
  request.iova = iova;
  request.size = size;
  if (calls_.ioctl(container_.get(), VFIO_IOMMU_MAP_DMA, &request) != 0) {
    if (errno == ENOMEM) fail(memlock_hint(size));
    if (errno == ENOSPC)
      fail("VFIO accepts no more mappings (dma_entry_limit of vfio_iommu_type1): use larger regions");
    fail(format("cannot map %zu bytes at %p (are they whole pages?) for the device at IOVA %#llx", size, host,
                static_cast<unsigned long long>(iova)),
         errno);
  }
  mapped_[iova] = size;
}

bool VfioDevice::remove(uint64_t iova, uint64_t size) noexcept {
  vfio_iommu_type1_dma_unmap request{};
  request.argsz = sizeof request;
  request.iova = iova;
  request.size = size;
  // The kernel answers with the bytes it unmapped: less is memory that the device still reaches.
  return calls_.ioctl(container_.get(), VFIO_IOMMU_UNMAP_DMA, &request) == 0 && request.size == size;
}

void VfioDevice::unmap(uint64_t iova, size_t size) {
  if (!remove(iova, size)) {
    fail(format("the kernel did not unmap %zu bytes at IOVA %#llx from the device", size,
                static_cast<unsigned long long>(iova)));
  }
  mapped_.erase(iova);
}

void VfioDevice::set_interrupt(int eventfd) {
  std::byte request[sizeof(vfio_irq_set) + sizeof(int32_t)];
  vfio_irq_set head{};
  head.argsz = sizeof request;
  head.flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
  head.index = VFIO_PCI_MSIX_IRQ_INDEX;
  head.count = 1;
  if (eventfd < 0) {
    head.argsz = sizeof head;
    head.flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_NONE;
    head.count = 0;
  }
  std::memcpy(request, &head, sizeof head);
  std::memcpy(request + sizeof head, &eventfd, sizeof eventfd);
  if (calls_.ioctl(device_.get(), VFIO_DEVICE_SET_IRQS, request) != 0) fail("cannot route the interrupt", errno);
}

bool VfioDevice::reset() noexcept { return can_reset_ && calls_.ioctl(device_.get(), VFIO_DEVICE_RESET, nullptr) == 0; }

Step VfioDevice::revoke() noexcept {
  set_bus_master(false);
  // Of a function that has left the bus Linux would wait a minute for its return.
  if (answers()) reset();
  // Removing a mapping flushes the IOMMU's cache, so nothing of the device passes afterwards, whatever it still tries:
  // this alone decides. The two steps before keep it from faulting.
  std::erase_if(mapped_, [this](const auto& mapping) { return remove(mapping.first, mapping.second); });
  return mapped_.empty() ? Step::done : Step::failed;
}

}  // namespace vhost_ioat::dma
