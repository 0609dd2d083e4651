// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <condition_variable>

#include "base/mutex.hpp"

namespace vhost_ioat {

/// Where one thread waits until another has done something, once. It may be destroyed as soon as wait() has returned:
/// open() holds the lock to its end.
class Latch {
 public:
  void open() noexcept {
    const MutexLock lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void wait() noexcept {
    const MutexLock lock(mutex_);
    while (!open_) mutex_.wait(changed_);
  }

 private:
  Mutex mutex_;
  std::condition_variable changed_;
  bool open_ GUARDED_BY(mutex_) = false;
};

}  // namespace vhost_ioat
