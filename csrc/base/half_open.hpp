// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>

#include "base/budget.hpp"

namespace vhost_ioat {

/// How long a peer may keep others out without having said who it is: for ever, as long as no other waits; after
/// `patience` it makes way. One rule for every socket that serves one peer at a time (a front end says SET_OWNER, a
/// monitor VERSION).
class HalfOpen {
 public:
  using Clock = std::chrono::steady_clock;
  using Time = Clock::time_point;

  explicit HalfOpen(std::chrono::milliseconds patience = budget::half_open) : patience_(patience) {}

  void connected(Time now) {
    greeted_ = false;
    ends_ = now + patience_;
  }
  void greeted() { greeted_ = true; }
  bool has_greeted() const { return greeted_; }
  /// If another waits.
  bool makes_way(Time now) const { return !greeted_ && now >= ends_; }
  Time ends() const { return ends_; }
  std::chrono::milliseconds patience() const { return patience_; }

 private:
  std::chrono::milliseconds patience_;
  Time ends_{};
  bool greeted_ = true;  // nobody is there
};

}  // namespace vhost_ioat
