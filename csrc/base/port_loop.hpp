// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <functional>
#include <memory>
#include <utility>

#include "base/event_loop.hpp"

namespace vhost_ioat {

/// One port's way onto the event loop, and the barrier between that port and all others: whatever a callback of the
/// port throws ends here, and is told to the port. So no shortage that one port meets (memory, fds, mappings) ends the
/// process or keeps another port waiting.
///
/// The exceptions of run() are the caller's, as it waits for them.
class PortLoop final : public EventLoop {
 public:
  /// Told on the loop what a callback threw. Must not throw.
  using Barrier = std::function<void(const char* what)>;

  PortLoop(std::shared_ptr<EventLoop> loop, Barrier barrier)
      : loop_(std::move(loop)), barrier_(std::make_shared<const Barrier>(std::move(barrier))) {}

  void post(Callback callback) override { loop_->post(guarded(std::move(callback))); }
  void post(Posted& call) noexcept override { loop_->post(call); }
  void run(const Callback& callback) override { loop_->run(callback); }
  void add_fd(int fd, uint32_t epoll_events, FdCallback callback) override REQUIRES(control_thread);
  void modify_fd(int fd, uint32_t epoll_events) override REQUIRES(control_thread) {
    loop_->modify_fd(fd, epoll_events);
  }
  void remove_fd(int fd) noexcept override REQUIRES(control_thread) { loop_->remove_fd(fd); }
  bool on_loop_thread() const noexcept override { return loop_->on_loop_thread(); }
  bool forked() const noexcept override { return loop_->forked(); }

 protected:
  Callback guarded(Callback callback) override;
  void arm(Timer& timer, Clock::time_point when) noexcept override { arm_on(*loop_, timer, when); }
  void disarm(Timer& timer) noexcept override { disarm_on(*loop_, timer); }
  void withdraw(Posted& call) noexcept override { withdraw_on(*loop_, call); }

 private:
  std::shared_ptr<EventLoop> loop_;
  std::shared_ptr<const Barrier> barrier_;  // shared: a callback may outlive this object by the time it runs
};

}  // namespace vhost_ioat
