// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/ring_index.hpp"
#include "base/unique_fd.hpp"
#include "memory/packet_arena.hpp"
#include "virtio/burst.hpp"
#include "virtio/driver_ring.hpp"
#include "virtio/features.hpp"
#include "virtio/ring_layout.hpp"

namespace vhost_ioat::guest {

constexpr size_t max_segments = 64;  // descriptors of one chain

/// A packet to send.
struct Packet {
  const uint8_t* data;
  uint32_t len;
  virtio::NetHeader header;
};

/// What a guest sees of one of its rings.
struct RingState {
  uint32_t size = 0;
  uint32_t free_descriptors = 0;
  uint16_t in_flight = 0;  // chains the device has
  uint16_t avail_index = 0, used_index = 0;
  uint64_t packets = 0, bytes = 0;
  uint64_t kicks = 0;
  bool broken = false;  // the device said so by the err eventfd
};

/// How the two kinds of queue differ in memory.
struct QueueShape {
  uint32_t ring_size;
  virtio::FeatureSet features;
  uint32_t slot_bytes;  // of one buffer, header included
  bool header_apart;    // the virtio header has a descriptor of its own
  uint32_t segment;     // bytes per descriptor behind such a header; 0: all in one
  RingIndex start{};

  /// Apart by an odd number of cache lines, so that the slots' first bytes do not share cache sets.
  uint32_t stride() const { return ((slot_bytes + 63) / 64 | 1) * 64; }
  size_t bytes() const;  // of guest memory, ring, tables and slots
};

/// One virtqueue of the guest: a driver ring, and a buffer ("slot") for each chain it may have out.
/// A slot is one piece of memory with the virtio header at its start, however it is cut into descriptors.
class Queue {
 public:
  Queue(const QueueShape& shape, uint8_t* host, uint64_t gpa);

  const virtio::RingAddresses& addresses() const { return at_; }
  int kick_fd() const { return kick_.get(); }
  int call_fd() const { return call_.get(); }
  int err_fd() const { return err_.get(); }
  RingState state() const;
  void kick() noexcept {
    ++kicks_;
    eventfd_signal(kick_.get());
  }

 protected:
  uint8_t* slot(uint16_t n) const { return slots_ + size_t{shape_.stride()} * n; }
  /// Gives the first `bytes` of a slot to the device. False: the ring is full.
  bool add(uint16_t slot, uint32_t bytes, bool writable) noexcept;
  /// The next slot the device is done with. Throws ProtocolError when it broke the ring.
  bool take(uint16_t& slot, uint32_t& written);
  void publish() noexcept {
    if (ring_.publish()) kick();
  }

  QueueShape shape_;
  uint32_t header_size_;
  virtio::DriverRing ring_;
  UniqueFd call_ = make_eventfd();
  uint64_t packets_ = 0, bytes_ = 0;

 private:
  size_t cut(uint64_t gpa, uint32_t bytes, std::span<virtio::Segment, max_segments> out) const noexcept;

  bool indirect_;
  virtio::RingAddresses at_;
  uint8_t* slots_;
  uint64_t slots_gpa_;
  std::vector<uint16_t> slot_of_;  // by head
  UniqueFd kick_ = make_eventfd(), err_ = make_eventfd();
  mutable bool broken_ = false;
  uint64_t kicks_ = 0;
};

class SendQueue : public Queue {
 public:
  SendQueue(const QueueShape& shape, uint8_t* host, uint64_t gpa);
  /// Copies packets into guest memory and shows them to the device; how many, from the front.
  uint32_t send(std::span<const Packet> packets);

 private:
  std::vector<uint16_t> free_slots_;  // the last one freed is the first one used: it is warm
};

class ReceiveQueue : public Queue {
 public:
  ReceiveQueue(const QueueShape& shape, uint8_t* host, uint64_t gpa);
  /// At most `limit` packets, copied out of guest memory; an empty burst when none came or the arena is exhausted.
  virtio::Burst receive(memory::PacketArena& arena, uint32_t limit);
  /// Asks for a signal of call_fd() with the next packet. True: some wait already.
  bool enable_interrupt() noexcept;
  void disable_interrupt() noexcept { ring_.set_interrupts(false); }

 private:
  /// A buffer that the device has filled.
  struct Part {
    uint32_t len;     // bytes of the packet in it
    uint32_t packet;  // bytes of the whole packet; in its first part, and once all have come
    uint16_t slot;
    uint16_t buffers;  // of the packet, in its first part
  };
  void gather(uint32_t limit);
  void begin_packet(Part& part) const;
  uint32_t copy_packet(std::span<const Part> parts, virtio::Burst& burst, uint32_t row) const noexcept;

  bool mergeable_;
  std::vector<Part> parts_;     // taken from the ring and not delivered yet; never more than there are slots
  size_t last_packet_ = 0;      // first part of the packet that came last
  uint32_t whole_packets_ = 0;  // in parts_
  uint32_t missing_ = 0;        // buffers of the last packet that have not come yet
};

}  // namespace vhost_ioat::guest
