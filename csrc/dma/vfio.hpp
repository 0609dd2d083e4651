// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <sys/types.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "dma/dma_space.hpp"
#include "dma/pci.hpp"
#include "dma/register_file.hpp"

namespace vhost_ioat::dma {

/// The calls to the kernel on the way to a device, so that a test can stand in for a kernel with an I/OAT in it.
/// They answer and set errno as the system calls of the same names do.
class VfioCalls {
 public:
  virtual ~VfioCalls() = default;
  virtual int open(const char* path) = 0;  // for reading and writing
  virtual int ioctl(int fd, unsigned long request, void* argument) = 0;
  virtual void* mmap(size_t size, int fd, off_t offset) = 0;  // shared, for reading and writing
  virtual void munmap(void* address, size_t size) = 0;
  virtual ssize_t pread(int fd, void* buffer, size_t size, off_t offset) = 0;
  virtual ssize_t pwrite(int fd, const void* buffer, size_t size, off_t offset) = 0;

  static VfioCalls& kernel();
};

/// A PCI function opened through VFIO type 1: its registers, and the memory it may reach.
///
/// The IOMMU stops everything but mapped memory, so whatever a guest or a broken driver writes in a descriptor cannot
/// hurt the rest of the process. Throws DmaError that says what to do. One thread at a time.
class VfioDevice final : public DmaSpace {
 public:
  explicit VfioDevice(std::string address, VfioCalls& calls = VfioCalls::kernel(), const SystemTree& tree = {});
  ~VfioDevice() override;
  VfioDevice(const VfioDevice&) = delete;
  VfioDevice& operator=(const VfioDevice&) = delete;

  const std::string& address() const { return address_; }
  Mmio& registers() { return *registers_; }

  std::vector<IovaRange> usable() const override { return usable_; }
  /// Pins the memory. Whole pages.
  void map(uint64_t iova, void* host, size_t size) override;
  void unmap(uint64_t iova, size_t size) override;
  /// Bus mastering off, function reset, every mapping removed.
  Step revoke() noexcept override;

  /// Makes the MSI-X vector write to `eventfd`; -1 ends that.
  void set_interrupt(int eventfd);
  /// Resets the whole function; the kernel restores its configuration space.
  bool reset() noexcept;

 private:
  struct Region {
    uint64_t size;
    off_t offset;
    uint32_t flags;
  };

  void open_container(const SystemTree& tree);
  void open_group(const SystemTree& tree, int iommu_group);
  void read_iova_ranges();
  void open_device();
  Region region(uint32_t index);
  bool answers() noexcept;  // false: it has left the bus
  void set_bus_master(bool on) noexcept;
  bool remove(uint64_t iova, uint64_t size) noexcept;
  [[noreturn]] void fail(const std::string& what, int error = 0) const;

  std::string address_;
  VfioCalls& calls_;
  pid_t owner_ = ::getpid();
  UniqueFd container_, group_, device_;
  std::unique_ptr<Mmio> registers_;
  bool can_reset_ = false;
  std::vector<IovaRange> usable_;
  std::map<uint64_t, uint64_t> mapped_;  // size by IOVA
};

}  // namespace vhost_ioat::dma
