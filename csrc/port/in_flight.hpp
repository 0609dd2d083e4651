// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/copy.hpp"
#include "base/debug_assert.hpp"
#include "dma/engine.hpp"
#include "memory/packet_arena.hpp"

namespace vhost_ioat::port {

/// What a queue has committed to its ring but not shown to the guest yet, in ring order.
///
/// The order of packets is kept here and nowhere else: an entry is finished when the engine has completed its last
/// copy, and only a finished prefix is taken out and published. So copies may complete in any order.
class InFlightList {
 public:
  struct Entry {
    uint32_t end = 0;          // position in the ring after this entry (virtio/device_ring.hpp)
    bool pending = false;      // the engine works on it
    bool failed = false;       // the engine has given it back: the CPU copies it again
    bool publication = false;  // the engine shows the guest what ends here (publish=dma); no packets
    uint32_t first_copy = 0, copies = 0;
    uint32_t packets = 0;
    uint64_t bytes = 0;
    memory::Block block;  // what the copies read; held by the last packet of a burst for all of it
  };

  /// At most `entries` at once (rounded up to a power of two), with `copies` copies in all.
  void resize(uint32_t entries, uint32_t copies) {
    entries_ = std::vector<Entry>(std::bit_ceil(entries));
    copies_.resize(std::bit_ceil(copies));
    first_ = last_ = first_copy_ = last_copy_ = 0;
  }

  bool empty() const { return first_ == last_; }
  uint32_t size() const { return last_ - first_; }
  bool full() const { return size() == entries_.size(); }
  bool has_room_for(uint32_t copies) const { return last_copy_ - first_copy_ + copies <= copies_.size(); }

  Entry& front() { return entries_[first_ & mask()]; }
  Entry& back() { return entries_[(last_ - 1) & mask()]; }
  /// The cookie the next push() will have.
  uint32_t next_cookie() const { return last_ & mask(); }
  Entry& by_cookie(uint32_t cookie) { return entries_[cookie & mask()]; }

  Entry& push(uint32_t end, std::span<const dma::Copy> copies) {
    DEBUG_ASSERT(size(), <, entries_.size());
    DEBUG_ASSERT(last_copy_ - first_copy_ + copies.size(), <=, copies_.size());
    Entry& entry = entries_[last_++ & mask()];
    entry.end = end;
    entry.pending = !copies.empty();
    entry.failed = entry.publication = false;
    entry.first_copy = last_copy_;
    entry.copies = static_cast<uint32_t>(copies.size());
    entry.packets = 0;
    entry.bytes = 0;
    for (const dma::Copy& copy : copies) copies_[last_copy_++ & (copies_.size() - 1)] = copy;
    return entry;
  }
  void pop() {
    Entry& entry = front();
    DEBUG_ASSERT(entry.pending, ==, false);
    first_copy_ = entry.first_copy + entry.copies;
    entry.block.reset();
    ++first_;
  }
  /// Forgets everything; the blocks that copies may still read stay taken for ever.
  void abandon() noexcept {
    for (; !empty(); ++first_) front().block.leak();
    first_ = last_ = first_copy_ = last_copy_ = 0;
  }
  /// Makes the copies of an entry that the engine has given back.
  void copy_by_cpu(const Entry& entry) const {
    for (uint32_t i = 0; i < entry.copies; ++i) {
      const dma::Copy& copy = copies_[(entry.first_copy + i) & (copies_.size() - 1)];
      std::memcpy(copy.dst, copy.src, copy.len);
    }
  }

 private:
  uint32_t mask() const { return static_cast<uint32_t>(entries_.size()) - 1; }
  std::vector<Entry> entries_;
  std::vector<dma::Copy> copies_;
  uint32_t first_ = 0, last_ = 0;  // free running
  uint32_t first_copy_ = 0, last_copy_ = 0;
};

}  // namespace vhost_ioat::port
