// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <system_error>
#include <vector>

#include "dma/engine.hpp"

namespace vhost_ioat::dma {

/// Memory that the device sees too: the same bytes under two addresses.
struct DmaMemory {
  void* host = nullptr;
  uint64_t iova = 0;
  size_t size = 0;
};

/// IOVAs from `first` to `last`, both included.
struct IovaRange {
  uint64_t first;
  uint64_t last;
};

/// What a device may reach of our memory: VFIO's mappings for hardware, the model's map for software.
///
/// One caller at a time. The engine chooses the addresses, so that a mapping of hardware and one of software cost the
/// same code.
class DmaSpace {
 public:
  virtual ~DmaSpace() = default;
  /// Where IOVAs may lie, ascending. The engine also keeps to the device's address bits and leaves IOVA 0 unmapped.
  virtual std::vector<IovaRange> usable() const = 0;
  /// Lets the device reach [host, host + size) at `iova`, which has the same offset within a page as `host`.
  /// Throws DmaError (and maps nothing) when that cannot be.
  virtual void map(uint64_t iova, void* host, size_t size) = 0;
  /// Takes back a mapping made by map(), whole. The device does not touch the memory once this returns.
  virtual void unmap(uint64_t iova, size_t size) = 0;
  /// Takes all memory away from a device that does not obey any more. Called again while it answers `pending`.
  virtual Step revoke() noexcept = 0;
};

/// Anonymous pages for a descriptor ring: zeroed, populated, and not inherited by fork(), since after a fork a write to
/// them would move the parent to other pages than the device has.
class RingPages {
 public:
  explicit RingPages(size_t size) : size_(size) {
    data_ = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (data_ == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap of a descriptor ring");
    ::madvise(data_, size, MADV_DONTFORK);
  }
  RingPages(const RingPages&) = delete;
  RingPages& operator=(const RingPages&) = delete;
  ~RingPages() {
    if (!leaked_ && !inherited()) ::munmap(data_, size_);
  }
  /// In a child of fork(), where these pages are not: the device is the parent's, and nothing here may touch it.
  bool inherited() const { return ::getpid() != owner_; }
  void* data() const { return data_; }
  size_t size() const { return size_; }
  /// For a device that could not be stopped: on purpose never freed.
  void leak() { leaked_ = true; }

 private:
  void* data_;
  size_t size_;
  pid_t owner_ = ::getpid();
  bool leaked_ = false;
};

}  // namespace vhost_ioat::dma
