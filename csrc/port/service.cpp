// SPDX-License-Identifier: BSD-3-Clause
// What the control thread does for queues whose callers may never come back: completions, recovery, reports.
#include <algorithm>

#include "base/budget.hpp"
#include "memory/guest_mapping.hpp"
#include "memory/sigbus.hpp"
#include "port/eth_vhost.hpp"

namespace vhost_ioat::port {

namespace {
constexpr auto service_interval = std::chrono::microseconds(500);
/// A device that has not been stopped by then never will be: each rung of the ladder has its own, shorter time.
constexpr auto longest_step = std::chrono::seconds(5);
}  // namespace

void EthVhost::service() noexcept {
  check_memory();
  if (std::exchange(costly_peer_, false) && endpoint_)
    endpoint_->drop_peer("so many wait for its call or kick fds that each use of one takes too long", true);
  const auto turn_ends = EventLoop::Clock::now() + budget::time_a_turn;
  bool again = false, watched = false;
  for (uint32_t looked = 0; looked < config_.queues; ++looked) {
    if (looked != 0 && EventLoop::Clock::now() >= turn_ends) {  // the rest after the other ports had their turn
      service_timer_.arm(EventLoop::Clock::now());
      return;
    }
    const uint32_t q = next_serviced_;
    next_serviced_ = (q + 1) % config_.queues;
    again |= service_tx(q);
    again |= service_rx(q);
    watched |= watch_for_waiter(q);
  }
  if (watched) waiter_timer_.arm_after(budget::kick_poll_interval);
  if (costly_peer_) return service_timer_.arm(EventLoop::Clock::now());
  if (!again) {
    // Sleep, unless a burst left something behind while we looked.
    control_awake_.store(false, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);  // pairs with the one in wake_control()
    for (uint32_t q = 0; q < config_.queues; ++q)
      again |= txqs_[q]->unfinished() || txqs_[q]->needs_attention() || rxqs_[q]->needs_attention();
    again |= memory::times_mended() != mended_seen_.load(std::memory_order_relaxed);
    if (!again || control_awake_.exchange(true, std::memory_order_relaxed)) return;
  }
  service_timer_.arm_after(service_interval);
}

/// Returns whether there is more to come.
bool EthVhost::service_tx(uint32_t queue) noexcept {
  TxQueue& txq = *txqs_[queue];
  Owner& owner = txq.owner();
  if (holding(tx_queue(queue)) || closed()) return false;  // whoever holds the queue also drains it
  if (engine_busy(queue)) return true;                     // and it stays held
  if (!owner.held()) {                                     // else it is something that goes on
    // A caller inside is reaping itself. A failed engine or a broken ring is ours to see to.
    if (!txq.unfinished() && !txq.needs_attention()) return false;
    if (!(txq.needs_attention() ? owner.try_take() : owner.try_slip_in())) return true;
  }
  report_fault(tx_queue(queue));
  if (txq.pipe().take_maps_wanted() && engines_[queue] && engines_[queue]->map_arenas()) return true;
  if (recover(queue, EventLoop::Clock::now(), false)) return true;  // the queue stays held: its tx_burst returns 0
  txq.reap(budget::packets_a_visit);
  const bool again = !txq.idle();
  PeerFd call = txq.call_due() ? txq.call() : PeerFd();
  owner.give_back();
  if (call) {
    const bool told = txq.by_control([&] { return call.signal(); }) == PeerFd::Signalled::delivered;
    (told ? txq.counters.notifications : txq.counters.notification_errors).add(1);
    costly_peer_ |= txq.costly();
  }
  return again;
}

bool EthVhost::service_rx(uint32_t queue) noexcept {
  RxQueue& rxq = *rxqs_[queue];
  RxInterrupt& interrupt = *interrupts_[queue];
  const bool rarp = queue == 0 && rarp_waits_;
  if (!rarp && !rxq.needs_attention()) return false;
  if (holding(rx_queue(queue)) || closed()) return false;  // the session has it; a fault ends with the next setup
  if (!rxq.owner().try_take()) return true;
  report_fault(rx_queue(queue));
  if (rarp) {
    rxq.inject(rarp_.data(), static_cast<uint32_t>(rarp_.size()));
    rarp_waits_ = false;
  }
  interrupt.wanted() ? static_cast<void>(rxq.enable_kicks()) : rxq.disable_kicks();
  rxq.owner().give_back();
  if (interrupt.wanted()) interrupt.wake();
  return false;
}

/// Looks at a ring without a kick fd for somebody who waits for packets. Returns whether there is such a one.
bool EthVhost::watch_for_waiter(uint32_t queue) noexcept {
  RxQueue& rxq = *rxqs_[queue];
  RxInterrupt& interrupt = *interrupts_[queue];
  if (!interrupt.wanted() || !rxq.running() || interrupt.has_kick() || closed()) return false;
  if (holding(rx_queue(queue)) || !rxq.owner().try_slip_in()) return true;
  const bool waiting = rxq.packets_wait();
  rxq.owner().give_back();
  if (waiting) interrupt.wake();
  return true;
}

/// One step towards an empty queue that is held. True: nothing is in flight.
bool EthVhost::drain_step(uint32_t queue) noexcept {
  TxQueue& txq = *txqs_[queue];
  if (engine_busy(queue) || recover(queue, EventLoop::Clock::now(), true)) return false;
  if (!txq.idle()) {
    txq.reap();
    if (txq.call_due()) txq.call_guest(txq.counters);
  }
  if (txq.idle() && engines_[queue]) engines_[queue]->recovery().drained();
  return txq.idle();
}

// --- Engines, as far as they are waited for

/// Is the helper at work for the engine of this queue? One that has not stopped its engine for too long is not waited
/// for any more.
bool EthVhost::engine_busy(uint32_t queue) noexcept {
  EngineSlot* slot = engines_[queue].get();
  if (!slot || !slot->busy()) return false;
  if (!slot->recovering() || EventLoop::Clock::now() - slot->busy_since() < longest_step) return true;
  abandon(queue);
  return false;
}

bool EthVhost::engine_recovers(uint32_t queue) noexcept {
  EngineSlot* slot = engines_[queue].get();
  return slot && !slot->busy() && slot->recovery().active();
}

/// Sees to a failed or stuck engine of a held queue, and to a slow one when the queue is to become empty. True: a step
/// of it has begun.
bool EthVhost::recover(uint32_t queue, Recovery::Time now, bool draining) noexcept {
  TxQueue& txq = *txqs_[queue];
  EngineSlot* slot = engines_[queue].get();
  if (!slot || !slot->engine() || !txq.pipe().offloading()) return false;
  const dma::DmaEngine& engine = *slot->engine();
  Recovery& recovery = slot->recovery();
  if (!recovery.active()) {
    const bool stuck = recovery.stuck(now, txq.pipe().polls(), engine.progress(), engine.outstanding() != 0);
    const bool slow = draining && engine.outstanding() != 0 && recovery.too_slow(now);
    if (!engine.failed() && !stuck && !slow) return false;
    recovery.begin(now, engine);
    report({.kind = Kind::engine, .queue = tx_queue(queue), .enabled = true},
           ": engine %s failed: %s; its copies will be made by the CPU", engine.capabilities().name.c_str(),
           recovery.why());
  }
  slot->step_recovery(now);
  return true;
}

/// The helper has ended a job. The queue is still held; whoever held it goes on by its timer.
void EthVhost::engine_ended(uint32_t queue) noexcept {
  if (closing_ && engines_end_) return;
  EngineSlot& slot = *engines_[queue];
  TxQueue& txq = *txqs_[queue];
  const char* const name = slot.engine()->capabilities().name.c_str();
  const EngineSlot::Outcome outcome = slot.take_outcome();
  for (const std::string& refused : outcome.refused) {
    report({.kind = Kind::engine, .queue = tx_queue(queue), .enabled = true}, ": %s cannot reach %s", name,
           refused.c_str());
  }
  switch (outcome.recovery) {
    case Recovery::Outcome::none:
    case Recovery::Outcome::working:
      return;
    case Recovery::Outcome::recovered:
      txq.reap();
      return report({.kind = Kind::engine, .queue = tx_queue(queue), .enabled = true, .level = Level::info},
                    ": engine %s works again", name);
    case Recovery::Outcome::given_up:
      txq.reap();
      return give_up(queue);
    case Recovery::Outcome::lost:
      return abandon(queue);
  }
}

/// The engine is stopped for good, and has handed everything back.
void EthVhost::give_up(uint32_t queue) noexcept {
  EngineSlot& slot = *engines_[queue];
  txqs_[queue]->pipe().disable_engine();
  slot.give_up();
  report({.kind = Kind::engine, .queue = tx_queue(queue), .level = Level::error},
         ": engine %s is given up (%s); from now on the CPU copies", slot.engine()->capabilities().name.c_str(),
         slot.recovery().why());
}

/// The engine could not even be stopped: what it may still write to is never used again, on purpose.
void EthVhost::abandon(uint32_t queue) noexcept {
  report({.kind = Kind::engine, .queue = tx_queue(queue), .level = Level::error},
         ": engine %s could not be stopped; the session is closed and its memory stays mapped",
         engines_[queue]->engine()->capabilities().name.c_str());
  engines_[queue]->leak();
  txqs_[queue]->abandon();
  engines_[queue].reset();
  // Later: the session may be the one that waits for this queue. At close() there is none any more.
  if (!closing_) lost_engine_.post();
}

namespace {
/// What `text` makes; nothing when there is no memory for it: it is said all the same that there was something.
template <typename Text>
std::string said(Text&& text) noexcept {
  try {
    return text();
  } catch (const std::exception&) {
    return {};
  }
}
}  // namespace

/// Says what the queue could not say itself: notices, and what broke its ring.
void EthVhost::report_fault(QueueId id) noexcept {
  VringQueue& vring = vring_queue(id);
  bool costly = false;
  vring.notices().take([&](Notice::Kind kind, const Notice& notice) {
    costly |= kind == Notice::Kind::costly_fd;
    report({.kind = Kind::peer, .queue = id, .enabled = true}, ": %s",
           said([&] { return Notice::text(kind, notice); }).c_str());
  });
  costly_peer_ |= costly;
  if (!vring.take_fault_report()) return;
  vring.signal_error();
  costly_peer_ |= vring.costly();
  report({.kind = Kind::peer, .queue = id}, " is broken until the front end restarts it: %s",
         said([&] { return vring.fault().text(); }).c_str());
}

/// Drops a peer that has truncated the memory it gave us.
void EthVhost::check_memory() noexcept {
  const uint64_t mended = memory::times_mended();
  if (mended == mended_seen_.load(std::memory_order_relaxed)) return;
  mended_seen_.store(mended, std::memory_order_relaxed);
  if (!memory_ || !endpoint_) return;
  const auto regions = memory_->regions();
  const bool torn = std::any_of(regions.begin(), regions.end(), [](auto& r) { return r.mapping && r.mapping->torn(); });
  if (torn) endpoint_->drop_peer("it truncated the memory it had shared");
}

}  // namespace vhost_ioat::port
