// SPDX-License-Identifier: BSD-3-Clause
#include "memory/guest_mapping.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cinttypes>
#include <system_error>

#include "base/error.hpp"
#include "memory/sigbus.hpp"

namespace vhost_ioat::memory {
namespace {

[[noreturn]] void throw_errno(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

uint64_t base_page_size() { return static_cast<uint64_t>(sysconf(_SC_PAGESIZE)); }

/// The page size of the file system `fd` lies on, if it is one that memory may come from.
uint64_t check_file_system(int fd) {
  // Only files of memfd, tmpfs and hugetlbfs have seals, and the kernel knows without a question to the file system:
  // fstatfs() and fstat() of FUSE may never return.
  if (fcntl(fd, F_GET_SEALS) < 0) {
    struct statx file{};
    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &file) != 0 || !S_ISREG(file.stx_mode))
      throw Error("guest memory cannot be mapped from an fd that is not a regular file");
    throw NotShared(
        "its file is on a file system that could block a reader; only memfd, tmpfs and hugetlbfs are accepted: use "
        "memory-backend-memfd,share=on or a file in /dev/shm");
  }
  struct statfs fs{};
  if (fstatfs(fd, &fs) != 0) throw_errno("fstatfs of a guest memory region");
  return fs.f_type == HUGETLBFS_MAGIC ? static_cast<uint64_t>(fs.f_bsize) : base_page_size();
}

/// The kernel's answers that are about this fd, and not about a shortage of ours.
void check_shareable(int error) {
  if (error == EACCES) throw NotShared("its fd is open for reading only, like that of a ROM");
  if (error == EPERM) throw NotShared("its file is sealed against writing");
}

struct stat check_file_size(int fd, uint64_t offset, uint64_t size) {
  struct stat file{};
  if (fstat(fd, &file) != 0) throw_errno("fstat of a guest memory region");
  const auto file_size = static_cast<uint64_t>(file.st_size);
  if (offset > file_size || size > file_size - offset)
    throw Error(format("memory region of 0x%" PRIx64 " bytes at offset 0x%" PRIx64
                       " ends beyond its file, which has 0x%" PRIx64 " bytes",
                       size, offset, file_size));
  return file;
}

}  // namespace

std::shared_ptr<GuestMapping> GuestMapping::from_fd(int fd, uint64_t offset, uint64_t size,
                                                    const std::shared_ptr<HelperLane>& lane) {
  const uint64_t page_size = check_file_system(fd);
  const struct stat file = check_file_size(fd, offset, size);
  const std::shared_ptr<GuestMapping> mapping(new GuestMapping, [lane](GuestMapping* gone) {
    if (lane) {
      lane->add(*gone);
    } else {
      delete gone;
    }
  });
  mapping->device_ = file.st_dev;
  mapping->inode_ = file.st_ino;
  mapping->offset_ = offset;
  mapping->map(fd, offset, size, page_size);
  return mapping;
}

void GuestMapping::check_origin(int fd) { check_file_system(fd); }

std::shared_ptr<GuestMapping> GuestMapping::anonymous(uint64_t size) {
  std::shared_ptr<GuestMapping> mapping(new GuestMapping);
  mapping->map(-1, 0, size, base_page_size());
  return mapping;
}

std::shared_ptr<GuestMapping> GuestMapping::memfd(uint64_t size) {
  std::shared_ptr<GuestMapping> mapping(new GuestMapping);
  mapping->fd_.reset(memfd_create("vhost_ioat guest memory", MFD_CLOEXEC));
  if (!mapping->fd_) throw_errno("memfd_create");
  if (ftruncate(mapping->fd_.get(), static_cast<off_t>(size)) != 0) throw_errno("ftruncate of guest memory");
  mapping->map(mapping->fd_.get(), 0, size, base_page_size());
  return mapping;
}

bool GuestMapping::is_of(int fd, uint64_t offset, uint64_t size) const {
  struct stat file{};
  return fstat(fd, &file) == 0 && file.st_ino == inode_ && file.st_dev == device_ && inode_ != 0 && offset == offset_ &&
         size == size_ && static_cast<uint64_t>(file.st_size) >= offset + size && !torn();
}

/// The file range is inside the file, so rounding it out to whole pages cannot overflow: a file ends below 2^63.
void GuestMapping::map(int fd, uint64_t offset, uint64_t size, uint64_t page_size) {
  if (size == 0 || size > INT64_MAX - page_size)
    throw Error(format("guest memory of 0x%" PRIx64 " bytes cannot be mapped", size));
  if (fd >= 0) ensure_sigbus_guard();
  const uint64_t lead = offset & (page_size - 1);
  map_size_ = (lead + size + page_size - 1) & ~(page_size - 1);
  const int flags = MAP_NORESERVE | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
  void* map = mmap(nullptr, map_size_, PROT_READ | PROT_WRITE, flags, fd, static_cast<off_t>(offset - lead));
  if (map == MAP_FAILED) {
    check_shareable(errno);
    throw_errno("mmap of guest memory");
  }
  map_ = map;
  data_ = static_cast<uint8_t*>(map) + lead;
  size_ = size;
  // Ours stays mapped in a forked child, which may have views of it and must not crash at them.
  const bool ours = fd < 0 || fd_;
  if (!ours && madvise(map_, map_size_, MADV_DONTFORK) != 0) throw_errno("madvise(MADV_DONTFORK) of guest memory");
  range_ = watch_range(map_, map_size_, page_size);
  torn_ = &torn_flag(range_);
}

GuestMapping::~GuestMapping() {
  if (leaked_) return;  // the range stays watched: an engine may still read it
  if (range_) forget_range(range_);
  // A forked child may lack the mapping, and have something else in its place.
  if (map_ && owner_ == ::getpid()) munmap(map_, map_size_);
}

}  // namespace vhost_ioat::memory
