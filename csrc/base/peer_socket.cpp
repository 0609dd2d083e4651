// SPDX-License-Identifier: BSD-3-Clause
#include "base/peer_socket.hpp"

#include <fcntl.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <system_error>
#include <utility>

namespace vhost_ioat {
namespace {

ssize_t receive_from(int socket, msghdr& message, int flags) noexcept {
  ssize_t n;
  do {
    n = ::recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  return n;
}

}  // namespace

PeerSocket::PeerSocket(UniqueFd socket, std::shared_ptr<HelperLane> lane)
    : socket_(std::move(socket)), lane_(std::move(lane)) {
  const int flags = ::fcntl(socket_.get(), F_GETFL), on = 1;
  if (flags < 0 || ::fcntl(socket_.get(), F_SETFL, flags | O_NONBLOCK) < 0 ||
      ::setsockopt(socket_.get(), SOL_SOCKET, SO_OOBINLINE, &on, sizeof on) < 0) {
    throw std::system_error(errno, std::generic_category(), "cannot make a socket non-blocking");
  }
}

PeerSocket::~PeerSocket() {
  if (lane_) lane_->end_connection(std::move(socket_));
}

ssize_t PeerSocket::receive(std::span<std::byte> bytes, std::vector<UniqueFd>& fds) {
  fds.reserve(fds.size() + scm_max_fds);
  std::vector<UniqueFd> copies;
  copies.reserve(scm_max_fds);
  iovec data{bytes.data(), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(scm_max_fds * sizeof(int))];
  msghdr look{};
  look.msg_iov = &data;
  look.msg_iovlen = 1;
  look.msg_control = control;
  look.msg_controllen = sizeof control;
  ssize_t n = receive_from(fd(), look, MSG_PEEK);
  if (n <= 0) return n;
  for (cmsghdr* part = CMSG_FIRSTHDR(&look); part; part = CMSG_NXTHDR(&look, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = CMSG_LEN(0); at < part->cmsg_len; at += sizeof(int)) {
      int fd;
      std::memcpy(&fd, reinterpret_cast<const char*>(part) + at, sizeof fd);
      copies.push_back(lane_ ? lane_->adopt(fd) : UniqueFd(fd));
    }
  }
  if ((look.msg_flags & MSG_CTRUNC) != 0) {
    errno = EMFILE;
    return -1;
  }
  msghdr taken{};
  data.iov_len = static_cast<size_t>(n);
  taken.msg_iov = &data;
  taken.msg_iovlen = 1;
  n = receives_([&] { return receive_from(fd(), taken, 0); });
  // Truncated: there were fds, and the copies are of those. Else they are of the message after it, and come again.
  if (n >= 0 && (taken.msg_flags & MSG_CTRUNC) != 0) std::ranges::move(copies, std::back_inserter(fds));
  if (fds.size() <= most_fds && !receives_.costly()) return n;
  errno = receives_.costly() ? ETIME : EMFILE;
  return -1;
}

ssize_t PeerSocket::send(const msghdr& message) noexcept {
  const ssize_t n = sends_([&] { return ::sendmsg(fd(), &message, MSG_NOSIGNAL); });
  if (n < 0 || !sends_.costly()) return n;
  errno = ETIME;
  return -1;
}

}  // namespace vhost_ioat
