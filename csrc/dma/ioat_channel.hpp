// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "dma/dma_space.hpp"
#include "dma/engine.hpp"
#include "dma/ioat_spec.hpp"
#include "dma/register_file.hpp"

namespace vhost_ioat::dma {

struct ChannelOptions {
  uint32_t ring_size = 1024;         // descriptors: a power of two, 64 to 4096; one of them stays empty
  uint32_t first_index = 0;          // where the free-running descriptor index starts, for tests of its wrap
  std::function<void()> pause = {};  // called between two looks while the constructor waits; by default a short sleep
};

/// The driver of one I/OAT channel, for versions 3.2 to 3.4. It speaks IOVAs and knows neither hosts nor guests.
///
/// Descriptors of one job are written with put_*() behind head() and become a job by commit(); until then the device
/// cannot see them, so giving up half way needs no rollback. The last descriptor of a job asks for a write-back: so
/// progress is known per packet, and the device writes no more often than somebody could use it.
///
/// One caller at a time. put_*(), commit(), submit() and poll() neither allocate, wait nor throw.
class IoatChannel {
 public:
  static constexpr uint32_t min_ring = 64, max_ring = 4096;

  /// Bytes of memory for a ring and its write-back word, whole pages.
  static size_t memory_size(uint32_t ring_size);

  /// Resets and starts the channel and proves it with a null descriptor; waits for that, at most some seconds.
  /// `memory` is memory_size() bytes at a page, zeroed; it and `mmio` outlive the channel. Throws DmaError,
  /// ConfigError.
  IoatChannel(Mmio& mmio, const DmaMemory& memory, const ChannelOptions& options = {});
  IoatChannel(const IoatChannel&) = delete;
  IoatChannel& operator=(const IoatChannel&) = delete;

  uint8_t version() const { return version_; }
  uint32_t ring_size() const { return mask_ + 1; }
  uint32_t max_copy() const { return max_copy_; }
  uint8_t address_bits() const { return spec::address_bits(version_); }
  bool can_fill() const { return capability_ & spec::dmacap::fill; }

  // --- Writing jobs -------------------------------------------------------------------------------------------------
  bool running() const { return phase_ == Phase::running; }
  uint32_t head() const { return head_; }
  /// Descriptors that can be put now.
  uint32_t room() const { return mask_ - (head_ - tail_); }

  /// `size` is 1 to max_copy(), the addresses fit address_bits(): who calls has checked that, and room(). `last`: of
  /// its job; only there the device reports.
  void put_copy(uint32_t index, uint64_t dst, uint64_t src, uint32_t size, bool last) noexcept {
    put(index, spec::control::of_op(spec::control::op_copy), dst, src, size, last);
  }
  void put_fill(uint32_t index, uint64_t dst, uint64_t pattern, uint32_t size, bool last) noexcept {
    put(index, spec::control::of_op(spec::control::op_fill), dst, pattern, size, last);
  }
  /// Makes the descriptors head() .. end - 1 one job.
  void commit(uint32_t end, uint32_t cookie, uint64_t bytes) noexcept {
    jobs_[jobs_head_++ & mask_] = Job{end, cookie, bytes};
    head_ = end;
  }
  /// One whole job each, split at max_copy(). Refusal::address: length 0, or beyond address_bits().
  Refusal copy(uint64_t dst, uint64_t src, uint64_t len, uint32_t cookie) noexcept;
  Refusal fill(uint64_t dst, uint64_t pattern, uint64_t len, uint32_t cookie) noexcept;

  void submit() noexcept {
    if (submitted_ == head_ || phase_ != Phase::running) return;
    stats_.submitted += head_ - submitted_;
    submitted_ = head_;
    mmio_.write16(spec::DMACOUNT, static_cast<uint16_t>(head_ - base_));  // releases the descriptors to the device
  }

