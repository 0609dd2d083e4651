// SPDX-License-Identifier: BSD-3-Clause
#include "port/tx_queue.hpp"

#include <algorithm>
#include <cstring>

#include "base/copy.hpp"
#include "virtio/net_header.hpp"

namespace vhost_ioat::port {

using virtio::Fault;
using virtio::Feature;
using virtio::NetHeader;

namespace {
/// The header of a packet that asks for nothing, in one buffer. Written only where it is not there already: a guest
/// that uses its buffers over and over has it in its cache, and taking away a line that both cores share is waited for,
/// packet after packet; between two cores that costs more than all the rest of a small packet.
inline void write_plain_header(uint8_t* to, uint32_t header_size) noexcept {
  const uint16_t num_buffers = 1;
  if (virtio::load_once_u64(to) != 0) std::memset(to, 0, 8);
  if (virtio::load_once_u16(to + 8) != 0) std::memset(to + 8, 0, 2);
  if (header_size == 12 && virtio::load_once_u16(to + 10) != num_buffers) std::memcpy(to + 10, &num_buffers, 2);
}
}  // namespace

void TxQueue::set_engine(std::shared_ptr<dma::DmaEngine> engine, uint32_t threshold, Publish publish,
                         memory::Block slots) {
  engine_ = std::move(engine);
  threshold_ = threshold;
  publish_ = publish;
  index_slots_ = std::move(slots);
  offload_ = engine_ != nullptr;
}

TxQueue::Scratch TxQueue::prepare(uint32_t ring_size) const {
  Scratch scratch;
  scratch.pieces.resize(budget::pieces_of_packet(ring_size));
  scratch.heads.resize(ring_size);
  if (!engine_) return scratch;
  scratch.copies.resize(scratch.pieces.size());
  // An entry takes at least one buffer, but for the index writes: one a burst, so never more than packets.
  scratch.in_flight.resize(2 * ring_size, std::max(engine_->capabilities().ring_size, 64u));
  return scratch;
}

/// As for an rx queue, a ring that starts anew in its old place may be given none.
void TxQueue::setup(RingSetup setup, Scratch scratch) noexcept {
  if (!setup_ring(std::move(setup)) && running()) return;  // it goes on
  ready_ = ring_.used_next();
  if (!running() || !scratch.pieces.empty()) {
    pieces_ = std::move(scratch.pieces);
    copies_ = std::move(scratch.copies);
    heads_ = std::move(scratch.heads);
    in_flight_ = std::move(scratch.in_flight);
  }
  lack_ = {};
  if (!running()) notices_.reset();
}

void TxQueue::setup(RingSetup setup) {
  Scratch scratch = prepare(setup.size);
  this->setup(std::move(setup), std::move(scratch));
}

/// What the engine may still touch is the slot's to keep; the ring's memory and the block are leaked here.
void TxQueue::abandon() noexcept {
  in_flight_.abandon();
  index_slots_.leak();
  memory_.reset();
  engine_.reset();
  offload_ = running_ = false;
  index_writes_ = unpublished_ = 0;
  counters.engine_lost.add(pending_packets());
  pending_packets_.store(0, std::memory_order_relaxed);
  unfinished_.store(false, std::memory_order_relaxed);
}

uint32_t TxQueue::enqueue(const PacketView& view) noexcept {
  if (!running_ || !enabled_) return 0;
  const RingIndex published_before = ring_.published();
  if (!in_flight_.empty()) reap();
  if (engine_failed()) return 0;  // until the control thread has stopped the engine, and copied what it did not
  reads_block_ = nullptr;
  steps_left_ = budget::steps_of_call(ring_.size());
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
      finish_packets({1, len});
      tally.count(view.packet(taken), len);
    } else {
      counters.errors.add(1);
    }
    ++taken;
  }
  tally.add_classes_to(counters);
  finish_burst(view, published_before);
  return taken;
}

