// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <filesystem>
#include <iterator>

namespace vhost_ioat::testing {

/// How many file descriptors this process has open (and one more, for the directory being read).
inline size_t open_fds() {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

}  // namespace vhost_ioat::testing
