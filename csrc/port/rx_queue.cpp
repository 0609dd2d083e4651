// SPDX-License-Identifier: BSD-3-Clause
#include "port/rx_queue.hpp"

#include <algorithm>
#include <cstring>

#include "virtio/net_header.hpp"

namespace vhost_ioat::port {

using virtio::Burst;
using virtio::Fault;
using virtio::Feature;
using virtio::NetHeader;

namespace {
/// How far ahead of the copy a packet's first bytes are fetched.
constexpr uint32_t prefetch_ahead = 4;
}  // namespace

void RxQueue::setup(RingSetup setup) {
  const uint32_t size = setup.size;
  const bool running = setup.running;
  setup_ring(std::move(setup));
  if (!running) return;
  packets_.resize(size);
  // Room for a burst of packets of many pieces; a burst ends early rather than exceed it, and a single packet in more
  // pieces than this is malformed.
  pieces_.resize(size + 4096);
}

void RxQueue::inject(const uint8_t* frame, uint32_t len) { injected_.assign(frame, frame + len); }

/// The common case: one readable descriptor, header and packet behind each other.
inline bool RxQueue::read_simple(uint16_t head, Packet& packet) noexcept {
  if (head >= ring_.size()) [[unlikely]] return false;
  const virtio::SplitRing::Entry d = ring_.descriptor(head);
  if ((d.flags & (virtio::DESC_F_NEXT | virtio::DESC_F_WRITE | virtio::DESC_F_INDIRECT)) != 0 ||
      d.len <= header_size_ || d.len - header_size_ > virtio::max_packet || piece_count_ == pieces_.size())
    return false;
  uint8_t* at = memory_->translate(d.addr, d.len, hint_);
  if (!at) [[unlikely]] return false;
  packet.len = d.len - header_size_;
  packet.first_piece = piece_count_;
  packet.pieces = 1;
  packet.good = accept_header(packet, virtio::load_once_u64(at), virtio::load_once_u16(at + 8));
  pieces_[piece_count_++] = {at + header_size_, packet.len};
  return true;
}

bool RxQueue::read_chain(uint16_t head, Packet& packet) noexcept {
  alignas(8) uint8_t header[10];
  uint32_t header_got = 0, skip = header_size_;
  uint64_t bytes = 0;
  bool scratch_full = false, too_long = false;
  packet.first_piece = piece_count_;
  auto take = [&](uint8_t* host, uint32_t len) {
    if (skip != 0) {
      const uint32_t n = std::min(skip, len);
      for (uint32_t i = 0; i < n && header_got < sizeof header; ++i)
        header[header_got++] = *static_cast<volatile const uint8_t*>(host + i);
      skip -= n;
      host += n;
      len -= n;
    }
    if (len == 0) return true;
    if (piece_count_ == pieces_.size()) return false;
    pieces_[piece_count_++] = {host, len};
    return true;
  };
  const bool walked = ring_.walk(head, *memory_, hint_, [&](uint64_t addr, uint32_t len, bool writable) {
    if (writable) {
      ring_.set_fault({Fault::Kind::direction, head, 0});
      return false;
    }
    bytes += len;
    too_long = bytes > header_size_ + virtio::max_packet;
    if (too_long) return false;
    if (uint8_t* host = memory_->translate(addr, len, hint_)) {
      scratch_full = !take(host, len);
      return !scratch_full;
    }
    memory::Piece crossing[memory::RegionTable::max_regions];
    const size_t n = memory_->pieces(addr, len, crossing);
    if (n == 0) {
      ring_.set_fault({Fault::Kind::unmapped, addr, len});
      return false;
    }
    for (size_t i = 0; i < n && !scratch_full; ++i)
      scratch_full = !take(crossing[i].host, static_cast<uint32_t>(crossing[i].len));
    return !scratch_full;
  });
  if (!walked || ring_.fault()) return false;
  if (scratch_full && packet.first_piece != 0) {  // let the next burst take it
    piece_count_ = packet.first_piece;
    return false;
  }
  packet.pieces = piece_count_ - packet.first_piece;
  packet.len = bytes > header_size_ ? static_cast<uint32_t>(bytes - header_size_) : 0;
  // A chain that holds no byte of a packet is consumed, counted, and the queue goes on.
  packet.good = !scratch_full && !too_long && packet.len != 0 &&
                accept_header(packet, virtio::load_once_u64(header), virtio::load_once_u16(header + 8));
  return true;
}

/// Unpacks the header from its one copy; asks for nothing that was not negotiated. False: the packet is malformed.
inline bool RxQueue::accept_header(Packet& packet, uint64_t word, uint16_t csum_offset) const noexcept {
  NetHeader& h = packet.header;
  if ((word & 0xffff) == 0) [[likely]] {
    h = {};
    return true;
  }
  std::memcpy(static_cast<void*>(&h), &word, sizeof word);
  h.csum_offset = csum_offset;
  h.flags &= features_.has(Feature::CSUM) ? virtio::NET_HDR_F_NEEDS_CSUM : uint8_t{0};
  return virtio::valid(h, packet.len) && virtio::may_send_segment(features_, h);
}

inline bool RxQueue::read(uint32_t k, Packet& packet) noexcept {
  const uint16_t head = ring_.head(k);
  packet.head = head;
  return read_simple(head, packet) || read_chain(head, packet);
}

/// First pass. Returns how many heads were read, of which `good` carry a packet for the burst.
uint32_t RxQueue::gather(uint32_t n, uint32_t& good, uint32_t& longest) noexcept {
  uint32_t taken = 0;
  piece_count_ = 0;
  for (uint32_t k = 0; k < std::min(n, 8u); ++k) ring_.prefetch_descriptor(ring_.head(k));
  for (; taken < n; ++taken) {
    if (taken + 8 < n) ring_.prefetch_descriptor(ring_.head(taken + 8));
    Packet& packet = packets_[taken];
    if (!read(taken, packet)) break;
    if (!packet.good) continue;
    const uint32_t longer = std::max(longest, packet.len);
    if (good != 0 && size_t{good + 1} * Burst::stride_for(longer) > Burst::max_bytes) break;
    longest = longer;
    ++good;
  }
  return taken;
}

inline void RxQueue::copy(const Packet& packet, uint8_t* to) const noexcept {
  for (uint32_t i = 0; i < packet.pieces; ++i) {
    const memory::Piece& piece = pieces_[packet.first_piece + i];
    std::memcpy(to, piece.host, piece.len);
    to += piece.len;
  }
}

Burst RxQueue::dequeue(memory::PacketArena& arena, uint32_t n) noexcept {
  const bool injecting = !injected_.empty();
  if (!running_ || (!injecting && ring_.available() == 0)) return {};
  uint32_t waiting = ring_.available();
  if (waiting < n) waiting = ring_.look_again();
  uint32_t good = injecting, longest = static_cast<uint32_t>(injected_.size());
  uint32_t taken = gather(std::min(waiting, n - good), good, longest);

  Burst burst;
  if (good != 0 && enabled_) {
    burst = Burst::allocate(arena, good, longest);
    if (!burst.block) {  // nothing consumed: the packets wait for memory
      counters.nombuf.add(1);
      return burst;
    }
  }
  uint32_t row = 0;
  uint64_t bytes = 0;
  if (burst.block && injecting) {
    burst.lengths[row] = static_cast<uint32_t>(injected_.size());
    burst.headers[row] = {};
    std::memcpy(burst.row(row++), injected_.data(), injected_.size());
    injected_.clear();
  }
  for (uint32_t k = 0; k < taken; ++k) {
    const Packet& packet = packets_[k];
    if (k + prefetch_ahead < taken && packets_[k + prefetch_ahead].pieces != 0)
      __builtin_prefetch(pieces_[packets_[k + prefetch_ahead].first_piece].host);
    if (!packet.good) {
      counters.errors.add(1);
    } else if (!enabled_) {  // a disabled ring's packets are dropped, not left waiting (vhost-user, "Ring states")
      counters.missed.add(1);
    } else {
      copy(packet, burst.row(row));
      burst.lengths[row] = packet.len;
      burst.headers[row] = packet.header;
      counters.classify(burst.row(row), packet.len);
      bytes += packet.len;
      ++row;
    }
    ring_.push_used(packet.head, 0);
  }
  ring_.consume(taken);
  if (taken != 0) {
    ring_.publish(ring_.used_next());
    if (kick_due()) {
      kick();
      counters.notifications.add(1);
    }
  }
  counters.packets.add(row);
  counters.bytes.add(bytes);
  return burst;
}

bool RxQueue::enable_kicks() noexcept {
  if (!running_) return false;
  ring_.set_kicks(true);
  return ring_.look_again() != 0;
}

void RxQueue::disable_kicks() noexcept {
  if (running_) ring_.set_kicks(false);
}

}  // namespace vhost_ioat::port
