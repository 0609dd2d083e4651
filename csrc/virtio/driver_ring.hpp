// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/ring_index.hpp"
#include "base/shared_field.hpp"
#include "virtio/features.hpp"
#include "virtio/ring_layout.hpp"

namespace vhost_ioat::virtio {

/// A buffer as a driver names it: guest-physical.
struct Segment {
  uint64_t addr;
  uint32_t len;
};

/// What a device did wrong. Kept as numbers, so that the data path neither allocates nor formats; text() does.
struct DeviceFault {
  enum class Kind : uint8_t {
    none,
    used_index,  // value: distance, limit: chains in flight
    head,        // value: id, limit: ring size
    not_given,   // value: id
    length,      // value: bytes, limit: writable bytes of the chain
    order,       // value: id; IN_ORDER, but it is not among the oldest
  };
  Kind kind = Kind::none;
  uint32_t value = 0, limit = 0;

  explicit operator bool() const { return kind != Kind::none; }
  std::string text() const;
};

/// Memory for indirect tables: `entries` descriptors for each head, one table behind the other.
struct IndirectTables {
  Descriptor* host = nullptr;
  uint64_t gpa = 0;
  uint32_t entries = 0;
};

/// Driver side of a split virtqueue (VIRTIO 1.2, 2.7). One thread at a time.
///
/// What it must know again later (free descriptors, chains in flight) it keeps apart from the ring, which the device
/// can write: of shared memory it reads the used ring only, and believes no more of it than it has checked. A fault of
/// the device is sticky until start().
///
/// Free descriptors go round first in, first out. With a device that works in order, that is the ring order which
/// IN_ORDER asks for (2.7.9).
class DriverRing {
 public:
  struct Used {
    uint16_t head;
    uint32_t len;  // bytes written, at most the writable bytes of the chain
  };

  /// A ring without chains, whose indices begin at `index`. Writes the headers of both rings; the device must not run.
  void start(RingAddresses at, uint32_t size, FeatureSet features, RingIndex index = {}, IndirectTables tables = {});

  uint32_t size() const { return size_; }
  uint32_t free_descriptors() const { return free_; }
  /// Chains added and not taken back.
  uint16_t in_flight() const { return last_used_.distance_to(avail_next_); }
  RingIndex avail_next() const { return avail_next_; }
  RingIndex last_used() const { return last_used_; }
  const DeviceFault& fault() const { return fault_; }

  /// Puts a chain into the ring; publish() shows it. Nothing when the ring has too few free descriptors, or when there
  /// are no segments.
  std::optional<uint16_t> add(std::span<const Segment> readable, std::span<const Segment> writable) noexcept {
    const size_t needed = readable.size() + writable.size();
    if (needed == 0 || needed > free_) return std::nullopt;
    const uint16_t head = first_free_;
    uint16_t last = head;
    const uint32_t bytes = lay_out(readable, writable, [&](uint64_t addr, uint32_t len, uint16_t flags) {
      last = first_free_;
      first_free_ = next_[last];
      write(at_.desc[last], addr, len, flags, first_free_);
    });
    make_available(head, last, static_cast<uint32_t>(needed), bytes);
    return head;
  }
  /// The same with a table in memory of its own, which costs one descriptor of the ring (2.7.5.3).
  std::optional<uint16_t> add_indirect(std::span<const Segment> readable, std::span<const Segment> writable) noexcept {
    const size_t needed = readable.size() + writable.size();
    // A chain is no longer than the ring, in a table either (2.7.5.3.1).
    if (needed == 0 || needed > tables_.entries || needed > size_ || free_ == 0) return std::nullopt;
    const uint16_t head = first_free_;
    first_free_ = next_[head];
    const size_t table = size_t{head} * tables_.entries;
    uint16_t entry = 0;
    const uint32_t bytes = lay_out(readable, writable, [&](uint64_t addr, uint32_t len, uint16_t flags) {
      Descriptor& d = tables_.host[table + entry];
      write(d, addr, len, flags, ++entry);
    });
    write(at_.desc[head], tables_.gpa + table * sizeof(Descriptor), static_cast<uint32_t>(needed * sizeof(Descriptor)),
          DESC_F_INDIRECT, 0);
    make_available(head, head, 1, bytes);
    return head;
  }

  /// Shows the device what was added. True: it wants a kick (2.7.13.4.1).
  bool publish() noexcept {
    if (shown_ == avail_next_) return false;
    const RingIndex before = shown_;
    shown_ = avail_next_;
    // Release pairs with the device's acquire of avail->idx: entries, descriptors and buffers come before it.
    store_release<uint16_t>(at_.avail_idx(), shown_.value());
    // Full fence between the store of avail->idx and the load of avail_event/flags. The device has its own between
    // storing avail_event and loading avail->idx; without either, it sleeps on buffers that nobody kicks for.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (!event_idx_) return !(load_relaxed<uint16_t>(at_.used_flags()) & USED_F_NO_NOTIFY);
    return need_event(RingIndex(load_relaxed<uint16_t>(at_.avail_event(size_))), before, shown_);
  }

  /// Takes back the next chain the device is done with.
  std::optional<Used> take_used() noexcept {
    if (last_used_ == used_seen_ && !look_again()) return std::nullopt;
    if (in_order_) return take_in_order();
    const auto [id, len] = used_element();
    if (!given(id)) [[unlikely]]
      return std::nullopt;
    return give_back(static_cast<uint16_t>(id), len);
  }

