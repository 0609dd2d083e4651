// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstring>
#include <string>

#include "base/budget.hpp"
#include "base/ring_index.hpp"
#include "memory/region_table.hpp"
#include "virtio/features.hpp"
#include "virtio/spec.hpp"

namespace vhost_ioat::virtio {

/// What a driver did wrong. Kept as numbers, so that the data path neither allocates nor formats; text() does.
struct Fault {
  enum class Kind : uint8_t {
    none,
    avail_index,       // value: distance, limit: ring size
    avail_index_back,  // value: distance, limit: the distance it had before
    head,              // value: head, limit: ring size
    next,              // value: next, limit: table size
    chain_length,      // limit: ring size
    chain_bytes,       // value: bytes
    order,             // a readable descriptor behind a writable one
    direction,         // value: head
    indirect_feature,  // used without being negotiated
    indirect_flags,    // value: flags
    indirect_length,   // value: bytes, limit: ring size * 16
    nested_indirect,
    unmapped,  // value: address, limit: length
    memory_torn,
    walk,  // value: descriptors looked at, limit: bytes looked for
  };
  Kind kind = Kind::none;
  uint64_t value = 0, limit = 0;

  explicit operator bool() const { return kind != Kind::none; }
  std::string text() const;
};

/// Loads that happen exactly once, whatever the other side does meanwhile: the compiler may not read again.
/// For addresses that need not be aligned (indirect tables, headers).
inline uint64_t load_once_u64(const void* p) {
  struct [[gnu::packed, gnu::may_alias]] Raw {
    uint64_t v;
  };
  return static_cast<const volatile Raw*>(p)->v;
}
inline uint16_t load_once_u16(const void* p) {
  struct [[gnu::packed, gnu::may_alias]] Raw {
    uint16_t v;
  };
  return static_cast<const volatile Raw*>(p)->v;
}

/// Device side of a split virtqueue (VIRTIO 1.2, 2.7).
///
/// One thread at a time. A fault is sticky: the ring is broken until start() is called again. Taking heads is split in
/// look (available, head) and take (consume), so that a caller who finds too few buffers has changed nothing.
class SplitRing {
 public:
  /// `used_idx`: where the used ring goes on; it is not part of the vhost-user state and is read from the ring.
  void start(RingAddresses at, uint32_t size, FeatureSet features, RingIndex last_avail) {
    desc_ = at.desc;
    avail_ = at.avail;
    used_ = at.used;
    size_ = size;
    mask_ = size - 1;
    event_idx_ = features.has(Feature::EVENT_IDX);
    indirect_ = features.has(Feature::INDIRECT_DESC);
    last_avail_ = avail_seen_ = last_avail;
    used_next_ = published_ = signalled_ = RingIndex(load_relaxed<uint16_t>(used_ + 2));
    signalled_valid_ = false;
    fault_ = {};
  }

  uint32_t size() const { return size_; }
  RingIndex last_avail() const { return last_avail_; }
  RingIndex used_next() const { return used_next_; }
  RingIndex published() const { return published_; }
  bool event_idx() const { return event_idx_; }
  const Fault& fault() const { return fault_; }
  void set_fault(Fault fault) {
    if (!fault_) fault_ = fault;
  }

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
    RingIndex idx(load_acquire<uint16_t>(avail_ + 2));
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
    return load_relaxed<uint16_t>(avail_ + 4 + 2 * size_t{(last_avail_ + k).slot(mask_)});
  }
  void consume(uint32_t n) noexcept { last_avail_ += n; }

  struct Entry {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
  };
  static Entry unpack(uint64_t addr, uint64_t rest) {
    return {addr, static_cast<uint32_t>(rest), static_cast<uint16_t>(rest >> 32), static_cast<uint16_t>(rest >> 48)};
  }
  /// Reads a descriptor of the table, each field once. index < size().
  Entry descriptor(uint32_t index) const noexcept {
    const Descriptor* d = desc_ + index;
    return unpack(load_relaxed<uint64_t>(&d->addr), load_relaxed<uint64_t>(&d->len));
  }

