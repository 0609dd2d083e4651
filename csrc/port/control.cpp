// SPDX-License-Identifier: BSD-3-Clause
// The port as its session sees it: rings are held, changed and released. Control thread.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/budget.hpp"
#include "base/error.hpp"
#include "base/shared_field.hpp"
#include "memory/guest_mapping.hpp"
#include "memory/sigbus.hpp"
#include "port/eth_vhost.hpp"

namespace vhost_ioat::port {

using vhost_user::RingSet;
using vhost_user::SessionState;
using vhost_user::Vring;

// A ring is of a queue (queue_id.hpp). One of them, or the one after the last, is the control queue's.

VringQueue& EthVhost::vring_queue(QueueId id) {
  if (id.rx()) return *rxqs_[id.number];
  return *txqs_[id.number];
}

// --- Before the change: whatever can fail

void EthVhost::prepare(const RingSet& rings, const SessionState& next) {
  prepare_halt();
  try {
    for (uint32_t ring = 0; ring < this->rings(); ++ring)
      if (rings[ring]) prepared_[ring] = prepare_ring(ring, next);
  } catch (...) {
    prepare_halt();
    throw;
  }
}

void EthVhost::prepare_halt() noexcept {
  for (Prepared& ready : prepared_) ready = {};
}

/// Translates the ring's addresses, now that it is about to run and not earlier: the memory table may come later.
EthVhost::Prepared EthVhost::prepare_ring(uint32_t ring, const SessionState& next) {
  Prepared ready;
  RingSetup& setup = ready.setup;
  const Vring& vring = next.vrings[ring];
  setup.enabled = vring.enabled;
  ready.watched = vring.kick;
  ready.control =
      next.features.has(virtio::Feature::CTRL_VQ) && ring == vhost_user::control_ring_of(next.features, config_.queues);
  if (ring == queue_rings() && !ready.control) return ready;
  if (!vring.started || !vring.has_addresses || vring.size == 0) return ready;
  const bool event_idx = next.features.has(virtio::Feature::EVENT_IDX);
  auto* desc = next.memory->translate_uva(vring.desc_uva, virtio::desc_bytes(vring.size));
  setup.at.avail = next.memory->translate_uva(vring.avail_uva, virtio::avail_bytes(vring.size, event_idx));
  setup.at.used = next.memory->translate_uva(vring.used_uva, virtio::used_bytes(vring.size, event_idx));
  setup.at.desc = reinterpret_cast<virtio::Descriptor*>(desc);
  const QueueId id = QueueId::of_ring(ring);
  if (!desc || !setup.at.avail || !setup.at.used) {
    if (!next.memory->regions().empty()) {
      report({.kind = Kind::peer, .queue = id},
             ": its ring of %u entries does not lie wholly in one memory region; it waits for a memory table that "
             "holds it",
             vring.size);
    }
    return ready;
  }
  setup.running = true;
  setup.size = vring.size;
  setup.features = next.features;
  setup.memory = next.memory;
  setup.call = vring.call;
  setup.err = vring.err;
  ready.kick = vring.kick;
  if (ready.control) return ready;
  setup.drained = false;  // for the question whether it is the ring that runs already
  const bool runs_already = vring_queue(id).goes_on(setup);
  if (id.rx()) {
    if (!runs_already) ready.rx = rxqs_[id.number]->prepare(setup);
  } else {
    if (!runs_already) ready.tx = txqs_[id.number]->prepare(setup);
    if (engines_[id.number] && txqs_[id.number]->pipe().offloading()) {
      for (const memory::Region& region : next.memory->regions())
        if (region.mapping) ready.guest.push_back(region.mapping);
    }
  }
  return ready;
}

// --- Holding

bool EthVhost::hold(const RingSet& rings, vhost_user::Hold how) noexcept {
  holding_ |= rings;
  how_ = how;
  hold_pending_ = !hold_step();
  if (hold_pending_) hold_timer_.arm_after(hold_retry);
  return !hold_pending_;
}

/// One try for every ring wanted: the caller is out; nothing is in flight; the engine knows the memory to come.
bool EthVhost::hold_step() noexcept {
  bool all = true;
  for (uint32_t queue = 0; queue < config_.queues; ++queue) {
    if (holding(rx_queue(queue))) all &= rxqs_[queue]->owner().try_take();
    if (!holding(tx_queue(queue))) continue;
    // A recovery that has begun is ended first in any case: until then only it may touch the engine.
    const bool drain = how_ == vhost_user::Hold::drained || engine_recovers(queue);
    all &= txqs_[queue]->owner().try_take() && (drain ? drain_step(queue) : !engine_busy(queue));
  }
  for (uint32_t queue = 0; all && queue < config_.queues; ++queue) {
    Prepared& ready = prepared_[tx_queue(queue).ring()];
    if (holding(tx_queue(queue)) && engines_[queue] && !std::exchange(ready.guest_asked, true))
      engines_[queue]->map_guest(std::move(ready.guest));
  }
  for (uint32_t queue = 0; all && queue < config_.queues; ++queue)
    all &= !holding(tx_queue(queue)) || !engine_busy(queue);
  return all;
}

void EthVhost::hold_later() {
  if (!hold_pending_) return;
  if (!hold_step()) return hold_timer_.arm_after(hold_retry);
  hold_pending_ = false;
  endpoint_->resume();
}

std::optional<uint16_t> EthVhost::ring_base(uint32_t ring) noexcept {
  if (control_.running() && ring == control_at_) return control_.ring().base();
  if (ring == queue_rings()) return std::nullopt;
  const VringQueue& queue = vring_queue(QueueId::of_ring(ring));
  if (!queue.running()) return std::nullopt;
  return queue.ring().base();
}

// --- The change: nothing can fail

void EthVhost::commit(const RingSet& rings, const SessionState& next) noexcept {
  memory_ = next.memory;
  for (uint32_t ring = 0; ring < this->rings(); ++ring)
    if (rings[ring]) take_over(ring, std::exchange(prepared_[ring], {}));
  // A ring that starts is read, and its memory may be gone already.
  if (memory::times_mended() != mended_seen_.load(std::memory_order_relaxed)) wake_control();
}

void EthVhost::halt() noexcept {
  for (uint32_t ring = 0; ring < rings(); ++ring) take_over(ring, {});
  memory_.reset();
}

void EthVhost::take_over(uint32_t ring, Prepared ready) noexcept {
  RingSetup& setup = ready.setup;
  setup.drained = how_ == vhost_user::Hold::drained;
  // Not SET_VRING_BASE: after a back end that was killed the front end may not know how far it came (virtio-user says
  // 0). Rings are used in order and are drained before they stop, so nothing is in flight between the two indices.
  if (setup.running) setup.last_avail = RingIndex(load_relaxed<uint16_t>(setup.at.used_idx()));
  holding_.reset(ring);
  take_over_control(ring, ready);
  if (ring == queue_rings()) return;
  const QueueId id = QueueId::of_ring(ring);
  kick_watches_[ring]->setup(std::move(ready.watched), setup.running ? setup.at.avail : nullptr, setup.memory);
  if (id.rx()) {
    take_over_rx(id.number, std::move(ready));
  } else {
    txqs_[id.number]->setup(std::move(setup), std::move(ready.tx));
    give_back(*txqs_[id.number]);
  }
  const bool usable = vring_queue(id).running() && vring_queue(id).enabled();
  if (usable == ring_usable_[ring]) return;
  ring_usable_[ring] = usable;
  report({.kind = Kind::queue, .queue = id, .enabled = usable, .level = Level::info}, " is %s",
         usable ? "enabled" : "disabled");
}

/// Of a queue that was changed; should its fds be too costly, its front end is dropped in a moment.
void EthVhost::give_back(VringQueue& queue) noexcept {
  if (queue.costly()) {
    costly_peer_ = true;
    wake_control();
  }
  queue.owner().give_back();
}

void EthVhost::take_over_rx(uint32_t queue, Prepared ready) noexcept {
  RxInterrupt& interrupt = *interrupts_[queue];
  const bool usable = ready.setup.running && ready.setup.enabled;
  ready.setup.kicks = interrupt.wanted();
  if (!interrupt.set_kick(std::move(ready.kick))) {
    report({.kind = Kind::control, .queue = rx_queue(queue), .enabled = usable},
           ": its kick fd cannot be waited for (%s); the ring is polled for those who wait", std::strerror(errno));
  }
  rxqs_[queue]->setup(std::move(ready.setup), std::move(ready.rx));
  give_back(*rxqs_[queue]);
  // A kick may have gone to the fd or the ring that was there before.
  if (interrupt.wanted()) {
    interrupt.wake();
    wake_control();  // should the ring be one that must be polled
  }
}

/// The control queue, should this ring be its own, or have been. A queue whose ring it is has none.
void EthVhost::take_over_control(uint32_t ring, Prepared& ready) noexcept {
  if (!ready.control && !(control_.running() && ring == control_at_)) return;
  control_at_ = ring;
  control_.setup(ready.control ? std::exchange(ready.setup, {}) : RingSetup{}, std::exchange(ready.kick, nullptr));
  ready.watched.reset();
  const MutexLock lock(snapshot_mutex_);
  if (!control_.running()) snapshot_.control = {};
}

void EthVhost::control_changed(const char* change) {
  report({.kind = Kind::guest, .enabled = true, .level = Level::info}, "the guest asked over its control queue for: %s",
         change);
  const MutexLock lock(snapshot_mutex_);
  snapshot_.control = control_.state();
}

/// Why nothing works, as far as can be seen from here.
void EthVhost::advise(uint32_t ring, KickWatch::Advice advice) noexcept {
  const SessionState* state = endpoint_ ? endpoint_->state() : nullptr;
  if (!state) return;
  const Vring& vring = state->vrings[ring];
  const QueueId id = QueueId::of_ring(ring);
  if (advice == KickWatch::Advice::stays_empty) {
    return report({.kind = Kind::peer, .queue = id, .enabled = true},
                  " is kicked, but its ring stays empty: is the memory of the guest shared? QEMU shares it "
                  "with memory-backend-memfd,share=on");
  }
  const char* const missing = !vring.has_addresses               ? "its addresses (SET_VRING_ADDR)"
                              : vring.size == 0                  ? "its size (SET_VRING_NUM)"
                              : state->memory->regions().empty() ? "what memory there is (SET_MEM_TABLE)"
                                                                 : "a memory region that holds it (SET_MEM_TABLE)";
  report({.kind = Kind::peer, .queue = id}, " is kicked, but does not run: the front end has not said %s", missing);
}

void EthVhost::remark(const char* text) noexcept { report({.kind = Kind::peer}, "%s", text); }

void EthVhost::announce(const uint8_t (&mac)[6]) noexcept {
  // RFC 903 "request reverse": who am I, asked and answered with the guest's own address, so that switches learn it.
  if (rarp_waits_) rarp_lost_.add(1);
  rarp_.fill(0);
  std::fill_n(rarp_.begin(), 6, uint8_t{0xff});
  std::copy_n(mac, 6, rarp_.begin() + 6);
  const uint8_t body[] = {0x80, 0x35, 0, 1, 0x08, 0, 6, 4, 0, 3};
  std::copy_n(body, sizeof body, rarp_.begin() + 12);
  std::copy_n(mac, 6, rarp_.begin() + 22);
  std::copy_n(mac, 6, rarp_.begin() + 32);
  rarp_waits_ = true;
  wake_control();
}

std::unique_ptr<vhost_user::BackendSession> EthVhost::make_session() {
  memory::ensure_sigbus_guard();
  vhost_user::SessionConfig session;
  session.queue_pairs = config_.queues;
  session.features = config_.features;
  session.max_guest_mem = config_.max_guest_mem != 0 ? config_.max_guest_mem : budget::physical_memory();
  {
    const MutexLock lock(snapshot_mutex_);
    snapshot_.connected = true;
  }
  vhost_user::Device& device = *this;
  return std::make_unique<vhost_user::BackendSession>(session, device);
}

void EthVhost::after_message(const SessionState& state) {
  bool up = false;
  for (uint32_t q = 0; q < config_.queues; ++q)
    up |= ring_usable_[tx_queue(q).ring()] && ring_usable_[rx_queue(q).ring()];
  {
    const MutexLock lock(snapshot_mutex_);
    snapshot_.features = state.features.mask();
    snapshot_.protocol_features = state.protocol_features;
    snapshot_.mtu = state.mtu;
    snapshot_.regions.clear();
    for (const memory::Region& region : state.memory->regions())
      snapshot_.regions.push_back({region.gpa, region.uva, region.size});
    snapshot_.rings.clear();
    for (uint32_t ring = 0; ring < rings(); ++ring) {
      const Vring& vring = state.vrings[ring];
      if (vring.size == 0) continue;
      RingInfo info;
      info.index = ring;
      info.size = vring.size;
      info.started = vring.started;
      info.enabled = vring.enabled;
      snapshot_.rings.push_back(info);
    }
  }
  set_link(up);
}

void EthVhost::disconnected(const char* reason, bool broken) noexcept {
  if (rarp_waits_) rarp_lost_.add(1);  // it would announce a guest that has gone
  rarp_waits_ = false;
  {
    const MutexLock lock(snapshot_mutex_);
    snapshot_ = {};
  }
  set_link(false);
  if (broken) report({.kind = Kind::peer}, "the front end was dropped: %s", reason);
}

void EthVhost::trouble(const char* what) noexcept { report({.kind = Kind::peer}, "%s", what); }

void EthVhost::set_link(bool up) noexcept {
  if (up == link_up()) return;
  {
    const MutexLock lock(link_mutex_);
    link_up_.store(up, std::memory_order_release);  // pairs with link_up(): who sees it may send
  }
  link_changed_.notify_all();
  report({.kind = Kind::link, .enabled = up, .level = Level::info}, "link is %s", up ? "up" : "down");
}

/// What a callback of this port threw: it costs this port its session and nobody else anything.
void EthVhost::failed(const char* what) noexcept {
  control_errors_.fetch_add(1, std::memory_order_relaxed);
  report({.kind = Kind::control, .level = Level::error}, "the control thread could not go on with this port: %s", what);
  if (endpoint_) endpoint_->failed(what);
}

void EthVhost::report(const Subject& subject, const char* text, ...) noexcept {
  char told[Reports::longest];
  size_t used = 0;
  if (const auto id = subject.queue)
    used = static_cast<size_t>(std::snprintf(told, sizeof told, "%s queue %u", id->direction_name(), id->number));
  va_list arguments;
  va_start(arguments, text);
  std::vsnprintf(told + used, sizeof told - used, text, arguments);
  va_end(arguments);
  reports_.add(subject, told);
}

}  // namespace vhost_ioat::port
