// SPDX-License-Identifier: BSD-3-Clause
#include "dma/ioat_engine.hpp"

#include <algorithm>
#include <chrono>
#include <exception>
#include <thread>

#include "base/error.hpp"

namespace vhost_ioat::dma {
namespace {

constexpr uint64_t page = 4096, huge_page = 2 << 20;

uintptr_t address_of(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

/// The first address from `from` on with the same offset as `host` within a page, or within a huge page when the range
/// is large enough to hold one: then an IOMMU can use large pages too.
uint64_t congruent(uint64_t from, uintptr_t host, size_t size) {
  const uint64_t unit = size >= huge_page ? huge_page : page;
  return from + ((host - from) & (unit - 1));
}

}  // namespace

IoatEngine::IoatEngine(std::shared_ptr<Mmio> registers, std::shared_ptr<DmaSpace> space, const Identity& identity,
                       const ChannelOptions& options)
    : registers_(std::move(registers)),
      space_(std::move(space)),
      ring_pages_(std::make_unique<RingPages>(IoatChannel::memory_size(options.ring_size))),
      address_bits_(spec::address_bits(registers_->read8(spec::CBVER))) {
  capabilities_.name = identity.name;  // for messages from here on
  map(ring_pages_->data(), ring_pages_->size());
  try {
    channel_.emplace(*registers_, DmaMemory{ring_pages_->data(), mappings_.front().iova, ring_pages_->size()}, options);
  } catch (...) {
    unmap(ring_pages_->data());  // a shared space outlives this engine
    throw;
  }
  capabilities_ = {.name = identity.name,
                   .description = format("%s %u.%u", identity.description.c_str(), channel_->version() >> 4u,
                                         channel_->version() & 15u),
                   .hardware = identity.hardware,
                   .in_order = true,
                   .ring_size = channel_->ring_size(),
                   .max_copy = channel_->max_copy(),
                   .address_bits = address_bits_};
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
  for (const Mapping& mapping : mappings_) {
    try {
      space_->unmap(mapping.iova, mapping.size);
    } catch (const std::exception&) {  // the space undoes what is left when it goes
    }
  }
}

// --- Memory
// -----------------------------------------------------------------------------------------------------------

void IoatEngine::map(void* host, size_t size) {
  const Mapping mapping{address_of(host), size, 0};
  auto place = std::lower_bound(mappings_.begin(), mappings_.end(), mapping.host,
                                [](const Mapping& m, uintptr_t address) { return m.host < address; });
  const bool overlaps = (place != mappings_.end() && place->host - mapping.host < size) ||
                        (place != mappings_.begin() && mapping.host - place[-1].host < place[-1].size);
  if (size == 0 || overlaps) {
    throw DmaError(format("%s: %zu bytes at %p are empty, or overlap memory that is already mapped",
                          capabilities_.name.c_str(), size, host));
  }
  const auto index = place - mappings_.begin();
  mappings_.reserve(mappings_.size() + 1);  // so that nothing can fail once the device has the mapping
  const uint64_t iova = pick_iova(mapping.host, size);
  space_->map(iova, host, size);
  mappings_.insert(mappings_.begin() + index, Mapping{mapping.host, size, iova});
}

void IoatEngine::unmap(void* host) {
  const auto found =
      std::find_if(mappings_.begin(), mappings_.end(), [&](const Mapping& m) { return m.host == address_of(host); });
  if (found == mappings_.end()) throw DmaError(format("%s: %p is not mapped", capabilities_.name.c_str(), host));
  const Mapping mapping = *found;
  mappings_.erase(found);
  dst_hint_ = src_hint_ = {};
  if (!revoked_) space_->unmap(mapping.iova, mapping.size);
}

/// First fit, so that thousands of reconnects do not use up the 46 bits of a 3.2 channel.
uint64_t IoatEngine::pick_iova(uintptr_t host, size_t size) const {
  std::vector<Mapping> taken = mappings_;
  std::sort(taken.begin(), taken.end(), [](const Mapping& a, const Mapping& b) { return a.iova < b.iova; });
  const uint64_t top = (uint64_t{1} << address_bits_) - 1;
  for (const IovaRange& range : space_->usable()) {
    const uint64_t last = std::min(range.last, top);
    uint64_t iova = congruent(std::max(range.first, page), host, size);
    for (const Mapping& mapping : taken) {
      const uint64_t end = mapping.iova + mapping.size;
      if (end <= iova) continue;
      if (mapping.iova > iova && mapping.iova - iova >= size) break;
      iova = congruent((end + page - 1) & ~(page - 1), host, size);  // whole pages, an IOMMU has no smaller unit
    }
    if (iova <= last && size - 1 <= last - iova) return iova;
  }
  throw DmaError(format("%s: no room for %zu bytes within the device's %u address bits", capabilities_.name.c_str(),
                        size, unsigned{address_bits_}));
}

IoatEngine::Mapping IoatEngine::find(uintptr_t address) const noexcept {
  auto after = std::upper_bound(mappings_.begin(), mappings_.end(), address,
                                [](uintptr_t wanted, const Mapping& m) { return wanted < m.host; });
  if (after == mappings_.begin()) return {};
  return after[-1].holds(address, 1) ? after[-1] : Mapping{};
}

// --- Copies
// -----------------------------------------------------------------------------------------------------------

Refusal IoatEngine::enqueue(std::span<const Copy> copies, uint32_t cookie) noexcept {
  IoatChannel& channel = *channel_;
  if (!channel.running()) [[unlikely]]
    return Refusal::disabled;
  if (copies.empty()) [[unlikely]]
    return Refusal::address;  // its end would never be seen
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
      if (!dst_hint_.holds(dst, 1)) dst_hint_ = find(dst);
      if (!src_hint_.holds(src, 1)) src_hint_ = find(src);
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
  const Step step = space_->revoke();
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
