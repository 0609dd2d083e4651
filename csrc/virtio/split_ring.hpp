// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <atomic>

#include "base/budget.hpp"
#include "base/debug_assert.hpp"
#include "base/ring_index.hpp"
#include "base/shared_field.hpp"
#include "memory/address_space.hpp"
#include "virtio/device_ring.hpp"
#include "virtio/features.hpp"
#include "virtio/ring_layout.hpp"

namespace vhost_ioat::virtio {

/// Device side of a split virtqueue (VIRTIO 1.2, 2.7).
class SplitRing final : public DeviceRing {
 public:
  /// Where the used ring goes on is not part of the vhost-user state and is read from the ring.
  void start(const RingAddresses& at, uint32_t size, FeatureSet features, RingIndex last_avail) {
    at_ = at;
    size_ = size;
    mask_ = size - 1;
    event_idx_ = features.has(Feature::EVENT_IDX);
    indirect_ = features.has(Feature::INDIRECT_DESC);
    last_avail_ = avail_seen_ = last_avail;
    used_next_ = published_ = signalled_ = RingIndex(load_relaxed<uint16_t>(at.used_idx()));
    signalled_valid_ = false;
    fault_ = {};
  }

  RingIndex last_avail() const { return last_avail_; }
  RingIndex used_next() const { return used_next_; }
  uint16_t base() const noexcept override { return last_avail_.value(); }
  uint16_t used_base() const noexcept override { return published_.value(); }
  bool waiting() noexcept override { return look_again() != 0; }

  /// Heads made available and not consumed yet; 0 on a broken ring.
  uint16_t available() noexcept {
    if (fault_) [[unlikely]]
      return 0;
    uint16_t seen = last_avail_.distance_to(avail_seen_);
    return seen != 0 ? seen : look_again();
  }
  /// The same, but looks at the driver's index in any case. Never less than before, but for a fault.
  uint16_t look_again() noexcept {
    // Acquire pairs with the driver's release of avail->idx: the entries and descriptors it covers are visible.
    RingIndex idx(load_acquire<uint16_t>(at_.avail_idx()));
    uint16_t distance = last_avail_.distance_to(idx);
    if (distance > size_) [[unlikely]] {  // VIRTIO 1.2, 2.7.13.3
      set_fault({Fault::Kind::avail_index, distance, size_});
      return 0;
    }
    if (const uint16_t before = last_avail_.distance_to(avail_seen_); distance < before) [[unlikely]] {
      set_fault({Fault::Kind::avail_index_back, distance, before});  // VIRTIO 1.2, 2.7.6.1
      return 0;
    }
    avail_seen_ = idx;
    return distance;
  }

  /// Head of the k-th available chain; any value the driver wrote, walk() checks it.
  uint16_t head(uint32_t k) const noexcept {
    return load_relaxed<uint16_t>(at_.avail_ring((last_avail_ + k).slot(mask_)));
  }
  /// The first n of those available are taken; the caller gives them back by push_used().
  void consume(uint32_t n) noexcept {
    DEBUG_ASSERT(n, <=, last_avail_.distance_to(avail_seen_));
    last_avail_ += n;
  }

  struct Chain {
    uint16_t head;  // any value the driver wrote
  };
  class Cursor {
   public:
    bool more() const noexcept { return passed_ != end_; }
    uint32_t passed() const noexcept { return passed_; }
    /// Not of what comes after the last one: there the driver is writing, and would lose the cache line.
    void prefetch(uint32_t k) const noexcept {
      if (k < end_ - passed_) __builtin_prefetch(desc_ + (head(k) & mask_));
    }
    Chain chain() const noexcept { return {head(0)}; }
    /// Without any bytes should the head be none.
    Descriptor first(Chain chain) const noexcept {
      return chain.head <= mask_ ? read(desc_ + chain.head) : Descriptor{};
    }
    void next(Chain) noexcept { ++passed_; }

   private:
    friend SplitRing;
    uint16_t head(uint32_t k) const noexcept {
      return load_relaxed<uint16_t>(avail_ring_ + 2 * size_t{(start_ + passed_ + k) & mask_});
    }
    const Descriptor* desc_ = nullptr;
    const uint8_t* avail_ring_ = nullptr;
    uint32_t mask_ = 0, start_ = 0;  // start_: avail index of the first chain
    uint32_t passed_ = 0, end_ = 0;  // from start_
  };
  /// Over at most n chains, for which it looks again when it knows of fewer; none on a broken ring.
  Cursor cursor(uint32_t n) noexcept {
    uint32_t waiting = available();
    if (waiting < n) waiting = look_again();
    return cursor_over(std::min(n, waiting));
  }
  /// Over those it knows of.
  Cursor cursor() noexcept { return cursor_over(available()); }
  bool refresh(Cursor& at) noexcept {
    DEBUG_ASSERT(at.start_, ==, last_avail_.value());
    at.end_ = std::max<uint32_t>(look_again(), at.passed_);  // nothing more of a ring that has just broken
    return at.more();
  }

