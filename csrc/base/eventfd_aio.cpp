// SPDX-License-Identifier: BSD-3-Clause
#include "base/eventfd_aio.hpp"

#include <linux/aio_abi.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <ctime>
#include <optional>

#include "base/mutex.hpp"

namespace vhost_ioat::eventfd_aio {
namespace {

constexpr unsigned requests = 64;  // completions that may wait to be taken

// 0: the kernel was not asked yet, or we are a forked child, which does not have its parent's.
std::atomic<aio_context_t> context{0};
constexpr aio_context_t none = ~aio_context_t{0};

/// Reads no bytes from the eventfd (which refuses that, and so completes at once) and has the completion signal it.
long submit(aio_context_t to, int fd, uint32_t rw_flags) noexcept {
  iocb request{};
  request.aio_lio_opcode = IOCB_CMD_PREAD;
  request.aio_fildes = static_cast<uint32_t>(fd);
  request.aio_resfd = static_cast<uint32_t>(fd);
  request.aio_flags = IOCB_FLAG_RESFD;
  request.aio_rw_flags = static_cast<__kernel_rwf_t>(rw_flags);
  iocb* list[] = {&request};
  return ::syscall(SYS_io_submit, to, 1, list);
}

void take_completions(aio_context_t from) noexcept {
  io_event done[requests];
  timespec now{};
  ::syscall(SYS_io_getevents, from, 0, requests, done, &now);
}

bool signal_through(aio_context_t by, int fd) noexcept {
  for (int tries = 0; tries < 4; ++tries) {
    if (submit(by, fd, 0) == 1) return true;
    if (errno != EAGAIN) return false;
    take_completions(by);
  }
  return false;
}

/// Does it? With an eventfd of our own, since a sandbox may let one call through and not the other; nullopt: there are
/// none to try with.
std::optional<bool> works(aio_context_t made) noexcept {
  const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) return std::nullopt;
  uint64_t count = 0;
  const bool signalled = signal_through(made, fd) && ::read(fd, &count, sizeof count) == sizeof count && count == 1;
  const bool told = submit(made, fd, 1u << 31) < 0 && errno == EOPNOTSUPP;
  ::close(fd);
  return signalled && told;
}

aio_context_t make() noexcept {
  static Mutex mutex;
  static const int registered = ::pthread_atfork([]() NO_THREAD_SAFETY_ANALYSIS { mutex.lock(); },
                                                 []() NO_THREAD_SAFETY_ANALYSIS { mutex.unlock(); },
                                                 []() NO_THREAD_SAFETY_ANALYSIS {
                                                   context.store(0, std::memory_order_relaxed);
                                                   mutex.unlock();
                                                 });
  const MutexLock lock(mutex);
  aio_context_t known = context.load(std::memory_order_relaxed);
  if (known != 0) return known;
  aio_context_t made = 0;
  if (registered != 0) return none;
  bool shortage = false;  // of memory, of fds, of what all users together may have: the next call tries again
  if (::syscall(SYS_io_setup, requests, &made) != 0) {
    shortage = errno == EAGAIN || errno == ENOMEM;
    made = none;
  } else if (const auto answer = works(made); !answer.value_or(false)) {
    ::syscall(SYS_io_destroy, made);
    shortage = !answer;
    made = none;
  }
  if (!shortage) context.store(made, std::memory_order_relaxed);
  return made;
}

/// It lives as long as the process; the kernel takes it back with the memory it lies in.
aio_context_t get() noexcept {
  const aio_context_t known = context.load(std::memory_order_relaxed);
  return known != 0 ? known : make();
}

}  // namespace

Answer is_eventfd(int fd) noexcept {
  const aio_context_t by = get();
  if (by == none) return Answer::unknown;
  // The kernel looks whether it is an eventfd (EINVAL) before it looks at flags that do not exist (EOPNOTSUPP).
  for (int tries = 0; submit(by, fd, 1u << 31) < 0 && tries < 4; ++tries) {
    if (errno == EOPNOTSUPP) return Answer::yes;
    if (errno == EINVAL || errno == EBADF) return Answer::no;
    if (errno != EAGAIN) break;
    take_completions(by);
  }
  return Answer::unknown;
}

bool signal(int fd) noexcept {
  const aio_context_t by = get();
  return by != none && signal_through(by, fd);
}

}  // namespace vhost_ioat::eventfd_aio
