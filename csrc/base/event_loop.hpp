// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

namespace vhost_ioat {

/// The control thread of the process: one epoll loop for all sockets, timers and posted calls.
///
/// It starts with the first user and ends with the last (the shared_ptr from EventLoop::get()). Callbacks run on it,
/// one at a time, and never wait. Except for post() and run(), the methods are called on the loop's own thread. After
/// fork() the child has no control thread; forked() is true there and every call does nothing.
class EventLoop {
 public:
  using Clock = std::chrono::steady_clock;
  using Callback = std::function<void()>;
  using FdCallback = std::function<void(uint32_t epoll_events)>;
  using TimerId = uint64_t;  // 0: none

  static std::shared_ptr<EventLoop> get();

  /// From any thread: `callback` will run on the loop. Makes one write to an eventfd.
  virtual void post(Callback callback) = 0;
  /// From any thread but the loop's (there it is a plain call): runs it on the loop and waits for the end; what it
  /// throws is thrown here.
  virtual void run(const Callback& callback) = 0;

  virtual void add_fd(int fd, uint32_t epoll_events, FdCallback callback) = 0;
  virtual void modify_fd(int fd, uint32_t epoll_events) = 0;
  virtual void remove_fd(int fd) = 0;  // its callback will not run again, even if it was ready already
  virtual TimerId call_at(Clock::time_point when, Callback callback) = 0;  // once
  virtual void cancel(TimerId id) = 0;
  virtual bool on_loop_thread() const = 0;
  virtual bool forked() const = 0;

  virtual ~EventLoop() = default;
};

}  // namespace vhost_ioat
