// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "base/copy.hpp"
#include "base/shared_field.hpp"
#include "memory/packet_arena.hpp"
#include "port/vring_queue.hpp"
#include "virtio/burst.hpp"
#include "virtio/net_header.hpp"

namespace vhost_ioat::port {

/// The data path of an rx queue: vring dequeue, what the guest sends. Made for each ring that starts.
class RxPath : public RingPath {
 public:
  struct Dequeued {
    virtio::Burst burst;
    bool published = false;  // something was given back to the guest
  };
  /// At most n packets. Those of a disabled ring are dropped, not left waiting (vhost-user, "Ring states").
  virtual Dequeued dequeue(memory::PacketArena& arena, uint32_t n, bool enabled) noexcept = 0;

 protected:
  /// `injected`: a frame that comes before all packets, if it is not empty.
  RxPath(RxCounters& counters, Notices& notices, std::vector<uint8_t>& injected)
      : counters_(counters), notices_(notices), injected_(injected) {}

  /// What was found, and from `empty` on why it is dropped.
  enum class Shape : uint8_t { simple, pieces, empty, oversize, too_many_pieces, no_memory };
  enum class Verdict : uint8_t { accepted, header, gso, gso_no_csum };

  bool exhausted(memory::PacketArena& arena) noexcept;
  bool accept_header(virtio::NetHeader& header, uint64_t word, uint16_t csum_offset, uint32_t len) noexcept;
  Verdict judge_header(virtio::NetHeader& header, uint32_t len) noexcept;
  void count_dropped(Shape why) noexcept;

  RxCounters& counters_;
  Notices& notices_;
  std::vector<uint8_t>& injected_;
  virtio::FeatureSet features_;
  uint32_t header_size_ = 12;
  size_t starved_ = 0;  // bytes that could not be had in one piece; 0: there is memory
};

/// ... over one kind of ring.
///
/// A burst is taken in two passes: one reads the chains, checks them and so learns the lengths, and has the packets
/// fetched into the cache; then the layout of the burst is chosen and headers and packets are read. Nothing of the
/// guest's is looked at twice.
template <virtio::DataPathRing Ring>
class RxPathOf final : public RxPath {
 public:
  RxPathOf(uint32_t ring_size, RxCounters& counters, Notices& notices, std::vector<uint8_t>& injected)
      : RxPath(counters, notices, injected) {
    packets_.resize(ring_size);
    extents_.resize(ring_size);
    // A burst of packets in more pieces ends early; a single packet in more is dropped.
    pieces_.resize(budget::pieces_of_packet(ring_size));
  }

  virtio::DeviceRing& ring() noexcept override { return ring_; }
  uint32_t filled() const noexcept override { return ring_.filled(); }
  Dequeued dequeue(memory::PacketArena& arena, uint32_t n, bool enabled) noexcept override;

 private:
  /// One chain after the first pass. simple: `host` is header and packet. pieces: `host` is null, see Extent.
  struct Packet {
    uint8_t* host;
    uint32_t len;  // without the header
    typename Ring::Chain chain;
    Shape shape;
  };
  struct Extent {
    uint32_t first_piece, pieces;
    uint64_t header;  // the first 8 bytes, and the others
    uint16_t csum_offset;
  };

  void start_ring(const RingSetup& setup) noexcept override {
    features_ = setup.features;
    header_size_ = features_.net_header_size();
    ring_.start(setup.at, setup.size, setup.features, setup.last_avail);
    starved_ = 0;
  }
  uint32_t read_chains(typename Ring::Cursor at, uint32_t& rows, uint32_t& longest) noexcept;
  bool read_chain(const typename Ring::Cursor& at, uint32_t k) noexcept;
  void fill(virtio::Burst& burst, uint32_t taken) noexcept;
  void shorten(memory::PacketArena& arena, uint32_t& taken, uint32_t& rows, uint32_t& longest) noexcept;
  void drop(uint32_t taken) noexcept;
  void give_back(uint32_t taken) noexcept;

