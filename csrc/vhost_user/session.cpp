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

BackendSession::BackendSession(SessionConfig config, Device& device)
    : config_(config), device_(device), no_memory_(std::make_shared<const memory::RegionTable>()) {
  state_.memory = no_memory_;
  state_.vrings.resize(2 * config.queue_pairs + 1);
}

BackendSession::Next BackendSession::receive(Message message, std::optional<Message>& reply) {
  request_ = std::move(message);
  reply_.reset();
  forget_change();
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
  if (work_) return Next::suspended;
  return change(reply);
}

BackendSession::Next BackendSession::resume(std::optional<Message>& reply) {
  if (holding_) {
    holding_ = false;
    if (halting_) return halt();
    if (stopping_) return halt_when_held();
    take_over();
    return answer(reply);
  }
  const std::shared_ptr<MemoryWork> work = std::move(work_);
  try {
    if (work->problem_) std::rethrow_exception(work->problem_);
    if (!work->remark_.empty()) device_.remark(work->remark_.c_str());
    change_memory(std::move(work->table_));
  } catch (const std::exception& problem) {
    return refuse(problem.what(), reply);
  }
  return change(reply);
}

BackendSession::Next BackendSession::stop() noexcept {
  stopping_ = true;
  work_.reset();
  if (holding_) return Next::suspended;  // these rings first, then all
  return halt_when_held();
}

BackendSession::Next BackendSession::halt_when_held() noexcept {
  request_.reset();
  forget_change();
  device_.prepare_halt();
  halting_ = true;
  holding_ = !device_.hold(every_ring(), Hold::drained);
  return holding_ ? Next::suspended : halt();
}

BackendSession::Next BackendSession::halt() noexcept {
  device_.halt();
  state_.memory = no_memory_;
  for (Vring& ring : state_.vrings) ring = {};
  return Next::close;
}

RingSet BackendSession::every_ring() const {
  RingSet rings;
  for (size_t i = 0; i < state_.vrings.size(); ++i) rings.set(i);
  return rings;
}

RingSet BackendSession::started_rings() const {
  RingSet rings;
  for (size_t i = 0; i < state_.vrings.size(); ++i) rings[i] = state_.vrings[i].started;
  return rings;
}

SessionState& BackendSession::next() {
  if (!next_) next_ = state_;
  return *next_;
}

void BackendSession::touch(const RingSet& rings, Hold how) {
  touched_ |= rings;
  how_ = std::max(how_, how);
}

bool BackendSession::concerns_device() const noexcept { return touched_.any() || next_->memory != state_.memory; }

void BackendSession::forget_change() noexcept {
  next_.reset();
  touched_.reset();
  how_ = Hold::owned;
  base_asked_.reset();
}

/// What can fail comes first.
BackendSession::Next BackendSession::change(std::optional<Message>& reply) {
  if (!next_) return answer(reply);
  try {
    if (concerns_device()) device_.prepare(touched_, *next_);
  } catch (const std::exception& problem) {
    return refuse(problem.what(), reply);
  }
  if (concerns_device() && !device_.hold(touched_, how_)) {
    holding_ = true;
    return Next::suspended;
  }
  take_over();
  return answer(reply);
}

/// The rings that are touched are held.
void BackendSession::take_over() noexcept {
  for (uint32_t i = 0; i < state_.vrings.size(); ++i) {
    if (!touched_[i] || !state_.vrings[i].started) continue;
    if (const auto base = device_.ring_base(i)) next_->vrings[i].base = *base;
  }
  if (base_asked_) reply_with(wire::VringState{*base_asked_, next_->vrings[*base_asked_].base});
  if (concerns_device()) device_.commit(touched_, *next_);
  state_ = std::move(*next_);
  forget_change();
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
  forget_change();
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
    throw Error(format("feature bits 0x%" PRIx64 " were not offered, only 0x%" PRIx64,
                       features.mask() & ~config_.features.mask(), config_.features.mask()));
  }
  const bool running = std::ranges::any_of(state_.vrings, &Vring::started);
  if (running && features != state_.features) {
    throw Error(format("features cannot change from 0x%" PRIx64 " to 0x%" PRIx64 " while rings run; stop them first",
                       state_.features.mask(), features.mask()));
  }
  if (state_.features_acked && features == state_.features) return;
  SessionState& after = next();
  after.features = features;
  after.features_acked = true;
  if (!features.has(virtio::Feature::PROTOCOL_FEATURES)) {
    for (Vring& ring : after.vrings) ring.enabled = true;
  }
  touch(started_rings(), Hold::drained);
}

void BackendSession::set_protocol_features() {
  const auto features = request_->body<uint64_t>();
  if (features & ~config_.protocol_features) {
    throw Error(format("protocol feature bits 0x%" PRIx64 " were not offered, only 0x%" PRIx64,
                       features & ~config_.protocol_features, config_.protocol_features));
  }
  state_.protocol_features = features;
}

void BackendSession::set_mtu() {
  const auto mtu = request_->body<uint64_t>();
  if (mtu < min_mtu || mtu > max_mtu) {
    throw Error(format("an MTU of %" PRIu64 " is not in the range %" PRIu64 " to %" PRIu64, mtu, min_mtu, max_mtu));
  }
  state_.mtu = static_cast<uint16_t>(mtu);
}

void BackendSession::set_status() {
  const auto status = request_->body<uint64_t>();
  if (status > UINT8_MAX) throw Error(format("status 0x%" PRIx64 " has more than 8 bits (VIRTIO 1.2, 2.1)", status));
  state_.status = static_cast<uint8_t>(status);
}

void BackendSession::reset_owner() {
  SessionState& after = next();
  after.owned = false;
  for (Vring& ring : after.vrings) ring.enabled = false;
  touch(started_rings(), Hold::drained);
}

/// The driver starts over; what belongs to the connection stays: owner, protocol features, memory, err fds.
void BackendSession::reset_device() {
  SessionState& after = next();
  after.features = {};
  after.features_acked = false;
  after.status = 0;
  for (Vring& ring : after.vrings) {
    SharedFd err = std::move(ring.err);
    ring = {};
    ring.err = std::move(err);
  }
  touch(started_rings(), Hold::drained);
}

}  // namespace vhost_ioat::vhost_user
