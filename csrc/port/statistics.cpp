// SPDX-License-Identifier: BSD-3-Clause
// Statistics by the names users of ethdev know. Counters only grow; a reset moves the base that is subtracted.
#include "port/statistics.hpp"

#include "base/error.hpp"
#include "port/eth_vhost.hpp"

namespace vhost_ioat::port {

EthVhost::Stats EthVhost::raw_stats() const {
  Stats s;
  s.queues.resize(config_.queues);
  for (uint32_t q = 0; q < config_.queues; ++q) {
    const QueueCounters& rx = rxqs_[q]->counters;
    const TxCounters& tx = txqs_[q]->counters;
    Stats::Queue& queue = s.queues[q];
    queue.ipackets = rx.packets.get();
    queue.ibytes = rx.bytes.get();
    queue.opackets = tx.packets.get();
    queue.obytes = tx.bytes.get();
    queue.errors = rx.errors.get() + tx.errors.get();
    s.ipackets += queue.ipackets;
    s.ibytes += queue.ibytes;
    s.opackets += queue.opackets;
    s.obytes += queue.obytes;
    s.imissed += rx.missed.get();
    s.ierrors += rx.errors.get();
    s.oerrors += tx.errors.get();
    s.rx_nombuf += rx.nombuf.get();
  }
  return s;
}

EthVhost::Stats EthVhost::stats() const {
  const Stats now = raw_stats();
  const MutexLock lock(snapshot_mutex_);
  return now.since(stats_baseline_);
}

void EthVhost::stats_reset() {
  Stats now = raw_stats();
  const MutexLock lock(snapshot_mutex_);
  stats_baseline_ = std::move(now);
}

namespace {
/// Values that tell a state and not a sum: a reset leaves them.
bool is_gauge(const std::string& name) {
  return name.ends_with("_dma_inflight") || name.ends_with("_dma_inflight_max");
}
}  // namespace

EthVhost::XStats EthVhost::raw_xstats() const {
  XStats all;
  auto common = [&](const std::string& prefix, const QueueCounters& c) {
    all.emplace_back(prefix + "good_packets", c.packets.get());
    all.emplace_back(prefix + "good_bytes", c.bytes.get());
    all.emplace_back(prefix + "multicast_packets", c.multicast.get());
    all.emplace_back(prefix + "broadcast_packets", c.broadcast.get());
    for (size_t i = 0; i < size_bucket_names.size(); ++i)
      all.emplace_back(prefix + size_bucket_names[i], c.sizes[i].get());
    all.emplace_back(prefix + "errors", c.errors.get());
    all.emplace_back(prefix + "guest_notifications", c.notifications.get());
    all.emplace_back(prefix + "guest_notifications_suppressed", c.notifications_suppressed.get());
    all.emplace_back(prefix + "guest_notifications_error", c.notification_errors.get());
  };
  for (uint32_t q = 0; q < config_.queues; ++q) {
    const std::string prefix = format("rx_q%u_", q);
    const RxCounters& c = rxqs_[q]->counters;
    common(prefix, c);
    all.emplace_back(prefix + "missed_packets", c.missed.get());
    all.emplace_back(prefix + "mbuf_alloc_failed", c.nombuf.get());
    all.emplace_back(prefix + "nombuf_dropped", c.nombuf_dropped.get());
    all.emplace_back(prefix + "empty_dropped", c.empty_dropped.get());
    all.emplace_back(prefix + "oversize_dropped", c.oversize_dropped.get());
    all.emplace_back(prefix + "pieces_dropped", c.pieces_dropped.get());
    all.emplace_back(prefix + "header_dropped", c.header_dropped.get());
    all.emplace_back(prefix + "gso_dropped", c.gso_dropped.get());
    all.emplace_back(prefix + "gso_no_csum_dropped", c.gso_no_csum_dropped.get());
  }
  for (uint32_t q = 0; q < config_.queues; ++q) {
    const std::string prefix = format("tx_q%u_", q);
    const TxCounters& c = txqs_[q]->counters;
    common(prefix, c);
    all.emplace_back(prefix + "oversize_dropped", c.oversize_dropped.get());
    all.emplace_back(prefix + "gso_dropped", c.gso_dropped.get());
    all.emplace_back(prefix + "short_buffers", c.short_buffers.get());
    all.emplace_back(prefix + "engine_lost", c.engine_lost.get());
    all.emplace_back(prefix + "cpu_bytes", c.cpu_bytes.get());
    const std::string dma = prefix + "dma_";
    all.emplace_back(dma + "submitted", c.dma_submitted.get());
    all.emplace_back(dma + "completed", c.dma_completed.get());
    all.emplace_back(dma + "bytes", c.dma_bytes.get());
    all.emplace_back(dma + "errors", c.dma_errors.get());
    all.emplace_back(dma + "resets", c.dma_resets.get());
    all.emplace_back(dma + "inflight", txqs_[q]->pending_packets());
    all.emplace_back(dma + "inflight_max", c.dma_inflight_max.get());
    all.emplace_back(dma + "publish_batches", c.dma_publish_batches.get());
    all.emplace_back(dma + "fallback_ring_full", c.fallback_ring_full.get());
    all.emplace_back(dma + "fallback_unmapped", c.fallback_unmapped.get());
    all.emplace_back(dma + "fallback_address", c.fallback_address.get());
    all.emplace_back(dma + "fallback_disabled", c.fallback_disabled.get());
  }
  all.emplace_back("control_errors", control_errors_.load(std::memory_order_relaxed));
  all.emplace_back("events_lost", reports_.lost());
  all.emplace_back("rarp_lost", rarp_lost_.get() + rxqs_[0]->counters.rarp_lost.get());
  return all;
}

EthVhost::XStats EthVhost::xstats() const {
  XStats all = raw_xstats();
  const MutexLock lock(snapshot_mutex_);
  for (size_t i = 0; i < xstats_baseline_.size(); ++i)
    if (!is_gauge(all[i].first)) all[i].second -= xstats_baseline_[i].second;
  return all;
}

void EthVhost::xstats_reset() {
  XStats now = raw_xstats();
  const MutexLock lock(snapshot_mutex_);
  xstats_baseline_ = std::move(now);
}

const char* EthVhost::state() {
  if (closed()) return "closed";
  if (!started_) return "stopped";
  if (link_up()) return "up";
  const MutexLock lock(snapshot_mutex_);
  return snapshot_.connected ? "connected" : config_.client ? "connecting" : "listening";
}

namespace {
void tell(EthVhost::RingInfo& info, const virtio::DeviceRing& ring) {
  info.running = true;
  info.last_avail = ring.base();
  info.used = ring.used_base();
  if (ring.fault()) info.broken = ring.fault().text();
}
}  // namespace

EthVhost::Info EthVhost::info() {
  Info info;
  {
    const MutexLock lock(snapshot_mutex_);
    info = snapshot_;
  }
  // What belongs to the queues is read on the control thread, between two bursts of their callers.
  if (!closed() && !loop_->forked()) {
    loop_->run([&]() REQUIRES(control_thread) {
      for (RingInfo& ring : info.rings) {
        if (control_.running() && ring.index == control_at_) {
          tell(ring, control_.ring());
          continue;
        }
        if (ring.index == queue_rings()) continue;
        VringQueue& queue = vring_queue(QueueId::of_ring(ring.index));
        const bool ours = !queue.owner().held();
        if (ours && !queue.owner().try_slip_in()) continue;  // a caller is inside: what the session knows must do
        if (queue.running()) tell(ring, queue.ring());
        if (ours) queue.owner().give_back();
      }
      for (uint32_t q = 0; q < config_.queues; ++q) {
        if (q >= engines_.size() || !engines_[q]) continue;
        const dma::Capabilities& can = engines_[q]->engine()->capabilities();
        info.engines.push_back(
            {q, can.name, can.description, can.hardware, txqs_[q]->pipe().offloading(), engines_[q]->state()});
      }
    });
  }
  for (uint32_t q = 0; q < config_.queues; ++q)
    info.mempools.push_back({q, arenas_[q]->size(), arenas_[q]->bytes_in_use(), arenas_[q]->largest_free()});
  info.last_error = reports_.last_error();
  return info;
}

}  // namespace vhost_ioat::port