  /// Taking chains and writing their used elements (2.7.8.2), by value, so that a loop keeps it in registers.
  class Commits {
   public:
    void push(Chain chain, uint32_t written) noexcept {
      // Relaxed: publish() releases it. Two stores, since an element is aligned to 4 bytes, not to 8.
      UsedElement& element = elements_[(start_ + count_++) & mask_];
      store_relaxed<uint32_t>(&element.id, chain.head);
      store_relaxed<uint32_t>(&element.len, written);
    }

   private:
    friend SplitRing;
    UsedElement* elements_;
    uint32_t mask_, start_, count_;
  };
  Commits commits() const noexcept {
    Commits made;
    made.elements_ = at_.used_ring();
    made.mask_ = mask_;
    made.start_ = used_next_.value();
    made.count_ = 0;
    return made;
  }
  /// Takes over what was pushed; more may be pushed after that.
  void committed(Commits& made) noexcept {
    DEBUG_ASSERT(made.start_, ==, used_next_.value());
    DEBUG_ASSERT(made.count_, <=, room());
    used_next_ += made.count_;
    consume(made.count_);
    made.start_ = used_next_.value();
    made.count_ = 0;
  }
  void commit(Chain chain, uint32_t written) noexcept {
    Commits one = commits();
    one.push(chain, written);
    committed(one);
  }

  /// Walks the chain at the cursor: sink(addr, len, writable) for each descriptor of non-zero length; the walk ends
  /// early when it returns false. False is returned only for a fault, which breaks the ring.
  ///
  /// `steps` is what the caller's call may still walk (budget.hpp): one is taken for each descriptor, empty or not, and
  /// the walk ends where there are none left.
  template <typename Sink>
  bool walk(const Cursor&, Chain chain, memory::AddressSpace& memory, uint32_t& steps, Sink&& sink) noexcept {
    return walk(chain.head, memory, steps, sink);
  }
  template <typename Sink>
  bool walk(uint16_t head, memory::AddressSpace& memory, uint32_t& steps, Sink&& sink) noexcept {
    if (head >= size_) [[unlikely]]
      return fail({Fault::Kind::head, head, size_});
    Walk state{steps};
    Descriptor d = read(at_.desc + head);
    for (uint32_t left = budget::descriptors_of_chain(size_);;) {
      if (!state.step()) return true;
      if (d.flags & DESC_F_INDIRECT) return walk_indirect(d, left, state, memory, sink);
      if (!check(d, state)) return false;
      if (d.len != 0 && !sink(d.addr, d.len, (d.flags & DESC_F_WRITE) != 0)) return true;
      if (!(d.flags & DESC_F_NEXT)) return true;
      if (d.next >= size_) return fail({Fault::Kind::next, d.next, size_});
      if (--left == 0) return fail({Fault::Kind::chain_length, 0, size_});
      d = read(at_.desc + d.next);
    }
  }
  /// One chain, whatever is left of any budget: as long as a chain may be.
  template <typename Sink>
  bool walk(uint16_t head, memory::AddressSpace& memory, Sink&& sink) noexcept {
    uint32_t steps = UINT32_MAX;
    return walk(head, memory, steps, sink);
  }

  /// Writes a used element for a chain that consume() took; nobody sees it before publish().
  void push_used(uint16_t head, uint32_t len) noexcept {
    Commits one = commits();
    one.push({head}, len);
    ++used_next_;
  }
  /// Used elements that fit before those not published yet would be overwritten. An honest driver never has more
  /// buffers out than the ring has entries, so to it this is never less than available().
  uint32_t room() const noexcept { return size_ - published_.distance_to(used_next_); }

  uint32_t filled() const noexcept { return used_next_.value(); }
  uint32_t published() const noexcept { return published_.value(); }
  /// Shows the driver all used elements before `position`.
  void publish(uint32_t position) noexcept {
    // Release pairs with the driver's acquire of used->idx: elements and packet bytes come before it.
    store_release<uint16_t>(at_.used_idx(), index(position).value());
    published_by_engine(position);
  }
  Publication publication(uint32_t /*from*/, uint32_t to) const noexcept {
    return {reinterpret_cast<uint16_t*>(at_.used_idx()), index(to).value()};
  }
  void published_by_engine(uint32_t position) noexcept {
    DEBUG_ASSERT(published_.distance_to(index(position)), <=, published_.distance_to(used_next_));
    published_ = index(position);
  }

  /// VIRTIO 1.2, 2.7.7.2.
  bool should_notify() noexcept override {
    if (published_ == signalled_ && signalled_valid_) return false;
    // Full fence between the store of used->idx and the load of used_event/flags. The driver has its own between
    // storing used_event and loading used->idx; without either, both sides may look at the old value and sleep.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    RingIndex before = signalled_;
    bool first = !signalled_valid_;
    signalled_ = published_;
    signalled_valid_ = true;
    if (!event_idx_) return !(load_relaxed<uint16_t>(at_.avail_flags()) & AVAIL_F_NO_INTERRUPT);
    RingIndex event(load_relaxed<uint16_t>(at_.used_event(size_)));
    return first || need_event(event, before, published_);
  }