  /// Reading heads and descriptors of many chains: the same as head() and descriptor(), but by value, so that a loop
  /// that stores elsewhere keeps it in registers.
  struct Reader {
    const Descriptor* desc;
    const uint8_t* avail;
    uint32_t size;
    uint32_t next;  // avail slot, not masked

    uint16_t head(uint32_t k) const noexcept {
      return load_relaxed<uint16_t>(avail + 4 + 2 * size_t{(next + k) & (size - 1)});
    }
    void prefetch(uint16_t head) const noexcept { __builtin_prefetch(desc + (head & (size - 1))); }
    /// head < size
    Entry descriptor(uint16_t head) const noexcept {
      return unpack(load_relaxed<uint64_t>(&desc[head].addr), load_relaxed<uint64_t>(&desc[head].len));
    }
  };
  Reader reader() const noexcept { return {desc_, avail_, size_, last_avail_.value()}; }

  /// Writing used elements of many chains, by value; pushed() takes over what it has done.
  struct Writer {
    UsedElement* elements;
    uint32_t mask;
    uint32_t next;  // free running

    void push(uint16_t head, uint32_t len) noexcept {
      // Relaxed: publish() releases it. Two stores, since an element is aligned to 4 bytes, not to 8.
      UsedElement& element = elements[next++ & mask];
      store_relaxed<uint32_t>(&element.id, head);
      store_relaxed<uint32_t>(&element.len, len);
    }
  };
  Writer writer() const noexcept { return {reinterpret_cast<UsedElement*>(used_ + 4), mask_, used_next_.value()}; }
  void pushed(const Writer& writer) noexcept { used_next_ = RingIndex(static_cast<uint16_t>(writer.next)); }

  /// Walks the chain that starts at `head`: sink(addr, len, writable) for each descriptor of non-zero length; the walk
  /// ends early when it returns false. False is returned only for a fault, which breaks the ring.
  ///
  /// `steps` is what the caller's call may still walk (budget.hpp): one is taken for each descriptor, empty or not, and
  /// the walk ends where there are none left.
  template <typename Sink>
  bool walk(uint16_t head, const memory::RegionTable& memory, const memory::Region*& hint, uint32_t& steps,
            Sink&& sink) noexcept {
    if (head >= size_) [[unlikely]]
      return fail({Fault::Kind::head, head, size_});
    Walk state{steps};
    Entry d = descriptor(head);
    for (uint32_t left = budget::descriptors_of_chain(size_);;) {
      if (!state.step()) return true;
      if (d.flags & DESC_F_INDIRECT) return walk_indirect(d, left, state, memory, hint, sink);
      if (!check(d, state)) return false;
      if (d.len != 0 && !sink(d.addr, d.len, (d.flags & DESC_F_WRITE) != 0)) return true;
      if (!(d.flags & DESC_F_NEXT)) return true;
      if (d.next >= size_) return fail({Fault::Kind::next, d.next, size_});
      if (--left == 0) return fail({Fault::Kind::chain_length, 0, size_});
      d = descriptor(d.next);
    }
  }
  /// One chain, whatever is left of any budget: as long as a chain may be.
  template <typename Sink>
  bool walk(uint16_t head, const memory::RegionTable& memory, const memory::Region*& hint, Sink&& sink) noexcept {
    uint32_t steps = UINT32_MAX;
    return walk(head, memory, hint, steps, sink);
  }

  /// Writes a used element; nobody sees it before publish(). VIRTIO 1.2, 2.7.8.2.
  void push_used(uint16_t head, uint32_t len) noexcept {
    Writer one = writer();
    one.push(head, len);
    pushed(one);
  }
  /// Used elements that fit before those not published yet would be overwritten. An honest driver never has more
  /// buffers out than the ring has entries, so to it this is never less than available().
  uint32_t used_room() const noexcept { return size_ - published_.distance_to(used_next_); }

  /// Shows the driver all used elements before `index`.
  void publish(RingIndex index) noexcept {
    // Release pairs with the driver's acquire of used->idx: elements and packet bytes come before it.
    store_release<uint16_t>(used_ + 2, index.value());
    published_ = index;
  }
  /// The same when the engine has written used->idx itself.
  void published_by_engine(RingIndex index) noexcept { published_ = index; }
  uint16_t* used_index_field() const noexcept { return reinterpret_cast<uint16_t*>(used_ + 2); }

