// SPDX-License-Identifier: BSD-3-Clause
// The software I/OAT: the thread of a threaded model, and its notion of time.
#include <pthread.h>
#include <signal.h>

#include "dma/ioat_model.hpp"

namespace vhost_ioat::dma {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto spin_before_park = std::chrono::microseconds(50);
constexpr auto shortest_sleep = std::chrono::microseconds(100);  // below it a sleep takes longer than asked
constexpr uint32_t parked = 1;                                   // bit 0 of wakeups_; the rest counts wake()

void relax() { __builtin_ia32_pause(); }

/// Signals belong to the threads of the application; only the faults of a copy itself arrive here.
void block_signals() {
  sigset_t signals;
  sigfillset(&signals);
  for (int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL}) sigdelset(&signals, fault);
  pthread_sigmask(SIG_SETMASK, &signals, nullptr);
}

}  // namespace

void IoatModel::work() {
  block_signals();
  pthread_setname_np(pthread_self(), "ioat-model");
  for (;;) {
    // Read before the looks at stop_ and for work: a wake() after them changes it, so the exchange below fails.
    const uint32_t seen = wakeups_.load(std::memory_order_acquire) & ~parked;
    if (stop_) return;
    while (run_one()) {
    }
    const auto until = Clock::now() + spin_before_park;
    do {
      for (int i = 0; i < 32 && wakeups_.load(std::memory_order_relaxed) == seen; ++i) relax();
    } while (wakeups_.load(std::memory_order_relaxed) == seen && Clock::now() < until);
    uint32_t expected = seen;
    if (wakeups_.compare_exchange_strong(expected, seen | parked)) wakeups_.wait(seen | parked);
  }
}

/// One system call per park: whoever takes the mark away makes it.
void IoatModel::wake() noexcept {
  // Release, pairs with the worker's acquire of wakeups_: it then sees the register this call is about.
  if (!(wakeups_.fetch_add(2, std::memory_order_acq_rel) & parked)) return;
  if (wakeups_.fetch_and(~parked, std::memory_order_acq_rel) & parked) wakeups_.notify_one();
}

void IoatModel::wait_latency() {
  const auto end = Clock::now() + latency_;
  while (can_run() && mutex_.wait_until(pause_, end) != std::cv_status::timeout) {
  }
}

void IoatModel::wait_bandwidth(Clock::time_point start, uint64_t bytes) {
  const double seconds = static_cast<double>(bytes) / static_cast<double>(bandwidth_);
  const auto until = start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  if (until - Clock::now() > shortest_sleep) {
    while (!stop_ && config_.may_master() && mutex_.wait_until(pause_, until) != std::cv_status::timeout) {
    }
    return;
  }
  mutex_.unlock();
  while (Clock::now() < until) relax();
  mutex_.lock();
}

}  // namespace vhost_ioat::dma
