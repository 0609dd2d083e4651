// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <memory>

#include "port/copy_pipe.hpp"
#include "port/tx_path.hpp"
#include "port/vring_queue.hpp"

namespace vhost_ioat::port {

/// A tx queue of the port: vring enqueue, the guest receives.
///
/// What stays while rings come and go: the counters, the engine and what it has in flight (CopyPipe). How packets get
/// into the guest's buffers is the path's, which is of the ring (tx_path.hpp).
class TxQueue : public VringQueue {
 public:
  // ---- control path: queue held
  CopyPipe& pipe() { return pipe_; }
  struct Prepared {
    std::unique_ptr<TxPath> path;
    CopyPipe::Scratch scratch;
  };
  /// What this ring needs to run; may throw. Needs no hold.
  Prepared prepare(const RingSetup& setup);
  void setup(RingSetup setup, Prepared prepared) noexcept;
  void setup(RingSetup setup);
  /// The engine could not be stopped: drops it and all that it may touch without freeing any of it. The ring runs no
  /// more.
  void abandon() noexcept;

  // ---- data path: whoever owns the queue
  /// Takes packets from the front and returns how many. Nothing waits; the guest is called if it asked.
  uint32_t enqueue(const PacketView& packets) noexcept;
  /// Takes at most `limit` entries from the finished front of what is in flight and publishes them. Returns packets.
  uint32_t reap(uint32_t limit = UINT32_MAX) noexcept;
  bool idle() const { return pipe_.idle(); }
  /// Of the last enqueue().
  uint32_t steps() const { return path_->steps(); }

  // ---- any thread
  uint32_t pending_packets() const { return pipe_.pending_packets(); }
  bool unfinished() const { return pipe_.unfinished(); }

  TxCounters counters;

 private:
  CopyPipe pipe_{counters, counters};
  std::unique_ptr<TxPath> path_;  // null: the queue does not run
};

}  // namespace vhost_ioat::port
