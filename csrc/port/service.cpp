// SPDX-License-Identifier: BSD-3-Clause
// What the control thread does for queues whose callers may never come back: completions, recovery, reports.
#include <algorithm>

#include "base/error.hpp"
#include "memory/guest_mapping.hpp"
#include "memory/sigbus.hpp"
#include "port/arenas.hpp"
#include "port/eth_vhost.hpp"

namespace vhost_ioat::port {

namespace {
constexpr auto service_interval = std::chrono::microseconds(500);
constexpr uint32_t most_at_once = 64;  // packets, so that a caller is never kept out for long
}  // namespace

void EthVhost::service() {
  check_memory();
  bool again = false;
  for (uint32_t q = 0; q < config_.queues; ++q) {
    again |= service_tx(q);
    again |= service_rx(q);
  }
  if (!again) {
    // Sleep, unless a burst left something behind while we looked.
    control_awake_.store(false, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);  // pairs with the one in wake_control()
    for (uint32_t q = 0; q < config_.queues; ++q)
      again |= txqs_[q]->pending_packets() != 0 || txqs_[q]->needs_attention() || rxqs_[q]->needs_attention();
    again |= memory::times_mended() != mended_seen_.load(std::memory_order_relaxed);
    if (!again || control_awake_.exchange(true, std::memory_order_relaxed)) return;
  }
  loop_->cancel(service_timer_);
  service_timer_ = loop_->call_at(EventLoop::Clock::now() + service_interval, [this] {
    service_timer_ = 0;
    service();
  });
}

/// Returns whether there is more to come.
bool EthVhost::service_tx(uint32_t queue) {
  TxQueue& txq = *txqs_[queue];
  Owner& owner = txq.owner();
  if (holding_[2 * queue] || closed()) return false;  // whoever holds the queue also drains it
  if (!owner.held()) {                                // else it is a recovery that goes on
    // A caller inside is reaping itself. A failed engine or a broken ring is ours to see to.
    if (txq.pending_packets() == 0 && !txq.needs_attention()) return false;
    if (!(txq.needs_attention() ? owner.try_take() : owner.try_slip_in())) return true;
  }
  const auto now = EventLoop::Clock::now();
  report_fault(txq, queue, false);
  if (txq.take_maps_wanted()) map_arenas(queue);
  const bool recovering = recover(queue, now);
  txq.reap(most_at_once);
  const bool again = recovering || !txq.idle();
  if (recovering) return true;  // the queue stays held: its tx_burst returns 0
  const bool due = txq.running() && txq.kick_due();
  owner.give_back();
  if (due) txq.kick(txq.counters);
  return again;
}

bool EthVhost::service_rx(uint32_t queue) {
  RxQueue& rxq = *rxqs_[queue];
  const bool rarp = queue == 0 && !rarp_.empty();
  if (!rarp && !rxq.needs_attention()) return false;
  if (holding_[2 * queue + 1] || closed()) return false;  // the session has it; a fault ends with the next setup
  if (!rxq.owner().try_take()) return true;
  report_fault(rxq, queue, true);
  if (rarp) {
    rxq.inject(rarp_.data(), static_cast<uint32_t>(rarp_.size()));
    rarp_.clear();
  }
  rxq.owner().give_back();
  return false;
}

/// One step towards an empty queue that is held. True: nothing is in flight.
bool EthVhost::drain_step(uint32_t queue) {
  TxQueue& txq = *txqs_[queue];
  if (txq.idle() && !engines_[queue].recovery.active() && !txq.engine_failed()) return true;
  recover(queue, EventLoop::Clock::now());
  txq.reap();
  if (txq.running() && txq.kick_due()) txq.kick(txq.counters);
  return txq.idle() && !engines_[queue].recovery.active();
}

/// Sees to a failed or stuck engine of a held queue. True: not through with it.
bool EthVhost::recover(uint32_t queue, Recovery::Time now) {
  TxQueue& txq = *txqs_[queue];
  Engine& state = engines_[queue];
  dma::DmaEngine* engine = txq.engine();
  if (!engine || !txq.offloading()) return false;
  Recovery& recovery = state.recovery;
  if (!recovery.active()) {
    const bool stuck = recovery.stuck(now, txq.polls(), engine->stats().completed, engine->outstanding() != 0);
    if (!engine->failed() && !stuck) return false;
    recovery.begin(now, engine->failed() ? engine->why() : "no progress for 200 ms");
    say("engine", static_cast<int>(queue), false, true, Reports::warning,
        format("tx queue %u: engine %s failed: %s; its copies will be made by the CPU", queue,
               engine->capabilities().name.c_str(), recovery.why().c_str()));
  }
  switch (recovery.step(*engine, now)) {
    case Recovery::Outcome::working:
      return true;
    case Recovery::Outcome::recovered:
      txq.reap();
      say("engine", static_cast<int>(queue), false, true, Reports::info,
          format("tx queue %u: engine %s works again", queue, engine->capabilities().name.c_str()));
      return false;
    case Recovery::Outcome::given_up:
      txq.reap();
      txq.disable_engine();
      state.state = "given up";
      say("engine", static_cast<int>(queue), false, false, Reports::error,
          format("tx queue %u: engine %s is given up (%s); from now on the CPU copies", queue,
                 engine->capabilities().name.c_str(), recovery.why().c_str()));
      return false;
    case Recovery::Outcome::lost:
      abandon(queue);
      return false;
  }
  return false;
}

/// The engine could not even be stopped: what it may still write to is never used again, on purpose.
void EthVhost::abandon(uint32_t queue) {
  TxQueue& txq = *txqs_[queue];
  for (auto& mapping : engines_[queue].guest) mapping->leak();
  engines_[queue].state = "lost";
  engines_[queue].guest.clear();
  const std::string name = txq.engine()->capabilities().name;
  txq.abandon();
  [[maybe_unused]] auto* never_freed = new auto(std::move(engines_[queue].arenas));
  engines_[queue].arenas.clear();
  say("engine", static_cast<int>(queue), false, false, Reports::error,
      format("tx queue %u: engine %s could not be stopped; the session is closed and its memory stays mapped", queue,
             name.c_str()));
  if (!endpoint_) return;  // close() is taking the queues: nobody is left to drop, and the port may be gone soon
  loop_->post([this] {
    if (endpoint_) endpoint_->drop_peer("its DMA engine could not be stopped");
  });
}

void EthVhost::report_fault(VringQueue& vring, uint32_t queue, bool rx) {
  if (!vring.take_fault_report()) return;
  vring.signal_error();
  say("peer", static_cast<int>(queue), rx, false, Reports::warning,
      format("%s queue %u is broken until the front end restarts it: %s", rx ? "rx" : "tx", queue,
             vring.ring().fault().text().c_str()));
}

/// Drops a peer that has truncated the memory it gave us.
void EthVhost::check_memory() {
  const uint64_t mended = memory::times_mended();
  if (mended == mended_seen_.load(std::memory_order_relaxed)) return;
  mended_seen_.store(mended, std::memory_order_relaxed);
  if (!memory_ || !endpoint_) return;
  const auto regions = memory_->regions();
  const bool torn = std::any_of(regions.begin(), regions.end(), [](auto& r) { return r.mapping && r.mapping->torn(); });
  if (torn) endpoint_->drop_peer("it truncated the memory it had shared");
}

}  // namespace vhost_ioat::port