/// A run of packets of the common case, from the i-th on: each fits one writable descriptor and is one copy, the CPU's
/// or the engine's. Returns how many; what ends the run is left to enqueue_any().
uint32_t TxQueue::enqueue_simple(const PacketView& view, uint32_t i, Tally& tally) noexcept {
  const uint32_t first = i;
  uint32_t room = std::min<uint32_t>(ring_.available(), ring_.used_room());
  if (room < view.count - i) room = std::min<uint32_t>(ring_.look_again(), ring_.used_room());
  const uint32_t end = i + std::min(room, view.count - i);
  const virtio::SplitRing::Reader ring = ring_.reader();
  virtio::SplitRing::Writer used = ring_.writer();
  memory::Window window = memory::Window::of(hint_);
  const uint32_t header_size = header_size_, threshold = threshold_;
  Booked by_cpu;  // not booked yet
  auto book = [&] {
    ring_.pushed(used);
    counters.cpu_bytes.add(by_cpu.bytes);
    finish_packets(by_cpu);
    by_cpu = {};
  };
  for (uint32_t k = 0; k < std::min(end - i, prefetch_ahead); ++k) ring.prefetch(ring.head(k));
  for (; i < end; ++i) {
    // Not behind the last one: there the guest is writing, and would lose the cache line.
    if (i + prefetch_ahead < end) ring.prefetch(ring.head(i - first + prefetch_ahead));
    const uint32_t len = view.length(i);
    const NetHeader& header = view.header(i);
    const uint16_t head = ring.head(i - first);
    if (len - 1 >= virtio::max_packet || len > view.stride || (header.flags | header.gso_type) != 0 ||
        head >= ring.size)
      break;
    const virtio::SplitRing::Entry d = ring.descriptor(head);
    constexpr uint16_t special = virtio::DESC_F_NEXT | virtio::DESC_F_WRITE | virtio::DESC_F_INDIRECT;
    const uint32_t need = header_size + len;
    if (d.len < need || (d.flags & special) != virtio::DESC_F_WRITE) break;
    uint8_t* to = window.translate(d.addr, need);
    if (!to) {
      to = memory_->translate(d.addr, need, hint_);
      window = memory::Window::of(hint_);
      if (!to) break;
    }
    const uint8_t* packet = view.packet(i);
    bool in_flight = false;
    if (len >= threshold) {
      if (by_cpu.packets != 0) book();
      const dma::Copy copy{to + header_size, packet, len};
      in_flight = may_offload(view) && hand_to_engine({&copy, 1});
    }
    if (!in_flight) copy_packet(to + header_size, packet, len);
    write_plain_header(to, header_size);
    used.push(head, need);
    tally.count(packet, len);
    if (in_flight) {
      ring_.pushed(used);
      finish_packets({1, len});
    } else {
      by_cpu.packets += 1;
      by_cpu.bytes += len;
    }
  }
  if (by_cpu.packets != 0) book();
  ring_.consume(i - first);
  return i - first;
}

/// Every case: chains, merged buffers, region borders, offloads, the engine.
TxQueue::Fate TxQueue::enqueue_any(const PacketView& view, uint32_t i, uint32_t len) noexcept {
  if (ring_.fault()) return Fate::stays;
  if (len == 0 || len > virtio::max_packet || len > view.stride) {
    counters.oversize_dropped.add(1);
    return Fate::dropped;
  }
  const NetHeader asked = view.header(i);  // a copy: other threads of the program may write there
  if (!virtio::valid(asked, len) || !virtio::receives_segment(features_, asked)) {
    counters.gso_dropped.add(1);
    return Fate::dropped;
  }
  Fit fit = reserve(header_size_ + len);
  for (; fit == Fit::short_buffer; fit = reserve(header_size_ + len)) give_back_short_buffer();
  if (fit == Fit::never) counters.oversize_dropped.add(1);
  if (fit != Fit::ok) return fit == Fit::never ? Fate::dropped : Fate::stays;

  const uint8_t* packet = view.packet(i);
  NetHeader header = asked;
  const bool fill_checksum = (asked.flags & virtio::NET_HDR_F_NEEDS_CSUM) && !features_.has(Feature::GUEST_CSUM);
  if (!features_.has(Feature::GUEST_CSUM)) header.flags = 0;
  if (fill_checksum) header.csum_start = header.csum_offset = 0;

  // The engine first: a copy it refuses is still the CPU's.
  packet_in_flight_ = false;
  copy_payload(view, packet, len, fill_checksum);
  write_at(0, &header, sizeof header);
  if (header_size_ == 12) {
    const auto num_buffers = static_cast<uint16_t>(head_count_);
    write_at(virtio::num_buffers_offset, &num_buffers, sizeof num_buffers);
  }
  if (fill_checksum) {
    const uint16_t sum = virtio::internet_checksum(packet + asked.csum_start, len - asked.csum_start);
    write_at(header_size_ + asked.csum_start + asked.csum_offset, &sum, sizeof sum);
  }
  for (uint32_t k = 0; k < head_count_; ++k) ring_.push_used(heads_[k].head, heads_[k].written);
  ring_.consume(head_count_);
  return Fate::sent;
}

