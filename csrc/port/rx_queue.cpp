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

RxQueue::Scratch RxQueue::prepare(uint32_t ring_size) {
  Scratch scratch;
  scratch.packets.resize(ring_size);
  scratch.extents.resize(ring_size);
  // A burst of packets in more pieces ends early; a single packet in more is dropped.
  scratch.pieces.resize(budget::pieces_of_packet(ring_size));
  return scratch;
}

/// A ring that stops is given none. One that starts anew in its old place (it was broken, or its driver began again)
/// may be given none either: then what it has is of the right size.
void RxQueue::setup(RingSetup setup, Scratch scratch) noexcept {
  if (!setup_ring(std::move(setup)) && running()) return;  // it goes on
  if (!running() || !scratch.pieces.empty()) {
    packets_ = std::move(scratch.packets);
    extents_ = std::move(scratch.extents);
    pieces_ = std::move(scratch.pieces);
  }
  starved_ = 0;
  if (running()) return;
  notices_.reset();
  if (!injected_.empty()) counters.rarp_lost.add(1);
  injected_.clear();
}

void RxQueue::setup(RingSetup setup) {
  Scratch scratch = prepare(setup.size);
  this->setup(std::move(setup), std::move(scratch));
}

Burst RxQueue::dequeue(memory::PacketArena& arena, uint32_t n) noexcept {
  if (!running_) return {};
  const bool injecting = !injected_.empty();
  uint32_t waiting = ring_.available();
  if (waiting < n) waiting = ring_.look_again();
  if (waiting == 0 && !injecting) return {};
  if (starved_ != 0 && enabled_ && exhausted(arena)) [[unlikely]]
    return {};

  uint32_t rows = injecting, longest = static_cast<uint32_t>(injected_.size());
  uint32_t taken = read_chains(std::min(waiting, n - rows), rows, longest);
  Burst burst;
  if (!enabled_) {
    // A disabled ring's packets are dropped, not left waiting (vhost-user, "Ring states").
    counters.missed.add(rows - injecting);
    drop(taken);
    return burst;
  }
  if (rows != 0) {
    burst = Burst::allocate(arena, rows, longest);
    if (!burst.block) [[unlikely]] {
      shorten(arena, taken, rows, longest);
      if (rows != 0) burst = Burst::allocate(arena, rows, longest);
      if (rows != 0 && !burst.block) return burst;  // somebody else took it: nothing was consumed
    }
  }
  if (burst.block) {
    fill(burst, taken);
  } else {
    drop(taken);
  }
  return burst;
}

/// There was no memory the last time: is there none at all now? Then the packets go on waiting.
bool RxQueue::exhausted(memory::PacketArena& arena) noexcept {
  const size_t free = arena.largest_free();
  // Told again only after much was free in between: a program that lives at the limit would be told all the time.
  if (free >= starved_ && arena.bytes_in_use() <= arena.size() / 2) {
    starved_ = 0;
    notices_.again(Notice::Kind::memory_exhausted);
    notices_.again(Notice::Kind::memory_cut_up);
  }
  if (free == 0) counters.nombuf.add(1);
  return free == 0;
}

/// Leaves as many of the packets that were read as fit into the largest free piece of memory. Packets at the front for
/// which there is none are marked as dropped; without any memory nothing is taken.
void RxQueue::shorten(memory::PacketArena& arena, uint32_t& taken, uint32_t& rows, uint32_t& longest) noexcept {
  const size_t free = arena.largest_free();
  const uint32_t read = taken;
  rows = !injected_.empty();
  longest = static_cast<uint32_t>(injected_.size());
  if (free == 0) {
    starved_ = std::max(starved_, memory::PacketArena::block_size(Burst::bytes_for(1, longest)));
    counters.nombuf.add(1);
    notices_.add(Notice::Kind::memory_exhausted, starved_, arena.size());
    taken = rows = 0;
    return;
  }
  for (taken = 0; taken < read; ++taken) {
    Packet& packet = packets_[taken];
    if (packet.shape >= Shape::empty) continue;
    const uint32_t longer = std::max(longest, packet.len);
    if (Burst::bytes_for(rows + 1, longer) <= free) {
      longest = longer;
      ++rows;
      continue;
    }
    if (rows != 0) break;
    packet.shape = Shape::no_memory;
    const size_t wanted = memory::PacketArena::block_size(Burst::bytes_for(1, packet.len));
    starved_ = std::max(starved_, wanted);
    notices_.add(Notice::Kind::memory_cut_up, wanted, arena.size(), free);
  }
}

