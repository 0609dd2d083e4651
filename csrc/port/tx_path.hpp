// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "base/copy.hpp"
#include "base/shared_field.hpp"
#include "port/copy_pipe.hpp"
#include "port/packet_view.hpp"
#include "port/vring_queue.hpp"
#include "virtio/net_header.hpp"

namespace vhost_ioat::port {

/// The data path of a tx queue: vring enqueue, the guest receives. Made for each ring that starts.
class TxPath : public RingPath {
 public:
  struct Enqueued {
    uint32_t packets;  // taken, from the front
    bool published;    // something was shown to the guest
  };
  virtual Enqueued enqueue(const PacketView& packets) noexcept = 0;
  virtual uint32_t reap(uint32_t limit) noexcept = 0;
};

/// ... over one kind of ring.
///
/// A packet goes the simple way, in which it fits one writable descriptor, or the general one, which knows chains,
/// merged buffers, region borders and offloads. Copies of at least the threshold go to the engine if there is one.
template <virtio::DataPathRing Ring>
class TxPathOf final : public TxPath {
 public:
  TxPathOf(uint32_t ring_size, TxCounters& counters, Notices& notices, CopyPipe& pipe)
      : counters_(counters), notices_(notices), pipe_(pipe) {
    pieces_.resize(budget::pieces_of_packet(ring_size));
    copies_.resize(pieces_.size());
    chains_.resize(ring_size);
  }

  virtio::DeviceRing& ring() noexcept override { return ring_; }
  uint32_t filled() const noexcept override { return ring_.filled(); }

  Enqueued enqueue(const PacketView& view) noexcept override;
  uint32_t reap(uint32_t limit) noexcept override { return pipe_.reap(ring_, limit); }

 private:
  enum class Fit : uint8_t { ok, no_buffer, never, short_buffer, fault };
  enum class Fate : uint8_t { sent, dropped, stays };

  void start_ring(const RingSetup& setup) noexcept override {
    features_ = setup.features;
    header_size_ = features_.net_header_size();
    ring_.start(setup.at, setup.size, setup.features, setup.last_avail);
    lack_ = {};
  }
  uint32_t enqueue_simple(const PacketView& view, uint32_t i, Tally& tally) noexcept;
  Fate enqueue_any(const PacketView& view, uint32_t i, uint32_t len) noexcept;
  Fit reserve(uint32_t need) noexcept;
  Fit add_chain(const typename Ring::Cursor& at, uint32_t need, uint32_t& found) noexcept;
  Fit out_of_steps(uint32_t need) noexcept;
  bool known_to_lack(uint32_t need) noexcept;
  void give_back_short_buffer() noexcept;
  /// Bytes that a buffer must hold to be of use to the smallest packet; a merged one, to its header.
  uint32_t least_buffer() const {
    return header_size_ + (features_.has(virtio::Feature::MRG_RXBUF) ? 0 : virtio::least_packet);
  }
  void write_at(uint32_t offset, const void* bytes, uint32_t len) noexcept;
  void write_header(const virtio::NetHeader& asked, const uint8_t* packet, uint32_t len, bool fill_checksum) noexcept;
  std::span<const dma::Copy> copies_of(const uint8_t* packet, uint32_t len) noexcept;

  TxCounters& counters_;
  Notices& notices_;
  CopyPipe& pipe_;
  Ring ring_;
  virtio::FeatureSet features_;
  uint32_t header_size_ = 12;
  bool got_somewhere_ = false;  // this enqueue() has taken a packet, or given back a buffer
  /// All the buffers there were, and how much they hold together: not looked at again until there are more.
  struct Lack {
    uint32_t bytes = 0;
    uint16_t from = 0;
    typename Ring::Cursor end;  // passed() is 0: nothing is known
  } lack_;

