// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"

namespace vhost_ioat::port {

/// Something a user of the port may want to know. queue is -1 when it concerns the whole port.
struct Event {
  std::string kind;  // "link", "queue", "engine", "peer"
  int queue = -1;
  bool rx = false;
  bool enabled = false;
  std::string text;
};

struct LogLine {
  int level;  // of Python's logging
  std::string text;
};

/// Events and log lines on their way from the control thread to the user: bounded, the oldest are dropped first.
class Reports {
 public:
  static constexpr size_t capacity = 1024;
  static constexpr int info = 20, warning = 30, error = 40;

  void add(Event event, int level) {
    std::lock_guard lock(mutex_);
    if (level >= warning) last_error_ = event.text;
    push(log_, {level, event.text});
    push(events_, std::move(event));
    eventfd_signal(fd_.get());
  }
  std::vector<Event> take_events() {
    std::lock_guard lock(mutex_);
    eventfd_clear(fd_.get());
    return take(events_);
  }
  std::vector<LogLine> take_log() {
    std::lock_guard lock(mutex_);
    return take(log_);
  }
  std::string last_error() const {
    std::lock_guard lock(mutex_);
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
  mutable std::mutex mutex_;
  std::deque<Event> events_;
  std::deque<LogLine> log_;
  std::string last_error_;
  UniqueFd fd_ = make_eventfd();
};

}  // namespace vhost_ioat::port