  Ring ring_;
  std::vector<Packet> packets_;  // scratch of one burst
  std::vector<Extent> extents_;
  std::vector<memory::Piece> pieces_;
  uint32_t piece_count_ = 0;
};

template <virtio::DataPathRing Ring>
RxPath::Dequeued RxPathOf<Ring>::dequeue(memory::PacketArena& arena, uint32_t n, bool enabled) noexcept {
  Dequeued done;
  const bool injecting = !injected_.empty();
  uint32_t rows = injecting, longest = static_cast<uint32_t>(injected_.size());
  typename Ring::Cursor at = ring_.cursor(n - std::min(n, rows));
  if (!injecting && !at.more()) return done;
  if (starved_ != 0 && enabled && exhausted(arena)) [[unlikely]]
    return done;

  uint32_t taken = read_chains(at, rows, longest);
  if (!enabled) {
    counters_.missed.add(rows - injecting);
    drop(taken);
    done.published = taken != 0;
    return done;
  }
  if (rows != 0) {
    done.burst = virtio::Burst::allocate(arena, rows, longest);
    if (!done.burst.block) [[unlikely]] {
      shorten(arena, taken, rows, longest);
      if (rows != 0) done.burst = virtio::Burst::allocate(arena, rows, longest);
      if (rows != 0 && !done.burst.block) return done;  // somebody else took it: nothing was consumed
    }
  }
  if (done.burst.block) {
    fill(done.burst, taken);
  } else {
    drop(taken);
  }
  done.published = taken != 0;
  return done;
}

/// Leaves as many of the packets that were read as fit into the largest free piece of memory. Packets at the front for
/// which there is none are marked as dropped; without any memory nothing is taken.
template <virtio::DataPathRing Ring>
void RxPathOf<Ring>::shorten(memory::PacketArena& arena, uint32_t& taken, uint32_t& rows, uint32_t& longest) noexcept {
  const size_t free = arena.largest_free();
  const uint32_t read = taken;
  rows = !injected_.empty();
  longest = static_cast<uint32_t>(injected_.size());
  if (free == 0) {
    starved_ = std::max(starved_, memory::PacketArena::block_size(virtio::Burst::bytes_for(1, longest)));
    counters_.nombuf.add(1);
    notices_.add(Notice::Kind::memory_exhausted, starved_, arena.size());
    taken = rows = 0;
    return;
  }
  for (taken = 0; taken < read; ++taken) {
    Packet& packet = packets_[taken];
    if (packet.shape >= Shape::empty) continue;
    const uint32_t longer = std::max(longest, packet.len);
    if (virtio::Burst::bytes_for(rows + 1, longer) <= free) {
      longest = longer;
      ++rows;
      continue;
    }
    if (rows != 0) break;
    packet.shape = Shape::no_memory;
    const size_t wanted = memory::PacketArena::block_size(virtio::Burst::bytes_for(1, packet.len));
    starved_ = std::max(starved_, wanted);
    notices_.add(Notice::Kind::memory_cut_up, wanted, arena.size(), free);
  }
}

/// First pass: as many chains as one burst may hold. Returns how many were read, `rows` of them with a packet to show.
template <virtio::DataPathRing Ring>
uint32_t RxPathOf<Ring>::read_chains(typename Ring::Cursor at, uint32_t& rows, uint32_t& longest) noexcept {
  memory::Window window = memory_.window();
  Packet* const packets = packets_.data();
  const uint32_t header_size = header_size_;
  uint32_t most = rows;  // rows of one burst at the present stride
  piece_count_ = 0;
  begin_steps(ring_);
  for (uint32_t k = 0; k < prefetch_ahead; ++k) at.prefetch(k);
  uint32_t taken = 0;
  for (; at.more(); ++taken) {
    at.prefetch(prefetch_ahead);
    Packet& packet = packets[taken];
    packet.chain = at.chain();
    const virtio::Descriptor d = at.first(packet.chain);
    const uint32_t len = d.len - header_size;
    constexpr uint16_t special = virtio::DESC_F_NEXT | virtio::DESC_F_WRITE | virtio::DESC_F_INDIRECT;
    uint8_t* host = window.translate(d.addr, d.len);
    if (!host && d.len != 0) {
      host = memory_.translate(d.addr, d.len);
      window = memory_.window();
    }
    if (host && (d.flags & special) == 0 && len - 1 < virtio::max_packet) [[likely]] {
      __builtin_prefetch(host);
      packet.host = host;
      packet.len = len;
      packet.shape = Shape::simple;
    } else {
      if (!read_chain(at, taken)) break;
      if (packet.shape >= Shape::empty) {
        at.next(packet.chain);
        continue;
      }
    }
    if (packet.len > longest || rows == most) {  // the stride grows, or it is time to see whether the burst is full
      const uint32_t longer = std::max(longest, packet.len);
      most = std::max(1u, virtio::Burst::max_bytes / virtio::Burst::stride_for(longer));
      if (rows >= most) break;
      longest = longer;
    }
    ++rows;
    at.next(packet.chain);
  }
  return taken;
}

/// Any chain. False: the ring broke, or the scratch is full or the call has walked enough, and the next burst takes
/// this one.
template <virtio::DataPathRing Ring>
[[gnu::noinline]] bool RxPathOf<Ring>::read_chain(const typename Ring::Cursor& at, uint32_t k) noexcept {
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
      ring_.set_fault({virtio::Fault::Kind::direction, packet.chain.head, 0});
      return false;
    }
    bytes += len;
    too_long = bytes > header_size_ + virtio::max_packet;
    if (too_long) return false;
    memory::Piece found[memory::RegionTable::max_regions];
    const memory::AddressSpace::Resolved here = memory_.resolve(addr, len, found);
    if (here.answer != memory::Answer::here) ring_.set_fault({virtio::Fault::Kind::unmapped, addr, len});
    if (here.pieces > 1) walk_steps(here.pieces);
    for (uint32_t i = 0; i < here.pieces && !scratch_full; ++i)
      scratch_full = !take(found[i].host, static_cast<uint32_t>(found[i].len));
    return here.pieces != 0 && !scratch_full;
  };
  const bool walked = ring_.walk(at, packet.chain, memory_, steps_left_, each);
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
  extents_[k] = {first_piece, piece_count_ - first_piece, load_once_u64(header), load_once_u16(header + 8)};
  return true;
}

