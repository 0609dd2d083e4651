// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstdint>
#include <deque>
#include <exception>
#include <string>
#include <vector>

#include "base/mutex.hpp"
#include "base/unique_fd.hpp"

namespace vhost_ioat::port {

/// Something a user of the port may want to know. queue is -1 when it concerns the whole port.
struct Event {
  std::string kind;  // "link", "queue", "engine", "peer", "guest", "control", "port"
  int queue = -1;
  bool rx = false;
  bool enabled = false;
  std::string text;
};

struct LogLine {
  int level;  // of Python's logging
  std::string text;
};

/// Events and log lines on their way from the control thread to the user: bounded, the oldest are dropped first. When
/// there is no memory even for an event, it is counted as lost.
class Reports {
 public:
  static constexpr size_t capacity = 1024;
  static constexpr size_t longest = 768;  // bytes of a text
  static constexpr int info = 20, warning = 30, error = 40;

  void add(const char* kind, int queue, bool rx, bool enabled, int level, const char* text) noexcept {
    const MutexLock lock(mutex_);
    try {
      if (level >= warning) last_error_ = text;
      push(log_, {level, text});
      push(events_, {kind, queue, rx, enabled, text});
    } catch (const std::exception&) {
      lost_.fetch_add(1, std::memory_order_relaxed);
    }
    eventfd_signal(fd_.get());
  }
  uint64_t lost() const noexcept { return lost_.load(std::memory_order_relaxed); }
  std::vector<Event> take_events() {
    const MutexLock lock(mutex_);
    eventfd_clear(fd_.get());
    return take(events_);
  }
  std::vector<LogLine> take_log() {
    const MutexLock lock(mutex_);
    return take(log_);
  }
  std::string last_error() const {
    const MutexLock lock(mutex_);
    return last_error_;
  }
  int fileno() const { return fd_.get(); }  // readable while events wait

 private:
  template <typename T>
  static void push(std::deque<T>& to, T item) {
    if (to.size() == capacity) to.pop_front();
    to.push_back(std::move(item));
  }
  template <typename T>
  static std::vector<T> take(std::deque<T>& from) {
    std::vector<T> all(std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
    from.clear();
    return all;
  }
  mutable Mutex mutex_;
  std::deque<Event> events_ GUARDED_BY(mutex_);
  std::deque<LogLine> log_ GUARDED_BY(mutex_);
  std::string last_error_ GUARDED_BY(mutex_);
  std::atomic<uint64_t> lost_{0};
  UniqueFd fd_ = make_eventfd();
};

}  // namespace vhost_ioat::port
