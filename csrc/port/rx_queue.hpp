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
/// A burst is taken in two passes: one reads the chains, checks them and so learns the lengths; then the layout of the
/// burst is chosen and the packets are copied. Nothing of the guest's is looked at twice.
class RxQueue : public VringQueue {
 public:
  // ---- control path: queue held
  void setup(RingSetup setup);
  /// This frame comes first in the next burst (a RARP announcement of a guest that has moved here).
  void inject(const uint8_t* frame, uint32_t len);

  // ---- data path: whoever owns the queue
  /// At most n packets; an empty burst when there are none, or no memory for them. The guest is kicked if it asked.
  virtio::Burst dequeue(memory::PacketArena& arena, uint32_t n) noexcept;
  bool idle() const { return true; }  // nothing of it is ever in flight
  /// Asks the guest for kicks. True: packets wait already.
  bool enable_kicks() noexcept;
  void disable_kicks() noexcept;

  QueueCounters counters;

 private:
  struct Packet {
    uint16_t head;
    bool good;
    uint32_t len;
    uint32_t first_piece, pieces;
    virtio::NetHeader header;
  };
  /// Reads the chain at the k-th available head. False: the ring broke, or the scratch is full.
  bool read(uint32_t k, Packet& packet) noexcept;
  bool read_simple(uint16_t head, Packet& packet) noexcept;
  bool read_chain(uint16_t head, Packet& packet) noexcept;
  bool accept_header(Packet& packet, uint64_t word, uint16_t csum_offset) const noexcept;
  void copy(const Packet& packet, uint8_t* to) const noexcept;
  uint32_t gather(uint32_t n, uint32_t& good, uint32_t& longest) noexcept;

  std::vector<Packet> packets_;  // scratch, sized at setup
  std::vector<memory::Piece> pieces_;
  uint32_t piece_count_ = 0;
  std::vector<uint8_t> injected_;
};

}  // namespace vhost_ioat::port