/// Second pass: headers and packets. A packet whose header is not valid is dropped here.
template <virtio::DataPathRing Ring>
void RxPathOf<Ring>::fill(virtio::Burst& burst, uint32_t taken) noexcept {
  const Packet* const packets = packets_.data();
  const uint32_t header_size = header_size_, stride = burst.stride;
  uint32_t* const lengths = burst.lengths;
  virtio::NetHeader* const headers = burst.headers;
  uint8_t* to = burst.data;
  std::memset(static_cast<void*>(headers), 0, sizeof(virtio::NetHeader) * burst.count);
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
      const uint64_t word = load_once_u64(packet.host);
      if ((word & 0xffff) != 0 && !accept_header(headers[row], word, load_once_u16(packet.host + 8), len)) [[unlikely]]
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
  counters_.packets.add(tally.packets);
  counters_.bytes.add(tally.bytes);
  tally.add_classes_to(counters_);
  give_back(taken);
}

template <virtio::DataPathRing Ring>
void RxPathOf<Ring>::drop(uint32_t taken) noexcept {
  for (uint32_t k = 0; k < taken; ++k) count_dropped(packets_[k].shape);
  give_back(taken);
}

template <virtio::DataPathRing Ring>
void RxPathOf<Ring>::give_back(uint32_t taken) noexcept {
  if (taken == 0) return;
  typename Ring::Commits commits = ring_.commits();
  for (uint32_t k = 0; k < taken; ++k) commits.push(packets_[k].chain, 0);
  ring_.committed(commits);
  ring_.publish(ring_.filled());
}

}  // namespace vhost_ioat::port