/// Looks for buffers of `need` bytes and changes nothing in the ring.
TxQueue::Fit TxQueue::reserve(uint32_t need) noexcept {
  const bool mergeable = features_.has(Feature::MRG_RXBUF);
  if (lack_.heads != 0 && known_to_lack(need)) return ring_.fault() ? Fit::fault : Fit::no_buffer;
  uint32_t found = 0, available = ring_.available();
  piece_count_ = head_count_ = 0;
  while (found < need) {
    if (head_count_ == ring_.used_room() && head_count_ != ring_.size()) return Fit::no_buffer;
    if (head_count_ >= available && head_count_ >= (available = ring_.look_again())) {
      if (ring_.fault()) return Fit::fault;
      if (head_count_ == ring_.size()) return Fit::never;
      lack_ = {head_count_, found, ring_.last_avail()};
      return Fit::no_buffer;
    }
    const uint16_t head = ring_.head(head_count_);
    const uint32_t before = found;
    bool too_many_pieces = false;
    const bool walked = ring_.walk(head, *memory_, hint_, steps_left_, [&](uint64_t addr, uint32_t len, bool writable) {
      if (!writable) {
        ring_.set_fault({Fault::Kind::direction, head, 0});
        return false;
      }
      len = std::min(len, need - found);
      size_t n = 1;
      if (piece_count_ == pieces_.size()) {
        n = 0;
      } else if (uint8_t* host = memory_->translate(addr, len, hint_)) {
        __builtin_prefetch(host, 1);
        pieces_[piece_count_] = {host, len};
      } else {
        n = memory_->pieces(addr, len, std::span(pieces_).subspan(piece_count_));
        steps_left_ -= std::min(steps_left_, static_cast<uint32_t>(n));
      }
      if (n == 0) {
        too_many_pieces = pieces_.size() - piece_count_ < memory::RegionTable::max_regions;
        if (!too_many_pieces) ring_.set_fault({Fault::Kind::unmapped, addr, len});
        return false;
      }
      piece_count_ += static_cast<uint32_t>(n);
      found += len;
      return found < need;
    });
    if (!walked || ring_.fault()) return Fit::fault;
    if (too_many_pieces) return Fit::never;
    heads_[head_count_++] = {head, found - before};
    if (found >= need) break;
    if (steps_left_ == 0) return out_of_steps(need);
    // A buffer that cannot hold the smallest packet would be found too short for every packet, for ever. Merged ones
    // need room for the header only (VIRTIO 1.2, 5.1.6.3.1), and only the first one holds it.
    if (head_count_ == 1 && found < least_buffer()) return Fit::short_buffer;
    if (!mergeable) return Fit::never;
  }
  return Fit::ok;
}

/// The call has walked as far as it may. If that was all for its first packet, the next call would do no better.
TxQueue::Fit TxQueue::out_of_steps(uint32_t need) noexcept {
  if (got_somewhere_) return Fit::no_buffer;
  ring_.set_fault({Fault::Kind::walk, budget::steps_of_call(ring_.size()), need});
  return Fit::fault;
}