  /// Asks the device to signal (or not to) when it returns chains. True: some wait already, and for those no signal may
  /// come. With EVENT_IDX the wish is for one signal, and off means: at most one in 65536 chains (2.7.7.1).
  bool set_interrupts(bool wanted) noexcept {
    if (event_idx_) {
      if (wanted) store_relaxed<uint16_t>(at_.used_event(size_), last_used_.value());
    } else {
      store_relaxed<uint16_t>(at_.avail_flags(), wanted ? uint16_t{0} : AVAIL_F_NO_INTERRUPT);
    }
    if (!wanted) return false;
    // Full fence: the device's pair stands between its store of used->idx and its load of used_event/flags.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return last_used_ != used_seen_ || look_again();
  }

 private:
  struct Chain {
    uint32_t writable = 0;     // bytes
    uint16_t descriptors = 0;  // of the ring; 0: not in flight
    uint16_t last = 0;
    RingIndex index;  // in the avail ring
  };

  static void write(Descriptor& d, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next) noexcept {
    // Relaxed: publish() releases them.
    store_relaxed<uint64_t>(&d.addr, addr);
    store_relaxed<uint64_t>(&d.len, pack_descriptor(len, flags, next));
  }

  /// Calls place(addr, len, flags) for each segment; returns how many bytes of them are writable.
  template <typename Place>
  static uint32_t lay_out(std::span<const Segment> readable, std::span<const Segment> writable,
                          Place&& place) noexcept {
    uint32_t bytes = 0;
    size_t left = readable.size() + writable.size();
    auto next_flag = [&] { return --left != 0 ? DESC_F_NEXT : uint16_t{0}; };
    for (const Segment& s : readable) place(s.addr, s.len, next_flag());
    for (const Segment& s : writable) {
      place(s.addr, s.len, static_cast<uint16_t>(next_flag() | DESC_F_WRITE));
      bytes += s.len;
    }
    return bytes;
  }

  void make_available(uint16_t head, uint16_t last, uint32_t descriptors, uint32_t writable) noexcept {
    free_ -= descriptors;
    chains_[head] = {writable, static_cast<uint16_t>(descriptors), last, avail_next_};
    heads_[avail_next_.slot(mask_)] = head;
    store_relaxed<uint16_t>(at_.avail_ring(avail_next_.slot(mask_)), head);
    ++avail_next_;
  }

  bool fail(DeviceFault::Kind kind, uint32_t value, uint32_t limit) noexcept {
    fault_ = {kind, value, limit};
    used_seen_ = last_used_;
    return false;
  }

  bool look_again() noexcept {
    if (fault_) [[unlikely]]
      return false;
    // Acquire pairs with the device's release of used->idx: elements and buffers come before it.
    const RingIndex idx(load_acquire<uint16_t>(at_.used_idx()));
    const uint16_t distance = last_used_.distance_to(idx);
    const uint16_t given_out = last_used_.distance_to(shown_);
    if (distance > given_out) [[unlikely]]
      return fail(DeviceFault::Kind::used_index, distance, given_out);
    used_seen_ = idx;
    return distance != 0;
  }

  UsedElement used_element() const noexcept {
    // Two loads: an element is aligned to 4 bytes, not to 8.
    const UsedElement* element = at_.used_ring() + last_used_.slot(mask_);
    return {load_relaxed<uint32_t>(&element->id), load_relaxed<uint32_t>(&element->len)};
  }

  bool given(uint32_t id) noexcept {
    if (id >= size_) [[unlikely]]
      return fail(DeviceFault::Kind::head, id, size_);
    const bool shown = shown_.distance_to(chains_[id].index) >= shown_.distance_to(avail_next_);
    if (chains_[id].descriptors == 0 || !shown) [[unlikely]]
      return fail(DeviceFault::Kind::not_given, id, 0);
    return true;
  }

  std::optional<Used> give_back(uint16_t head, uint32_t len) noexcept {
    Chain& chain = chains_[head];
    if (len > chain.writable) [[unlikely]] {
      fail(DeviceFault::Kind::length, len, chain.writable);
      return std::nullopt;
    }
    if (free_ == 0) {
      first_free_ = head;
    } else {
      next_[last_free_] = head;
    }
    last_free_ = chain.last;
    free_ += chain.descriptors;
    chain.descriptors = 0;
    ++last_used_;
    return Used{head, len};
  }

  /// One element may speak for all the chains up to its own; those before it were used to the full (2.7.9).
  std::optional<Used> take_in_order() noexcept {
    if (!in_batch_) {
      const auto [id, len] = used_element();
      if (!given(id)) [[unlikely]]
        return std::nullopt;
      if (last_used_.distance_to(chains_[id].index) >= last_used_.distance_to(used_seen_)) [[unlikely]] {
        fail(DeviceFault::Kind::order, id, 0);
        return std::nullopt;
      }
      batch_last_ = chains_[id].index;
      batch_len_ = len;
    }
    const uint16_t head = heads_[last_used_.slot(mask_)];
    in_batch_ = last_used_ != batch_last_;
    return give_back(head, in_batch_ ? chains_[head].writable : batch_len_);
  }

  RingAddresses at_;
  uint32_t size_ = 0, mask_ = 0;
  IndirectTables tables_;
  bool event_idx_ = false, in_order_ = false;
  RingIndex avail_next_;  // next avail entry to write
  RingIndex shown_;       // avail->idx
  RingIndex used_seen_;   // the device's index when last looked at
  RingIndex last_used_;   // next used element to take
  uint32_t free_ = 0;     // descriptors, in a list through next_
  uint16_t first_free_ = 0, last_free_ = 0;
  bool in_batch_ = false;  // IN_ORDER: up to batch_last_ without looking at elements
  RingIndex batch_last_;
  uint32_t batch_len_ = 0;
  std::vector<uint16_t> next_;   // by descriptor: the one behind it in its chain or in the free list
  std::vector<Chain> chains_;    // by head
  std::vector<uint16_t> heads_;  // by avail slot
  DeviceFault fault_;
};

}  // namespace vhost_ioat::virtio
