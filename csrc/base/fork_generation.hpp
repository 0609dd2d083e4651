// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>

namespace vhost_ioat {

/// How many forks made this process, counted from the first use of this library: what belongs to a thread or a mapping
/// of the parent remembers its generation, and leaves it alone when another is current. Cheaper than getpid().
uint32_t fork_generation() noexcept;

}  // namespace vhost_ioat