/// The buffers are those that were too few before.
bool TxQueue::known_to_lack(uint32_t need) noexcept {
  if (lack_.from == ring_.last_avail() && lack_.heads == ring_.look_again()) return need > lack_.bytes;
  lack_ = {};
  return static_cast<bool>(ring_.fault());
}

void TxQueue::give_back_short_buffer() noexcept {
  counters.short_buffers.add(1);
  notices_.add(Notice::Kind::short_buffer, heads_[0].written, least_buffer());
  ring_.push_used(heads_[0].head, 0);
  ring_.consume(1);
  finish_packets({});  // in its place among what is in flight
  got_somewhere_ = true;
}

/// Writes small things (headers, a checksum) at an offset of the reserved pieces.
void TxQueue::write_at(uint32_t offset, const void* bytes, uint32_t len) noexcept {
  auto* from = static_cast<const uint8_t*>(bytes);
  for (uint32_t p = 0; len != 0; ++p) {
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

void TxQueue::copy_payload(const PacketView& view, const uint8_t* packet, uint32_t len, bool by_cpu) noexcept {
  const bool engine_may = !by_cpu && len >= threshold_ && may_offload(view);
  copy_count_ = 0;
  uint32_t skip = header_size_, large = 0, done = 0;
  auto chunks = [&](auto&& each) {
    skip = header_size_;
    done = 0;
    for (uint32_t p = 0; done < len; ++p) {
      const auto piece_len = static_cast<uint32_t>(pieces_[p].len);
      const uint32_t from = std::min(skip, piece_len);
      skip -= from;
      const uint32_t n = std::min(piece_len - from, len - done);
      if (n != 0) each(pieces_[p].host + from, packet + done, n);
      done += n;
    }
  };
  if (engine_may) {
    chunks([&](uint8_t* dst, const uint8_t* src, uint32_t n) {
      if (n < threshold_) return;
      copies_[copy_count_++] = {dst, src, n};
      large += n;
    });
  }
  const bool handed = copy_count_ != 0 && hand_to_engine(std::span(copies_).first(copy_count_));
  chunks([&](uint8_t* dst, const uint8_t* src, uint32_t n) {
    if (!handed || n < threshold_) copy_packet(dst, src, n);
  });
  counters.cpu_bytes.add(handed ? len - large : len);
}

/// Asked for copies that are large enough. Packets outside any arena are the CPU's: their memory may go at any time.
inline bool TxQueue::may_offload(const PacketView& view) noexcept {
  if (engine_ && !offload_) counters.fallback_disabled.add(1);
  return offload_ && view.block;
}

/// All the large copies of the current packet, or none of them.
bool TxQueue::hand_to_engine(std::span<const dma::Copy> copies) noexcept {
  const auto n = static_cast<uint32_t>(copies.size());
  dma::Refusal refusal = dma::Refusal::ring_full;
  if (!in_flight_.full() && in_flight_.has_room_for(n)) refusal = engine_->enqueue(copies, in_flight_.next_cookie());
  if (refusal != dma::Refusal::none) {
    count_refusal(refusal);
    return false;
  }
  reads_block_ = &in_flight_.push(RingIndex(), copies);  // used_end follows when the used elements are written
  packet_in_flight_ = true;
  return true;
}

void TxQueue::count_refusal(dma::Refusal why) noexcept {
  switch (why) {
    case dma::Refusal::ring_full:
      return counters.fallback_ring_full.add(1);
    case dma::Refusal::unmapped:
      maps_wanted_ = true;
      return counters.fallback_unmapped.add(1);
    case dma::Refusal::address:
      return counters.fallback_address.add(1);
    default:
      return counters.fallback_disabled.add(1);
  }
}

/// Books packets whose used elements are written: behind one in flight they wait in the list, else they are ready.
inline void TxQueue::finish_packets(Booked done) noexcept {
  if (in_flight_.empty()) [[likely]] {
    ready_ = ring_.used_next();
    counters.packets.add(done.packets);
    counters.bytes.add(done.bytes);
    return;
  }
  InFlightList::Entry* entry = &in_flight_.back();
  if (!packet_in_flight_ && (entry->pending || entry->index_write)) entry = &in_flight_.push(RingIndex(), {});
  packet_in_flight_ = false;
  entry->used_end = ring_.used_next();
  entry->packets += done.packets;
  entry->bytes += done.bytes;
  pending_packets_.store(pending_packets_.load(std::memory_order_relaxed) + done.packets, std::memory_order_relaxed);
}

void TxQueue::finish_burst(const PacketView& view, RingIndex published_before) noexcept {
  publish_by_cpu();
  if (!in_flight_.empty()) {
    if (reads_block_) reads_block_->block = view.block->share();
    if (publish_ == Publish::dma && offload_) publish_by_engine();
    engine_->submit();
    counters.dma_inflight_max.raise_to(pending_packets());
    note_engine_stats();
  }
  unfinished_.store(!in_flight_.empty(), std::memory_order_relaxed);
  if (ring_.published() != published_before) notify(counters);
}

/// Queues the store of used->idx behind the data. Refused, the CPU publishes when all index writes are through.
void TxQueue::publish_by_engine() noexcept {
  InFlightList::Entry& last = in_flight_.back();
  if (last.index_write || in_flight_.full() || !in_flight_.has_room_for(1)) return;
  const uint32_t cookie = in_flight_.next_cookie();
  auto* slot = reinterpret_cast<uint16_t*>(index_slots_.data()) + cookie;
  *slot = last.used_end.value();
  const dma::Copy copy{ring_.used_index_field(), slot, sizeof *slot};
  if (engine_->enqueue({&copy, 1}, cookie) != dma::Refusal::none) return;
  in_flight_.push(last.used_end, {&copy, 1}).index_write = true;
  ++index_writes_;
  counters.dma_publish_batches.add(1);
}

void TxQueue::publish_by_cpu() noexcept {
  if (index_writes_ == 0 && ready_ != ring_.published()) ring_.publish(ready_);
}

uint32_t TxQueue::reap(uint32_t limit) noexcept {
  if (!engine_ || in_flight_.empty()) return 0;
  ++polls_;
  dma::Completion completions[64];
  for (size_t n = std::size(completions); n == std::size(completions);) {
    n = engine_->poll(completions);
    for (size_t i = 0; i < n; ++i) {
      InFlightList::Entry& entry = in_flight_.by_cookie(completions[i].cookie);
      entry.pending = false;
      entry.failed = completions[i].status != dma::CopyStatus::ok;
    }
  }
  uint32_t packets = 0;
  for (; limit != 0 && !in_flight_.empty() && !in_flight_.front().pending; --limit) {
    InFlightList::Entry& entry = in_flight_.front();
    ready_ = entry.used_end;
    unpublished_ += entry.packets;
    if (entry.index_write) {
      --index_writes_;
      if (!entry.failed) {
        ring_.published_by_engine(entry.used_end);
        packets += std::exchange(unpublished_, 0);
      }
    } else if (entry.failed) {  // only ever given back by an engine that is stopped
      in_flight_.copy_by_cpu(entry);
    }
    counters.packets.add(entry.packets);
    counters.bytes.add(entry.bytes);
    in_flight_.pop();
  }
  publish_by_cpu();
  if (index_writes_ == 0) packets += std::exchange(unpublished_, 0);
  pending_packets_.store(pending_packets_.load(std::memory_order_relaxed) - packets, std::memory_order_relaxed);
  unfinished_.store(!in_flight_.empty(), std::memory_order_relaxed);
  note_engine_stats();
  return packets;
}

/// Copies the engine's counters to where other threads may read them.
void TxQueue::note_engine_stats() noexcept {
  const dma::EngineStats s = engine_->stats();
  counters.dma_submitted.set(s.submitted);
  counters.dma_completed.set(s.completed);
  counters.dma_bytes.set(s.bytes);
  counters.dma_errors.set(s.errors);
  counters.dma_resets.set(s.resets);
}

}  // namespace vhost_ioat::port
