// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dma/engine.hpp"
#include "port/counters.hpp"
#include "port/in_flight.hpp"
#include "port/packet_view.hpp"
#include "port/vring_queue.hpp"
#include "virtio/net_header.hpp"

namespace vhost_ioat::port {

enum class Publish : uint8_t { cpu, dma };

/// A tx queue of the port: vring enqueue, the guest receives.
///
/// enqueue() writes packets into the guest's buffers. Copies of at least the threshold go to the engine when there is
/// one, all others are made at once; the used ring is shown to the guest as far as everything before is complete.
class TxQueue : public VringQueue {
 public:
  // ---- control path: queue held -------------------------------------------------------------------------------
  void set_engine(std::shared_ptr<dma::DmaEngine> engine, uint32_t threshold, Publish publish, memory::Block slots);
  struct Scratch;
  /// What a ring of this size needs, beside the engine if there is one; may throw. Needs no hold.
  Scratch prepare(uint32_t ring_size) const;
  void setup(RingSetup setup, Scratch scratch) noexcept;
  void setup(RingSetup setup);
  void set_threshold(uint32_t bytes) { threshold_ = bytes; }
  dma::DmaEngine* engine() { return engine_.get(); }
  /// From now on the CPU copies; what is in flight is finished first.
  void disable_engine() { offload_ = false; }
  bool offloading() const { return offload_; }
  /// Drops the engine and all that it may still touch without freeing any of it; the ring runs no more.
  void abandon() noexcept;
  /// A copy was refused because its memory was not mapped: true once after each time.
  bool take_maps_wanted() { return std::exchange(maps_wanted_, false); }

  // ---- data path: whoever owns the queue ----------------------------------------------------------------------
  /// Takes packets from the front and returns how many. Nothing waits; the guest is kicked if it asked.
  uint32_t enqueue(const PacketView& packets) noexcept;
  /// Takes at most `limit` entries from the finished front of what is in flight and publishes them. Returns packets.
  uint32_t reap(uint32_t limit = UINT32_MAX) noexcept;

  bool maps_wanted() const { return maps_wanted_; }
  bool idle() const { return in_flight_.empty(); }
  bool engine_failed() const { return offload_ && engine_->failed(); }  // one given up is no concern any more
  /// Readable by any thread: packets enqueued and not published.
  uint32_t pending_packets() const { return pending_packets_.load(std::memory_order_relaxed); }
  /// Readable by any thread: something is in flight, packets or buffers given back after some.
  bool unfinished() const { return unfinished_.load(std::memory_order_relaxed); }
  uint64_t polls() const { return polls_; }
  /// Of the last enqueue(): descriptors of chains and region borders (budget::steps_of_call).
  uint32_t steps() const { return budget::steps_of_call(ring_.size()) - steps_left_; }

  TxCounters counters;

 private:
  enum class Fit : uint8_t { ok, no_buffer, never, short_buffer, fault };
  enum class Fate : uint8_t { sent, dropped, stays };

  uint32_t enqueue_simple(const PacketView& view, uint32_t i, Tally& tally) noexcept;
  Fate enqueue_any(const PacketView& view, uint32_t i, uint32_t len) noexcept;
  Fit reserve(uint32_t need) noexcept;
  Fit out_of_steps(uint32_t need) noexcept;
  bool known_to_lack(uint32_t need) noexcept;
  void give_back_short_buffer() noexcept;
  /// Bytes that a buffer must hold to be of use to the smallest packet; a merged one, to its header.
  uint32_t least_buffer() const {
    return header_size_ + (features_.has(virtio::Feature::MRG_RXBUF) ? 0 : virtio::least_packet);
  }
  void write_at(uint32_t offset, const void* bytes, uint32_t len) noexcept;
  void copy_payload(const PacketView& view, const uint8_t* packet, uint32_t len, bool by_cpu) noexcept;
  bool may_offload(const PacketView& view) noexcept;
  bool hand_to_engine(std::span<const dma::Copy> copies) noexcept;
  void note_engine_stats() noexcept;
  struct Booked {
    uint32_t packets = 0;
    uint64_t bytes = 0;
  };
  void finish_packets(Booked done) noexcept;
  void finish_burst(const PacketView& view, RingIndex published_before) noexcept;
  void publish_by_engine() noexcept;
  void publish_by_cpu() noexcept;
  void count_refusal(dma::Refusal why) noexcept;

  std::shared_ptr<dma::DmaEngine> engine_;
  bool offload_ = false, maps_wanted_ = false;
  uint32_t threshold_ = UINT32_MAX;
  Publish publish_ = Publish::cpu;

  InFlightList in_flight_;
  RingIndex ready_;            // every packet before it is whole in guest memory
  uint32_t index_writes_ = 0;  // index entries in flight; while there are any, used->idx is the engine's
  uint32_t unpublished_ = 0;   // packets that are whole but behind an index write; pending, or nobody would look for it
  memory::Block index_slots_;  // uint16_t by cookie: what the engine copies to used->idx
  InFlightList::Entry* reads_block_ = nullptr;  // last entry of this burst whose copies read its block
  bool packet_in_flight_ = false;               // hand_to_engine() has made an entry for the current packet
  uint64_t polls_ = 0;
  std::atomic<uint32_t> pending_packets_{0};
  std::atomic<bool> unfinished_{false};

  uint32_t steps_left_ = 0;     // of this enqueue()
  bool got_somewhere_ = false;  // this enqueue() has taken a packet, or given back a buffer
  /// All the buffers there were, and how much they hold together: not looked at again until there are more.
  struct Lack {
    uint32_t heads = 0, bytes = 0;
    RingIndex from;
  } lack_;

  struct Taken {
    uint16_t head;
    uint32_t written;
  };
  std::vector<memory::Piece> pieces_;  // scratch, sized at setup
  uint32_t piece_count_ = 0;
  std::vector<Taken> heads_;
  uint32_t head_count_ = 0;
  std::vector<dma::Copy> copies_;
  uint32_t copy_count_ = 0;
};

struct TxQueue::Scratch {
  std::vector<memory::Piece> pieces;
  std::vector<dma::Copy> copies;
  std::vector<Taken> heads;
  InFlightList in_flight;
};

}  // namespace vhost_ioat::port
