// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <cstdint>
#include <optional>

#include "base/budget.hpp"
#include "dma/engine.hpp"

namespace vhost_ioat::port {

/// Watches an engine for being stuck, and walks it down the ladder suspend, reset, revoke when it is stuck or failed.
///
/// No step waits and time is an argument, so that every path can be tested with a clock of the test's own. The control
/// thread calls it, with the queue held from the first step on: no caller meets a half-stopped engine.
class Recovery {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr auto stuck_after = std::chrono::milliseconds(200);
  static constexpr uint64_t stuck_polls = 1000;
  /// A longer gap between two looks means that this process was not running: not the engine's fault.
  static constexpr auto pause = std::chrono::milliseconds(50);
  static constexpr auto suspend_time = std::chrono::milliseconds(20);
  static constexpr auto reset_time = std::chrono::milliseconds(200);
  static constexpr auto revoke_time = std::chrono::seconds(2);
  /// Failures closer together than this count as repeated; after `max_failures` the queue does without the engine.
  static constexpr auto forgiven_after = std::chrono::seconds(10);
  static constexpr uint32_t max_failures = 8;

  /// True when work is outstanding and neither its amount nor its progress has changed for too long.
  bool stuck(Time now, uint64_t polls, uint64_t progress, bool outstanding) {
    if (!outstanding || progress != progress_ || now - last_look_ > pause || !watching_) {
      watching_ = outstanding;
      progress_ = progress;
      since_ = now;
      polls_at_start_ = polls;
    }
    last_look_ = now;
    return watching_ && now - since_ >= stuck_after && polls - polls_at_start_ >= stuck_polls;
  }

  /// The queue is to become empty, as somebody waits for it: true when it has not for too long, however busy the engine
  /// is. Until drained().
  bool too_slow(Time now) {
    if (!draining_since_) draining_since_ = now;
    return now - *draining_since_ >= budget::patience_at_stop;
  }
  void drained() { draining_since_.reset(); }

  enum class Outcome : uint8_t {
    none,
    working,    // call again
    recovered,  // stopped, everything handed back, and ready for new copies
    given_up,   // stopped and handed back; the engine is not to be used any more
    lost,       // it could not even be revoked: it may still write, so its memory must never be reused
  };
  bool active() const { return rung_ != Rung::none; }
  void begin(Time now, const dma::DmaEngine& engine) noexcept {
    keep_why(now, engine);
    drained();
    failures_ = now - last_failure_ > forgiven_after ? 1 : failures_ + 1;
    last_failure_ = now;
    climb_to(Rung::suspend, now);
  }
  const char* why() const { return why_; }
  Outcome step(dma::DmaEngine& engine, Time now);

 private:
  void keep_why(Time now, const dma::DmaEngine& engine) noexcept;
  enum class Rung : uint8_t { none, suspend, reset, revoke };
  void climb_to(Rung rung, Time now) {
    rung_ = rung;
    rung_since_ = now;
  }

  bool watching_ = false;
  uint64_t progress_ = 0, polls_at_start_ = 0;
  Time since_{}, last_look_{};
  std::optional<Time> draining_since_;
  Rung rung_ = Rung::none;
  Time rung_since_{};
  Time last_failure_{};
  uint32_t failures_ = 0;
  char why_[160] = {};
};

}  // namespace vhost_ioat::port
