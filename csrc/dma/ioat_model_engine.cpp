// SPDX-License-Identifier: BSD-3-Clause
// The software I/OAT: fetching descriptors and carrying them out.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <utility>

#include "base/error.hpp"
#include "dma/ioat_model.hpp"

namespace vhost_ioat::dma {
namespace {

using spec::State;

constexpr uint64_t page = 4096;

/// The two parts of one side of a descriptor: with a page break, what lies beyond the page is elsewhere.
struct Side {
  uint64_t first;
  uint64_t second;
  uint64_t first_len;

  Side(uint64_t address, uint64_t next_page, bool page_break, uint64_t size)
      : first(address), second(next_page), first_len(page_break ? std::min(size, page - address % page) : size) {}
  uint64_t at(uint64_t offset) const { return offset < first_len ? first + offset : second + (offset - first_len); }
  uint64_t left(uint64_t offset, uint64_t size) const {
    return offset < first_len ? first_len - offset : size - offset;
  }
  bool too_long(uint64_t size) const { return size - first_len > page; }
};

void fill_bytes(uint8_t* to, uint64_t len, uint64_t pattern, uint64_t phase) {
  const uint64_t word = std::rotr(pattern, static_cast<int>(8 * (phase % 8)));
  for (uint64_t done = 0; done < len; done += 8) std::memcpy(to + done, &word, std::min<uint64_t>(8, len - done));
}

}  // namespace

void IoatModel::run() noexcept {
  switch (options_.mode) {
    case Mode::inline_:
      while (run_one()) {
      }
      break;
    case Mode::threaded:
      wake();
      break;
    case Mode::stepped:
      break;
  }
}

uint32_t IoatModel::step(uint32_t n) {
  if (options_.mode != Mode::stepped) throw DmaError("step() needs a model made with mode=\"stepped\"");
  uint32_t done = 0;
  while (done < n && run_one()) ++done;
  return done;
}

bool IoatModel::can_run() const noexcept {
  return state() == State::active && !at_work_ && !reset_asked_ && !stuck_ && !gone_ && !stop_ && config_.may_master();
}

bool IoatModel::run_one() noexcept {
  uint32_t interrupts;
  {
    const MutexLock lock(mutex_);
    if (!can_run()) return false;
    if (state_ != State::active) {
      state_ = State::active;
      if (latency_.count() > 0) wait_latency();
      if (!can_run()) return false;
    }
    if (due(Fault::gone, descriptors_started_)) gone_ = true;
    if (due(Fault::stuck, descriptors_started_)) stuck_ = true;
    if (gone_ || stuck_) return false;
    const bool corrupt = due(Fault::corrupt, descriptors_started_).has_value();
    const auto injected = due(Fault::error, descriptors_started_++);
    const auto start = bandwidth_ > 0 ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point{};
    const uint64_t address = current_;
    at_work_ = true;
    mutex_.unlock();
    const Outcome outcome = carry_out(address, injected ? 1u << *injected : 0, corrupt);
    mutex_.lock();
    if (bandwidth_ > 0) wait_bandwidth(start, outcome.bytes);
    at_work_ = false;
    rest_.notify_all();
    if (reset_asked_) {
      try_reset();
    } else {
      account(outcome, address);
    }
    interrupts = interrupts_to_fire();
  }
  fire_interrupts(interrupts);
  return true;
}

/// Without the lock. Everything is read once from the descriptor, whose owner may change it at any time.
IoatModel::Outcome IoatModel::carry_out(uint64_t address, uint32_t injected, bool corrupt) noexcept {
  const IovaMap::Access access(memory_);
  Outcome outcome;
  spec::Descriptor descriptor;
  outcome.fetched =
      address % sizeof descriptor == 0 && access.read(address, &descriptor, sizeof descriptor, fetch_hint_);
  if (!outcome.fetched) return outcome;
  outcome.control = descriptor.control;
  outcome.next = descriptor.next;
  const uint32_t op = spec::control::op(descriptor.control);
  const bool null = descriptor.control & spec::control::null;
  if (injected) {
    outcome.errors = injected;
  } else if ((descriptor.control & spec::control::reserved) || op > spec::control::op_fill) {
    outcome.errors = 1u << spec::chanerr::control;
  } else if (descriptor.size == 0 || descriptor.size > uint32_t{1} << options_.xfercap) {
    outcome.errors = 1u << spec::chanerr::length;
  } else if (!null) {
    outcome.errors = op == spec::control::op_fill ? fill(access, descriptor) : copy(access, descriptor);
    outcome.bytes = outcome.errors ? 0 : descriptor.size;
    uint64_t one = 1;
    if (uint8_t* to = corrupt ? access.at(descriptor.dst, one, Rights::write, dst_hint_) : nullptr) *to ^= 0xff;
  }
  return outcome;
}

uint32_t IoatModel::copy(const IovaMap::Access& access, const spec::Descriptor& descriptor) noexcept {
  const uint64_t size = descriptor.size;
  const Side src(descriptor.src, descriptor.next_src, descriptor.control & spec::control::src_page_break, size);
  const Side dst(descriptor.dst, descriptor.next_dst, descriptor.control & spec::control::dst_page_break, size);
  if (src.too_long(size) || dst.too_long(size)) return 1u << spec::chanerr::length;
  for (uint64_t at = 0, part; at < size; at += part) {
    part = std::min(src.left(at, size), dst.left(at, size));
    const uint8_t* from = access.at(src.at(at), part, Rights::read, src_hint_);
    uint8_t* to = access.at(dst.at(at), part, Rights::write, dst_hint_);
    if (!from || !to) {
      return (from ? 0 : 1u << spec::chanerr::source_address) | (to ? 0 : 1u << spec::chanerr::destination_address);
    }
    if (size == 2 && part == 2 && reinterpret_cast<uintptr_t>(to) % 2 == 0) {
      // A ring index that the engine publishes. Release, pairs with the driver's acquire of used->idx: the data copied
      // by earlier descriptors is seen by who sees the index.
      uint16_t value;
      std::memcpy(&value, from, 2);
      std::atomic_ref(*reinterpret_cast<uint16_t*>(to)).store(value, std::memory_order_release);
    } else {
      std::memmove(to, from, part);  // overlap is undefined on hardware, here it must not be
    }
  }
  return 0;
}

uint32_t IoatModel::fill(const IovaMap::Access& access, const spec::Descriptor& descriptor) noexcept {
  const uint64_t size = descriptor.size;
  const Side dst(descriptor.dst, descriptor.next_dst, descriptor.control & spec::control::dst_page_break, size);
  if (dst.too_long(size)) return 1u << spec::chanerr::length;
  for (uint64_t at = 0, part; at < size; at += part) {
    part = dst.left(at, size);
    uint8_t* to = access.at(dst.at(at), part, Rights::write, dst_hint_);
    if (!to) return 1u << spec::chanerr::destination_address;
    fill_bytes(to, part, descriptor.src, at);
  }
  return 0;
}

/// With the lock: what the descriptor's end does to the channel.
void IoatModel::account(const Outcome& outcome, uint64_t address) noexcept {
  if (state_ != State::active) return;  // aborted meanwhile
  if (!outcome.fetched) {
    return halt(1u << (first_fetch_ ? spec::chanerr::chain_address : spec::chanerr::next_descriptor));
  }
  if (outcome.errors && (control_ & spec::chanctrl::any_error_abort)) return halt(outcome.errors);
  first_fetch_ = false;
  current_ = outcome.next;
  ++count_;
  const bool at_end = count_ == dmacount_.load(std::memory_order_acquire);
  state_ = std::exchange(suspend_asked_, false) ? State::suspended : at_end ? State::idle : State::active;
  if (outcome.errors) return record(outcome.errors);
  completed_ = address;
  ++counters_.descriptors;
  counters_.bytes += outcome.bytes;
  if (outcome.control & spec::control::completion_update) write_back();
  if (outcome.control & spec::control::interrupt) raise_interrupt();
}

void IoatModel::record(uint32_t errors) noexcept {
  chanerr_ |= errors;
  if (spec::needs_chanerr_int(options_.cbver)) config_.raise_chanerr_int(errors);
  ++counters_.errors;
  if (control_ & spec::chanctrl::error_interrupt) raise_interrupt();
}

void IoatModel::halt(uint32_t errors) noexcept {
  state_ = State::halted;
  suspend_asked_ = false;
  record(errors);
  if (control_ & spec::chanctrl::error_completion) write_back();
}

void IoatModel::write_back() noexcept {
  if (!config_.may_master()) {
    writeback_owed_ = true;
    return;
  }
  if (loses(Fault::drop_writeback, writebacks_, writebacks_to_drop_)) return;
  const uint64_t address = register64(spec::CHANCMP);
  const IovaMap::Access access(memory_);
  uint64_t len = sizeof(uint64_t);
  uint8_t* to = address % len == 0 ? access.at(address, len, Rights::write, writeback_hint_) : nullptr;
  if (!to || len < sizeof(uint64_t) || reinterpret_cast<uintptr_t>(to) % sizeof(uint64_t) != 0) {
    state_ = State::halted;
    return record(1u << spec::chanerr::completion_address);
  }
  // Release, pairs with the driver's acquire of the write-back: the data of all descriptors up to this one is seen.
  std::atomic_ref(*reinterpret_cast<uint64_t*>(to))
      .store(completed_ | static_cast<uint64_t>(state()), std::memory_order_release);
}

/// One interrupt until the driver re-arms (CHANCTRL bit 0); what comes meanwhile is latched, or it would be lost.
void IoatModel::raise_interrupt() noexcept {
  if (control_ & spec::chanctrl::int_rearm) {
    interrupt_latched_ = true;
    return;
  }
  control_ |= spec::chanctrl::int_rearm;
  attention_ = true;
  if (loses(Fault::drop_interrupt, interrupts_, interrupts_to_drop_)) return;
  ++counters_.interrupts;
  ++unfired_;
}

/// An interrupt is a write to memory as well: it waits until the function may make one.
uint32_t IoatModel::interrupts_to_fire() noexcept { return config_.may_master() ? std::exchange(unfired_, 0) : 0; }

/// The callback may use the registers, so it is called without the lock.
void IoatModel::fire_interrupts(uint32_t count) noexcept {
  for (; count > 0 && interrupt_; --count) interrupt_();
}

}  // namespace vhost_ioat::dma
