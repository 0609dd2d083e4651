// SPDX-License-Identifier: BSD-3-Clause
#include <bit>
#include <cinttypes>
#include <utility>

#include "base/error.hpp"
#include "vhost_user/session.hpp"

namespace vhost_ioat::vhost_user {
namespace {

constexpr uint32_t max_ring_size = 32768;  // VIRTIO 1.2, 2.7

RingSet only(uint32_t ring) { return RingSet().set(ring); }

void check_aligned(const char* what, uint64_t address, uint64_t alignment) {
  if (address % alignment == 0) return;
  throw Error(
      format("%s address 0x%" PRIx64 " is not a multiple of %" PRIu64 " (VIRTIO 1.2, 2.7)", what, address, alignment));
}

}  // namespace

uint32_t BackendSession::ring_of(uint64_t index) const {
  const bool control = !state_.features_acked || state_.features.has(virtio::Feature::CTRL_VQ);
  const size_t rings = state_.vrings.size() - !control;
  if (index < rings) return static_cast<uint32_t>(index);
  throw Error(format("there is no ring %" PRIu64 "; this port has %zu (two for each of its queues%s)", index, rings,
                     control ? ", and the control queue's" : ""));
}

void BackendSession::set_vring_num() {
  const auto state = request_->body<wire::VringState>();
  const uint32_t ring = ring_of(state.index), size = state.num;
  if (!std::has_single_bit(size) || size > max_ring_size) {
    throw Error(format("ring %u cannot have %u entries; the size must be a power of two from 1 to %u (VIRTIO 1.2, 2.7)",
                       ring, size, max_ring_size));
  }
  if (state_.vrings[ring].size == size) return;
  next().vrings[ring].size = size;
  if (state_.vrings[ring].started) touch(only(ring), Hold::drained);
}

/// Only stored: the memory they lie in may be told later, and what they mean is looked up when the ring runs.
void BackendSession::set_vring_addr() {
  const auto address = request_->body<wire::VringAddr>();
  const uint32_t ring = ring_of(address.index);
  if (address.flags) throw Error(format("ring %u: flags 0x%x, but logging was not offered", ring, address.flags));
  check_aligned("descriptor table", address.desc, 16);
  check_aligned("available ring", address.avail, 2);
  check_aligned("used ring", address.used, 4);
  if (state_.vrings[ring].same_addresses(address)) return;
  Vring& vring = next().vrings[ring];
  vring.desc_uva = address.desc;
  vring.avail_uva = address.avail;
  vring.used_uva = address.used;
  vring.has_addresses = true;
  if (state_.vrings[ring].started) touch(only(ring), Hold::drained);
}

void BackendSession::set_vring_base() {
  const auto state = request_->body<wire::VringState>();
  const uint32_t ring = ring_of(state.index), base = state.num;
  if (base > UINT16_MAX) throw Error(format("ring %u: base %u does not fit a 16-bit ring index", ring, base));
  state_.vrings[ring].base = static_cast<uint16_t>(base);  // a ring that runs knows better
}

/// The ring stops. Its size and addresses stand until they are said anew: a front end may resume it with
/// SET_VRING_BASE, _CALL and _KICK alone.
void BackendSession::get_vring_base() {
  const uint32_t ring = ring_of(request_->body<wire::VringState>().index);
  base_asked_ = ring;
  Vring& vring = next().vrings[ring];
  vring.started = vring.polled = false;
  vring.kick.reset();
  vring.call.reset();
  if (state_.vrings[ring].started) touch(only(ring), Hold::drained);
}

void BackendSession::set_vring_enable() {
  const auto state = request_->body<wire::VringState>();
  const uint32_t ring = ring_of(state.index), enable = state.num;
  if (enable > 1) throw Error(format("ring %u: enable is %u, but must be 0 or 1", ring, enable));
  if (state_.vrings[ring].enabled == (enable == 1)) return;
  next().vrings[ring].enabled = enable == 1;
  if (state_.vrings[ring].started) touch(only(ring), Hold::drained);
}

/// Nothing, and a remark, for an fd that could keep us waiting: the ring is used without it.
SharedFd BackendSession::adopt(uint32_t ring, SharedFd Vring::* which, UniqueFd fd) {
  const bool kick = which == &Vring::kick;
  PeerFd peer(fd.get(), kick ? PeerFd::Use::wait : PeerFd::Use::signal);
  if (const auto lane = std::dynamic_pointer_cast<HelperLane>(fd.closer())) peer.signal_on(lane);
  if (peer) return std::make_shared<RingFd>(RingFd{std::move(fd), peer});
  device_.remark(format("ring %u: its %s fd cannot be used: %s; %s", ring,
                        kick                    ? "kick"
                        : which == &Vring::call ? "call"
                                                : "err",
                        peer.why(), kick ? "the ring is polled" : "the front end has to poll")
                     .c_str());
  return nullptr;
}

/// SET_VRING_KICK starts the ring, whether it brings an fd or says that the ring is to be polled. Fds of a ring that
/// runs are exchanged without a drain: a monitor sends a new call fd each time its guest masks an interrupt.
void BackendSession::set_vring_fd(SharedFd Vring::* which) {
  const auto value = request_->body<uint64_t>();
  if (value & ~(wire::vring_fd_index_mask | wire::vring_fd_none)) {
    throw Error(format("0x%" PRIx64 " has bits other than the ring (0-7) and \"no fd\" (8)", value));
  }
  const uint32_t ring = ring_of(value & wire::vring_fd_index_mask);
  const bool none = value & wire::vring_fd_none;
  if (none != request_->fds.empty()) {
    throw Error(format("ring %u: bit 8 says there is %s, but there is %s", ring, none ? "no fd" : "an fd",
                       none ? "one" : "none"));
  }
  SharedFd fd = none ? nullptr : adopt(ring, which, std::move(request_->fds[0]));
  Vring& vring = next().vrings[ring];
  const bool starts = which == &Vring::kick && !vring.started;
  if (which == &Vring::kick) {
    vring.started = true;
    vring.polled = !fd;
  }
  vring.*which = std::move(fd);
  if (vring.started) touch(only(ring), starts ? Hold::drained : Hold::owned);
}

}  // namespace vhost_ioat::vhost_user