  /// Has the driver asked to be told of what was published since the last question? VIRTIO 1.2, 2.7.7.2.
  bool should_notify() noexcept {
    if (published_ == signalled_ && signalled_valid_) return false;
    // Full fence between the store of used->idx and the load of used_event/flags. The driver has its own between
    // storing used_event and loading used->idx; without either, both sides may look at the old value and sleep.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    RingIndex before = signalled_;
    bool first = !signalled_valid_;
    signalled_ = published_;
    signalled_valid_ = true;
    if (!event_idx_) return !(load_relaxed<uint16_t>(avail_) & AVAIL_F_NO_INTERRUPT);
    RingIndex event(load_relaxed<uint16_t>(avail_ + 4 + 2 * size_t{size_}));
    return first || need_event(event, before, published_);
  }

  /// Asks the driver to kick (or not to) when it makes buffers available. After enabling, look_again() tells whether
  /// some came in between. VIRTIO 1.2, 2.7.10.
  void set_kicks(bool wanted) noexcept {
    if (event_idx_) {
      // Without kicks the event index is left where it is: at most one kick in 65536 buffers.
      if (wanted) store_relaxed<uint16_t>(used_ + 4 + 8 * size_t{size_}, last_avail_.value());
    } else {
      store_relaxed<uint16_t>(used_, wanted ? uint16_t{0} : USED_F_NO_NOTIFY);
    }
    // Full fence: the driver's pair stands between its store of avail->idx and its load of avail_event/flags.
    if (wanted) std::atomic_thread_fence(std::memory_order_seq_cst);
  }

 private:
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

  bool check(const Entry& d, Walk& state) noexcept {
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
  bool walk_indirect(const Entry& table, uint32_t most, Walk& state, const memory::RegionTable& memory,
                     const memory::Region*& hint, Sink& sink) noexcept {
    if (!indirect_) return fail({Fault::Kind::indirect_feature, 0, 0});
    if (table.flags & DESC_F_NEXT)  // 2.7.5.3.1; WRITE on it is ignored, 2.7.5.3.2
      return fail({Fault::Kind::indirect_flags, table.flags, 0});
    if (table.len == 0 || table.len % 16 != 0 || table.len / 16 > most)
      return fail({Fault::Kind::indirect_length, table.len, 16ull * most});
    const uint32_t entries = table.len / 16;
    for (uint32_t index = 0, left = entries;;) {
      if (!state.step()) return true;
      Entry d;
      if (!indirect_entry(table.addr + 16ull * index, memory, hint, d))
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
  static bool indirect_entry(uint64_t gpa, const memory::RegionTable& memory, const memory::Region*& hint,
                             Entry& out) noexcept {
    if (gpa > UINT64_MAX - 16) return false;
    if (const uint8_t* at = memory.translate(gpa, 16, hint)) {
      out = unpack(load_once_u64(at), load_once_u64(at + 8));
      return true;
    }
    memory::Piece pieces[16];
    size_t n = memory.pieces(gpa, 16, pieces);
    uint64_t words[2];
    size_t filled = 0;
    for (size_t i = 0; i < n; ++i) {
      for (uint64_t b = 0; b < pieces[i].len; ++b)
        reinterpret_cast<uint8_t*>(words)[filled++] = *static_cast<volatile const uint8_t*>(pieces[i].host + b);
    }
    if (filled != 16) return false;
    out = unpack(words[0], words[1]);
    return true;
  }

  Descriptor* desc_ = nullptr;
  uint8_t* avail_ = nullptr;
  uint8_t* used_ = nullptr;
  uint32_t size_ = 0, mask_ = 0;
  RingIndex last_avail_;  // next head to take
  RingIndex avail_seen_;  // the driver's index when last looked at
  RingIndex used_next_;   // next used element to write
  RingIndex published_;   // used->idx
  RingIndex signalled_;   // published_ when should_notify() was last asked
  bool event_idx_ = false, indirect_ = false, signalled_valid_ = false;
  Fault fault_;
};

}  // namespace vhost_ioat::virtio
