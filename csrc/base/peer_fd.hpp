// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include "base/unique_fd.hpp"

namespace vhost_ioat {

/// Makes sure that writing to and reading from an fd a peer sent can neither block nor do harm: it is an eventfd, and
/// non-blocking from now on. (The flag belongs to the file and so to both sides; peers make theirs non-blocking
/// anyway.) Throws Error when it is something else, std::system_error when /proc cannot tell.
void adopt_eventfd(int fd);

}  // namespace vhost_ioat
