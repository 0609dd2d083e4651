// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <unistd.h>

#include <cstddef>
#include <filesystem>
#include <iterator>
#include <string>
#include <thread>

#include "watchdog.hpp"

namespace vhost_ioat::testing {

/// How many file descriptors this process has open (and one more, for the directory being read).
inline size_t open_fds() {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

inline size_t threads() {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/task"), {}));
}

/// Before the first test: this one, and a sanitizer's, which ThreadSanitizer starts with the program's first. Not by
/// name, as a thread names itself only once it runs.
inline const size_t threads_at_start = [] {
  pid_t first = 0;
  std::thread([&] { first = ::gettid(); }).join();
  while (std::filesystem::exists("/proc/self/task/" + std::to_string(first))) std::this_thread::yield();
  return threads();
}();

/// open_fds() once the threads of earlier tests, which may be on their way out, have gone and closed theirs.
inline size_t open_fds_at_rest() {
  eventually([] { return threads() == threads_at_start; });
  return open_fds();
}

}  // namespace vhost_ioat::testing
