// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <memory>
#include <utility>

#include "base/unique_fd.hpp"
#include "vhost_user/session.hpp"

namespace vhost_ioat::testing {

/// What a front end that keeps `of` has sent of it.
inline vhost_user::SharedFd ring_fd(const UniqueFd& of, PeerFd::Use use) {
  UniqueFd fd = of.duplicate();
  const PeerFd peer(fd.get(), use);
  return std::make_shared<vhost_user::RingFd>(vhost_user::RingFd{std::move(fd), peer});
}

}  // namespace vhost_ioat::testing
