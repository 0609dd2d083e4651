// SPDX-License-Identifier: BSD-3-Clause
#include "dma/iova_map.hpp"

#include <algorithm>
#include <cstring>
#include <thread>

#include "base/error.hpp"

namespace vhost_ioat::dma {
namespace {

const auto starts_before = [](const auto& piece, uint64_t iova) { return piece.iova < iova; };

}  // namespace

/// A busy device takes the lock again and again, and a plain mutex would let it win every time.
std::unique_lock<std::mutex> IovaMap::lock_for_change() {
  changing_.fetch_add(1, std::memory_order_relaxed);
  std::unique_lock lock(mutex_);
  changing_.fetch_sub(1, std::memory_order_relaxed);
  return lock;
}

void IovaMap::map(uint64_t iova, void* host, uint64_t size) {
  const auto lock = lock_for_change();
  const auto text = [&](const char* why) {
    return format("cannot map %llu bytes at IOVA 0x%llx: %s", static_cast<unsigned long long>(size),
                  static_cast<unsigned long long>(iova), why);
  };
  if (revoked_.load(std::memory_order_relaxed)) throw DmaError(text("the device's memory was revoked"));
  if (size == 0 || iova + (size - 1) < iova) throw DmaError(text("the range is empty or wraps"));
  const auto place = std::lower_bound(pieces_.begin(), pieces_.end(), iova, starts_before);
  const bool overlaps =
      (place != pieces_.end() && place->iova - iova < size) || (place != pieces_.begin() && place[-1].holds(iova));
  if (overlaps) throw DmaError(text("it overlaps another mapping; unmap that first"));
  pieces_.insert(place, Piece{iova, size, static_cast<uint8_t*>(host)});
}

bool IovaMap::unmap(uint64_t iova) {
  const auto lock = lock_for_change();
  const auto found = std::lower_bound(pieces_.begin(), pieces_.end(), iova, starts_before);
  if (found == pieces_.end() || found->iova != iova) return false;
  pieces_.erase(found);
  return true;
}

size_t IovaMap::unmap_range(uint64_t iova, uint64_t size) {
  const auto lock = lock_for_change();
  return std::erase_if(pieces_, [&](const Piece& piece) {
    return piece.iova >= iova && piece.iova - iova < size && piece.size <= size - (piece.iova - iova);
  });
}

Step IovaMap::revoke() noexcept {
  revoked_.store(true, std::memory_order_relaxed);  // no new Access reaches anything; the lock below orders the rest
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return Step::pending;
  pieces_.clear();
  return Step::done;
}

size_t IovaMap::size() const {
  const std::lock_guard lock(mutex_);
  return pieces_.size();
}

IovaMap::Access::Access(IovaMap& map) : map_(map), lock_(map.mutex_, std::defer_lock) {
  while (map.changing_.load(std::memory_order_relaxed) > 0) std::this_thread::yield();
  if (!map.revoked_.load(std::memory_order_relaxed)) lock_.lock();
}

uint8_t* IovaMap::Access::at(uint64_t iova, uint64_t& len, Hint& hint) const noexcept {
  if (!lock_ || iova < first_reachable) return nullptr;
  const std::vector<Piece>& pieces = map_.pieces_;
  if (hint.index >= pieces.size() || !pieces[hint.index].holds(iova)) {
    const auto after = std::upper_bound(pieces.begin(), pieces.end(), iova,
                                        [](uint64_t address, const Piece& piece) { return address < piece.iova; });
    if (after == pieces.begin() || !after[-1].holds(iova)) return nullptr;
    hint.index = static_cast<size_t>(after - pieces.begin()) - 1;
  }
  const Piece& piece = pieces[hint.index];
  len = std::min(len, piece.size - (iova - piece.iova));
  return piece.host + (iova - piece.iova);
}

bool IovaMap::Access::read(uint64_t iova, void* to, uint64_t len, Hint& hint) const noexcept {
  auto* out = static_cast<uint8_t*>(to);
  while (len > 0) {
    uint64_t part = len;
    const uint8_t* from = at(iova, part, hint);
    if (!from) return false;
    std::memcpy(out, from, part);
    out += part;
    iova += part;  // wraps to 0 at the very end of the address space, which is unmapped
    len -= part;
  }
  return true;
}

}  // namespace vhost_ioat::dma
