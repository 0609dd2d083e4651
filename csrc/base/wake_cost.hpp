// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <ctime>

#include "base/budget.hpp"

namespace vhost_ioat {

// A write to a file that a peer shares wakes everybody who waits for it, one after the other, in the thread that
// writes. A peer may let very many wait (200,000 epoll entries: 36 to 116 ms), and the time is taken from our thread.

/// What this thread has had of a CPU so far.
inline std::chrono::nanoseconds thread_time() noexcept {
  timespec t{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
}

/// Looks at what it costs to use one file of a peer. Once a use took long by the clock, the next ones are measured by
/// this thread's own time, since it may only have been without a CPU.
class WakeCost {
 public:
  template <typename Wake>
  auto operator()(Wake&& wake) noexcept {
    if (in_a_row_ == 0 && !suspect_) [[likely]] {
      const auto begun = Clock::now();  // a tenth of what thread_time() costs
      const auto result = wake();
      suspect_ = Clock::now() - begun >= budget::wake_up;
      return result;
    }
    const auto before = thread_time();
    const auto result = wake();
    suspect_ = thread_time() - before >= budget::wake_up;
    in_a_row_ = suspect_ ? in_a_row_ + 1 : 0;
    return result;
  }
  bool costly() const noexcept { return in_a_row_ >= budget::costly_wake_ups; }

 private:
  using Clock = std::chrono::steady_clock;
  bool suspect_ = false;
  int in_a_row_ = 0;
};

}  // namespace vhost_ioat
