// SPDX-License-Identifier: BSD-3-Clause
// The port as its session sees it: rings are held, changed and released. Control thread.
#include <sys/epoll.h>

#include <algorithm>

#include "base/error.hpp"
#include "memory/guest_mapping.hpp"
#include "memory/sigbus.hpp"
#include "port/eth_vhost.hpp"

namespace vhost_ioat::port {

using vhost_user::RingSet;
using vhost_user::SessionState;
using vhost_user::Vring;

namespace {
constexpr auto hold_retry = std::chrono::microseconds(100);

uint64_t physical_memory() {
  return static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}
}  // namespace

// Ring 2N is tx queue N of the port (the guest receives), ring 2N + 1 is rx queue N.

bool EthVhost::hold(const RingSet& rings) {
  holding_ |= rings;
  hold_pending_ = !hold_step();
  if (hold_pending_) resume_when_held();
  return !hold_pending_;
}

/// One try for every ring wanted: the caller is out, and nothing is in flight.
bool EthVhost::hold_step() {
  bool all = true;
  for (uint32_t ring = 0; ring < 2 * config_.queues; ++ring) {
    if (!holding_[ring]) continue;
    const uint32_t queue = ring / 2;
    all &= ring % 2 ? rxqs_[queue]->owner().try_take() : txqs_[queue]->owner().try_take() && drain_step(queue);
  }
  return all;
}

void EthVhost::resume_when_held() {
  hold_timer_ = loop_->call_at(EventLoop::Clock::now() + hold_retry, [this] {
    hold_timer_ = 0;
    if (!hold_step()) return resume_when_held();
    hold_pending_ = false;
    endpoint_->resume();
  });
}

VringQueue& EthVhost::vring_queue(uint32_t ring) {
  if (ring % 2) return *rxqs_[ring / 2];
  return *txqs_[ring / 2];
}

uint16_t EthVhost::ring_base(uint32_t ring) {
  const VringQueue& queue = vring_queue(ring);
  return queue.running() ? queue.ring().last_avail().value() : bases_[ring];
}

void EthVhost::release(const RingSet& rings, const SessionState& state) {
  memory_ = state.memory;
  for (uint32_t ring = 0; ring < 2 * config_.queues; ++ring) {
    if (!rings[ring]) continue;
    const uint32_t queue = ring / 2;
    const Vring& vring = state.vrings[ring];
    bases_[ring] = vring.base;
    RingSetup setup = ring_setup(ring, state, vring);
    const bool usable = setup.running && setup.enabled;
    if (ring % 2) {
      watch_kick(queue, setup.running ? vring.kick.get() : -1);
      rxqs_[queue]->setup(std::move(setup));
      rxqs_[queue]->owner().give_back();
    } else {
      map_guest(queue, setup.running ? state.memory.get() : nullptr);
      txqs_[queue]->setup(std::move(setup));
      txqs_[queue]->owner().give_back();
    }
    holding_.reset(ring);
    if (usable != ring_usable_[ring]) {
      ring_usable_[ring] = usable;
      say("queue", static_cast<int>(queue), ring % 2, usable, Reports::info,
          format("%s queue %u is %s", ring % 2 ? "rx" : "tx", queue, usable ? "enabled" : "disabled"));
    }
  }
  // A ring that starts is read, and its memory may be gone already.
  if (memory::times_mended() != mended_seen_.load(std::memory_order_relaxed)) wake_control();
}

/// Translates the ring's addresses, now that it is about to run and not earlier: the memory table may come later.
RingSetup EthVhost::ring_setup(uint32_t ring, const SessionState& state, const Vring& vring) {
  RingSetup setup;
  setup.enabled = vring.enabled;
  if (!vring.started || !vring.has_addresses || vring.size == 0) return setup;
  const bool event_idx = state.features.has(virtio::Feature::EVENT_IDX);
  auto* desc = state.memory->translate_uva(vring.desc_uva, virtio::desc_bytes(vring.size));
  setup.at.avail = state.memory->translate_uva(vring.avail_uva, virtio::avail_bytes(vring.size, event_idx));
  setup.at.used = state.memory->translate_uva(vring.used_uva, virtio::used_bytes(vring.size, event_idx));
  setup.at.desc = reinterpret_cast<virtio::Descriptor*>(desc);
  if (!desc || !setup.at.avail || !setup.at.used) {
    if (!state.memory->regions().empty()) {
      say("peer", static_cast<int>(ring / 2), ring % 2, false, Reports::warning,
          format("ring %u of %u entries does not lie wholly in one memory region; it waits for a memory table that "
                 "holds it",
                 ring, vring.size));
    }
    return setup;
  }
  setup.running = true;
  setup.size = vring.size;
  // Not SET_VRING_BASE: after a back end that was killed the front end may not know how far it came (virtio-user says
  // 0). Rings are used in order and are drained before they are held, so nothing is in flight between the two indices.
  setup.last_avail = RingIndex(virtio::load_relaxed<uint16_t>(setup.at.used + 2));
  setup.features = state.features;
  setup.memory = state.memory;
  if (vring.call) setup.call = vring.call.duplicate();
  if (vring.err) setup.err = vring.err.duplicate();
  return setup;
}

/// Puts the ring's kick fd behind the fd that users of rx_fileno() wait for.
void EthVhost::watch_kick(uint32_t queue, int kick_fd) {
  if (kick_fds_[queue] == kick_fd && kick_fd < 0) return;
  if (kick_fds_[queue] >= 0) ::epoll_ctl(rx_fds_[queue].get(), EPOLL_CTL_DEL, kick_fds_[queue], nullptr);
  kick_fds_[queue] = kick_fd;
  if (kick_fd < 0) return;
  epoll_event event{};
  event.events = EPOLLIN;
  ::epoll_ctl(rx_fds_[queue].get(), EPOLL_CTL_ADD, kick_fd, &event);
}

void EthVhost::announce(const uint8_t (&mac)[6]) {
  // RFC 903 "request reverse": who am I, asked and answered with the guest's own address, so that switches learn it.
  rarp_.assign(60, 0);
  std::fill_n(rarp_.begin(), 6, uint8_t{0xff});
  std::copy_n(mac, 6, rarp_.begin() + 6);
  const uint8_t body[] = {0x80, 0x35, 0, 1, 0x08, 0, 6, 4, 0, 3};
  std::copy_n(body, sizeof body, rarp_.begin() + 12);
  std::copy_n(mac, 6, rarp_.begin() + 22);
  std::copy_n(mac, 6, rarp_.begin() + 32);
  wake_control();
}

std::unique_ptr<vhost_user::BackendSession> EthVhost::make_session() {
  memory::ensure_sigbus_guard();
  vhost_user::SessionConfig session;
  session.queue_pairs = config_.queues;
  session.features = config_.features;
  session.max_guest_mem = config_.max_guest_mem != 0 ? config_.max_guest_mem : physical_memory();
  {
    std::lock_guard lock(snapshot_mutex_);
    snapshot_.connected = true;
  }
  vhost_user::Device& device = *this;
  return std::make_unique<vhost_user::BackendSession>(std::move(session), device);
}

void EthVhost::after_message(const SessionState& state) {
  bool up = false;
  for (uint32_t q = 0; q < config_.queues; ++q) up |= ring_usable_[2 * q] && ring_usable_[2 * q + 1];
  {
    std::lock_guard lock(snapshot_mutex_);
    snapshot_.features = state.features.mask();
    snapshot_.protocol_features = state.protocol_features;
    snapshot_.mtu = state.mtu;
    snapshot_.regions.clear();
    for (const memory::Region& region : state.memory->regions())
      snapshot_.regions.push_back({region.gpa, region.uva, region.size});
    snapshot_.rings.clear();
    for (uint32_t ring = 0; ring < 2 * config_.queues; ++ring) {
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

void EthVhost::disconnected(const std::string& reason, bool broken) {
  memory_.reset();
  {
    std::lock_guard lock(snapshot_mutex_);
    snapshot_ = {};
  }
  set_link(false);
  if (broken) say("peer", -1, false, false, Reports::warning, "the front end was dropped: " + reason);
}

void EthVhost::trouble(const std::string& what) { say("peer", -1, false, false, Reports::warning, what); }

void EthVhost::set_link(bool up) {
  if (up == link_up()) return;
  {
    std::lock_guard lock(link_mutex_);
    link_up_.store(up, std::memory_order_release);  // pairs with link_up(): who sees it may send
  }
  link_changed_.notify_all();
  say("link", -1, false, up, Reports::info, up ? "link is up" : "link is down");
}

void EthVhost::say(const char* kind, int queue, bool rx, bool enabled, int level, std::string text) {
  reports_.add({kind, queue, rx, enabled, std::move(text)}, level);
}

}  // namespace vhost_ioat::port
