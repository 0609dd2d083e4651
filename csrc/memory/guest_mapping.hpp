// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/unique_fd.hpp"

namespace vhost_ioat::memory {

struct WatchedRange;  // sigbus.hpp

/// One mapping of guest memory, made from the fd a front end sent (or from anonymous memory, for tests and the
/// embedded guest), unmapped when the last user lets go: region tables, in-flight copies, numpy views.
///
/// Shared, MAP_NORESERVE, MADV_DONTFORK. A file that lies on anything but memfd, tmpfs or hugetlbfs is refused, since
/// a file system that runs elsewhere (FUSE) could hang whoever reads the memory; so is one shorter than the mapping.
/// A truncation later is caught by the SIGBUS guard: the page becomes an anonymous zero page and torn() turns true.
class GuestMapping {
 public:
  /// Maps [offset, offset + size) of `fd` (the fd is not kept). Throws Error or std::system_error.
  static std::shared_ptr<GuestMapping> from_fd(int fd, uint64_t offset, uint64_t size);
  static std::shared_ptr<GuestMapping> anonymous(uint64_t size);
  /// Guest memory for a front end: a new memfd mapped whole; fd() is what it sends.
  static std::shared_ptr<GuestMapping> memfd(uint64_t size);

  GuestMapping(const GuestMapping&) = delete;
  GuestMapping& operator=(const GuestMapping&) = delete;
  ~GuestMapping();

  uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }
  int fd() const { return fd_.get(); }  // only of memfd()
  /// The file was truncated below us and the SIGBUS guard has mended a page. Stays true.
  bool torn() const { return torn_->load(std::memory_order_relaxed); }  // it orders no other data
  /// Gives the mapping up without unmapping it, for an engine that could not be stopped. On purpose never freed.
  void leak() { leaked_ = true; }

 private:
  GuestMapping() = default;
  void map(int fd, uint64_t offset, uint64_t size, uint64_t page_size);

  uint8_t* data_ = nullptr;  // what callers see: map_ + (offset within the page)
  uint64_t size_ = 0;
  void* map_ = nullptr;
  uint64_t map_size_ = 0;
  UniqueFd fd_;
  const pid_t owner_ = ::getpid();
  bool leaked_ = false;
  WatchedRange* range_ = nullptr;
  const std::atomic<bool>* torn_ = nullptr;  // of range_
};

}  // namespace vhost_ioat::memory
