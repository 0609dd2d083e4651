// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <memory>
#include <vector>

#include "port/rx_path.hpp"
#include "port/vring_queue.hpp"

namespace vhost_ioat::port {

/// An rx queue of the port: vring dequeue, what the guest sends.
///
/// What stays while rings come and go. How packets are taken from the guest's buffers is the path's, which is of the
/// ring (rx_path.hpp).
class RxQueue : public VringQueue {
 public:
  // ---- control path: queue held
  using Prepared = std::unique_ptr<RxPath>;
  /// What this ring needs to run; may throw. Needs no hold.
  Prepared prepare(const RingSetup& setup);
  void setup(RingSetup setup, Prepared path) noexcept;
  void setup(RingSetup setup);
  /// This frame comes first in the next burst (a RARP announcement of a guest that has moved here). At most 60 bytes.
  /// It takes the place of an earlier one; what nobody takes before the ring stops is lost, too (counters.rarp_lost).
  void inject(const uint8_t* frame, uint32_t len) noexcept;

  // ---- data path: whoever owns the queue
  /// At most n packets; an empty burst when there are none, or no memory for them. The guest is called if it asked.
  ///
  /// Memory: a burst that cannot be had in one piece is shortened. Packets wait in the guest while nothing is free at
  /// all. Where something is, a packet that comes first and does not fit into the largest free piece is dropped, so
  /// that it does not stop those after it.
  virtio::Burst dequeue(memory::PacketArena& arena, uint32_t n) noexcept;
  bool idle() const { return true; }  // nothing of it is ever in flight
  /// Asks the guest for kicks. True: packets wait already.
  bool enable_kicks() noexcept;
  void disable_kicks() noexcept;
  bool packets_wait() noexcept { return running_ && ring_->waiting(); }
  /// Of the last dequeue().
  uint32_t steps() const { return path_->steps(); }

  RxCounters counters;

 private:
  std::vector<uint8_t> injected_;
  std::unique_ptr<RxPath> path_;  // null: the queue does not run

 public:
  RxQueue() { injected_.reserve(60); }
};

}  // namespace vhost_ioat::port