  // --- Completions and stopping: as in DmaEngine --------------------------------------------------------------------
  size_t poll(std::span<Completion> out) noexcept;
  uint32_t outstanding() const { return jobs_head_ - jobs_tail_; }
  bool failed() const { return failure_ != Failure::none; }
  bool gone() const { return failure_ == Failure::gone; }
  std::string why() const;
  Step quiesce() noexcept;
  Step reset() noexcept;
  /// The device has been kept from our memory by other means: what is outstanding comes out of poll(), and that is all.
  void abandon() noexcept;
  /// Waits, for less than a second, until nothing runs: SUSPEND, then RESET. False when neither helped. For
  /// destructors.
  bool shut_down() noexcept;
  const EngineStats& stats() const { return stats_; }

 private:
  struct Job {
    uint32_t end;  // index after its last descriptor
    uint32_t cookie;
    uint64_t bytes;
  };
  enum class Phase : uint8_t {
    running,
    failed,       // seen by poll(); waits for somebody to stop it
    suspending,   // quiesce() has written SUSPEND
    resetting,    // reset() has written RESET
    arming,       // reset() has written CHAINADDR
    stopped,      // nothing runs; poll() hands out the rest
    ready_again,  // as stopped, and once all is handed out the channel runs
  };
  enum class Failure : uint8_t { none, halted, gone, stop_timeout };

  void put(uint32_t index, uint32_t control, uint64_t dst, uint64_t src, uint32_t size, bool last) noexcept {
    spec::Descriptor& descriptor = ring_[index & mask_];  // `next` was stored once, by the constructor
    const uint64_t size_and_control = size | uint64_t{control | (last ? spec::control::completion_update : 0)} << 32;
    std::memcpy(&descriptor.size, &size_and_control,
                sizeof size_and_control);  // one store; the device is little-endian
    descriptor.src = src;
    descriptor.dst = dst;
  }
  template <typename Put>
  Refusal put_job(uint64_t dst, uint64_t len, uint32_t cookie, Put&& put) noexcept;
  bool address_fits(uint64_t address, uint64_t len) const noexcept;

  uint64_t descriptor_address(uint32_t index) const { return ring_iova_ + uint64_t{index & mask_} * 64; }
  void write_address(uint32_t offset, uint64_t address) noexcept;
  uint64_t read_status() noexcept;
  uint64_t read_writeback() const noexcept;

  void probe();
  void bring_up(const std::function<void()>& pause);
  void prove(const std::function<void()>& pause);
  void clear_errors() noexcept;
  void arm() noexcept;

  void look() noexcept;
  void advance(uint64_t status) noexcept;
  void fail(Failure failure) noexcept;
  void run_again() noexcept;
  Step wait_in(Phase phase) noexcept;

  // Used by every enqueue and poll.
  Mmio& mmio_;
  spec::Descriptor* ring_;
  std::vector<Job> jobs_;  // a ring as large as the descriptors'
  uint32_t mask_;
  uint32_t head_;       // next descriptor to write
  uint32_t submitted_;  // the device may run up to here
  uint32_t done_;       // the device has run up to here
  uint32_t tail_;       // completions were taken up to here
  uint32_t base_;       // the index at which DMACOUNT was 0
  uint32_t jobs_head_ = 0;
  uint32_t jobs_tail_ = 0;
  Phase phase_ = Phase::running;
  Failure failure_ = Failure::none;
  bool blame_ = false;  // the next job handed out that is not done is the one that failed
  uint32_t idle_polls_ = 0;
  uint32_t next_slow_look_;
  uint64_t seen_ = 0;  // the write-back last looked at
  uint64_t ring_iova_;
  uint64_t* writeback_;
  EngineStats stats_;

  uint64_t writeback_iova_;
  uint8_t version_ = 0;
  uint32_t capability_ = 0;
  uint32_t max_copy_ = 0;
  uint32_t chanerr_ = 0;  // at the last failure
  uint32_t waits_ = 0;
  std::chrono::steady_clock::time_point waiting_since_;
};

}  // namespace vhost_ioat::dma
