// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <thread>

namespace vhost_ioat::testing {

/// The one limit of every wait of the C++ tests. It is reached only when what is waited for never comes: no result
/// depends on how fast the machine is.
constexpr std::chrono::seconds watchdog{60};

/// The end of a wait that begins now.
inline std::chrono::steady_clock::time_point watchdog_end() { return std::chrono::steady_clock::now() + watchdog; }

/// For poll(2).
constexpr int watchdog_ms = static_cast<int>(std::chrono::milliseconds(watchdog).count());

/// Ends a loop that no longer gets anywhere: REQUIRE(dog.watches()) in each turn, feed() when something has come.
class Watchdog {
 public:
  bool watches() const { return std::chrono::steady_clock::now() < end_; }
  void feed() { end_ = watchdog_end(); }

 private:
  std::chrono::steady_clock::time_point end_ = watchdog_end();
};

/// Waits until `condition` holds. False: the watchdog ended it.
template <typename Condition>
bool eventually(Condition&& condition) {
  const auto end = watchdog_end();
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return condition();
    std::this_thread::yield();
  }
  return true;
}

}  // namespace vhost_ioat::testing
