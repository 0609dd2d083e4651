// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "base/thread_annotations.hpp"

namespace vhost_ioat {

/// The role of being the control thread: what is guarded by it is touched by no other, and without a lock. A lambda
/// that is given to the loop says that it has it: `[this]() REQUIRES(control_thread) { ... }`.
class CAPABILITY("thread") ControlThread {};
inline ControlThread control_thread;

/// The control thread of the process: one epoll loop for all sockets, timers and posted calls.
///
/// It starts with the first user and ends with the last (the shared_ptr from EventLoop::get()). Callbacks run on it,
/// one at a time; they neither wait nor throw: a port goes through a PortLoop, which is its barrier. Except for post()
/// and run(), the methods are called on the loop's own thread. After fork() the child has no control thread; forked()
/// is true there and every call does nothing.
///
/// What a port needs while memory is short is made ready beforehand: a Timer is armed and a Posted is posted without
/// anything that can fail.
class EventLoop {
 public:
  using Clock = std::chrono::steady_clock;
  using Callback = std::function<void()>;
  using FdCallback = std::function<void(uint32_t epoll_events)>;
  class Timer;
  class Posted;

  static std::shared_ptr<EventLoop> get();

  /// From any thread: `callback` will run on the loop. May throw std::bad_alloc; then it will not.
  virtual void post(Callback callback) = 0;
  /// The same with a call made ready beforehand. While it waits already, nothing is added.
  virtual void post(Posted& call) noexcept = 0;
  /// From any thread but the loop's (there it is a plain call): runs it on the loop and waits for the end; what it
  /// throws is thrown here.
  virtual void run(const Callback& callback) = 0;

  /// Throws std::bad_alloc or std::system_error; then the fd is not watched.
  virtual void add_fd(int fd, uint32_t epoll_events, FdCallback callback) REQUIRES(control_thread) = 0;
  virtual void modify_fd(int fd, uint32_t epoll_events) REQUIRES(control_thread) = 0;
  virtual void remove_fd(int fd) noexcept
      REQUIRES(control_thread) = 0;  // its callback will not run again, even if it was ready already
  virtual bool on_loop_thread() const noexcept = 0;
  virtual bool forked() const noexcept = 0;

  virtual ~EventLoop() = default;

 protected:
  /// What a callback passes through on its way to the loop.
  virtual Callback guarded(Callback callback) { return callback; }
  virtual void arm(Timer& timer, Clock::time_point when) noexcept = 0;
  virtual void disarm(Timer& timer) noexcept = 0;
  virtual void withdraw(Posted& call) noexcept = 0;
  // For those that pass calls on to another loop.
  static void arm_on(EventLoop& loop, Timer& timer, Clock::time_point when) noexcept { loop.arm(timer, when); }
  static void disarm_on(EventLoop& loop, Timer& timer) noexcept { loop.disarm(timer); }
  static void withdraw_on(EventLoop& loop, Posted& call) noexcept { loop.withdraw(call); }
};

/// Calls once at the time it was armed for; arming it again moves the time. Made by any thread; armed, cancelled and
/// destroyed on the loop's own, or when the loop cannot run it any more.
class EventLoop::Timer {
 public:
  Timer(std::shared_ptr<EventLoop> loop, Callback callback);
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer() { cancel(); }

  void arm(Clock::time_point when) noexcept { loop_->arm(*this, when); }
  void arm_after(Clock::duration delay) noexcept { arm(Clock::now() + delay); }
  void cancel() noexcept { loop_->disarm(*this); }
  bool armed() const noexcept { return state_ != State::idle; }

 private:
  friend class Loop;
  using Queue = std::multimap<Clock::time_point, Timer*>;
  enum class State : uint8_t { idle, armed, due };

  std::shared_ptr<EventLoop> loop_;
  std::shared_ptr<const Callback> callback_;  // shared: it may destroy this timer while it runs
  Queue::node_type node_;                     // while idle or due
  Queue::iterator place_;                     // while armed
  Timer *due_previous_ = nullptr, *due_next_ = nullptr;
  State state_ = State::idle;
};

/// A call that waits to be posted. Destroyed on the loop's own thread (also by the call itself), or when nobody can
/// post it any more.
class EventLoop::Posted {
 public:
  Posted(std::shared_ptr<EventLoop> loop, Callback callback);
  Posted(const Posted&) = delete;
  Posted& operator=(const Posted&) = delete;
  ~Posted();

  void post() noexcept { loop_->post(*this); }

 private:
  friend class Loop;
  Posted(EventLoop& loop, const Callback& callback) noexcept;
  std::shared_ptr<EventLoop> loop_;  // none: the loop owns this call and destroys it after it ran
  std::shared_ptr<const Callback> callback_;
  Posted* next_ = nullptr;
  bool waits_ = false;  // guarded by the loop's mutex
};

}  // namespace vhost_ioat
