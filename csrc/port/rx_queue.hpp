// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <memory>
#include <vector>

#include "port/counters.hpp"
#include "port/vring_queue.hpp"
#include "virtio/burst.hpp"

namespace vhost_ioat::port {

/// An rx queue of the port: vring dequeue, what the guest sends.
///
/// A burst is taken in two passes: one reads the chains, checks them and so learns the lengths, and has the packets
/// fetched into the cache; then the layout of the burst is chosen and headers and packets are read. Nothing of the
/// guest's is looked at twice.
class RxQueue : public VringQueue {
 public:
  // ---- control path
  struct Scratch;
  /// What a ring of this size needs; may throw.
  static Scratch prepare(uint32_t ring_size);
  /// Queue held.
  void setup(RingSetup setup, Scratch scratch) noexcept;
  void setup(RingSetup setup);
  /// This frame comes first in the next burst (a RARP announcement of a guest that has moved here). At most 60 bytes.
  /// It takes the place of an earlier one; what nobody takes before the ring stops is lost, too (counters.rarp_lost).
  void inject(const uint8_t* frame, uint32_t len) noexcept {
    if (!injected_.empty()) counters.rarp_lost.add(1);
    injected_.assign(frame, frame + len);
  }

  // ---- data path: whoever owns the queue
  /// At most n packets; an empty burst when there are none, or no memory for them. The guest is kicked if it asked.
  ///
  /// Memory: a burst that cannot be had in one piece is shortened. Packets wait in the guest while nothing is free at
  /// all. Where something is, a packet that comes first and does not fit into the largest free piece is dropped, so
  /// that it does not stop those after it.
  virtio::Burst dequeue(memory::PacketArena& arena, uint32_t n) noexcept;
  bool idle() const { return true; }  // nothing of it is ever in flight
  /// Asks the guest for kicks. True: packets wait already.
  bool enable_kicks() noexcept;
  void disable_kicks() noexcept;
  bool packets_wait() noexcept { return running_ && ring_.look_again() != 0; }

  /// Of the last dequeue(): descriptors of chains and region borders (budget::steps_of_call).
  uint32_t steps() const { return budget::steps_of_call(ring_.size()) - steps_left_; }

  RxCounters counters;

 private:
  /// What was found, and from `empty` on why it is dropped.
  enum class Shape : uint8_t { simple, pieces, empty, oversize, too_many_pieces, no_memory };
  enum class Verdict : uint8_t { accepted, header, gso, gso_no_csum };
  /// One chain after the first pass. simple: `host` is header and packet. pieces: `host` is null, see Extent.
  struct Packet {
    uint8_t* host;
    uint32_t len;  // without the header
    uint16_t head;
    Shape shape;
  };
  struct Extent {
    uint32_t first_piece, pieces;
    uint64_t header;  // the first 8 bytes, and the others
    uint16_t csum_offset;
  };

  uint32_t read_chains(uint32_t n, uint32_t& rows, uint32_t& longest) noexcept;
  bool read_chain(uint32_t k) noexcept;
  void fill(virtio::Burst& burst, uint32_t taken) noexcept;
  bool exhausted(memory::PacketArena& arena) noexcept;
  void shorten(memory::PacketArena& arena, uint32_t& taken, uint32_t& rows, uint32_t& longest) noexcept;
  bool accept_header(virtio::NetHeader& header, uint64_t word, uint16_t csum_offset, uint32_t len) noexcept;
  Verdict judge_header(virtio::NetHeader& header, uint32_t len) noexcept;
  void count_dropped(Shape why) noexcept;
  void drop(uint32_t taken) noexcept;
  void give_back(uint32_t taken) noexcept;

  std::vector<Packet> packets_;  // scratch of one burst, sized at setup
  std::vector<Extent> extents_;
  std::vector<memory::Piece> pieces_;
  uint32_t piece_count_ = 0, steps_left_ = 0;
  size_t starved_ = 0;  // bytes that could not be had in one piece; 0: there is memory
  std::vector<uint8_t> injected_ = with_room_for(60);

  static std::vector<uint8_t> with_room_for(size_t bytes) {
    std::vector<uint8_t> made;
    made.reserve(bytes);
    return made;
  }
};

struct RxQueue::Scratch {
  std::vector<Packet> packets;
  std::vector<Extent> extents;
  std::vector<memory::Piece> pieces;
};

}  // namespace vhost_ioat::port