/// First pass: as many chains as one burst may hold. Returns how many were read, `rows` of them with a packet to show.
uint32_t RxQueue::read_chains(uint32_t n, uint32_t& rows, uint32_t& longest) noexcept {
  const virtio::SplitRing::Reader ring = ring_.reader();
  memory::Window window = memory::Window::of(hint_);
  Packet* const packets = packets_.data();
  const uint32_t header_size = header_size_;
  uint32_t most = rows;  // rows of one burst at the present stride
  piece_count_ = 0;
  steps_left_ = budget::steps_of_call(ring.size);
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
      if (packet.shape >= Shape::empty) continue;
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

/// Any chain. False: the ring broke, or the scratch is full or the call has walked enough, and the next burst takes
/// this one.
[[gnu::noinline]] bool RxQueue::read_chain(uint32_t k) noexcept {
  Packet& packet = packets_[k];
  alignas(8) uint8_t header[10] = {};
  uint32_t header_got = 0, skip = header_size_;
  uint64_t bytes = 0;
  bool scratch_full = false, too_long = false;
  const uint32_t first_piece = piece_count_;
  const bool first_walk = steps_left_ == budget::steps_of_call(ring_.size());
  auto take = [&](uint8_t* host, uint32_t len) {
    const uint32_t n = std::min(skip, len);
    for (uint32_t i = 0; i < n && header_got < sizeof header; ++i)
      header[header_got++] = *static_cast<volatile const uint8_t*>(host + i);
    skip -= n;
    if (len == n) return true;
    if (piece_count_ == pieces_.size()) return false;
    __builtin_prefetch(host + n);
    pieces_[piece_count_++] = {host + n, len - n};
    return true;
  };
  const auto each = [&](uint64_t addr, uint32_t len, bool writable) {
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
    steps_left_ -= std::min(steps_left_, static_cast<uint32_t>(n));
    for (size_t i = 0; i < n && !scratch_full; ++i)
      scratch_full = !take(crossing[i].host, static_cast<uint32_t>(crossing[i].len));
    return n != 0 && !scratch_full;
  };
  const bool walked = ring_.walk(packet.head, *memory_, hint_, steps_left_, each);
  if (!walked || ring_.fault()) return false;
  if (!too_long && (steps_left_ == 0 ? !first_walk : scratch_full && first_piece != 0)) {
    piece_count_ = first_piece;
    return false;
  }
  packet.host = nullptr;
  packet.len = bytes > header_size_ ? static_cast<uint32_t>(bytes - header_size_) : 0;
  // A chain that holds no byte of a packet, or too many, is consumed and counted, and the queue goes on.
  packet.shape = too_long                           ? Shape::oversize
                 : scratch_full || steps_left_ == 0 ? Shape::too_many_pieces
                 : packet.len == 0                  ? Shape::empty
                                                    : Shape::pieces;
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
  uint32_t row = 0;
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
          [[unlikely]]
        continue;
      copy_packet(to, packet.host + header_size, len);
    } else {
      if (packet.shape >= Shape::empty) {
        count_dropped(packet.shape);
        continue;
      }
      const Extent& extent = extents_[k];
      if (!accept_header(headers[row], extent.header, extent.csum_offset, len)) continue;
      uint8_t* at = to;
      for (uint32_t i = 0; i < extent.pieces; ++i) {
        const memory::Piece& piece = pieces_[extent.first_piece + i];
        if (i + prefetch_ahead < extent.pieces)
          __builtin_prefetch(pieces_[extent.first_piece + i + prefetch_ahead].host);
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
  counters.packets.add(tally.packets);
  counters.bytes.add(tally.bytes);
  tally.add_classes_to(counters);
  give_back(taken);
}

/// `word` and `csum_offset` are the header as it was read; `header` is zero before. False: the packet is dropped, and
/// counted.
[[gnu::noinline]] bool RxQueue::accept_header(NetHeader& header, uint64_t word, uint16_t csum_offset,
                                              uint32_t len) noexcept {
  if ((word & 0xffff) == 0) return true;
  NetHeader h;
  std::memcpy(static_cast<void*>(&h), &word, sizeof word);
  h.csum_offset = csum_offset;
  h.flags &= features_.has(Feature::CSUM) ? virtio::NET_HDR_F_NEEDS_CSUM : uint8_t{0};
  const Verdict verdict = judge_header(h, len);
  if (verdict == Verdict::accepted) {
    header = h;
    return true;
  }
  counters.errors.add(1);
  (verdict == Verdict::gso           ? counters.gso_dropped
   : verdict == Verdict::gso_no_csum ? counters.gso_no_csum_dropped
                                     : counters.header_dropped)
      .add(1);
  return false;
}

/// Asks for nothing that was not negotiated, and for nothing that cannot be (VIRTIO 1.2, 5.1.6.2.1).
RxQueue::Verdict RxQueue::judge_header(NetHeader& h, uint32_t len) noexcept {
  if (virtio::segment_without_checksum(h) && virtio::may_send_segment(features_, h)) {
    // A driver must set both. Some do not, for packets of any length: one that needs no cutting is what it would be
    // without gso_type, whole and with its checksum, so it passes as that. One that must be cut would leave whoever
    // cuts it without the place of the checksum.
    if (virtio::is_one_segment(h, len)) {
      h = {};
      return Verdict::accepted;
    }
    notices_.add(Notice::Kind::gso_without_checksum, h.gso_type, 0);
    return Verdict::gso_no_csum;
  }
  if (!virtio::valid(h, len)) return Verdict::header;
  return virtio::may_send_segment(features_, h) ? Verdict::accepted : Verdict::gso;
}

[[gnu::noinline]] void RxQueue::count_dropped(Shape why) noexcept {
  switch (why) {
    case Shape::simple:
    case Shape::pieces:
      return;
    case Shape::empty:
      counters.empty_dropped.add(1);
      break;
    case Shape::oversize:
      counters.oversize_dropped.add(1);
      break;
    case Shape::too_many_pieces:
      counters.pieces_dropped.add(1);
      break;
    case Shape::no_memory:
      counters.nombuf.add(1);
      counters.nombuf_dropped.add(1);
      return;  // our shortage, not the guest's error
  }
  counters.errors.add(1);
}

void RxQueue::drop(uint32_t taken) noexcept {
  for (uint32_t k = 0; k < taken; ++k) count_dropped(packets_[k].shape);
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
