// SPDX-License-Identifier: BSD-3-Clause
#include "dma/ioat_engine.hpp"

#include <algorithm>
#include <chrono>
#include <exception>
#include <thread>

#include "base/error.hpp"

namespace vhost_ioat::dma {
namespace {

uintptr_t address_of(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

}  // namespace

IoatEngine::IoatEngine(std::shared_ptr<Mmio> registers, std::shared_ptr<DmaSpace> space, const Identity& identity,
                       const ChannelOptions& options)
    : registers_(std::move(registers)),
      ring_pages_(std::make_unique<RingPages>(IoatChannel::memory_size(options.ring_size))),
      domain_(std::move(space), identity.name, spec::address_bits(registers_->read8(spec::CBVER))) {
  const uint64_t ring_iova = domain_.map(ring_pages_->data(), ring_pages_->size());
  try {
    channel_.emplace(*registers_, DmaMemory{ring_pages_->data(), ring_iova, ring_pages_->size()}, options);
  } catch (...) {
    domain_.clear();  // a shared space outlives this engine
    throw;
  }
  capabilities_ = {.name = identity.name,
                   .description = format("%s %u.%u", identity.description.c_str(), channel_->version() >> 4u,
                                         channel_->version() & 15u),
                   .hardware = identity.hardware,
                   .in_order = true,
                   .ring_size = channel_->ring_size(),
                   .max_copy = channel_->max_copy(),
                   .address_bits = channel_->address_bits()};
}

IoatEngine::~IoatEngine() {
  if (ring_pages_->inherited()) return;
  const bool stopped = revoked_ || channel_->shut_down();
  // What is left then is to take its memory away, which a copy at work may delay.
  for (int looks = 0; !stopped && revoke() == Step::pending && looks < 10'000; ++looks) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  if (!stopped && !revoked_) ring_pages_->leak();
  if (!stopped || revoked_) return;
  domain_.clear();
}

// --- Copies
// -----------------------------------------------------------------------------------------------------------

Refusal IoatEngine::enqueue(std::span<const Copy> copies, uint32_t cookie) noexcept {
  IoatChannel& channel = *channel_;
  if (!channel.running()) [[unlikely]]
    return Refusal::disabled;
  if (copies.empty()) [[unlikely]]
    return Refusal::address;  // its end would never be seen
  if (unmappings_seen_ != domain_.unmappings()) [[unlikely]] {
    unmappings_seen_ = domain_.unmappings();
    dst_hint_ = src_hint_ = {};
  }
  const Copy* copy = copies.data();
  const Copy* const last = copy + copies.size() - 1;
  uint32_t index = channel.head();
  const uint32_t limit = index + channel.room();
  uint64_t bytes = 0;
  for (;; ++copy) {
    const uintptr_t dst = address_of(copy->dst), src = address_of(copy->src);
    const uint32_t len = copy->len;
    const bool one_piece = dst_hint_.holds(dst, len) && src_hint_.holds(src, len) && len - 1 < channel.max_copy();
    if (!one_piece || index == limit) [[unlikely]]
      return enqueue_from(copy, last, index, cookie, bytes);
    channel.put_copy(index++, dst_hint_.translate(dst), src_hint_.translate(src), len, copy == last);
    bytes += len;
    if (copy == last) break;
  }
  channel.commit(index, cookie, bytes);
  return Refusal::none;
}

/// The rest of a job, from a copy on that misses a hint, crosses from one mapping to the next, is longer than one
/// descriptor carries, or finds the ring full. Apart, so that the common case saves no registers; it is most of a
/// packet's cost.
Refusal IoatEngine::enqueue_from(const Copy* copy, const Copy* last, uint32_t index, uint32_t cookie,
                                 uint64_t bytes) noexcept {
  IoatChannel& channel = *channel_;
  const uint32_t limit = channel.head() + channel.room();
  for (; copy <= last; ++copy) {
    if (copy->len == 0) return Refusal::address;
    uintptr_t dst = address_of(copy->dst), src = address_of(copy->src), left = copy->len;
    while (left > 0) {
      if (!dst_hint_.holds(dst, 1)) dst_hint_ = domain_.find(dst);
      if (!src_hint_.holds(src, 1)) src_hint_ = domain_.find(src);
      if (dst_hint_.size == 0 || src_hint_.size == 0) return Refusal::unmapped;
      if (index == limit) return Refusal::ring_full;
      const uintptr_t piece = std::min({left, dst_hint_.size - (dst - dst_hint_.host),
                                        src_hint_.size - (src - src_hint_.host), uintptr_t{channel.max_copy()}});
      channel.put_copy(index++, dst_hint_.translate(dst), src_hint_.translate(src), static_cast<uint32_t>(piece),
                       copy == last && piece == left);
      dst += piece;
      src += piece;
      left -= piece;
    }
    bytes += copy->len;
  }
  channel.commit(index, cookie, bytes);
  return Refusal::none;
}

// --- Stopping
// ---------------------------------------------------------------------------------------------------------

Step IoatEngine::reset() noexcept {
  if (revoked_) return Step::failed;
  if (!resetting_ && channel_->failed()) {
    const uint64_t completed = channel_->stats().completed;
    const bool forgotten = completed - completed_at_reset_ >= resets_forgotten_after;
    failed_resets_ = forgotten ? 1 : failed_resets_ + 1;
    completed_at_reset_ = completed;
  }
  if (failed_resets_ > max_resets) return Step::failed;
  const Step step = channel_->reset();
  resetting_ = step == Step::pending;
  return step;
}

Step IoatEngine::revoke() noexcept {
  if (revoked_) return Step::done;
  const Step step = domain_.revoke();
  if (step == Step::done) {
    revoked_ = true;
    channel_->abandon();
  }
  return step;
}

std::string IoatEngine::why() const {
  std::string text = capabilities_.name + ": " + channel_->why();
  if (failed_resets_ > max_resets) text += format("; given up on after %u resets in a row", max_resets);
  if (revoked_) text += "; its access to memory was revoked";
  return text;
}

}  // namespace vhost_ioat::dma