  struct Taken {
    typename Ring::Chain chain;
    uint32_t written;
  };
  std::vector<memory::Piece> pieces_;  // scratch of one packet
  uint32_t piece_count_ = 0;
  std::vector<Taken> chains_;
  uint32_t chain_count_ = 0;
  std::vector<dma::Copy> copies_;
};

/// The header of a packet that asks for nothing, in one buffer. Written only where it is not there already: a guest
/// that uses its buffers over and over has it in its cache, and taking away a line that both cores share is waited for,
/// packet after packet; between two cores that costs more than all the rest of a small packet.
inline void write_plain_header(uint8_t* to, uint32_t header_size) noexcept {
  const uint16_t num_buffers = 1;
  if (load_once_u64(to) != 0) std::memset(to, 0, 8);
  if (load_once_u16(to + 8) != 0) std::memset(to + 8, 0, 2);
  if (header_size == 12 && load_once_u16(to + 10) != num_buffers) std::memcpy(to + 10, &num_buffers, 2);
}

template <virtio::DataPathRing Ring>
TxPath::Enqueued TxPathOf<Ring>::enqueue(const PacketView& view) noexcept {
  const uint32_t published_before = ring_.published();
  if (!pipe_.idle()) reap(UINT32_MAX);
  // Nothing until the control thread has stopped a failed engine, and copied what it did not.
  if (pipe_.engine_failed()) return {0, ring_.published() != published_before};
  pipe_.begin_burst();
  begin_steps(ring_);
  got_somewhere_ = false;
  Tally tally;
  uint32_t taken = 0;
  for (;;) {
    taken += enqueue_simple(view, taken, tally);
    if (taken == view.count) break;
    got_somewhere_ |= taken != 0;
    const uint32_t len = view.length(taken);
    const Fate fate = enqueue_any(view, taken, len);
    if (fate == Fate::stays) break;
    if (fate == Fate::sent) {
      pipe_.book(ring_, {1, len});
      tally.count(view.packet(taken), len);
    } else {
      counters_.errors.add(1);
    }
    ++taken;
  }
  tally.add_classes_to(counters_);
  pipe_.end_burst(ring_, view.block);
  return {taken, ring_.published() != published_before};
}

/// A run of packets of the common case, from the i-th on: each fits one writable descriptor and is one copy, the CPU's
/// or the engine's. Returns how many; what ends the run is left to enqueue_any().
template <virtio::DataPathRing Ring>
uint32_t TxPathOf<Ring>::enqueue_simple(const PacketView& view, uint32_t i, Tally& tally) noexcept {
  const uint32_t first = i;
  typename Ring::Cursor at = ring_.cursor(std::min(view.count - i, ring_.room()));
  typename Ring::Commits commits = ring_.commits();
  memory::Window window = memory_.window();
  const uint32_t header_size = header_size_, threshold = pipe_.threshold();
  CopyPipe::Booked by_cpu;  // not booked yet
  auto book = [&] {
    ring_.committed(commits);
    counters_.cpu_bytes.add(by_cpu.bytes);
    pipe_.book(ring_, by_cpu);
    by_cpu = {};
  };
  for (uint32_t k = 0; k < prefetch_ahead; ++k) at.prefetch(k);
  for (; at.more(); ++i) {
    at.prefetch(prefetch_ahead);
    const uint32_t len = view.length(i);
    const virtio::NetHeader& header = view.header(i);
    if (len - 1 >= virtio::max_packet || len > view.stride || (header.flags | header.gso_type) != 0) break;
    const typename Ring::Chain chain = at.chain();
    const virtio::Descriptor d = at.first(chain);
    constexpr uint16_t special = virtio::DESC_F_NEXT | virtio::DESC_F_WRITE | virtio::DESC_F_INDIRECT;
    const uint32_t need = header_size + len;
    if (d.len < need || (d.flags & special) != virtio::DESC_F_WRITE) break;
    uint8_t* to = window.translate(d.addr, need);
    if (!to) {
      to = memory_.translate(d.addr, need);
      window = memory_.window();
      if (!to) break;
    }
    const uint8_t* packet = view.packet(i);
    bool in_flight = false;
    if (len >= threshold) {
      if (by_cpu.packets != 0) book();
      in_flight = pipe_.offer({to + header_size, packet, len}, view.block);
    }
    if (!in_flight) copy_packet(to + header_size, packet, len);
    write_plain_header(to, header_size);
    commits.push(chain, need);
    at.next(chain);
    tally.count(packet, len);
    if (in_flight) {
      ring_.committed(commits);
      pipe_.book(ring_, {1, len});
    } else {
      by_cpu.packets += 1;
      by_cpu.bytes += len;
    }
  }
  if (by_cpu.packets != 0) book();
  return i - first;
}

/// Every case: chains, merged buffers, region borders, offloads, the engine.
template <virtio::DataPathRing Ring>
typename TxPathOf<Ring>::Fate TxPathOf<Ring>::enqueue_any(const PacketView& view, uint32_t i, uint32_t len) noexcept {
  if (ring_.fault()) return Fate::stays;
  if (len == 0 || len > virtio::max_packet || len > view.stride) {
    counters_.oversize_dropped.add(1);
    return Fate::dropped;
  }
  const virtio::NetHeader asked = view.header(i);  // a copy: other threads of the program may write there
  if (!virtio::valid(asked, len) || !virtio::receives_segment(features_, asked)) {
    counters_.gso_dropped.add(1);
    return Fate::dropped;
  }
  Fit fit = reserve(header_size_ + len);
  for (; fit == Fit::short_buffer; fit = reserve(header_size_ + len)) give_back_short_buffer();
  if (fit == Fit::never) counters_.oversize_dropped.add(1);
  if (fit != Fit::ok) return fit == Fit::never ? Fate::dropped : Fate::stays;

  const uint8_t* packet = view.packet(i);
  const bool fill_checksum =
      (asked.flags & virtio::NET_HDR_F_NEEDS_CSUM) && !features_.has(virtio::Feature::GUEST_CSUM);
  // The engine first: a copy it refuses is still the CPU's.
  pipe_.copy(copies_of(packet, len), view.block && !fill_checksum);
  write_header(asked, packet, len, fill_checksum);
  typename Ring::Commits commits = ring_.commits();
  for (const Taken& taken : std::span(chains_).first(chain_count_)) commits.push(taken.chain, taken.written);
  ring_.committed(commits);
  return Fate::sent;
}

/// Looks for buffers of `need` bytes and changes nothing in the ring.
template <virtio::DataPathRing Ring>
typename TxPathOf<Ring>::Fit TxPathOf<Ring>::reserve(uint32_t need) noexcept {
  if (known_to_lack(need)) return ring_.fault() ? Fit::fault : Fit::no_buffer;
  typename Ring::Cursor at = ring_.cursor();
  uint32_t found = 0;
  piece_count_ = chain_count_ = 0;
  while (found < need) {
    if (chain_count_ == ring_.room() && chain_count_ != ring_.size()) return Fit::no_buffer;
    if (!at.more() && !ring_.refresh(at)) {
      if (ring_.fault()) return Fit::fault;
      if (at.passed() == ring_.size()) return Fit::never;
      lack_ = {found, ring_.base(), at};
      return Fit::no_buffer;
    }
    const Fit fit = add_chain(at, need, found);
    if (fit != Fit::ok) return fit;
    at.next(chains_[chain_count_ - 1].chain);
    if (found >= need) break;
    if (steps_left_ == 0) return out_of_steps(need);
    // A buffer that cannot hold the smallest packet would be found too short for every packet, for ever. Merged ones
    // need room for the header only (VIRTIO 1.2, 5.1.6.3.1), and only the first one holds it.
    if (chain_count_ == 1 && found < least_buffer()) return Fit::short_buffer;
    if (!features_.has(virtio::Feature::MRG_RXBUF)) return Fit::never;
  }
  return Fit::ok;
}

/// Adds the pieces of one chain to those reserved, as far as they are needed.
template <virtio::DataPathRing Ring>
typename TxPathOf<Ring>::Fit TxPathOf<Ring>::add_chain(const typename Ring::Cursor& at, uint32_t need,
                                                       uint32_t& found) noexcept {
  const uint32_t before = found;
  typename Ring::Chain chain = at.chain();
  bool too_many_pieces = false;
  const bool walked = ring_.walk(at, chain, memory_, steps_left_, [&](uint64_t addr, uint32_t len, bool writable) {
    if (!writable) {
      ring_.set_fault({virtio::Fault::Kind::direction, chain.head, 0});
      return false;
    }
    len = std::min(len, need - found);
    const auto room = std::span(pieces_).subspan(piece_count_);
    const memory::AddressSpace::Resolved here = memory_.resolve(addr, len, room);
    if (here.answer == memory::Answer::here) {
      __builtin_prefetch(room[0].host, 1);
      if (here.pieces > 1) walk_steps(here.pieces);
      piece_count_ += here.pieces;
      found += len;
      return found < need;
    }
    too_many_pieces = here.answer == memory::Answer::too_many_pieces;
    if (!too_many_pieces) ring_.set_fault({virtio::Fault::Kind::unmapped, addr, len});
    return false;
  });
  if (!walked || ring_.fault()) return Fit::fault;
  if (too_many_pieces) return Fit::never;
  DEBUG_ASSERT(chain_count_, <, chains_.size());
  chains_[chain_count_++] = {chain, found - before};
  return Fit::ok;
}

/// The call has walked as far as it may. If that was all for its first packet, the next call would do no better.
template <virtio::DataPathRing Ring>
typename TxPathOf<Ring>::Fit TxPathOf<Ring>::out_of_steps(uint32_t need) noexcept {
  if (got_somewhere_) return Fit::no_buffer;
  ring_.set_fault({virtio::Fault::Kind::walk, budget::steps_of_call(ring_.size()), need});
  return Fit::fault;
}

/// The buffers are those that were too few before, or the ring broke.
template <virtio::DataPathRing Ring>
bool TxPathOf<Ring>::known_to_lack(uint32_t need) noexcept {
  if (lack_.end.passed() == 0) return false;
  if (lack_.from == ring_.base() && !ring_.refresh(lack_.end)) return need > lack_.bytes || ring_.fault();
  lack_ = {};
  return false;
}

template <virtio::DataPathRing Ring>
void TxPathOf<Ring>::give_back_short_buffer() noexcept {
  counters_.short_buffers.add(1);
  notices_.add(Notice::Kind::short_buffer, chains_[0].written, least_buffer());
  ring_.commit(chains_[0].chain, 0);
  pipe_.book(ring_, {});  // in its place among what is in flight
  got_somewhere_ = true;
}

/// What stands before the packet, and the checksum in it that the guest does not fill in itself.
template <virtio::DataPathRing Ring>
void TxPathOf<Ring>::write_header(const virtio::NetHeader& asked, const uint8_t* packet, uint32_t len,
                                  bool fill_checksum) noexcept {
  virtio::NetHeader header = asked;
  if (!features_.has(virtio::Feature::GUEST_CSUM)) header.flags = 0;
  if (fill_checksum) header.csum_start = header.csum_offset = 0;
  write_at(0, &header, sizeof header);
  if (header_size_ == 12) {
    const auto num_buffers = static_cast<uint16_t>(chain_count_);
    write_at(virtio::num_buffers_offset, &num_buffers, sizeof num_buffers);
  }
  if (!fill_checksum) return;
  const uint16_t sum = virtio::internet_checksum(packet + asked.csum_start, len - asked.csum_start);
  write_at(header_size_ + asked.csum_start + asked.csum_offset, &sum, sizeof sum);
}

/// Writes small things (headers, a checksum) at an offset of the reserved pieces.
template <virtio::DataPathRing Ring>
void TxPathOf<Ring>::write_at(uint32_t offset, const void* bytes, uint32_t len) noexcept {
  auto* from = static_cast<const uint8_t*>(bytes);
  for (uint32_t p = 0; len != 0; ++p) {
    DEBUG_ASSERT(p, <, piece_count_);
    const memory::Piece& piece = pieces_[p];
    if (offset >= piece.len) {
      offset -= static_cast<uint32_t>(piece.len);
      continue;
    }
    const uint32_t n = std::min(len, static_cast<uint32_t>(piece.len) - offset);
    std::memcpy(piece.host + offset, from, n);
    from += n;
    len -= n;
    offset = 0;
  }
}

/// The packet, cut up as the reserved pieces are, after the header.
template <virtio::DataPathRing Ring>
std::span<const dma::Copy> TxPathOf<Ring>::copies_of(const uint8_t* packet, uint32_t len) noexcept {
  uint32_t skip = header_size_, done = 0, count = 0;
  for (uint32_t p = 0; done < len; ++p) {
    DEBUG_ASSERT(p, <, piece_count_);
    const auto piece_len = static_cast<uint32_t>(pieces_[p].len);
    const uint32_t from = std::min(skip, piece_len);
    skip -= from;
    const uint32_t n = std::min(piece_len - from, len - done);
    if (n != 0) copies_[count++] = {pieces_[p].host + from, packet + done, n};
    done += n;
  }
  return std::span(copies_).first(count);
}

}  // namespace vhost_ioat::port
