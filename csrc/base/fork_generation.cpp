// SPDX-License-Identifier: BSD-3-Clause
#include "base/fork_generation.hpp"

#include <pthread.h>

#include <atomic>

namespace vhost_ioat {

namespace {
std::atomic<uint32_t> generation{0};
[[maybe_unused]] const int counts_forks =
    pthread_atfork(nullptr, nullptr, [] { generation.fetch_add(1, std::memory_order_relaxed); });
}  // namespace

// Relaxed: only a fork changes it, and the child has one thread then.
uint32_t fork_generation() noexcept { return generation.load(std::memory_order_relaxed); }

}  // namespace vhost_ioat
