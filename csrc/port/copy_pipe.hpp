// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "dma/engine.hpp"
#include "memory/packet_arena.hpp"
#include "port/counters.hpp"
#include "port/in_flight.hpp"
#include "virtio/device_ring.hpp"

namespace vhost_ioat::port {

enum class Publish : uint8_t { cpu, dma };

/// The copies of a queue's packets: made by the CPU at once, or by an engine sooner or later, and shown in order.
///
/// The queue commits chains to its ring and books the packets in them here. What nothing is in flight before is ready
/// at once; everything else waits in the list until the engine has completed what is before it. Only what is ready is
/// published: by the CPU, or by the engine itself (publish=dma), as long as which the CPU leaves the index alone.
///
/// Whoever owns the queue calls it, but for what any thread may read.
class CopyPipe {
 public:
  CopyPipe(QueueCounters& packets, CopyCounters& counters) : packets_(packets), counters_(counters) {}

  // ---- control path: queue held
  /// `slots`: two bytes for each cookie, for what the engine stores to publish.
  void set_engine(std::shared_ptr<dma::DmaEngine> engine, uint32_t threshold, Publish publish, memory::Block slots);
  void set_threshold(uint32_t bytes) { threshold_ = bytes; }
  dma::DmaEngine* engine() const { return engine_.get(); }
  /// From now on the CPU copies; what is in flight is finished first.
  void disable_engine() { offload_ = false; }
  bool offloading() const { return offload_; }
  /// A copy was refused because its memory was not mapped: true once after each time.
  bool take_maps_wanted() { return std::exchange(maps_wanted_, false); }
  /// Drops the engine and all that it may still touch without freeing any of it.
  void abandon() noexcept;

  struct Scratch {
    InFlightList in_flight;
    std::vector<dma::Copy> large;
  };
  /// What a ring of this size needs if there is an engine; may throw. Needs no hold.
  Scratch prepare(uint32_t ring_size) const;
  /// The ring starts, or starts anew, with nothing in flight. Without scratch of its size it uses what it has.
  void start(Scratch scratch, uint32_t position) noexcept;

  // ---- data path
  uint32_t threshold() const { return threshold_; }
  void begin_burst() { reads_block_ = nullptr; }
  /// Makes the copies of one packet: those of at least the threshold by the engine, if it may be one and takes all of
  /// them, the others now. `engine_may`: what is read stays where it is.
  void copy(std::span<const dma::Copy> copies, bool engine_may) noexcept;
  /// The same for one copy that is large enough. False: it is the caller's to make.
  bool offer(const dma::Copy& copy, bool engine_may) noexcept {
    return may_offload(engine_may) && hand_over({&copy, 1});
  }
  struct Booked {
    uint32_t packets = 0;
    uint64_t bytes = 0;
  };
  /// These packets are committed to the ring, the last one being that of the last copy().
  template <virtio::DataPathRing Ring>
  void book(const Ring& ring, Booked done) noexcept;
  /// Publishes what is ready and hands over the rest. `block`: what the copies of this burst read.
  template <virtio::DataPathRing Ring>
  void end_burst(Ring& ring, const memory::Block* block) noexcept;
  /// Takes at most `limit` entries from the finished front of what is in flight and publishes them. Returns packets.
  template <virtio::DataPathRing Ring>
  uint32_t reap(Ring& ring, uint32_t limit) noexcept;

  bool maps_wanted() const { return maps_wanted_; }
  bool idle() const { return in_flight_.empty(); }
  bool engine_failed() const { return offload_ && engine_->failed(); }  // one given up is no concern any more
  uint64_t polls() const { return polls_; }
  /// Readable by any thread: packets booked and not published.
  uint32_t pending_packets() const { return pending_packets_.load(std::memory_order_relaxed); }
  /// Readable by any thread: something is in flight, packets or buffers given back after some.
  bool unfinished() const { return unfinished_.load(std::memory_order_relaxed); }

 private:
  bool may_offload(bool engine_may) noexcept;
  bool hand_over(std::span<const dma::Copy> copies) noexcept;
  void count_refusal(dma::Refusal why) noexcept;
  void note_engine_stats() noexcept;
  void take_completions() noexcept;
  template <virtio::DataPathRing Ring>
  void publish_by_cpu(Ring& ring) noexcept;
  template <virtio::DataPathRing Ring>
  void publish_by_engine(Ring& ring) noexcept;
  void count(const InFlightList::Entry& entry) noexcept {
    packets_.packets.add(entry.packets);
    packets_.bytes.add(entry.bytes);
  }
  void add_pending(uint32_t packets) noexcept {  // one writer
    pending_packets_.store(pending_packets() + packets, std::memory_order_relaxed);
  }

