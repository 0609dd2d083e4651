// SPDX-License-Identifier: BSD-3-Clause
#include "port/copy_pipe.hpp"

#include <algorithm>

#include "base/budget.hpp"
#include "base/copy.hpp"

namespace vhost_ioat::port {

void CopyPipe::set_engine(std::shared_ptr<dma::DmaEngine> engine, uint32_t threshold, Publish publish,
                          memory::Block slots) {
  engine_ = std::move(engine);
  threshold_ = threshold;
  publish_ = publish;
  slots_ = std::move(slots);
  offload_ = engine_ != nullptr;
}

CopyPipe::Scratch CopyPipe::prepare(uint32_t ring_size) const {
  Scratch scratch;
  if (!engine_) return scratch;
  scratch.large.resize(budget::pieces_of_packet(ring_size));
  // An entry takes at least one buffer, but for the publications: one a burst, so never more than packets.
  scratch.in_flight.resize(2 * ring_size, std::max(engine_->capabilities().ring_size, 64u));
  return scratch;
}

void CopyPipe::start(Scratch scratch, uint32_t position) noexcept {
  DEBUG_ASSERT(in_flight_.size(), ==, 0u);
  ready_ = position;
  if (scratch.large.empty()) return;
  large_ = std::move(scratch.large);
  in_flight_ = std::move(scratch.in_flight);
}

/// What the engine may still touch is the slot's to keep; the blocks are leaked here.
void CopyPipe::abandon() noexcept {
  in_flight_.abandon();
  slots_.leak();
  engine_.reset();
  offload_ = false;
  publications_ = unpublished_ = 0;
  counters_.engine_lost.add(pending_packets());
  pending_packets_.store(0, std::memory_order_relaxed);
  unfinished_.store(false, std::memory_order_relaxed);
}

void CopyPipe::copy(std::span<const dma::Copy> copies, bool engine_may) noexcept {
  const bool asked = std::ranges::any_of(copies, [this](const dma::Copy& c) { return c.len >= threshold_; });
  bool handed = false;
  if (asked && may_offload(engine_may)) {
    uint32_t n = 0;
    for (const dma::Copy& c : copies)
      if (c.len >= threshold_) large_[n++] = c;
    handed = hand_over(std::span(large_).first(n));
  }
  uint64_t bytes = 0;
  for (const dma::Copy& c : copies) {
    if (handed && c.len >= threshold_) continue;
    copy_packet(static_cast<uint8_t*>(c.dst), static_cast<const uint8_t*>(c.src), c.len);
    bytes += c.len;
  }
  counters_.cpu_bytes.add(bytes);
}

/// Asked for copies that are large enough. What may go at any time is the CPU's to read.
bool CopyPipe::may_offload(bool engine_may) noexcept {
  if (engine_ && !offload_) counters_.fallback_disabled.add(1);
  return offload_ && engine_may;
}

/// All the large copies of the current packet, or none of them.
bool CopyPipe::hand_over(std::span<const dma::Copy> copies) noexcept {
  const auto n = static_cast<uint32_t>(copies.size());
  dma::Refusal refusal = dma::Refusal::ring_full;
  if (!in_flight_.full() && in_flight_.has_room_for(n)) refusal = engine_->enqueue(copies, in_flight_.next_cookie());
  if (refusal != dma::Refusal::none) {
    count_refusal(refusal);
    return false;
  }
  reads_block_ = &in_flight_.push(0, copies);  // its end follows when the packet is booked
  packet_in_flight_ = true;
  return true;
}

void CopyPipe::count_refusal(dma::Refusal why) noexcept {
  switch (why) {
    case dma::Refusal::ring_full:
      return counters_.fallback_ring_full.add(1);
    case dma::Refusal::unmapped:
      maps_wanted_ = true;
      return counters_.fallback_unmapped.add(1);
    case dma::Refusal::address:
      return counters_.fallback_address.add(1);
    default:
      return counters_.fallback_disabled.add(1);
  }
}

void CopyPipe::take_completions() noexcept {
  ++polls_;
  dma::Completion completions[64];
  for (size_t n = std::size(completions); n == std::size(completions);) {
    n = engine_->poll(completions);
    for (size_t i = 0; i < n; ++i) {
      InFlightList::Entry& entry = in_flight_.by_cookie(completions[i].cookie);
      DEBUG_ASSERT(entry.pending, ==, true);
      entry.pending = false;
      entry.failed = completions[i].status != dma::CopyStatus::ok;
    }
  }
}

/// Copies the engine's counters to where other threads may read them.
void CopyPipe::note_engine_stats() noexcept {
  const dma::EngineStats s = engine_->stats();
  counters_.dma_submitted.set(s.submitted);
  counters_.dma_completed.set(s.completed);
  counters_.dma_bytes.set(s.bytes);
  counters_.dma_errors.set(s.errors);
  counters_.dma_resets.set(s.resets);
}

}  // namespace vhost_ioat::port
