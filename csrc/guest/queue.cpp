// SPDX-License-Identifier: BSD-3-Clause
#include "guest/queue.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/error.hpp"
#include "virtio/net_header.hpp"

namespace vhost_ioat::guest {

using virtio::Feature;

namespace {

constexpr size_t line_up(size_t bytes) { return (bytes + 63) & ~size_t{63}; }

size_t tables_bytes(const QueueShape& shape) {
  return shape.features.has(Feature::INDIRECT_DESC) ? shape.ring_size * max_segments * sizeof(virtio::Descriptor) : 0;
}

/// Offsets of a queue's parts in its memory: descriptors, avail ring, used ring, indirect tables, slots.
struct Offsets {
  size_t avail, used, tables, slots, end;

  explicit Offsets(const QueueShape& shape)
      : avail(virtio::desc_bytes(shape.ring_size)),
        used(avail + line_up(virtio::avail_bytes(shape.ring_size, true))),
        tables(used + line_up(virtio::used_bytes(shape.ring_size, true))),
        slots(tables + tables_bytes(shape)),
        end(slots + size_t{shape.ring_size} * shape.stride()) {}
};

}  // namespace

size_t QueueShape::bytes() const {
  constexpr size_t page = 4096;
  return (Offsets(*this).end + page - 1) & ~(page - 1);
}

Queue::Queue(const QueueShape& shape, uint8_t* host, uint64_t gpa)
    : shape_(shape),
      header_size_(shape.features.net_header_size()),
      indirect_(shape.features.has(Feature::INDIRECT_DESC)),
      slot_of_(shape.ring_size) {
  const Offsets offsets(shape);
  at_ = {reinterpret_cast<virtio::Descriptor*>(host), host + offsets.avail, host + offsets.used};
  slots_ = host + offsets.slots;
  slots_gpa_ = gpa + offsets.slots;
  virtio::IndirectTables tables;
  if (indirect_)
    tables = {reinterpret_cast<virtio::Descriptor*>(host + offsets.tables), gpa + offsets.tables, max_segments};
  ring_.start(at_, shape.ring_size, shape.features, shape.start, tables);
  ring_.set_interrupts(false);
}

RingState Queue::state() const {
  broken_ = broken_ || eventfd_clear(err_.get()) != 0;
  return {shape_.ring_size,
          ring_.free_descriptors(),
          ring_.in_flight(),
          ring_.avail_next().value(),
          ring_.last_used().value(),
          packets_,
          bytes_,
          kicks_,
          broken_};
}

/// Pieces are made longer than asked for where a chain would get longer than the ring or the array.
size_t Queue::cut(uint64_t gpa, uint32_t bytes, std::span<virtio::Segment, max_segments> out) const noexcept {
  if (!shape_.header_apart || bytes <= header_size_) {
    out[0] = {gpa, bytes};
    return 1;
  }
  out[0] = {gpa, header_size_};
  const uint32_t payload = bytes - header_size_;
  const uint32_t most = static_cast<uint32_t>(std::min<size_t>(max_segments, shape_.ring_size)) - 1;
  const uint32_t piece = shape_.segment ? std::max(shape_.segment, (payload + most - 1) / most) : payload;
  size_t n = 1;
  for (uint32_t offset = 0; offset < payload; offset += piece)
    out[n++] = {gpa + header_size_ + offset, std::min(piece, payload - offset)};
  return n;
}

bool Queue::add(uint16_t slot, uint32_t bytes, bool writable) noexcept {
  std::array<virtio::Segment, max_segments> segments;
  const size_t n = cut(slots_gpa_ + uint64_t{shape_.stride()} * slot, bytes, segments);
  const std::span<const virtio::Segment> all(segments.data(), n), none;
  const auto& readable = writable ? none : all;
  const auto& writables = writable ? all : none;
  const auto head = indirect_ && n > 1 ? ring_.add_indirect(readable, writables) : ring_.add(readable, writables);
  if (!head) return false;
  slot_of_[*head] = slot;
  return true;
}

bool Queue::take(uint16_t& slot, uint32_t& written) {
  const auto used = ring_.take_used();
  if (!used) {
    if (ring_.fault()) [[unlikely]]
      throw ProtocolError(ring_.fault().text());
    return false;
  }
  slot = slot_of_[used->head];
  written = used->len;
  return true;
}

SendQueue::SendQueue(const QueueShape& shape, uint8_t* host, uint64_t gpa)
    : Queue(shape, host, gpa), free_slots_(shape.ring_size) {
  std::iota(free_slots_.rbegin(), free_slots_.rend(), uint16_t{0});
}

uint32_t SendQueue::send(std::span<const Packet> packets) {
  for (const Packet& packet : packets) {
    if (packet.len > virtio::max_packet)
      throw ConfigError(format("packet %td has %u bytes, but a guest sends at most %u", &packet - packets.data(),
                               packet.len, virtio::max_packet));
  }
  uint16_t done;
  for (uint32_t written; take(done, written);) free_slots_.push_back(done);

  uint32_t sent = 0;
  for (const Packet& packet : packets) {
    if (free_slots_.empty()) break;
    const uint16_t next = free_slots_.back();
    uint8_t* at = slot(next);
    std::memset(at + sizeof packet.header, 0, header_size_ - sizeof packet.header);  // num_buffers (5.1.6.2)
    std::memcpy(at, &packet.header, sizeof packet.header);
    std::memcpy(at + header_size_, packet.data, packet.len);
    if (!add(next, header_size_ + packet.len, false)) break;
    free_slots_.pop_back();
    bytes_ += packet.len;
    ++sent;
  }
  packets_ += sent;
  publish();
  return sent;
}

ReceiveQueue::ReceiveQueue(const QueueShape& shape, uint8_t* host, uint64_t gpa)
    : Queue(shape, host, gpa), mergeable_(shape.features.has(Feature::MRG_RXBUF)) {
  for (uint32_t n = 0; n < shape.ring_size; ++n) {
    if (!add(static_cast<uint16_t>(n), shape.slot_bytes, true)) break;  // a slot may need several descriptors
  }
  parts_.reserve(shape.ring_size);
  publish();
}

/// Reads the header of a packet's first buffer.
void ReceiveQueue::begin_packet(Part& part) const {
  if (part.len < header_size_)
    throw ProtocolError(format("a packet of %u bytes is shorter than its header of %u", part.len, header_size_));
  part.len -= header_size_;
  part.buffers = 1;
  if (!mergeable_) return;
  std::memcpy(&part.buffers, slot(part.slot) + virtio::num_buffers_offset, sizeof part.buffers);
  if (part.buffers == 0 || part.buffers > shape_.ring_size)  // VIRTIO 1.2, 5.1.6.4
    throw ProtocolError(format("num_buffers is %u, but the ring has %u entries", part.buffers, shape_.ring_size));
}

/// Takes buffers from the ring until `limit` packets are whole or no more have come.
void ReceiveQueue::gather(uint32_t limit) {
  Part part{};
  while (whole_packets_ < limit && take(part.slot, part.len)) {
    part.packet = part.buffers = 0;
    if (missing_ == 0) {
      begin_packet(part);
      last_packet_ = parts_.size();
      missing_ = part.buffers;
    }
    parts_.push_back(part);
    Part& first = parts_[last_packet_];
    first.packet += part.len;
    if (first.packet > virtio::max_packet)
      throw ProtocolError(format("a packet has more than %u bytes in %u buffers", virtio::max_packet, first.buffers));
    if (--missing_ == 0) ++whole_packets_;
  }
}

uint32_t ReceiveQueue::copy_packet(std::span<const Part> parts, virtio::Burst& burst, uint32_t row) const noexcept {
  std::memcpy(&burst.headers[row], slot(parts[0].slot), sizeof(virtio::NetHeader));
  uint8_t* to = burst.row(row);
  uint32_t skip = header_size_;  // in the first buffer only
  for (const Part& part : parts) {
    std::memcpy(to, slot(part.slot) + skip, part.len);
    to += part.len;
    skip = 0;
  }
  return burst.lengths[row] = parts[0].packet;
}

virtio::Burst ReceiveQueue::receive(memory::PacketArena& arena, uint32_t limit) {
  using virtio::Burst;
  gather(limit);
  uint32_t count = 0, longest = 0;
  for (size_t at = 0; count < std::min(limit, whole_packets_); at += parts_[at].buffers, ++count) {
    const uint32_t longer = std::max(longest, parts_[at].packet);
    if (count != 0 && size_t{count + 1} * Burst::stride_for(longer) > Burst::max_bytes) break;
    longest = longer;
  }
  if (count == 0) return {};
  Burst burst = Burst::allocate(arena, count, longest);
  if (!burst.block) return {};

  size_t end = 0;
  for (uint32_t row = 0; row < count; ++row) {
    const size_t begin = end;
    end += parts_[begin].buffers;
    bytes_ += copy_packet(std::span(parts_).subspan(begin, end - begin), burst, row);
  }
  for (size_t i = 0; i < end; ++i) add(parts_[i].slot, shape_.slot_bytes, true);
  parts_.erase(parts_.begin(), parts_.begin() + static_cast<ptrdiff_t>(end));
  last_packet_ -= std::min(last_packet_, end);
  whole_packets_ -= count;
  packets_ += count;
  publish();
  return burst;
}

bool ReceiveQueue::enable_interrupt() noexcept {
  eventfd_clear(call_.get());
  return ring_.set_interrupts(true) || whole_packets_ != 0;
}

}  // namespace vhost_ioat::guest
