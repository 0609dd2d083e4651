// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <functional>
#include <memory>

#include "base/event_loop.hpp"
#include "memory/address_space.hpp"
#include "port/vring_queue.hpp"
#include "virtio/control_queue.hpp"
#include "virtio/split_ring.hpp"

namespace vhost_ioat::port {

/// The ring of the control queue, served on the control thread whenever a front end sets it up; most keep that queue to
/// themselves. Guests wait in a busy loop for each answer.
///
/// Everything happens on the control thread, and at most budget::commands_a_turn before others have their turn.
class ControlRing {
 public:
  struct Listener {
    /// The driver asked for something new, in words; state() has it.
    std::function<void(const char* change)> changed;
    /// The ring is broken until it is set up again.
    std::function<void(const char* fault)> broken;
    /// A call took far too long (base/wake_cost.hpp).
    std::function<void()> costly;
  };
  ControlRing(std::shared_ptr<EventLoop> loop, uint32_t queue_pairs, Listener listener);

  /// Not running: the ring stops, and what the driver had asked for is forgotten.
  void setup(RingSetup setup, vhost_user::SharedFd kick) noexcept REQUIRES(control_thread);

  bool running() const REQUIRES(control_thread) { return running_; }
  const virtio::SplitRing& ring() const REQUIRES(control_thread) { return ring_; }
  const virtio::ControlState& state() const REQUIRES(control_thread) { return queue_.state(); }

 private:
  void stop_watching() noexcept REQUIRES(control_thread);
  void serve() REQUIRES(control_thread);
  bool serve_one() REQUIRES(control_thread);

  std::shared_ptr<EventLoop> loop_;
  const uint32_t queue_pairs_;
  Listener listener_;
  bool running_ = false;
  virtio::SplitRing ring_;
  virtio::ControlQueue queue_;
  memory::AddressSpace memory_;
  vhost_user::SharedFd kick_, call_, err_;  // kick_: watched for its edges; none: polled
  EventLoop::Timer again_;
};

}  // namespace vhost_ioat::port
