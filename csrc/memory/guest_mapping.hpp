// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/error.hpp"
#include "base/helper.hpp"
#include "base/unique_fd.hpp"

namespace vhost_ioat::memory {

struct WatchedRange;  // sigbus.hpp

/// A region of a front end that this process cannot share, though nothing is wrong with the message: a ROM whose fd is
/// open for reading only, a sealed memfd, an NVDIMM's file on a disk. The rest of the table is as good as ever.
class NotShared : public Error {
 public:
  using Error::Error;
};

/// One mapping of guest memory, made from the fd a front end sent (or from anonymous memory, for tests and the
/// embedded guest), unmapped when the last user lets go: region tables, in-flight copies, numpy views.
///
/// MAP_NORESERVE; of a front end, shared and MADV_DONTFORK. A file that lies on anything but memfd, tmpfs or hugetlbfs
/// is refused, since a file system that runs elsewhere (FUSE, NFS) could hang whoever reads the memory, and such a file
/// is asked nothing; so is one shorter than the mapping. A truncation later is caught by the SIGBUS guard: the page
/// becomes an anonymous zero page and torn() turns true.
class GuestMapping final : private HelperJob {
 public:
  /// Maps [offset, offset + size) of `fd` (the fd is not kept). Throws NotShared, Error or std::system_error. With a
  /// lane it is unmapped there: giving back gigabytes takes its time.
  static std::shared_ptr<GuestMapping> from_fd(int fd, uint64_t offset, uint64_t size,
                                               const std::shared_ptr<HelperLane>& lane = nullptr);
  /// May memory come from this file? Throws as from_fd() does, and asks nothing of a file system that could let us
  /// wait.
  static void check_origin(int fd);
  /// Private, so that a child of fork() has a copy of its own.
  static std::shared_ptr<GuestMapping> anonymous(uint64_t size);
  /// Guest memory for a front end: a new memfd mapped whole; fd() is what it sends. A child of fork() shares it.
  static std::shared_ptr<GuestMapping> memfd(uint64_t size);

  GuestMapping(const GuestMapping&) = delete;
  GuestMapping& operator=(const GuestMapping&) = delete;
  ~GuestMapping() override;

  uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }
  int fd() const { return fd_.get(); }  // only of memfd()
  /// Is this a mapping of these bytes of this file? Asks the kernel.
  bool is_of(int fd, uint64_t offset, uint64_t size) const;
  /// The file was truncated below us and the SIGBUS guard has mended a page. Stays true.
  bool torn() const { return torn_->load(std::memory_order_relaxed); }  // it orders no other data
  /// Gives the mapping up without unmapping it, for an engine that could not be stopped. On purpose never freed.
  void leak() { leaked_ = true; }

 private:
  GuestMapping() = default;
  void map(int fd, uint64_t offset, uint64_t size, uint64_t page_size);
  void run() noexcept override {}  // as a job it is only disposed of

  uint8_t* data_ = nullptr;  // what callers see: map_ + (offset within the page)
  uint64_t size_ = 0;
  dev_t device_ = 0;  // of the file, with inode_ and offset_
  ino_t inode_ = 0;
  uint64_t offset_ = 0;
  void* map_ = nullptr;
  uint64_t map_size_ = 0;
  UniqueFd fd_;
  const pid_t owner_ = ::getpid();
  bool leaked_ = false;
  WatchedRange* range_ = nullptr;
  const std::atomic<bool>* torn_ = nullptr;  // of range_
};

}  // namespace vhost_ioat::memory