  /// VIRTIO 1.2, 2.7.10.
  void set_kicks(bool wanted) noexcept override {
    if (event_idx_) {
      // Without kicks the event index is left where it is: at most one kick in 65536 buffers.
      if (wanted) store_relaxed<uint16_t>(at_.avail_event(size_), last_avail_.value());
    } else {
      store_relaxed<uint16_t>(at_.used_flags(), wanted ? uint16_t{0} : USED_F_NO_NOTIFY);
    }
    // Full fence: the driver's pair stands between its store of avail->idx and its load of avail_event/flags.
    if (wanted) std::atomic_thread_fence(std::memory_order_seq_cst);
  }

 private:
  static RingIndex index(uint32_t position) noexcept { return RingIndex(static_cast<uint16_t>(position)); }
  Cursor cursor_over(uint32_t chains) const noexcept {
    Cursor at;
    at.desc_ = at_.desc;
    at.avail_ring_ = at_.avail_ring(0);
    at.mask_ = mask_;
    at.start_ = last_avail_.value();
    at.end_ = chains;
    return at;
  }
  /// Of the table, each half once.
  static Descriptor read(const Descriptor* d) noexcept {
    return unpack_descriptor(load_relaxed<uint64_t>(&d->addr), load_relaxed<uint64_t>(&d->len));
  }

  struct Walk {
    uint32_t& steps;
    uint64_t bytes = 0;
    bool writable_seen = false;

    bool step() noexcept {
      if (steps == 0) return false;
      --steps;
      return true;
    }
  };

  bool fail(Fault fault) noexcept {
    set_fault(fault);
    return false;
  }

  bool check(const Descriptor& d, Walk& state) noexcept {
    if (d.flags & DESC_F_WRITE) {
      state.writable_seen = true;
    } else if (state.writable_seen) {  // 2.7.4.2
      return fail({Fault::Kind::order, 0, 0});
    }
    state.bytes += d.len;
    if (state.bytes > uint64_t{1} << 32) return fail({Fault::Kind::chain_bytes, state.bytes, uint64_t{1} << 32});
    return true;
  }

  template <typename Sink>
  bool walk_indirect(const Descriptor& table, uint32_t most, Walk& state, memory::AddressSpace& memory,
                     Sink& sink) noexcept {
    if (!indirect_) return fail({Fault::Kind::indirect_feature, 0, 0});
    if (table.flags & DESC_F_NEXT)  // 2.7.5.3.1; WRITE on it is ignored, 2.7.5.3.2
      return fail({Fault::Kind::indirect_flags, table.flags, 0});
    if (table.len == 0 || table.len % 16 != 0 || table.len / 16 > most)
      return fail({Fault::Kind::indirect_length, table.len, 16ull * most});
    const uint32_t entries = table.len / 16;
    for (uint32_t index = 0, left = entries;;) {
      if (!state.step()) return true;
      Descriptor d;
      if (!indirect_entry(table.addr + 16ull * index, memory, d))
        return fail({Fault::Kind::unmapped, table.addr + 16ull * index, 16});
      if (d.flags & DESC_F_INDIRECT) return fail({Fault::Kind::nested_indirect, 0, 0});
      if (!check(d, state)) return false;
      if (d.len != 0 && !sink(d.addr, d.len, (d.flags & DESC_F_WRITE) != 0)) return true;
      if (!(d.flags & DESC_F_NEXT)) return true;
      if (d.next >= entries) return fail({Fault::Kind::next, d.next, entries});
      if (--left == 0) return fail({Fault::Kind::chain_length, 0, size_});
      index = d.next;
    }
  }

  /// A table may have any alignment and may lie across regions.
  static bool indirect_entry(uint64_t gpa, memory::AddressSpace& memory, Descriptor& out) noexcept {
    if (gpa > UINT64_MAX - 16) return false;
    if (const uint8_t* at = memory.translate(gpa, 16)) {
      out = unpack_descriptor(load_once_u64(at), load_once_u64(at + 8));
      return true;
    }
    memory::Piece pieces[16];
    const uint32_t n = memory.resolve(gpa, 16, pieces).pieces;
    uint64_t words[2];
    size_t filled = 0;
    for (uint32_t i = 0; i < n; ++i) {
      for (uint64_t b = 0; b < pieces[i].len; ++b)
        reinterpret_cast<uint8_t*>(words)[filled++] = *static_cast<volatile const uint8_t*>(pieces[i].host + b);
    }
    if (filled != 16) return false;
    out = unpack_descriptor(words[0], words[1]);
    return true;
  }

  RingAddresses at_;
  uint32_t mask_ = 0;
  RingIndex last_avail_;  // next head to take
  RingIndex avail_seen_;  // the driver's index when last looked at
  RingIndex used_next_;   // next used element to write
  RingIndex published_;   // used->idx
  RingIndex signalled_;   // published_ when should_notify() was last asked
  bool event_idx_ = false, indirect_ = false, signalled_valid_ = false;
};

}  // namespace vhost_ioat::virtio
