// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstdint>
#include <deque>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.hpp"
#include "base/unique_fd.hpp"
#include "port/queue_id.hpp"

namespace vhost_ioat::port {

/// What an event is about: what kind of thing, of which queue, and how it is now.
struct Subject {
  enum class Kind : uint8_t { link, queue, engine, peer, guest, control, port };
  enum class Level : int { info = 20, warning = 30, error = 40 };  // of Python's logging

  Kind kind;
  std::optional<QueueId> queue{};  // none: the whole port
  bool enabled = false;            // link and queue: the new state; others: whether it goes on
  Level level = Level::warning;
};
constexpr const char* name_of(Subject::Kind kind) {
  constexpr const char* names[] = {"link", "queue", "engine", "peer", "guest", "control", "port"};
  return names[static_cast<size_t>(kind)];
}

/// Something a user of the port may want to know.
struct Event : Subject {
  std::string text;
};

/// Events on their way from the control thread to the user, who reads them as events and as lines of a log: bounded,
/// the oldest are dropped first. When there is no memory even for an event, it is counted as lost.
class Reports {
 public:
  static constexpr size_t capacity = 1024;
  static constexpr size_t longest = 768;  // bytes of a text

  void add(const Subject& subject, const char* text) noexcept {
    const MutexLock lock(mutex_);
    try {
      if (subject.level >= Subject::Level::warning) last_error_ = text;
      push(log_, {subject, text});
      push(events_, {subject, text});
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
  std::vector<Event> take_log() {
    const MutexLock lock(mutex_);
    return take(log_);
  }
  std::string last_error() const {
    const MutexLock lock(mutex_);
    return last_error_;
  }
  int fileno() const { return fd_.get(); }  // readable while events wait

 private:
  static void push(std::deque<Event>& to, Event event) {
    if (to.size() == capacity) to.pop_front();
    to.push_back(std::move(event));
  }
  static std::vector<Event> take(std::deque<Event>& from) {
    std::vector<Event> all(std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
    from.clear();
    return all;
  }
  mutable Mutex mutex_;
  std::deque<Event> events_ GUARDED_BY(mutex_);
  std::deque<Event> log_ GUARDED_BY(mutex_);
  std::string last_error_ GUARDED_BY(mutex_);
  std::atomic<uint64_t> lost_{0};
  UniqueFd fd_ = make_eventfd();
};

}  // namespace vhost_ioat::port
