// SPDX-License-Identifier: BSD-3-Clause
#include "port/calibration.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>

namespace vhost_ioat::port {
namespace {

using Time = Recovery::Time;

constexpr uint32_t rounds = 16, batch = 16, smallest = 256, largest = 16384;
constexpr size_t batch_bytes = size_t{batch} * largest;
constexpr auto patience = std::chrono::seconds(1);  // with all the rounds, and with the batch that is under way then
constexpr auto look_again = std::chrono::microseconds(50);

class Measurement {
 public:
  Measurement(dma::DmaEngine& engine, memory::PacketArena& arena, const std::function<Time()>& clock)
      : engine_(engine),
        clock_(clock),
        from_(arena.allocate(batch_bytes)),
        to_(arena.allocate(batch_bytes)),
        ends_(clock() + patience) {
    if (!from_ || !to_) return;
    std::memset(from_.data(), 1, from_.size());
    std::memset(to_.data(), 2, to_.size());
  }

  uint32_t smallest_worth_it() {
    if (!from_ || !to_) return Calibration::never;
    for (uint32_t size = smallest; size <= largest; size *= 2) {
      auto by_engine = Time::duration::max(), by_cpu = Time::duration::max();
      for (uint32_t round = 0; round < rounds; ++round) {
        if (clock_() > ends_) return Calibration::never;
        const auto handing_over = hand_over(size);
        if (!wait() || !handing_over) return Calibration::never;
        by_engine = std::min(by_engine, *handing_over);
        by_cpu = std::min(by_cpu, copy(size));
      }
      if (by_engine < by_cpu) return size;
    }
    return Calibration::never;
  }

  /// Takes what the engine hands back. False: there is more to come.
  bool drain() {
    dma::Completion done[batch];
    while (engine_.poll(done) != 0) {
    }
    return engine_.outstanding() == 0;
  }

  /// The engine may still touch the memory: it is never given back.
  void leak() {
    from_.leak();
    to_.leak();
  }

 private:
  Time::duration copy(uint32_t size) {
    const Time begin = clock_();
    for (uint32_t i = 0; i < batch; ++i) std::memcpy(to(i), from(i), size);
    return clock_() - begin;
  }

  /// How long it took; nothing when the engine did not take all of them.
  std::optional<Time::duration> hand_over(uint32_t size) {
    const Time begin = clock_();
    bool all = true;
    for (uint32_t i = 0; all && i < batch; ++i) {
      const dma::Copy copy{to(i), from(i), size};
      all = engine_.enqueue({&copy, 1}, i) == dma::Refusal::none;
    }
    engine_.submit();
    return all ? std::optional(clock_() - begin) : std::nullopt;
  }

  bool wait() {
    const Time late = clock_() + patience;
    while (!drain()) {
      if (engine_.failed() || clock_() > late) return false;
    }
    return true;
  }

  uint8_t* from(uint32_t i) { return from_.data() + size_t{i} * largest; }
  uint8_t* to(uint32_t i) { return to_.data() + size_t{i} * largest; }

  dma::DmaEngine& engine_;
  const std::function<Time()>& clock_;
  memory::Block from_, to_;
  Time ends_;
};

}  // namespace

Calibration calibrate(dma::DmaEngine& engine, memory::PacketArena& arena, Recovery& recovery,
                      const std::function<Time()>& clock) {
  Measurement measurement(engine, arena, clock);
  Calibration found{measurement.smallest_worth_it()};
  if (measurement.drain() && !engine.failed()) return found;
  found.threshold = Calibration::never;
  recovery.begin(clock(), engine);
  while ((found.stopped = recovery.step(engine, clock())) == Recovery::Outcome::working) {
    measurement.drain();
    std::this_thread::sleep_for(look_again);
  }
  measurement.drain();
  if (found.stopped == Recovery::Outcome::lost) measurement.leak();
  return found;
}

}  // namespace vhost_ioat::port
