// SPDX-License-Identifier: BSD-3-Clause
// The software I/OAT: its registers and its faults.
#include "dma/ioat_model.hpp"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/error.hpp"

namespace vhost_ioat::dma {
namespace {

using spec::State;

struct Writable {
  uint32_t offset;
  uint32_t size;
  uint64_t mask;  // of a register that only stores
};
constexpr uint64_t whole = ~uint64_t{0};
constexpr Writable writable_registers[] = {
    {spec::GENCTRL, 1, 1},
    {spec::INTRCTRL, 1, spec::intrctrl::master_enable | spec::intrctrl::msix_vector_control},
    {spec::INTRDELAY, 2, 0x3fff},
    {spec::PREFETCHLIMIT, 4, whole},
    {spec::CHANCTRL, 2, 0},
    {spec::CHANCMD, 1, 0},
    {spec::DMACOUNT, 2, 0},
    {spec::CHAINADDR, 8, whole},
    {spec::CHANCMP, 8, whole},
    {spec::CHANERR, 4, 0},
    {spec::CHANERRMSK, 4, whole},
    {spec::DCACTRL, 4, whole},
    {spec::DRSCTL, 2, whole},
    {spec::LTR_SELECT, 4, whole},
    {spec::LTR_ACTIVE, 4, whole},
    {spec::LTR_IDLE, 4, whole},
    {spec::msix_table, 8, whole},
    {spec::msix_table + 8, 8, whole},
};

uint64_t low_bytes(uint32_t bytes) { return bytes >= 8 ? whole : (uint64_t{1} << 8 * bytes) - 1; }
bool in_bar(uint32_t offset, uint32_t size) {
  return size >= 1 && size <= 8 && offset < spec::bar_size && size <= spec::bar_size - offset;
}

}  // namespace

IoatModel::IoatModel(const Options& options) : options_(options), config_(options.device_id) {
  if (options.xfercap > 31) throw ConfigError(format("xfercap %u: the register holds 0 to 31", options.xfercap));
  set_defaults();
  config_.write(spec::cfg_command, ready_to_use, 2);
  if (options_.mode == Mode::threaded) worker_ = std::thread([this] { work(); });
}

IoatModel::~IoatModel() {
  if (!worker_.joinable()) return;
  if (::getpid() != owner_) {  // fork() copied the handle, not the thread
    worker_.detach();
    return;
  }
  {
    const MutexLock lock(mutex_);
    stop_ = true;
  }
  retire();
  worker_.join();
}

void IoatModel::abandon() noexcept {
  retire();
  if (worker_.joinable()) worker_.detach();
}

void IoatModel::retire() noexcept {
  stop_ = true;
  pause_.notify_all();
  wake();
}

void IoatModel::set_defaults() {
  bar_ = {};
  config_ = PciConfigModel(options_.device_id);
  control_ = 0;
  chanerr_ = 0;
  interrupt_latched_ = attention_ = false;
  put<uint8_t>(spec::CHANCNT, 1);
  put<uint8_t>(spec::XFERCAP, options_.xfercap);
  put<uint8_t>(spec::CBVER, options_.cbver);
  put<uint32_t>(spec::DMACAPABILITY, spec::dmacap::page_break | spec::dmacap::fill);
  put<uint16_t>(spec::DMA_COMP, 0x4);       // compatible with version 3
  put<uint32_t>(spec::msix_table + 12, 1);  // the vector is masked
}

template <typename T>
void IoatModel::put(uint32_t offset, T value) noexcept {
  std::memcpy(&bar_[offset], &value, sizeof value);
}

uint64_t IoatModel::register64(uint32_t offset) const noexcept {
  uint64_t value;
  std::memcpy(&value, &bar_[offset], sizeof value);
  return value;
}

// --- Reading
// ----------------------------------------------------------------------------------------------------------

/// The doorbell only stores its count; that this made the channel ACTIVE is concluded when somebody asks.
State IoatModel::state() const noexcept {
  const bool at_rest = state_ == State::armed || state_ == State::idle;
  // Acquire, pairs with the doorbell's release: who runs on seeing the count also sees the descriptors.
  return at_rest && dmacount_.load(std::memory_order_acquire) != count_ ? State::active : state_;
}

void IoatModel::refresh() noexcept {
  put<uint16_t>(spec::CHANCTRL, control_);
  put<uint8_t>(spec::CHANCMD, reset_asked_ ? spec::chancmd::reset : 0);
  put<uint16_t>(spec::DMACOUNT, dmacount_.load(std::memory_order_relaxed));
  put<uint64_t>(spec::CHANSTS, completed_ | static_cast<uint64_t>(state()));
  put<uint64_t>(spec::CDAR, current_);
  put<uint32_t>(spec::CHANERR, chanerr_);
  put<uint32_t>(spec::ATTNSTATUS, attention_);
  constexpr uint8_t interrupt_bits = spec::intrctrl::status | spec::intrctrl::asserted;
  const auto stored = static_cast<uint8_t>(bar_[spec::INTRCTRL] & ~interrupt_bits);
  put<uint8_t>(spec::INTRCTRL, attention_ ? stored | interrupt_bits : stored);
}

uint64_t IoatModel::read(uint32_t offset, uint32_t size) noexcept {
  const MutexLock lock(mutex_);
  if (gone_) return low_bytes(size);
  if (!in_bar(offset, size)) return 0;
  refresh();
  uint64_t value = 0;
  std::memcpy(&value, &bar_[offset], size);
  const auto covers = [&](uint32_t byte) { return byte >= offset && byte - offset < size; };
  if (covers(spec::ATTNSTATUS)) attention_ = false;
  if (covers(spec::CHANCTRL + 1)) control_ |= spec::chanctrl::in_use;  // reading acquires the channel
  if (offset == spec::CHANSTS && size == 8) {
    if (const auto high = due(Fault::torn_status, status_reads_++)) {
      value = (value & 0xffffffff) | (*high ? *high << 32 : ~value & ~uint64_t{0xffffffff});
    }
  }
  return value;
}

uint32_t IoatModel::config_read(uint32_t offset, uint32_t size) noexcept {
  const MutexLock lock(mutex_);
  return gone_ ? static_cast<uint32_t>(low_bytes(size)) : config_.read(offset, size);
}

// --- Writing
// ----------------------------------------------------------------------------------------------------------

void IoatModel::write(uint32_t offset, uint64_t value, uint32_t size) noexcept {
  if (offset == spec::DMACOUNT && size == 2) return ring_doorbell(static_cast<uint16_t>(value));
  if (!in_bar(offset, size)) return;
  uint32_t interrupts;
  {
    const MutexLock lock(mutex_);
    if (gone_) return;
    store(offset, value, size);
    interrupts = interrupts_to_fire();
  }
  fire_interrupts(interrupts);
  run();  // DMACOUNT or RESUME may have been among it
}

void IoatModel::store(uint32_t offset, uint64_t value, uint32_t size) noexcept {
  for (const Writable& reg : writable_registers) {
    const uint32_t from = std::max(offset, reg.offset), to = std::min(offset + size, reg.offset + reg.size);
    if (from >= to) continue;
    const uint64_t mask = low_bytes(to - from) << 8 * (from - reg.offset);
    const uint64_t part = (value >> 8 * (from - offset)) << 8 * (from - reg.offset) & mask;
    switch (reg.offset) {
      case spec::CHANCTRL:
        write_control(static_cast<uint16_t>(part), static_cast<uint16_t>(mask));
        break;
      case spec::CHANCMD:
        command(static_cast<uint8_t>(part));
        break;
      case spec::CHANERR:
        chanerr_ &= static_cast<uint32_t>(~part);
        break;
      case spec::DMACOUNT: {
        const uint64_t old = dmacount_.load(std::memory_order_relaxed);
        dmacount_.store(static_cast<uint16_t>((old & ~mask) | part), std::memory_order_release);
        break;
      }
      default: {
        const uint64_t keep = ~(mask & reg.mask);
        uint64_t stored = 0;
        std::memcpy(&stored, &bar_[reg.offset], reg.size);
        stored = (stored & keep) | (part & reg.mask);
        std::memcpy(&bar_[reg.offset], &stored, reg.size);
        // The high half takes effect, so that two 4-byte writes, low first, do what one of 8 bytes does.
        if (reg.offset == spec::CHAINADDR && mask >> 32 != 0) write_chain_address();
      }
    }
  }
}

/// The data path's register: no lock, and no system call unless the worker is parked.
void IoatModel::ring_doorbell(uint16_t count) noexcept {
  // Release: the descriptors stored before are seen by whoever acquires the count in state().
  dmacount_.store(count, std::memory_order_release);
  run();
}

void IoatModel::write_control(uint16_t value, uint16_t mask) noexcept {
  const auto stored = static_cast<uint16_t>(mask & ~spec::chanctrl::int_rearm);
  control_ = static_cast<uint16_t>((control_ & ~stored) | (value & stored));
  if (!(value & spec::chanctrl::int_rearm)) return;
  control_ = static_cast<uint16_t>(control_ & ~spec::chanctrl::int_rearm);
  if (std::exchange(interrupt_latched_, false)) raise_interrupt();
}

void IoatModel::command(uint8_t value) noexcept {
  if (std::popcount(value & 0x3fu) > 1) return halt(1u << spec::chanerr::command);
  switch (value & 0x3f) {
    case spec::chancmd::reset:
      reset_asked_ = true;
      chain_written_in_reset_ = false;
      if (due(Fault::reset_hang, resets_++)) reset_hangs_ = true;
      try_reset();
      break;
    case spec::chancmd::suspend:
      if (state() == State::active && (at_work_ || stuck_)) {
        suspend_asked_ = true;
      } else if (state() == State::active || state_ == State::idle) {
        state_ = State::suspended;
      }
      break;
    case spec::chancmd::resume:
      if (state_ == State::suspended) state_ = State::idle;
      break;
    case spec::chancmd::abort:
      state_ = State::halted;
      break;
    default:
      break;  // START and APPEND are of version 1
  }
  pause_.notify_all();
}

/// RESET waits for the copy that runs, as on hardware.
void IoatModel::try_reset() noexcept {
  if (!reset_asked_ || reset_hangs_ || at_work_) return;
  reset_asked_ = suspend_asked_ = stuck_ = writeback_owed_ = false;
  state_ = State::halted;
  completed_ = current_ = 0;
  count_ = 0;
  dmacount_.store(0, std::memory_order_relaxed);
  if (std::exchange(function_reset_asked_, false)) set_defaults();
  if (std::exchange(chain_written_in_reset_, false)) {
    write_chain_address();
  } else {
    put<uint64_t>(spec::CHAINADDR, 0);
  }
}

void IoatModel::write_chain_address() noexcept {
  if (reset_asked_) {  // some drivers do not wait for the reset to end
    chain_written_in_reset_ = true;
    return;
  }
  const uint64_t address = register64(spec::CHAINADDR);
  if (state() == State::active || address % sizeof(spec::Descriptor) != 0) {
    return halt(1u << spec::chanerr::chain_address);
  }
  count_ = 0;
  dmacount_.store(0, std::memory_order_relaxed);
  current_ = address;
  first_fetch_ = true;
  const bool error = chanerr_ || (spec::needs_chanerr_int(options_.cbver) && config_.chanerr_int());
  if (state_ != State::halted || !error) state_ = State::armed;
}

/// Once bus mastering is off, nothing is written any more; once it is on again, the channel goes on where it was.
void IoatModel::config_write(uint32_t offset, uint32_t value, uint32_t size) noexcept {
  uint32_t interrupts;
  {
    const MutexLock lock(mutex_);
    if (gone_) return;
    if (config_.write(offset, value, size)) {
      reset_asked_ = function_reset_asked_ = true;
      try_reset();
    }
    pause_.notify_all();
    if (!config_.may_master()) {
      while (at_work_ && !config_.may_master()) mutex_.wait(rest_);
      return;
    }
    if (std::exchange(writeback_owed_, false)) write_back();
    interrupts = interrupts_to_fire();
  }
  fire_interrupts(interrupts);
  run();
}

void IoatModel::function_reset() noexcept {
  const MutexLock lock(mutex_);
  reset_asked_ = function_reset_asked_ = true;
  try_reset();
}

// --- Faults
// -----------------------------------------------------------------------------------------------------------

void IoatModel::inject(Fault fault, uint64_t nth, uint64_t value) {
  if ((fault == Fault::latency || fault == Fault::bandwidth) && options_.mode != Mode::threaded) {
    throw DmaError("latency and bandwidth need mode=\"threaded\": the other modes have no notion of time");
  }
  if (fault == Fault::error && value > 31) throw DmaError("error: value must be the number of a CHANERR bit, 0 to 31");
  if (fault == Fault::torn_status && options_.cbver >= 0x33) {
    throw DmaError("torn_status: 8-byte reads of CHANSTS tear only below version 3.3");
  }
  const MutexLock lock(mutex_);
  switch (fault) {
    case Fault::latency:
      latency_ = std::chrono::nanoseconds(value);
      return;
    case Fault::bandwidth:
      bandwidth_ = value;
      return;
    case Fault::drop_writeback:
      nth += writebacks_;
      break;
    case Fault::drop_interrupt:
      nth += interrupts_;
      break;
    case Fault::torn_status:
      nth += status_reads_;
      break;
    case Fault::reset_hang:
      nth += resets_;
      break;
    case Fault::gone:
      if (nth == 0) {
        gone_ = true;
        return;
      }
      [[fallthrough]];
    default:
      nth += descriptors_started_;
  }
  faults_.push_back({fault, nth, value});
}

std::optional<uint64_t> IoatModel::due(Fault fault, uint64_t count) noexcept {
  if (faults_.empty()) [[likely]]
    return std::nullopt;
  const auto found = std::find_if(faults_.begin(), faults_.end(),
                                  [&](const ArmedFault& f) { return f.fault == fault && f.at == count; });
  if (found == faults_.end()) return std::nullopt;
  const uint64_t value = found->value;
  faults_.erase(found);
  return value;
}

/// Counts one event of a kind that can be dropped; true when this one is.
bool IoatModel::loses(Fault fault, uint64_t& count, uint64_t& to_drop) noexcept {
  if (const auto lost = due(fault, count++)) to_drop = std::max<uint64_t>(*lost, 1);
  if (to_drop == 0) return false;
  --to_drop;
  return true;
}

std::shared_ptr<void> IoatModel::take_seat() {
  const MutexLock lock(mutex_);
  if (!seat_.expired()) {
    throw DmaError(
        "this device has a driver already (an IoatChannel, a port's engine, or the machine it is served to); it can "
        "have only one at a time");
  }
  auto seat = std::make_shared<char>();
  seat_ = seat;
  return seat;
}

IoatModel::Counters IoatModel::counters() const {
  const MutexLock lock(mutex_);
  return counters_;
}

}  // namespace vhost_ioat::dma