  QueueCounters& packets_;
  CopyCounters& counters_;
  std::shared_ptr<dma::DmaEngine> engine_;
  bool offload_ = false, maps_wanted_ = false;
  Publish publish_ = Publish::cpu;
  uint32_t threshold_ = UINT32_MAX;

  InFlightList in_flight_;
  uint32_t ready_ = 0;         // position: every packet before it is whole
  uint32_t publications_ = 0;  // in flight; while there are any, the place where the ring is published is the engine's
  uint32_t promised_ = 0;      // position: the last of them ends here
  uint32_t unpublished_ = 0;   // packets that are whole but after a publication; pending, or nobody would look for it
  memory::Block slots_;        // uint16_t by cookie: what the engine stores to publish
  std::vector<dma::Copy> large_;                // scratch of copy()
  InFlightList::Entry* reads_block_ = nullptr;  // last entry of this burst whose copies read its block
  bool packet_in_flight_ = false;               // there is an entry for the packet that is booked next
  uint64_t polls_ = 0;
  std::atomic<uint32_t> pending_packets_{0};
  std::atomic<bool> unfinished_{false};
};

template <virtio::DataPathRing Ring>
inline void CopyPipe::book(const Ring& ring, Booked done) noexcept {
  if (in_flight_.empty()) [[likely]] {
    ready_ = ring.filled();
    packets_.packets.add(done.packets);
    packets_.bytes.add(done.bytes);
    return;
  }
  InFlightList::Entry* entry = &in_flight_.back();
  if (!packet_in_flight_ && (entry->pending || entry->publication)) entry = &in_flight_.push(0, {});
  packet_in_flight_ = false;
  entry->end = ring.filled();
  entry->packets += done.packets;
  entry->bytes += done.bytes;
  add_pending(done.packets);
}

template <virtio::DataPathRing Ring>
void CopyPipe::end_burst(Ring& ring, const memory::Block* block) noexcept {
  publish_by_cpu(ring);
  if (!in_flight_.empty()) {
    if (reads_block_) reads_block_->block = block->share();
    if (publish_ == Publish::dma && offload_) publish_by_engine(ring);
    engine_->submit();
    counters_.dma_inflight_max.raise_to(pending_packets());
    note_engine_stats();
  }
  unfinished_.store(!in_flight_.empty(), std::memory_order_relaxed);
}

template <virtio::DataPathRing Ring>
inline void CopyPipe::publish_by_cpu(Ring& ring) noexcept {
  if (publications_ == 0 && ready_ != ring.published()) ring.publish(ready_);
}

/// Queues the store that shows the guest all of this burst after the data. Refused, the CPU publishes when all such
/// stores are through.
template <virtio::DataPathRing Ring>
void CopyPipe::publish_by_engine(Ring& ring) noexcept {
  InFlightList::Entry& last = in_flight_.back();
  if (last.publication || in_flight_.full() || !in_flight_.has_room_for(1)) return;
  const uint32_t cookie = in_flight_.next_cookie();
  const virtio::Publication shown = ring.publication(publications_ != 0 ? promised_ : ring.published(), last.end);
  auto* slot = reinterpret_cast<uint16_t*>(slots_.data()) + cookie;
  *slot = shown.value;
  const dma::Copy copy{shown.where, slot, sizeof *slot};
  if (engine_->enqueue({&copy, 1}, cookie) != dma::Refusal::none) return;
  in_flight_.push(last.end, {&copy, 1}).publication = true;
  promised_ = last.end;
  ++publications_;
  counters_.dma_publish_batches.add(1);
}

template <virtio::DataPathRing Ring>
uint32_t CopyPipe::reap(Ring& ring, uint32_t limit) noexcept {
  if (in_flight_.empty()) return 0;
  take_completions();
  uint32_t packets = 0;
  for (; limit != 0 && !in_flight_.empty() && !in_flight_.front().pending; --limit) {
    InFlightList::Entry& entry = in_flight_.front();
    ready_ = entry.end;
    unpublished_ += entry.packets;
    if (entry.publication) {
      --publications_;
      if (!entry.failed) {
        ring.published_by_engine(entry.end);
        packets += std::exchange(unpublished_, 0);
      }
    } else if (entry.failed) {  // only ever given back by an engine that is stopped
      in_flight_.copy_by_cpu(entry);
    }
    count(entry);
    in_flight_.pop();
  }
  publish_by_cpu(ring);
  if (publications_ == 0) packets += std::exchange(unpublished_, 0);
  add_pending(0 - packets);
  unfinished_.store(!in_flight_.empty(), std::memory_order_relaxed);
  note_engine_stats();
  return packets;
}

}  // namespace vhost_ioat::port
