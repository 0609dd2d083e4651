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
  // ---- control path: queue held
  void setup(RingSetup setup);
  /// This frame comes first in the next burst (a RARP announcement of a guest that has moved here).
  void inject(const uint8_t* frame, uint32_t len) { injected_.assign(frame, frame + len); }

  // ---- data path: whoever owns the queue
  /// At most n packets; an empty burst when there are none, or no memory for them. The guest is kicked if it asked.
  virtio::Burst dequeue(memory::PacketArena& arena, uint32_t n) noexcept;
  bool idle() const { return true; }  // nothing of it is ever in flight
  /// Asks the guest for kicks. True: packets wait already.
  bool enable_kicks() noexcept;
  void disable_kicks() noexcept;

  QueueCounters counters;

 private:
  enum class Shape : uint8_t { simple, pieces, malformed };
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
  bool accept_header(virtio::NetHeader& header, uint64_t word, uint16_t csum_offset, uint32_t len) const noexcept;
  void drop(uint32_t taken) noexcept;
  void give_back(uint32_t taken) noexcept;

  std::vector<Packet> packets_;  // scratch of one burst, sized at setup
  std::vector<Extent> extents_;
  std::vector<memory::Piece> pieces_;
  uint32_t piece_count_ = 0;
  std::vector<uint8_t> injected_;
};

}  // namespace vhost_ioat::port
