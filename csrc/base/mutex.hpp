// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "base/thread_annotations.hpp"

namespace vhost_ioat {

/// std::mutex with annotations, which that of libstdc++ lacks, and with the waits for a condition variable. Those let
/// it go meanwhile and may come back for no reason, so they are called in a loop that looks at what is waited for: a
/// predicate would be a function of its own, of which clang does not know what it holds.
class CAPABILITY("mutex") Mutex {
 public:
  void lock() ACQUIRE() { mutex_.lock(); }
  bool try_lock() TRY_ACQUIRE(true) { return mutex_.try_lock(); }
  void unlock() RELEASE() { mutex_.unlock(); }

  void wait(std::condition_variable& changed) REQUIRES(this) {
    std::unique_lock lock(mutex_, std::adopt_lock);
    changed.wait(lock);
    lock.release();
  }
  std::cv_status wait_until(std::condition_variable& changed, std::chrono::steady_clock::time_point end)
      REQUIRES(this) {
    std::unique_lock lock(mutex_, std::adopt_lock);
    const std::cv_status status = changed.wait_until(lock, end);
    lock.release();
    return status;
  }

 private:
  std::mutex mutex_;
};

/// Holds a mutex, or another lock, for a scope.
template <typename Lock>
class SCOPED_CAPABILITY LockGuard {
 public:
  explicit LockGuard(Lock& lock) ACQUIRE(lock) : lock_(lock) { lock_.lock(); }
  LockGuard(const LockGuard&) = delete;
  LockGuard& operator=(const LockGuard&) = delete;
  ~LockGuard() RELEASE() { lock_.unlock(); }

 private:
  Lock& lock_;
};
using MutexLock = LockGuard<Mutex>;

}  // namespace vhost_ioat
