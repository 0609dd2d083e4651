// SPDX-License-Identifier: BSD-3-Clause
#include "port/rx_queue.hpp"

#include <algorithm>
#include <cstring>

#include "base/copy.hpp"
#include "virtio/net_header.hpp"

namespace vhost_ioat::port {

using virtio::Burst;
using virtio::Fault;
using virtio::Feature;
using virtio::NetHeader;

void RxQueue::setup(RingSetup setup) {
  const uint32_t size = setup.size;
  const bool running = setup.running;
  setup_ring(std::move(setup));
  if (!running) return;
  packets_.resize(size);
  extents_.resize(size);
  // A burst of packets in more pieces ends early; a single packet in more is malformed.
  pieces_.resize(size + extra_pieces);
}

Burst RxQueue::dequeue(memory::PacketArena& arena, uint32_t n) noexcept {
  if (!running_) return {};
  const bool injecting = !injected_.empty();
  uint32_t waiting = ring_.available();
  if (waiting < n) waiting = ring_.look_again();
  if (waiting == 0 && !injecting) return {};

  uint32_t rows = injecting, longest = static_cast<uint32_t>(injected_.size());
  const uint32_t taken = read_chains(std::min(waiting, n - rows), rows, longest);
  Burst burst;
  if (!enabled_) {
    // A disabled ring's packets are dropped, not left waiting (vhost-user, "Ring states").
    counters.missed.add(rows - injecting);
    drop(taken);
  } else if (rows == 0) {
    drop(taken);
  } else {
    burst = Burst::allocate(arena, rows, longest);
    if (!burst.block) {  // nothing was consumed: the packets wait for memory
      counters.nombuf.add(1);
      return burst;
    }
    fill(burst, taken);
  }
  return burst;
}

/// First pass: as many chains as one burst may hold. Returns how many were read, `rows` of them with a packet to show.
uint32_t RxQueue::read_chains(uint32_t n, uint32_t& rows, uint32_t& longest) noexcept {
  const virtio::SplitRing::Reader ring = ring_.reader();
  memory::Window window = memory::Window::of(hint_);
  Packet* const packets = packets_.data();
  const uint32_t header_size = header_size_;
  uint32_t most = rows;  // rows of one burst at the present stride
  piece_count_ = 0;
  for (uint32_t k = 0; k < std::min(n, prefetch_ahead); ++k) ring.prefetch(ring.head(k));
  uint32_t taken = 0;
  for (; taken < n; ++taken) {
    // Not behind the last one: there the guest is writing, and would lose the cache line.
    if (taken + prefetch_ahead < n) ring.prefetch(ring.head(taken + prefetch_ahead));
    Packet& packet = packets[taken];
    packet.head = ring.head(taken);
    const auto d = packet.head < ring.size ? ring.descriptor(packet.head) : virtio::SplitRing::Entry{};
    const uint32_t len = d.len - header_size;
    constexpr uint16_t special = virtio::DESC_F_NEXT | virtio::DESC_F_WRITE | virtio::DESC_F_INDIRECT;
    uint8_t* host = window.translate(d.addr, d.len);
    if (!host && d.len != 0) {
      host = memory_->translate(d.addr, d.len, hint_);
      window = memory::Window::of(hint_);
    }
    if (host && (d.flags & special) == 0 && len - 1 < virtio::max_packet) [[likely]] {
      __builtin_prefetch(host);
      packet.host = host;
      packet.len = len;
      packet.shape = Shape::simple;
    } else {
      if (!read_chain(taken)) break;
      if (packet.shape == Shape::malformed) continue;
    }
    if (packet.len > longest || rows == most) {  // the stride grows, or it is time to see whether the burst is full
      const uint32_t longer = std::max(longest, packet.len);
      most = std::max(1u, Burst::max_bytes / Burst::stride_for(longer));
      if (rows >= most) break;
      longest = longer;
    }
    ++rows;
  }
  return taken;
}

/// Any chain. False: the ring broke, or the scratch is full and the next burst takes this one.
bool RxQueue::read_chain(uint32_t k) noexcept {
  Packet& packet = packets_[k];
  alignas(8) uint8_t header[10] = {};
  uint32_t header_got = 0, skip = header_size_;
  uint64_t bytes = 0;
  bool scratch_full = false, too_long = false;
  const uint32_t first_piece = piece_count_;
  auto take = [&](uint8_t* host, uint32_t len) {
    const uint32_t n = std::min(skip, len);
    for (uint32_t i = 0; i < n && header_got < sizeof header; ++i)
      header[header_got++] = *static_cast<volatile const uint8_t*>(host + i);
    skip -= n;
    if (len == n) return true;
    if (piece_count_ == pieces_.size()) return false;
    pieces_[piece_count_++] = {host + n, len - n};
    return true;
  };
  const bool walked = ring_.walk(packet.head, *memory_, hint_, [&](uint64_t addr, uint32_t len, bool writable) {
    if (writable) {
      ring_.set_fault({Fault::Kind::direction, packet.head, 0});
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
    if (n == 0) ring_.set_fault({Fault::Kind::unmapped, addr, len});
    for (size_t i = 0; i < n && !scratch_full; ++i)
      scratch_full = !take(crossing[i].host, static_cast<uint32_t>(crossing[i].len));
    return n != 0 && !scratch_full;
  });
  if (!walked || ring_.fault()) return false;
  if (scratch_full && first_piece != 0) {
    piece_count_ = first_piece;
    return false;
  }
  packet.host = nullptr;
  packet.len = bytes > header_size_ ? static_cast<uint32_t>(bytes - header_size_) : 0;
  // A chain that holds no byte of a packet, or too many, is consumed and counted, and the queue goes on.
  packet.shape = scratch_full || too_long || packet.len == 0 ? Shape::malformed : Shape::pieces;
  extents_[k] = {first_piece, piece_count_ - first_piece, virtio::load_once_u64(header),
                 virtio::load_once_u16(header + 8)};
  return true;
}

/// Second pass: headers and packets. A packet whose header is not valid is dropped here.
void RxQueue::fill(Burst& burst, uint32_t taken) noexcept {
  const Packet* const packets = packets_.data();
  const uint32_t header_size = header_size_, stride = burst.stride;
  uint32_t* const lengths = burst.lengths;
  NetHeader* const headers = burst.headers;
  uint8_t* to = burst.data;
  std::memset(static_cast<void*>(headers), 0, sizeof(NetHeader) * burst.count);
  uint32_t row = 0, malformed = 0;
  Tally tally;
  if (!injected_.empty()) {
    std::memcpy(to, injected_.data(), injected_.size());
    lengths[row++] = static_cast<uint32_t>(injected_.size());
    tally.count(to, static_cast<uint32_t>(injected_.size()));
    to += stride;
    injected_.clear();
  }
  for (uint32_t k = 0; k < taken; ++k) {
    const Packet& packet = packets[k];
    const uint32_t len = packet.len;
    if (packet.shape == Shape::simple) [[likely]] {
      const uint64_t word = virtio::load_once_u64(packet.host);
      if ((word & 0xffff) != 0 && !accept_header(headers[row], word, virtio::load_once_u16(packet.host + 8), len))
          [[unlikely]] {
        ++malformed;
        continue;
      }
      copy_packet(to, packet.host + header_size, len);
    } else {
      const Extent& extent = extents_[k];
      if (packet.shape == Shape::malformed || !accept_header(headers[row], extent.header, extent.csum_offset, len)) {
        ++malformed;
        continue;
      }
      uint8_t* at = to;
      for (uint32_t i = 0; i < extent.pieces; ++i) {
        const memory::Piece& piece = pieces_[extent.first_piece + i];
        copy_packet(at, piece.host, piece.len);
        at += piece.len;
      }
    }
    lengths[row++] = len;
    tally.count(to, len);
    to += stride;
  }
  burst.count = row;
  if (row == 0) burst = {};
  if (malformed != 0) counters.errors.add(malformed);
  counters.packets.add(tally.packets);
  counters.bytes.add(tally.bytes);
  tally.add_classes_to(counters);
  give_back(taken);
}

/// Asks for nothing that was not negotiated. False: the packet is malformed. `header` is zero before.
bool RxQueue::accept_header(NetHeader& header, uint64_t word, uint16_t csum_offset, uint32_t len) const noexcept {
  if ((word & 0xffff) == 0) return true;
  NetHeader h;
  std::memcpy(static_cast<void*>(&h), &word, sizeof word);
  h.csum_offset = csum_offset;
  h.flags &= features_.has(Feature::CSUM) ? virtio::NET_HDR_F_NEEDS_CSUM : uint8_t{0};
  if (!virtio::valid(h, len) || !virtio::may_send_segment(features_, h)) return false;
  header = h;
  return true;
}

void RxQueue::drop(uint32_t taken) noexcept {
  for (uint32_t k = 0; k < taken; ++k)
    if (packets_[k].shape == Shape::malformed) counters.errors.add(1);
  give_back(taken);
}

void RxQueue::give_back(uint32_t taken) noexcept {
  if (taken == 0) return;
  virtio::SplitRing::Writer used = ring_.writer();
  for (uint32_t k = 0; k < taken; ++k) used.push(packets_[k].head, 0);
  ring_.pushed(used);
  ring_.consume(taken);
  ring_.publish(ring_.used_next());
  notify(counters);
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
