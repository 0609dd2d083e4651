// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <system_error>
#include <utility>

namespace vhost_ioat {

/// Closes file descriptors that a peer sent somewhere else: close() of a socket that lingers, or of a file that lies on
/// somebody's file system, takes as long as the peer likes.
class FdCloser {
 public:
  virtual ~FdCloser() = default;
  virtual void close_later(int fd) noexcept = 0;
};

/// Owns one file descriptor. One that a peer sent is given the closer of its session.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(int fd, std::shared_ptr<FdCloser> closer) noexcept : fd_(fd), closer_(std::move(closer)) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)), closer_(std::move(other.closer_)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this == &other) return *this;
    reset(std::exchange(other.fd_, -1));
    closer_ = std::move(other.closer_);
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { reset(); }

  int get() const { return fd_; }
  const std::shared_ptr<FdCloser>& closer() const { return closer_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1) noexcept {
    if (fd_ >= 0) closer_ ? closer_->close_later(fd_) : static_cast<void>(::close(fd_));
    fd_ = fd;
    closer_.reset();
  }
  UniqueFd duplicate() const {
    int fd = ::fcntl(fd_, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) throw std::system_error(errno, std::generic_category(), "dup");
    return UniqueFd(fd);
  }

 private:
  int fd_ = -1;
  std::shared_ptr<FdCloser> closer_;  // none: it is closed here and now
};

inline UniqueFd make_eventfd() {
  int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  return UniqueFd(fd);
}

/// Adds one to a non-blocking eventfd. EAGAIN means the counter is full: the reader is already signalled. False: the
/// write failed otherwise.
inline bool eventfd_signal(int fd) noexcept {
  const uint64_t one = 1;
  while (::write(fd, &one, sizeof one) < 0) {
    if (errno != EINTR) return errno == EAGAIN;
  }
  return true;
}

/// Takes the count of a non-blocking eventfd; 0 when it was not signalled.
inline uint64_t eventfd_clear(int fd) noexcept {
  uint64_t count = 0;
  while (::read(fd, &count, sizeof count) < 0) {
    if (errno != EINTR) return 0;
  }
  return count;
}

}  // namespace vhost_ioat
