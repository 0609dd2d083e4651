// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "base/mutex.hpp"
#include "dma/ioat_spec.hpp"
#include "dma/iova_map.hpp"
#include "dma/pci_config_model.hpp"
#include "dma/register_file.hpp"

namespace vhost_ioat::dma {

/// A software I/OAT channel: the registers of BAR0, the configuration space, an IOVA map and an engine that fetches and
/// carries out descriptors. It stands alone, so that a driver in this process or a virtual PCI device may use it.
///
/// Registers may be used from any thread. Where the data sheets are silent, public drivers decided: RESET keeps
/// CHANCTRL, CHANCMP and CHANERR; CHAINADDR while ACTIVE is CHANERR bit 4 and halts; DMACOUNT while HALTED is only
/// stored; CHAINADDR after SUSPENDED keeps the completed address; without ANY_ERR_ABORT_EN a failed descriptor is
/// skipped. Writing a low half of CHAINADDR does not arm.
class IoatModel : public Mmio {
 public:
  enum class Mode : uint8_t {
    inline_,   // copies happen inside the write of the doorbell
    stepped,   // copies happen inside step()
    threaded,  // a worker makes them; it spins for about 50 us before it parks
  };
  struct Options {
    uint16_t device_id = 0x0b00;  // 0x0b00: Ice Lake; 0x2021: Skylake (with cbver 0x33)
    uint8_t cbver = 0x34;
    Mode mode = Mode::inline_;
    uint8_t xfercap = 20;  // log2 of the most bytes of one descriptor
  };
  /// COMMAND of a new model, as firmware leaves a function to a driver. A function-level reset takes it away.
  static constexpr uint16_t ready_to_use = spec::cfg_command_memory | spec::cfg_command_bus_master;
  enum class Fault : uint8_t {
    error,           // the nth descriptor from now fails with CHANERR bit `value`
    corrupt,         // the nth descriptor from now writes one byte wrong, and says nothing
    drop_writeback,  // the nth write-back from now is lost, and `value` - 1 more
    drop_interrupt,  // likewise
    torn_status,     // the nth 8-byte read of CHANSTS has a high half of another moment; below 3.3 only
    stuck,           // the nth descriptor never ends; RESET helps
    reset_hang,      // the nth RESET never clears itself
    gone,            // before the nth descriptor (0: now) the device leaves the bus: all ones, nothing runs
    latency,         // `value` ns from a doorbell to the first fetch of a channel at rest; threaded only
    bandwidth,       // `value` bytes a second at most, 0: no limit; threaded only
  };
  struct Counters {
    uint64_t descriptors = 0;  // completed
    uint64_t bytes = 0;
    uint64_t interrupts = 0;
    uint64_t errors = 0;
  };

  IoatModel() : IoatModel(Options{}) {}
  /// Throws ConfigError.
  explicit IoatModel(const Options& options);
  ~IoatModel() override;

  uint64_t read(uint32_t offset, uint32_t size) noexcept override;
  void write(uint32_t offset, uint64_t value, uint32_t size) noexcept override;
  uint32_t config_read(uint32_t offset, uint32_t size) noexcept override;
  void config_write(uint32_t offset, uint32_t value, uint32_t size) noexcept override;

  IovaMap& memory() { return memory_; }
  Mode mode() const { return options_.mode; }
  /// Carries out up to `n` descriptors and returns how many. Throws DmaError unless the mode is stepped.
  uint32_t step(uint32_t n = 1);
  /// `nth` counts from 0. Throws DmaError for a fault that this model cannot show.
  void inject(Fault fault, uint64_t nth = 0, uint64_t value = 0);
  /// The right to drive the device: reset it, give it a ring and wait for what it answers. Held by one driver at a time
  /// and given back with the last copy of the handle. Throws DmaError when another one has it.
  [[nodiscard]] std::shared_ptr<void> take_seat();
  /// Called on the thread that carries out descriptors, without a lock. Set it before the device runs.
  void on_interrupt(std::function<void()> callback) { interrupt_ = std::move(callback); }
  /// What a function-level reset does: everything but the IOVA map and the faults as at the start.
  void function_reset() noexcept;
  Counters counters() const;
  /// For a model that is never destroyed: its thread ends as soon as it comes to it. Neither waits nor takes a lock.
  void abandon() noexcept;

 private:
  struct ArmedFault {
    Fault fault;
    uint64_t at;  // the count of its kind of event
    uint64_t value;
  };
  /// What became of one descriptor.
  struct Outcome {
    uint32_t errors = 0;  // CHANERR bits
    uint32_t control = 0;
    uint64_t next = 0;
    uint64_t bytes = 0;
    bool fetched = false;
  };
  // Registers (ioat_model.cpp).
  void set_defaults() REQUIRES(mutex_);
  void refresh() noexcept REQUIRES(mutex_);
  void store(uint32_t offset, uint64_t value, uint32_t size) noexcept REQUIRES(mutex_);
  void write_control(uint16_t value, uint16_t mask) noexcept REQUIRES(mutex_);
  void command(uint8_t value) noexcept REQUIRES(mutex_);
  void write_chain_address() noexcept REQUIRES(mutex_);
  void try_reset() noexcept REQUIRES(mutex_);
  spec::State state() const noexcept REQUIRES(mutex_);
  uint64_t register64(uint32_t offset) const noexcept REQUIRES(mutex_);
  template <typename T>
  void put(uint32_t offset, T value) noexcept REQUIRES(mutex_);
  std::optional<uint64_t> due(Fault fault, uint64_t count) noexcept REQUIRES(mutex_);
  bool loses(Fault fault, uint64_t& count, uint64_t& to_drop) noexcept REQUIRES(mutex_);
  void ring_doorbell(uint16_t count) noexcept;

