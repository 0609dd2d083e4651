// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <condition_variable>
#include <mutex>

namespace vhost_ioat {

/// Where one thread waits until another has done something, once. It may be destroyed as soon as wait() has returned:
/// open() holds the lock to its end.
class Latch {
 public:
  void open() noexcept {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void wait() noexcept {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
};

}  // namespace vhost_ioat
