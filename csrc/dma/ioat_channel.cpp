// SPDX-License-Identifier: BSD-3-Clause
#include "dma/ioat_channel.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <thread>
#include <utility>

#include "base/error.hpp"

namespace vhost_ioat::dma {
namespace {

using spec::State;
using spec::state_of;
using Clock = std::chrono::steady_clock;

constexpr uint64_t all_ones = ~uint64_t{0};  // what a device that has left the bus reads as
// A stop that takes longer has failed. Both must have passed: a process that was paused has not waited for the device.
constexpr auto stop_time = std::chrono::milliseconds(200);
constexpr uint32_t stop_looks = 200;
/// A first descriptor that takes longer will never be done. Long, since a software worker may have to wait for a core.
constexpr auto prove_time = std::chrono::seconds(10);
constexpr auto pause_time = std::chrono::microseconds(20);  // between two looks of those who may wait
// Polls without progress before CHANSTS is read, since real channels do not reliably push a halt. Doubled each time up
// to the second number: a copy that merely takes long costs few slow register reads.
constexpr uint32_t first_slow_look = 64, slow_look_every = 1024;
constexpr uint16_t run_control = spec::chanctrl::error_completion | spec::chanctrl::any_error_abort;

uint32_t checked_ring_mask(uint32_t ring_size) {
  if (!std::has_single_bit(ring_size) || ring_size < IoatChannel::min_ring || ring_size > IoatChannel::max_ring) {
    throw ConfigError(format("ring_size %u: the size of an I/OAT ring must be a power of two from %u to %u", ring_size,
                             IoatChannel::min_ring, IoatChannel::max_ring));
  }
  return ring_size - 1;
}

}  // namespace

size_t IoatChannel::memory_size(uint32_t ring_size) {
  // The write-back word has a cache line of its own, so that the device's writes do not slow the ring down.
  return (size_t{ring_size} * sizeof(spec::Descriptor) + 64 + 4095) & ~size_t{4095};
}

IoatChannel::IoatChannel(Mmio& mmio, const DmaMemory& memory, const ChannelOptions& options)
    : mmio_(mmio),
      ring_(static_cast<spec::Descriptor*>(memory.host)),
      mask_(checked_ring_mask(options.ring_size)),
      head_(options.first_index),
      submitted_(head_),
      done_(head_),
      tail_(head_),
      base_(head_),
      next_slow_look_(first_slow_look),
      ring_iova_(memory.iova),
      writeback_(reinterpret_cast<uint64_t*>(ring_ + ring_size())),
      writeback_iova_(memory.iova + uint64_t{ring_size()} * sizeof(spec::Descriptor)) {
  jobs_.resize(ring_size());
  probe();
  if (memory.size < memory_size(ring_size()) || memory.iova == 0 || memory.iova % 64 != 0 ||
      !address_fits(memory.iova, memory.size)) {
    throw DmaError(format(
        "ring memory at IOVA 0x%llx, %zu bytes: it must be 64-byte aligned, not at 0, below 2^%u, "
        "and at least %zu bytes long",
        static_cast<unsigned long long>(memory.iova), memory.size, unsigned{address_bits()}, memory_size(ring_size())));
  }
  const std::function<void()> sleep = [] { std::this_thread::sleep_for(pause_time); };
  bring_up(options.pause ? options.pause : sleep);
}

void IoatChannel::probe() {
  if (read_status() == all_ones) throw DmaError("the device reads as all ones: it is gone, powered down or disabled");
  version_ = mmio_.read8(spec::CBVER);
  if (version_ < 0x32 || version_ > 0x3f) {
    throw DmaError(format("I/OAT version %u.%u: this driver knows 3.2 to 3.4", version_ >> 4u, version_ & 15u));
  }
  if (mmio_.read8(spec::CHANCNT) == 0) throw DmaError("the device has no channel (CHANCNT is 0)");
  const unsigned log2_cap = mmio_.read8(spec::XFERCAP) & 0x1f;
  if (log2_cap < 12)
    throw DmaError(format("XFERCAP %u: the device must be able to copy at least 2^12 bytes", log2_cap));
  max_copy_ = uint32_t{1} << log2_cap;
  capability_ = mmio_.read32(spec::DMACAPABILITY);
}

void IoatChannel::bring_up(const std::function<void()>& pause) {
  constexpr uint32_t needed = spec::cfg_command_memory | spec::cfg_command_bus_master;
  const uint32_t command = mmio_.config_read(spec::cfg_command, 2);  // a function-level reset has cleared it
  if ((command & needed) != needed) mmio_.config_write(spec::cfg_command, command | needed, 2);
  while (quiesce() == Step::pending) pause();
  Step step;
  while ((step = reset()) == Step::pending) pause();
  if (step == Step::failed) throw DmaError("the channel cannot be started: " + why());
  // Not before: whoever used the channel may have left it running, on this very memory.
  for (uint32_t i = 0; i <= mask_; ++i) ring_[i].next = descriptor_address(i + 1);
  prove(pause);
  stats_ = {};
}

/// One null descriptor: shows that the device fetches from the ring and that its write-back arrives.
void IoatChannel::prove(const std::function<void()>& pause) {
  put(head_, spec::control::null, 0, 0, 8, true);  // 3.0 refuses size 0 even here
  const uint64_t expected = descriptor_address(head_++);
  submit();
  const auto start = Clock::now();
  for (uint32_t looks = 0; (read_writeback() & spec::status_address_mask) != expected; ++looks) {
    const uint64_t status = read_status();
    if (state_of(status) == State::halted) {
      throw DmaError("the channel halted on its first descriptor: CHANERR " +
                     spec::describe_chanerr(mmio_.read32(spec::CHANERR)));
    }
    if (looks >= stop_looks && Clock::now() - start > prove_time) {
      throw DmaError(
          format("the channel did not complete its first descriptor (CHANSTS 0x%llx): it cannot reach our memory; "
                 "check bus mastering and the IOMMU",
                 static_cast<unsigned long long>(status)));
    }
    pause();
  }
  advance(read_writeback());
  tail_ = head_;
}

// --- Writing jobs
// -----------------------------------------------------------------------------------------------------

bool IoatChannel::address_fits(uint64_t address, uint64_t len) const noexcept {
  const uint64_t end = uint64_t{1} << address_bits();
  return address < end && len <= end - address;
}

template <typename Put>
Refusal IoatChannel::put_job(uint64_t dst, uint64_t len, uint32_t cookie, Put&& put) noexcept {
  if (!running()) return Refusal::disabled;
  if (len == 0 || !address_fits(dst, len)) return Refusal::address;
  if ((len - 1) / max_copy_ >= room()) return Refusal::ring_full;
  uint32_t index = head_;
  for (uint64_t at = 0; at < len; at += max_copy_) {
    const auto size = static_cast<uint32_t>(std::min<uint64_t>(len - at, max_copy_));
    put(index++, at, size, at + size == len);
  }
  commit(index, cookie, len);
  return Refusal::none;
}

Refusal IoatChannel::copy(uint64_t dst, uint64_t src, uint64_t len, uint32_t cookie) noexcept {
  if (!address_fits(src, len)) return Refusal::address;
  return put_job(dst, len, cookie, [&](uint32_t index, uint64_t at, uint32_t size, bool last) {
    put_copy(index, dst + at, src + at, size, last);
  });
}

Refusal IoatChannel::fill(uint64_t dst, uint64_t pattern, uint64_t len, uint32_t cookie) noexcept {
  if (!can_fill()) return Refusal::disabled;
  // max_copy_ is a multiple of 8, so every piece starts at the pattern's first byte.
  return put_job(dst, len, cookie, [&](uint32_t index, uint64_t at, uint32_t size, bool last) {
    put_fill(index, dst + at, pattern, size, last);
  });
}

// --- Completions
// ------------------------------------------------------------------------------------------------------

uint64_t IoatChannel::read_writeback() const noexcept {
  // Acquire, pairs with the device's write-back, which comes after the data of that descriptor.
  return std::atomic_ref(*writeback_).load(std::memory_order_acquire);
}

uint64_t IoatChannel::read_status() noexcept {
  // By halves, and the low one twice: before 3.3 an 8-byte read of CHANSTS may tear.
  uint32_t low = mmio_.read32(spec::CHANSTS);
  for (int tries = 0;; ++tries) {
    const uint32_t high = mmio_.read32(spec::CHANSTS + 4);
    const uint32_t again = mmio_.read32(spec::CHANSTS);
    if (again == low || tries == 8) return uint64_t{high} << 32 | again;
    low = again;
  }
}

/// Moves done_ to where the device says it is. A word that names no descriptor now running says nothing: it is from
/// before a reset, or one of the odd values real channels show when they halt.
void IoatChannel::advance(uint64_t status) noexcept {
  const uint64_t offset = (status & spec::status_address_mask) - ring_iova_;
  if (offset < uint64_t{ring_size()} * sizeof(spec::Descriptor)) {
    const uint32_t steps = (static_cast<uint32_t>(offset / sizeof(spec::Descriptor)) + 1 - done_) & mask_;
    if (steps <= submitted_ - done_) {
      done_ += steps;
      stats_.completed += steps;
    }
  }
  const State state = state_of(status);
  const bool halted = state == State::halted && (phase_ == Phase::running || phase_ == Phase::suspending);
  const bool suspended = state == State::suspended && phase_ == Phase::running;  // and nobody asked for it
  if (halted || suspended) [[unlikely]]
    fail(Failure::halted);
}

void IoatChannel::look() noexcept {
  const uint64_t word = read_writeback();
  if (word != seen_) [[likely]] {
    seen_ = word;
    idle_polls_ = 0;
    next_slow_look_ = first_slow_look;
    advance(word);
    return;
  }
  if (done_ == submitted_ || ++idle_polls_ < next_slow_look_) return;
  next_slow_look_ = idle_polls_ + std::min(idle_polls_, slow_look_every);
  const uint64_t status = read_status();
  status == all_ones ? fail(Failure::gone) : advance(status);
}

size_t IoatChannel::poll(std::span<Completion> out) noexcept {
  if (jobs_tail_ == jobs_head_) return 0;
  if (phase_ == Phase::running) look();
  const size_t most = std::min<size_t>(out.size(), jobs_head_ - jobs_tail_);
  const uint32_t done = done_;
  uint32_t tail = tail_, next = jobs_tail_;
  uint64_t bytes = 0;
  size_t count = 0;
  for (; count < most; ++count, ++next) {
    const Job& job = jobs_[next & mask_];
    if (static_cast<int32_t>(done - job.end) < 0) break;
    out[count] = Completion{job.cookie, CopyStatus::ok, job.end - tail, job.bytes};
    tail = job.end;
    bytes += job.bytes;
  }
  if (phase_ >= Phase::stopped) [[unlikely]] {
    for (; count < most; ++count, ++next) {
      const Job& job = jobs_[next & mask_];
      const CopyStatus status = std::exchange(blame_, false) ? CopyStatus::error : CopyStatus::not_attempted;
      out[count] = Completion{job.cookie, status, job.end - tail, job.bytes};
      tail = job.end;
    }
  }
  tail_ = tail;
  jobs_tail_ = next;
  stats_.bytes += bytes;
  if (phase_ == Phase::ready_again && jobs_tail_ == jobs_head_) run_again();
  return count;
}

// --- Stopping
// ---------------------------------------------------------------------------------------------------------

void IoatChannel::fail(Failure failure) noexcept {
  failure_ = failure;
  chanerr_ = mmio_.read32(spec::CHANERR);
  if (phase_ == Phase::running) phase_ = Phase::failed;
  if (failure == Failure::halted && done_ != submitted_) {  // it halted at a descriptor, not at rest
    blame_ = true;
    ++stats_.errors;
  }
}

Step IoatChannel::wait_in(Phase phase) noexcept {
  if (phase_ != phase) {
    phase_ = phase;
    waits_ = 0;
    waiting_since_ = Clock::now();
  }
  if (++waits_ < stop_looks || Clock::now() - waiting_since_ < stop_time) return Step::pending;
  failure_ = Failure::stop_timeout;
  phase_ = Phase::failed;
  return Step::failed;
}

Step IoatChannel::quiesce() noexcept {
  if (phase_ >= Phase::stopped) return Step::done;
  const uint64_t status = read_status();
  if (status == all_ones) {
    fail(Failure::gone);
    return Step::failed;
  }
  advance(status);
  const State state = state_of(status);
  // A channel that was just rung may still say IDLE or ARMED, so that counts only when nothing is left to run.
  const bool at_rest =
      state == State::halted || state == State::suspended || (state != State::active && done_ == submitted_);
  if (at_rest) {
    phase_ = Phase::stopped;  // whatever the device did not complete is for poll() to hand out
    return Step::done;
  }
  if (phase_ != Phase::suspending) mmio_.write8(spec::CHANCMD, spec::chancmd::suspend);
  return wait_in(Phase::suspending);
}

Step IoatChannel::reset() noexcept {
  const uint64_t status = read_status();
  if (status == all_ones) {
    fail(Failure::gone);
    return Step::failed;
  }
  if (phase_ != Phase::resetting && phase_ != Phase::arming) {
    advance(status);  // RESET takes the completed address away
    clear_errors();
    mmio_.write8(spec::CHANCMD, spec::chancmd::reset);
    return wait_in(Phase::resetting);
  }
  if (phase_ == Phase::resetting) {
    if ((mmio_.read8(spec::CHANCMD) & spec::chancmd::reset) || state_of(status) != State::halted) {
      return wait_in(Phase::resetting);
    }
    advance(read_writeback() & spec::status_address_mask);  // what ended between the look above and the reset
    ++stats_.resets;
    arm();
    return wait_in(Phase::arming);
  }
  if (state_of(status) != State::armed) return wait_in(Phase::arming);
  failure_ = Failure::none;
  phase_ = Phase::ready_again;
  if (jobs_tail_ == jobs_head_) run_again();
  return Step::done;
}

void IoatChannel::abandon() noexcept {
  advance(read_writeback() & spec::status_address_mask);
  phase_ = Phase::stopped;
}

bool IoatChannel::shut_down() noexcept {
  const auto finish = [this](Step (IoatChannel::*step)() noexcept) {
    Step answer;
    while ((answer = (this->*step)()) == Step::pending) std::this_thread::sleep_for(pause_time);
    return answer == Step::done;
  };
  return finish(&IoatChannel::quiesce) || finish(&IoatChannel::reset);
}

void IoatChannel::clear_errors() noexcept {
  mmio_.write32(spec::CHANERR, mmio_.read32(spec::CHANERR));
  if (spec::needs_chanerr_int(version_)) {
    mmio_.config_write(spec::cfg_chanerr_int, mmio_.config_read(spec::cfg_chanerr_int, 4), 4);
  }
}

void IoatChannel::arm() noexcept {
  clear_errors();  // again: a copy that ran while RESET waited may have failed, and then CHAINADDR would not arm
  std::atomic_ref(*writeback_).store(0, std::memory_order_relaxed);
  seen_ = 0;
  base_ = head_;
  write_address(spec::CHANCMP, writeback_iova_);
  mmio_.write16(spec::CHANCTRL, run_control);
  write_address(spec::CHAINADDR, descriptor_address(head_));
}

/// Low half first; the high one takes effect. Channels before 3.3 do not take eight bytes at once.
void IoatChannel::write_address(uint32_t offset, uint64_t address) noexcept {
  mmio_.write32(offset, static_cast<uint32_t>(address));
  mmio_.write32(offset + 4, static_cast<uint32_t>(address >> 32));
}

void IoatChannel::run_again() noexcept {
  submitted_ = done_ = tail_ = head_;
  idle_polls_ = 0;
  next_slow_look_ = first_slow_look;
  blame_ = false;
  phase_ = Phase::running;
}

std::string IoatChannel::why() const {
  switch (failure_) {
    case Failure::none:
      return "";
    case Failure::gone:
      return "the device is gone: its registers read as all ones";
    case Failure::stop_timeout:
      return "the channel did not stop within 200 ms";
    case Failure::halted:
      break;
  }
  return format("the channel halted with CHANERR 0x%x: %s", chanerr_, spec::describe_chanerr(chanerr_).c_str());
}

}  // namespace vhost_ioat::dma
