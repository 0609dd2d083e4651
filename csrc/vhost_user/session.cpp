// SPDX-License-Identifier: BSD-3-Clause
#include "vhost_user/session.hpp"

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <utility>

#include "base/error.hpp"

namespace vhost_ioat::vhost_user {
namespace {

constexpr uint64_t min_mtu = 68;  // RFC 791, and what virtio-net drivers take
constexpr uint64_t max_mtu = 65535;

}  // namespace

BackendSession::BackendSession(SessionConfig config, Device& device) : config_(config), device_(device) {
  state_.memory = std::make_shared<const memory::RegionTable>();
  state_.vrings.resize(2 * config.queue_pairs);
}

BackendSession::Next BackendSession::receive(Message message, std::optional<Message>& reply) {
  request_ = std::move(message);
  reply_.reset();
  error_ = malformed(*request_);
  if (!error_.empty()) return Next::close;
  try {
    const MessageType* type = find_message_type(request_->request);
    if (!type) throw Error("this back end does not offer it");
    if (type->needs & ~state_.protocol_features) {
      throw Error(format("it needs protocol feature 0x%" PRIx64 ", which was not negotiated", type->needs));
    }
    dispatch(*type);
  } catch (const std::exception& problem) {
    return refuse(problem.what(), reply);
  }
  if (change_ && !device_.hold(held_)) {
    suspended_ = true;
    return Next::suspended;
  }
  return finish(reply);
}

BackendSession::Next BackendSession::resume(std::optional<Message>& reply) {
  suspended_ = false;
  return finish(reply);
}

BackendSession::Next BackendSession::stop() {
  stopping_ = true;
  if (suspended_) return Next::suspended;  // resume() finishes that request and comes here again
  request_.reset();
  when_held(every_ring(), [this] {
    for (Vring& ring : state_.vrings) {
      forget_start(ring);
      retire(ring.err);
    }
    SessionState fresh;
    fresh.memory = std::make_shared<const memory::RegionTable>();
    fresh.vrings.resize(state_.vrings.size());
    state_ = std::move(fresh);
  });
  if (!device_.hold(held_)) {
    suspended_ = true;
    return Next::suspended;
  }
  std::optional<Message> none;
  return finish(none);
}

RingSet BackendSession::every_ring() const {
  RingSet rings;
  for (size_t i = 0; i < state_.vrings.size(); ++i) rings.set(i);
  return rings;
}

void BackendSession::when_held(const RingSet& rings, std::function<void()> change) {
  held_ = rings;
  change_ = std::move(change);
}

BackendSession::Next BackendSession::finish(std::optional<Message>& reply) {
  if (change_) {
    for (uint32_t i = 0; i < state_.vrings.size(); ++i) {
      if (held_[i] && state_.vrings[i].started) state_.vrings[i].base = device_.ring_base(i);
    }
    change_();
    device_.release(held_, state_);
    change_ = nullptr;
    retired_.clear();
  }
  if (!stopping_) return answer(reply);
  return request_ ? stop() : Next::close;
}

BackendSession::Next BackendSession::answer(std::optional<Message>& reply) {
  if (!reply_ && request_->needs_reply() && state_.protocol_features & protocol::reply_ack) reply_with(uint64_t{0});
  if (reply_) reply_->flags |= wire::reply_flag;
  reply = std::exchange(reply_, std::nullopt);
  request_.reset();  // and with it the fds that nobody took
  return Next::proceed;
}

/// The request changed nothing. If the front end asked to be told, it is told and may go on.
BackendSession::Next BackendSession::refuse(const std::string& why, std::optional<Message>& reply) {
  error_ = message_name(request_->request) + ": " + why;
  const MessageType* type = find_message_type(request_->request);
  const bool can_tell = request_->needs_reply() && state_.protocol_features & protocol::reply_ack;
  if (!can_tell || (type && type->has_reply)) return Next::close;
  reply_with(uint64_t{1});
  return answer(reply);
}

void BackendSession::dispatch(const MessageType& type) {
  switch (type.id) {
    case Request::GET_FEATURES:
      return reply_with(config_.features.mask());
    case Request::SET_FEATURES:
      return set_features();
    case Request::SET_OWNER:
      state_.owned = true;
      return;
    case Request::RESET_OWNER:
      return reset_owner();
    case Request::GET_PROTOCOL_FEATURES:  // also before SET_FEATURES: that bit 30 was offered is enough
      return reply_with(config_.protocol_features);
    case Request::SET_PROTOCOL_FEATURES:
      return set_protocol_features();
    case Request::GET_QUEUE_NUM:  // a network device counts pairs here: front ends compare it with theirs
      return reply_with(uint64_t{config_.queue_pairs});
    case Request::SET_MEM_TABLE:
      return set_mem_table();
    case Request::GET_MAX_MEM_SLOTS:
      return reply_with(uint64_t{memory::RegionTable::max_regions});
    case Request::ADD_MEM_REG:
      return add_mem_region();
    case Request::REM_MEM_REG:
      return remove_mem_region();
    case Request::SET_VRING_NUM:
      return set_vring_num();
    case Request::SET_VRING_ADDR:
      return set_vring_addr();
    case Request::SET_VRING_BASE:
      return set_vring_base();
    case Request::GET_VRING_BASE:
      return get_vring_base();
    case Request::SET_VRING_KICK:
      return set_vring_fd(&Vring::kick);
    case Request::SET_VRING_CALL:
      return set_vring_fd(&Vring::call);
    case Request::SET_VRING_ERR:
      return set_vring_fd(&Vring::err);
    case Request::SET_VRING_ENABLE:
      return set_vring_enable();
    case Request::SEND_RARP:
      return device_.announce(request_->body<wire::Rarp>().mac);
    case Request::NET_SET_MTU:
      return set_mtu();
    case Request::SET_BACKEND_REQ_FD:
      backend_channel_ = std::move(request_->fds[0]);
      return;
    case Request::RESET_DEVICE:
      return reset_device();
    case Request::SET_STATUS:
      return set_status();
    case Request::GET_STATUS:
      return reply_with(uint64_t{state_.status});
  }
}

/// Without bit 30 there is no SET_VRING_ENABLE: every ring is enabled at once. With it they stay as they are.
void BackendSession::set_features() {
  const virtio::FeatureSet features(request_->body<uint64_t>());
  if (!features.within(config_.features)) {
    throw Error(format("feature bits 0x%" PRIx64 " were not offered; offered is 0x%" PRIx64,
                       features.mask() & ~config_.features.mask(), config_.features.mask()));
  }
  const bool running = std::ranges::any_of(state_.vrings, &Vring::started);
  if (running && features != state_.features) {
    throw Error(format("features cannot change from 0x%" PRIx64 " to 0x%" PRIx64 " while rings run; stop them first",
                       state_.features.mask(), features.mask()));
  }
  when_held(every_ring(), [this, features] {
    state_.features = features;
    if (features.has(virtio::Feature::PROTOCOL_FEATURES)) return;
    for (Vring& ring : state_.vrings) ring.enabled = true;
  });
}

void BackendSession::set_protocol_features() {
  const auto features = request_->body<uint64_t>();
  if (features & ~config_.protocol_features) {
    throw Error(format("protocol feature bits 0x%" PRIx64 " were not offered; offered is 0x%" PRIx64,
                       features & ~config_.protocol_features, config_.protocol_features));
  }
  state_.protocol_features = features;
}

void BackendSession::set_mtu() {
  const auto mtu = request_->body<uint64_t>();
  if (mtu < min_mtu || mtu > max_mtu) {
    throw Error(format("an MTU of %" PRIu64 " is not within %" PRIu64 " to %" PRIu64, mtu, min_mtu, max_mtu));
  }
  state_.mtu = static_cast<uint16_t>(mtu);
}

void BackendSession::set_status() {
  const auto status = request_->body<uint64_t>();
  if (status > UINT8_MAX) throw Error(format("status 0x%" PRIx64 " has more than 8 bits (VIRTIO 1.2, 2.1)", status));
  state_.status = static_cast<uint8_t>(status);
}

void BackendSession::reset_owner() {
  when_held(every_ring(), [this] {
    state_.owned = false;
    for (Vring& ring : state_.vrings) ring.enabled = false;
  });
}

/// The driver starts over; what belongs to the connection stays: owner, protocol features, memory, err fds.
void BackendSession::reset_device() {
  when_held(every_ring(), [this] {
    state_.features = {};
    state_.status = 0;
    for (Vring& ring : state_.vrings) {
      forget_start(ring);
      ring.size = 0;
      ring.base = 0;
      ring.enabled = false;
    }
  });
}

}  // namespace vhost_ioat::vhost_user