  // The engine (ioat_model_engine.cpp).
  void run() noexcept;
  bool can_run() const noexcept REQUIRES(mutex_);
  bool run_one() noexcept;
  Outcome carry_out(uint64_t address, uint32_t injected, bool corrupt) noexcept;
  uint32_t copy(const IovaMap::Access& access, const spec::Descriptor& descriptor) noexcept;
  uint32_t fill(const IovaMap::Access& access, const spec::Descriptor& descriptor) noexcept;
  void account(const Outcome& outcome, uint64_t address) noexcept REQUIRES(mutex_);
  void record(uint32_t errors) noexcept REQUIRES(mutex_);
  void halt(uint32_t errors) noexcept REQUIRES(mutex_);
  void write_back() noexcept REQUIRES(mutex_);
  void raise_interrupt() noexcept REQUIRES(mutex_);
  uint32_t interrupts_to_fire() noexcept REQUIRES(mutex_);
  void fire_interrupts(uint32_t count) noexcept EXCLUDES(mutex_);

  // The worker (ioat_model_worker.cpp).
  void work();
  void retire() noexcept;
  void wake() noexcept;
  void wait_latency() REQUIRES(mutex_);
  void wait_bandwidth(std::chrono::steady_clock::time_point start, uint64_t bytes) REQUIRES(mutex_);

  const Options options_;
  IovaMap memory_;
  std::function<void()> interrupt_;

  // The doorbell is the one register that a data path writes, so it takes no lock.
  std::atomic<uint16_t> dmacount_{0};
  std::atomic<uint32_t> wakeups_{0};  // even part: counts doorbells; bit 0: the worker is parked

  mutable Mutex mutex_;                                           // never held while a descriptor is carried out
  std::condition_variable pause_;                                 // ends a wait for latency or bandwidth early
  std::condition_variable rest_;                                  // no descriptor is being carried out any more
  std::array<uint8_t, spec::bar_size> bar_ GUARDED_BY(mutex_){};  // plain registers; others are put here to be read
  PciConfigModel config_ GUARDED_BY(mutex_);
  // Without the step to ACTIVE that a doorbell makes, see state():
  spec::State state_ GUARDED_BY(mutex_) = spec::State::halted;
  uint64_t current_ GUARDED_BY(mutex_) = 0;    // the descriptor to fetch next
  uint64_t completed_ GUARDED_BY(mutex_) = 0;  // address of the last completed descriptor
  uint16_t count_ GUARDED_BY(mutex_) = 0;      // descriptors run since CHAINADDR
  uint16_t control_ GUARDED_BY(mutex_) = 0;
  uint32_t chanerr_ GUARDED_BY(mutex_) = 0;
  bool first_fetch_ GUARDED_BY(mutex_) = false;  // since CHAINADDR
  bool at_work_ GUARDED_BY(mutex_) = false;      // a descriptor is being carried out
  bool suspend_asked_ GUARDED_BY(mutex_) = false;
  bool reset_asked_ GUARDED_BY(mutex_) = false;
  bool chain_written_in_reset_ GUARDED_BY(mutex_) = false;
  bool function_reset_asked_ GUARDED_BY(mutex_) = false;
  bool writeback_owed_ GUARDED_BY(mutex_) = false;     // while the function may not master the bus
  bool interrupt_latched_ GUARDED_BY(mutex_) = false;  // came while CHANCTRL bit 0 was set; fired when it is re-armed
  uint32_t unfired_ GUARDED_BY(mutex_) = 0;
  bool attention_ GUARDED_BY(mutex_) = false;

  std::vector<ArmedFault> faults_ GUARDED_BY(mutex_);
  // What `nth` counts.
  uint64_t descriptors_started_ GUARDED_BY(mutex_) = 0, writebacks_ GUARDED_BY(mutex_) = 0;
  uint64_t interrupts_ GUARDED_BY(mutex_) = 0, status_reads_ GUARDED_BY(mutex_) = 0, resets_ GUARDED_BY(mutex_) = 0;
  uint64_t writebacks_to_drop_ GUARDED_BY(mutex_) = 0, interrupts_to_drop_ GUARDED_BY(mutex_) = 0;
  bool stuck_ GUARDED_BY(mutex_) = false, reset_hangs_ GUARDED_BY(mutex_) = false, gone_ GUARDED_BY(mutex_) = false;
  std::chrono::nanoseconds latency_ GUARDED_BY(mutex_){0};
  uint64_t bandwidth_ GUARDED_BY(mutex_) = 0;
  Counters counters_ GUARDED_BY(mutex_);
  IovaMap::Hint fetch_hint_, src_hint_, dst_hint_, writeback_hint_;  // used by whoever is at work

  std::weak_ptr<void> seat_ GUARDED_BY(mutex_);

  std::atomic<bool> stop_{false};
  const pid_t owner_ = ::getpid();  // the process whose thread the worker is
  std::thread worker_;
};

}  // namespace vhost_ioat::dma
