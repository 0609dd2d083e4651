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

/// Does `wake`, which may be done again at will, and returns what it did first. `costly` turns true when it takes
/// budget::wake_up of this thread's own time, whenever it is tried: time without a CPU does not count.
template <typename Wake>
auto wake_at_low_cost(Wake&& wake, bool& costly) noexcept {
  using Clock = std::chrono::steady_clock;  // a tenth of what thread_time() costs
  const auto begun = Clock::now();
  const auto result = wake();
  if (Clock::now() - begun < budget::wake_up) [[likely]]
    return result;
  for (int i = 0; i < budget::costly_wake_ups; ++i) {
    const auto before = thread_time();
    wake();
    if (thread_time() - before < budget::wake_up) return result;
  }
  costly = true;
  return result;
}

/// The same for what must not be done twice: so many of them in a row are costly.
class WakeCost {
 public:
  template <typename Wake>
  auto operator()(Wake&& wake) noexcept {
    const auto before = thread_time();
    const auto result = wake();
    in_a_row_ = thread_time() - before < budget::wake_up ? 0 : in_a_row_ + 1;
    return result;
  }
  bool costly() const noexcept { return in_a_row_ > budget::costly_wake_ups; }

 private:
  int in_a_row_ = 0;
};

}  // namespace vhost_ioat
