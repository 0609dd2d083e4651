// SPDX-License-Identifier: BSD-3-Clause
#include "dma/domain.hpp"

#include <algorithm>
#include <exception>

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

Domain::Domain(std::shared_ptr<DmaSpace> space, std::string name, uint8_t address_bits)
    : space_(std::move(space)), name_(std::move(name)), address_bits_(address_bits) {}

/// The first entry at or after this address.
Domain::Table::iterator Domain::place_of(uintptr_t host) {
  return std::ranges::lower_bound(table_, host, {}, &Entry::host);
}

uint64_t Domain::map(void* host, size_t size) {
  const MutexLock slow(space_mutex_);
  if (revoked_) throw DmaError(name_ + ": its access to memory was revoked");
  const uintptr_t address = address_of(host);
  uint64_t iova = 0;
  {
    const MutexLock lock(table_mutex_);
    const auto place = place_of(address);
    if (place != table_.end() && place->host == address && place->size == size) {
      ++place->users;
      return place->iova;
    }
    const bool overlaps = (place != table_.end() && place->host - address < size) ||
                          (place != table_.begin() && address - place[-1].host < place[-1].size);
    if (size == 0 || overlaps) {
      throw DmaError(
          format("%s: %zu bytes at %p are empty, or overlap memory that is already mapped", name_.c_str(), size, host));
    }
    iova = pick_iova(address, size);
    Entry entry;
    entry.host = address, entry.size = size, entry.iova = iova;
    table_.insert(place, entry);  // so that nothing can fail once the device has the memory
  }
  try {
    space_->map(iova, host, size);
  } catch (...) {
    forget(address);
    throw;
  }
  const MutexLock lock(table_mutex_);
  place_of(address)->settled = true;
  return iova;
}

void Domain::unmap(void* host) {
  const MutexLock slow(space_mutex_);
  const uintptr_t address = address_of(host);
  Mapping mapping;
  {
    const MutexLock lock(table_mutex_);
    const auto found = place_of(address);
    if (found == table_.end() || found->host != address)
      throw DmaError(format("%s: %p is not mapped", name_.c_str(), host));
    if (--found->users != 0) return;
    found->settled = false;  // nobody finds it from here on
    mapping = *found;
    unmappings_.fetch_add(1, std::memory_order_relaxed);
  }
  try {
    if (!revoked_) space_->unmap(mapping.iova, mapping.size);
  } catch (...) {
    forget(address);
    throw;
  }
  forget(address);
}

void Domain::clear() noexcept {
  const MutexLock slow(space_mutex_);
  const MutexLock lock(table_mutex_);
  for (const Entry& entry : table_) {
    try {
      if (!revoked_) space_->unmap(entry.iova, entry.size);
    } catch (const std::exception&) {  // the space undoes what is left when it goes
    }
  }
  table_.clear();
  unmappings_.fetch_add(1, std::memory_order_relaxed);
}

void Domain::forget(uintptr_t host) noexcept {
  const MutexLock lock(table_mutex_);
  table_.erase(place_of(host));
}

/// First fit, so that thousands of reconnects do not use up the 46 bits of a 3.2 channel.
uint64_t Domain::pick_iova(uintptr_t host, size_t size) {
  Table taken = table_;
  std::ranges::sort(taken, {}, &Entry::iova);
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
  throw DmaError(format("%s: no room for %zu bytes within the device's %u address bits", name_.c_str(), size,
                        unsigned{address_bits_}));
}

Mapping Domain::find(uintptr_t address) const noexcept {
  if (!table_mutex_.try_lock()) return {};  // a thread that changes it may have no CPU, and nobody waits here
  Mapping found;
  const auto after = std::ranges::upper_bound(table_, address, {}, &Entry::host);
  if (after != table_.begin() && after[-1].settled && after[-1].holds(address, 1)) found = after[-1];
  table_mutex_.unlock();
  return found;
}

Step Domain::revoke() noexcept {
  if (!space_mutex_.try_lock()) return Step::pending;  // memory is being pinned
  if (!revoked_) {
    const Step step = space_->revoke();
    if (step != Step::done) {
      space_mutex_.unlock();
      return step;
    }
    revoked_ = true;
  }
  space_mutex_.unlock();
  return Step::done;
}

}  // namespace vhost_ioat::dma
