// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <atomic>
#include <memory>

#include "base/budget.hpp"
#include "base/debug_assert.hpp"
#include "base/ring_index.hpp"
#include "memory/address_space.hpp"
#include "port/counters.hpp"
#include "port/notice.hpp"
#include "port/owner.hpp"
#include "vhost_user/session.hpp"
#include "virtio/device_ring.hpp"
#include "virtio/features.hpp"
#include "virtio/ring_layout.hpp"

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

/// The data path of a queue over one kind of ring, with the scratch it needs. Made while the ring that ran before still
/// runs, since that may fail; started and used by the owner of the queue.
class RingPath {
 public:
  RingPath() = default;
  RingPath(const RingPath&) = delete;
  RingPath& operator=(const RingPath&) = delete;
  virtual ~RingPath() = default;

  virtual virtio::DeviceRing& ring() noexcept = 0;
  virtual uint32_t filled() const noexcept = 0;  // the ring's position
  void start(const RingSetup& setup) noexcept {
    use_memory(setup.memory);
    start_ring(setup);
    ring().set_kicks(setup.kicks);
  }
  /// From now on; what is in flight keeps what it needs.
  void use_memory(std::shared_ptr<const memory::RegionTable> table) noexcept {
    memory_ = memory::AddressSpace(std::move(table));
  }
  /// Walked by the last burst: descriptors of chains and region borders (budget::steps_of_call).
  uint32_t steps() noexcept { return budget::steps_of_call(ring().size()) - steps_left_; }

 protected:
  virtual void start_ring(const RingSetup& setup) noexcept = 0;
  void begin_steps(const virtio::DeviceRing& ring) noexcept { steps_left_ = budget::steps_of_call(ring.size()); }
  void walk_steps(uint32_t n) noexcept { steps_left_ -= std::min(steps_left_, n); }

  memory::AddressSpace memory_;
  uint32_t steps_left_ = 0;
};

/// What rx and tx queues share: what is left of them when their ring stops, and the notification of the guest.
/// Everything but owner() is touched by the owner only.
class VringQueue {
 public:
  Owner& owner() { return owner_; }
  bool running() const { return running_; }
  bool enabled() const { return enabled_; }
  /// Of a queue that runs.
  virtio::DeviceRing& ring() const {
    DEBUG_ASSERT(ring_ != nullptr, ==, running_);
    return *ring_;
  }
  /// Of the ring that runs, or of the one that ran last.
  const virtio::Fault& fault() const { return ring_ ? ring_->fault() : last_fault_; }

  /// Set by the owner when the control thread has something to report or repair here; any thread may look.
  bool needs_attention() const { return attention_.load(std::memory_order_relaxed); }
  void ask_for_attention() { attention_.store(true, std::memory_order_relaxed); }
  bool fault_to_report() const { return fault() && !fault_reported_; }
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

  /// Has the guest asked to be told of what was published? Then call_guest() is due, once.
  bool call_due() noexcept { return running_ && ring_->should_notify(); }
  void call_guest(QueueCounters& counters) noexcept {
    if (!call_) return;  // the guest polls
    const PeerFd::Signalled signalled = call_->peer.signal();
    if (signalled == PeerFd::Signalled::failed) notices_.add(Notice::Kind::call_failed, 0, 0);
    note_cost(call_->peer);
    (signalled == PeerFd::Signalled::delivered ? counters.notifications : counters.notification_errors).add(1);
  }
  /// For the control thread, which alone changes call_: what it may signal after giving the queue back, so that a guest
  /// that answers at once finds the queue free. A failure shows again at the next call_guest().
  PeerFd call() const noexcept { return call_ ? call_->peer : PeerFd(); }
  /// After something was published.
  void notify(QueueCounters& counters) noexcept {
    if (call_due()) {
      call_guest(counters);
    } else {
      counters.notifications_suppressed.add(1);
    }
  }
  void signal_error() noexcept {
    if (err_) by_control([this] { return err_->peer.signal(); });
  }
  /// Control thread: a signal of any fd that this queue has or had, so that exchanging them hides no cost.
  template <typename Signal>
  PeerFd::Signalled by_control(Signal&& signal) noexcept {
    return control_cost_(std::forward<Signal>(signal));
  }
  bool costly() const noexcept { return control_cost_.costly(); }
  /// After this fd of the front end was used.
  void note_cost(const PeerFd& used) noexcept {
    if (used.costly()) [[unlikely]]
      notices_.add(Notice::Kind::costly_fd, 0, 0);
  }

  /// Does the ring go on where it stood? Its state is richer than what a front end can say.
  bool goes_on(const RingSetup& setup) const noexcept {
    const bool same = running_ && setup.running && setup.at.desc == at_.desc && setup.at.avail == at_.avail &&
                      setup.at.used == at_.used && setup.size == ring_->size() && setup.features == features_;
    // A driver that has set its ring back says so by the index in it; a broken ring starts anew only with a drain.
    return same && (!setup.drained || (setup.last_avail.value() == ring_->base() && !ring_->fault()));
  }

 protected:
  /// `path` is what runs from now on, if the ring starts; one that starts anew in its old place may be given none,
  /// since what it has is of the right size. Whether the ring started.
  template <typename Path>
  bool set_up(RingSetup setup, std::unique_ptr<Path>& present, std::unique_ptr<Path> path) noexcept {
    const bool same = goes_on(setup);
    // The path that was to go on may have been lost with its engine since this was prepared; so will its session be.
    if (!same && !path && !present) setup.running = false;
    // A call may have been missed by a new fd, and by a guest that waits for what was used before this ring started.
    const bool call_once = setup.running && setup.call && (!same || setup.call != call_);
    running_ = setup.running;
    enabled_ = setup.enabled;
    call_ = std::move(setup.call);
    err_ = std::move(setup.err);
    if (same) {
      present->use_memory(std::move(setup.memory));
    } else {
      last_fault_ = fault();
      if (path || !running_) present = std::move(path);
      ring_ = running_ ? &present->ring() : nullptr;
      at_ = setup.at;
      features_ = setup.features;
      if (running_) {
        fault_reported_ = false;
        present->start(setup);
      }
    }
    if (call_once) by_control([this] { return call_->peer.signal(); });
    return running_ && !same;
  }
  void drop_ring() noexcept {
    running_ = false;
    ring_ = nullptr;
  }

  Owner owner_;
  std::atomic<bool> attention_{false};
  bool running_ = false, enabled_ = false, fault_reported_ = false;
  virtio::Fault last_fault_;
  virtio::DeviceRing* ring_ = nullptr;  // of the path; null: the queue does not run
  virtio::RingAddresses at_;
  virtio::FeatureSet features_;
  vhost_user::SharedFd call_, err_;
  WakeCost control_cost_;  // the control thread's alone
  Notices notices_;
};

}  // namespace vhost_ioat::port
