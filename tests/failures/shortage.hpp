// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>

namespace vhost_ioat::testing {

/// What a system can run out of, by the call that says so.
enum class Shortage : uint32_t {
  memory,           // operator new: std::bad_alloc
  mmap,             // ENOMEM
  madvise,          // ENOMEM
  memfd_create,     // EMFILE
  ftruncate,        // ENOSPC
  epoll_create,     // EMFILE
  epoll_add,        // ENOSPC: /proc/sys/fs/epoll/max_user_watches
  epoll_modify,     // ENOMEM
  eventfd,          // EMFILE
  timerfd,          // EMFILE
  timerfd_arm,      // ENOMEM
  duplicate,        // EMFILE
  socket,           // EMFILE
  pipe,             // EMFILE
  accept,           // EMFILE
  connect,          // EAGAIN
  received_fds,     // fds of a message that find no room here: MSG_CTRUNC
  send,             // ENOBUFS
  open,             // EMFILE
  stat,             // ENOMEM, of fstat and fstatfs
  sigaction,        // ENOMEM
  alternate_stack,  // ENOMEM
  thread,           // EAGAIN
  count,
};
const char* name_of(Shortage kind);

/// Fails the n-th call, counted over all kinds, that a product's thread makes while armed.
///
/// The calls are the program's own and libstdc++'s: the definitions in shortage.cpp stand in front of those of libc
/// (the dynamic linker asks the executable first). The product has no seam for it. A thread counts unless it, or the
/// scope it is in, is the test's own.
class Shortages {
 public:
  struct Hit {
    Shortage kind = Shortage::count;  // count: none
    uint64_t calls = 0;               // failed
    void* frames[24] = {};            // of the first
    int depth = 0;
  };
  /// From the n-th call on (from 0), `calls` of them fail. Failing none counts only.
  static void arm(uint64_t n, uint64_t calls, Hit* hit);
  /// Each call fails with a chance of one in `one_in`, on the product's own threads only, known by their names.
  static void arm_at_random(uint64_t one_in, uint64_t seed, Hit* hit);
  /// Returns how many calls were seen.
  static uint64_t disarm();

  /// This scope's calls are the test's own.
  class Own {
   public:
    Own();
    ~Own();

   private:
    bool before_;
  };
  /// This scope's calls count, on a thread of the test: those a user of the port makes.
  class Counted {
   public:
    Counted();
    ~Counted();

   private:
    bool before_;
  };
};

}  // namespace vhost_ioat::testing
