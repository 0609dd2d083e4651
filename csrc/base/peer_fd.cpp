// SPDX-License-Identifier: BSD-3-Clause
#include "base/peer_fd.hpp"

#include <cstdio>
#include <string_view>

#include "base/error.hpp"

namespace vhost_ioat {

void adopt_eventfd(int fd) {
  char path[48], text[512];
  std::snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
  const UniqueFd info(::open(path, O_RDONLY | O_CLOEXEC));
  const ssize_t n = info ? ::read(info.get(), text, sizeof text) : -1;
  if (n < 0) throw std::system_error(errno, std::generic_category(), path);
  if (std::string_view(text, static_cast<size_t>(n)).find("eventfd-count") == std::string_view::npos) {
    throw Error("the fd is not an eventfd");
  }
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
    throw std::system_error(errno, std::generic_category(), "cannot make an eventfd non-blocking");
  }
}

}  // namespace vhost_ioat
