// SPDX-License-Identifier: BSD-3-Clause
#include "base/port_loop.hpp"

#include <exception>

namespace vhost_ioat {

namespace {
template <typename Call>
void pass(const PortLoop::Barrier& barrier, Call&& call) noexcept {
  try {
    call();
  } catch (const std::exception& problem) {
    barrier(problem.what());
  } catch (...) {
    barrier("an exception of an unknown type");
  }
}
}  // namespace

EventLoop::Callback PortLoop::guarded(Callback callback) {
  return [barrier = barrier_, callback = std::move(callback)] { pass(*barrier, callback); };
}

void PortLoop::add_fd(int fd, uint32_t epoll_events, FdCallback callback) {
  loop_->add_fd(fd, epoll_events, [barrier = barrier_, callback = std::move(callback)](uint32_t events) {
    pass(*barrier, [&] { callback(events); });
  });
}

}  // namespace vhost_ioat
