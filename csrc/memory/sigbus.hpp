// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace vhost_ioat::memory {

/// Whoever owns a file may truncate it; a later touch of our mapping of it is a SIGBUS. The guard is the handler of
/// that signal: inside a watched range it puts anonymous zero pages there and sets the range's torn flag, and the
/// access goes on; a signal for any other address goes to the handler that was installed before.

/// Makes the guard the process's SIGBUS handler, if it is not. Called whenever a file is mapped; cheap.
void ensure_sigbus_guard();

void unblock_sigbus() noexcept;
/// A thread that blocks the signal, as workers often block all, would end the process with its first fault. Called
/// before a thread touches guest memory; does something once a thread.
inline void let_sigbus_through() noexcept {
  // initial-exec: a byte of the thread's own block, as other storage is only made at its first use, and may not be had.
  [[gnu::tls_model("initial-exec")]] static thread_local bool through = false;
  if (through) [[likely]]
    return;
  through = true;
  unblock_sigbus();
}

/// A range the guard mends. Its flag may be read as long as the range is watched.
struct WatchedRange;
WatchedRange* watch_range(void* start, size_t size, size_t page_size);
/// Only when nothing can touch the range any more.
void forget_range(WatchedRange* range);
const std::atomic<bool>& torn_flag(const WatchedRange* range);
/// How often the guard has mended something in this process: cheap to ask on a data path, whether to look at torn
/// flags.
uint64_t times_mended() noexcept;

}  // namespace vhost_ioat::memory
