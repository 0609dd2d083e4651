// SPDX-License-Identifier: BSD-3-Clause
// How far cores 0 and 1 are from each other: nanoseconds a cache line takes there and back.
#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <thread>

namespace {
void pin(size_t core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  sched_setaffinity(0, sizeof set, &set);
}
}  // namespace

int main() {
  constexpr uint32_t rounds = 1000;
  std::array<double, 21> times;
  alignas(64) std::atomic<uint32_t> line{0};
  constexpr uint32_t all = rounds * static_cast<uint32_t>(times.size());
  std::thread other([&] {
    pin(1);
    for (uint32_t i = 0; i < all; ++i) {
      // Each side's acquire pairs with the other's release.
      while (line.load(std::memory_order_acquire) != 2 * i + 1) {
      }
      line.store(2 * i + 2, std::memory_order_release);
    }
  });
  pin(0);
  uint32_t i = 0;
  for (double& time : times) {
    const auto begin = std::chrono::steady_clock::now();
    for (const uint32_t end = i + rounds; i < end; ++i) {
      line.store(2 * i + 1, std::memory_order_release);
      while (line.load(std::memory_order_acquire) != 2 * i + 2) {
      }
    }
    time = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count() / rounds;
  }
  other.join();
  std::sort(times.begin(), times.end());
  std::printf("%.0f\n", times[times.size() / 2]);
}
