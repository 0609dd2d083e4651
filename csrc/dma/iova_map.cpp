// SPDX-License-Identifier: BSD-3-Clause
#include "dma/iova_map.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>
#include <thread>
#include <utility>

#include "base/error.hpp"

namespace vhost_ioat::dma {
/// The first piece that ends at `iova` or after it.
IovaMap::Pieces::const_iterator IovaMap::first_after(uint64_t iova) const {
  return std::lower_bound(pieces_.begin(), pieces_.end(), iova,
                          [](const Piece& piece, uint64_t address) { return piece.last() < address; });
}

IovaMap::Change::Change(IovaMap& map) : map_(map) {
  map.changing_.fetch_add(1, std::memory_order_relaxed);
  map.mutex_.lock();
  map.changing_.fetch_sub(1, std::memory_order_relaxed);
}

void IovaMap::map(uint64_t iova, void* host, uint64_t size, Rights rights, std::shared_ptr<void> owner) {
  const Change change(*this);
  const auto text = [&](const char* why) {
    return format("cannot map %llu bytes at IOVA 0x%llx: %s", static_cast<unsigned long long>(size),
                  static_cast<unsigned long long>(iova), why);
  };
  if (revoked_.load(std::memory_order_relaxed)) throw DmaError(text("the device's memory was revoked"));
  if (size == 0 || iova + (size - 1) < iova) throw DmaError(text("the range is empty or wraps"));
  const auto place = first_after(iova);
  if (place != pieces_.end() && place->iova <= iova + (size - 1))
    throw DmaError(text("it overlaps another mapping; unmap that one first"));
  check_room();
  pieces_.insert(place, Piece{iova, size, static_cast<uint8_t*>(host), rights, std::move(owner)});
}

bool IovaMap::unmap(uint64_t iova) {
  Piece dropped{};  // its owner goes after the lock
  const Change change(*this);
  const auto found = pieces_.begin() + (first_after(iova) - pieces_.cbegin());
  if (found == pieces_.end() || found->iova != iova) return false;
  dropped = std::move(*found);
  pieces_.erase(found);
  return true;
}

/// Makes `iova` a border if it lies within a piece. There is room for one more.
void IovaMap::split(uint64_t iova) noexcept {
  const auto piece = pieces_.begin() + (first_after(iova) - pieces_.cbegin());
  if (piece == pieces_.end() || piece->iova >= iova) return;
  const uint64_t before = iova - piece->iova;
  Piece rest = *piece;
  piece->size = before;
  rest.iova = iova;
  rest.size -= before;
  if (rest.host) rest.host += before;
  pieces_.insert(piece + 1, std::move(rest));
}

uint64_t IovaMap::unmap_range(uint64_t first, uint64_t last) {
  Pieces dropped;  // their owners go after the lock
  const Change change(*this);
  const auto hit = first_after(first);
  if (hit == pieces_.end() || hit->iova > last) return 0;
  if (hit->iova < first && hit->last() > last) check_room();
  if (pieces_.capacity() - pieces_.size() < 2) pieces_.reserve(2 * pieces_.size() + 2);
  split(first);
  if (last != UINT64_MAX) split(last + 1);
  const auto from = pieces_.begin() + (first_after(first) - pieces_.cbegin());
  const auto to = std::find_if(from, pieces_.end(), [last](const Piece& piece) { return piece.iova > last; });
  dropped.assign(std::move_iterator(from), std::move_iterator(to));
  pieces_.erase(from, to);
  return std::accumulate(dropped.begin(), dropped.end(), uint64_t{0},
                         [](uint64_t bytes, const Piece& piece) { return bytes + piece.size; });
}

void IovaMap::check_room() const {
  if (pieces_.size() >= max_pieces)
    throw DmaError(format("there are already %zu mappings, which is the limit", pieces_.size()));
}

bool IovaMap::holds(uint64_t first, uint64_t last) const {
  const MutexLock lock(mutex_);
  const auto found = first_after(first);
  return found != pieces_.end() && found->iova <= last;
}

Step IovaMap::revoke() noexcept {
  Pieces dropped;                                   // their owners go after the lock
  revoked_.store(true, std::memory_order_relaxed);  // no new Access reaches anything; the lock below orders the rest
  if (!mutex_.try_lock()) return Step::pending;
  dropped.swap(pieces_);
  mutex_.unlock();
  return Step::done;
}

size_t IovaMap::size() const {
  const MutexLock lock(mutex_);
  return pieces_.size();
}

IovaMap::Access::Access(IovaMap& map)
    : map_(map), held_([&map]() NO_THREAD_SAFETY_ANALYSIS {
        while (map.changing_.load(std::memory_order_relaxed) > 0) std::this_thread::yield();
        if (map.revoked_.load(std::memory_order_relaxed)) return false;
        map.mutex_.lock();
        return true;
      }()) {}

IovaMap::Access::~Access() {
  if (held_) map_.mutex_.unlock();
}

uint8_t* IovaMap::Access::at(uint64_t iova, uint64_t& len, Rights wanted, Hint& hint) const noexcept {
  if (!held_ || iova < first_reachable) return nullptr;
  const Pieces& pieces = map_.pieces_;
  if (hint.index >= pieces.size() || !pieces[hint.index].holds(iova)) {
    const auto found = map_.first_after(iova);
    if (found == pieces.end() || !found->holds(iova)) return nullptr;
    hint.index = static_cast<size_t>(found - pieces.begin());
  }
  const Piece& piece = pieces[hint.index];
  if (!allow(piece.rights, wanted)) return nullptr;
  len = std::min(len, piece.size - (iova - piece.iova));
  return piece.host + (iova - piece.iova);
}

bool IovaMap::Access::read(uint64_t iova, void* to, uint64_t len, Hint& hint) const noexcept {
  auto* out = static_cast<uint8_t*>(to);
  while (len > 0) {
    uint64_t part = len;
    const uint8_t* from = at(iova, part, Rights::read, hint);
    if (!from) return false;
    std::memcpy(out, from, part);
    out += part;
    iova += part;  // wraps to 0 at the very end of the address space, which is unmapped
    len -= part;
  }
  return true;
}

}  // namespace vhost_ioat::dma
