// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <memory>

#include "memory/region_table.hpp"
#include "port/counters.hpp"
#include "port/notice.hpp"
#include "port/owner.hpp"
#include "vhost_user/session.hpp"
#include "virtio/features.hpp"
#include "virtio/split_ring.hpp"

namespace vhost_ioat::port {

/// What a queue is told when its ring is (re)started or stopped; made on the control thread.
struct RingSetup {
  bool running = false;  // started, and translatable
  bool enabled = false;
  bool drained = true;  // nothing of the queue is in flight, so the ring may start anew
  bool kicks = false;   // somebody waits for kicks
  virtio::RingAddresses at;
  uint32_t size = 0;
  RingIndex last_avail;
  virtio::FeatureSet features;
  std::shared_ptr<const memory::RegionTable> memory;
  vhost_user::SharedFd call, err;
};

constexpr uint32_t prefetch_ahead = 8;  // descriptors

/// What rx and tx queues share: the ring, the memory it points into, and the notification of the guest.
/// Everything but owner() is touched by the owner only.
class VringQueue {
 public:
  Owner& owner() { return owner_; }
  const virtio::SplitRing& ring() const { return ring_; }
  bool running() const { return running_; }
  bool enabled() const { return enabled_; }

  /// Set by the owner when the control thread has something to report or mend here; any thread may look.
  bool needs_attention() const { return attention_.load(std::memory_order_relaxed); }
  void ask_for_attention() { attention_.store(true, std::memory_order_relaxed); }
  bool fault_to_report() const { return ring_.fault() && !fault_reported_; }
  /// A fault, or a notice: the control thread is to say something.
  bool something_to_report() const { return fault_to_report() || notices_.waiting(); }
  Notices& notices() { return notices_; }
  /// Once per fault: true the first time this is asked after the ring broke.
  bool take_fault_report() {
    attention_.store(false, std::memory_order_relaxed);
    if (!fault_to_report()) return false;
    fault_reported_ = true;
    return true;
  }
  /// Has the guest asked to be told of what was published? Then kick() is due, once.
  bool kick_due() noexcept { return ring_.should_notify(); }
  void kick(QueueCounters& counters) noexcept {
    if (!call_) return;  // the guest polls
    const PeerFd::Signalled signalled = call_->peer.signal();
    if (signalled == PeerFd::Signalled::failed) notices_.add(Notice::Kind::call_failed, 0, 0);
    (signalled == PeerFd::Signalled::delivered ? counters.notifications : counters.notification_errors).add(1);
  }
  /// For the control thread, which alone changes call_: what it may signal after giving the queue back, so that a guest
  /// that answers at once finds the queue free. A failure shows again at the next kick().
  PeerFd call() const noexcept { return call_ ? call_->peer : PeerFd(); }
  /// After something was published.
  void notify(QueueCounters& counters) noexcept {
    if (kick_due()) {
      kick(counters);
    } else {
      counters.notifications_suppressed.add(1);
    }
  }
  void signal_error() noexcept {
    if (err_) err_->peer.signal();
  }

  /// Does the ring go on where it stood? Its state is richer than what a front end can say.
  bool goes_on(const RingSetup& setup) const noexcept {
    const bool same = running_ && setup.running && setup.at.desc == at_.desc && setup.at.avail == at_.avail &&
                      setup.at.used == at_.used && setup.size == ring_.size() && setup.features == features_;
    // A driver that has set its ring back says so by the index in it; a broken ring starts anew only with a drain.
    return same && (!setup.drained || (setup.last_avail == ring_.last_avail() && !ring_.fault()));
  }

 protected:
  /// Whether the ring started anew.
  bool setup_ring(RingSetup setup) noexcept {
    const bool same = goes_on(setup);
    // A call may have been missed by a new fd, and by a guest that waits for what was used before this ring started.
    const bool call_once = setup.running && setup.call && (!same || setup.call != call_);
    running_ = setup.running;
    enabled_ = setup.enabled;
    call_ = std::move(setup.call);
    err_ = std::move(setup.err);
    memory_ = running_ ? std::move(setup.memory) : nullptr;
    hint_ = nullptr;
    if (running_ && !same) {
      at_ = setup.at;
      features_ = setup.features;
      header_size_ = features_.net_header_size();
      ring_.start(setup.at, setup.size, features_, setup.last_avail);
      ring_.set_kicks(setup.kicks);
      fault_reported_ = false;
    }
    if (call_once) call_->peer.signal();
    return running_ && !same;
  }

  Owner owner_;
  std::atomic<bool> attention_{false};
  bool running_ = false, enabled_ = false, fault_reported_ = false;
  uint32_t header_size_ = 12;
  virtio::SplitRing ring_;
  virtio::FeatureSet features_;
  virtio::RingAddresses at_;
  std::shared_ptr<const memory::RegionTable> memory_;
  const memory::Region* hint_ = nullptr;  // region hit last
  vhost_user::SharedFd call_, err_;
  Notices notices_;
};

}  // namespace vhost_ioat::port
