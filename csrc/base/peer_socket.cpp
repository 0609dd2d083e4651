// SPDX-License-Identifier: BSD-3-Clause
#include "base/peer_socket.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

namespace vhost_ioat {
namespace {

/// What came. Its fds are open, and nobody owns them yet.
struct Read {
  ssize_t bytes = -1;
  bool truncated = false;  // some fds were left out
  size_t count = 0;
  int fds[PeerSocket::scm_max_fds];
};

Read read_some(int socket, std::span<std::byte> bytes, int flags) noexcept {
  iovec data{bytes.data(), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(PeerSocket::scm_max_fds * sizeof(int))];
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  Read read;
  do {
    read.bytes = ::recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
  } while (read.bytes < 0 && errno == EINTR);
  if (read.bytes < 0) return read;
  read.truncated = (message.msg_flags & MSG_CTRUNC) != 0;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t size = part->cmsg_len - CMSG_LEN(0);
    std::memcpy(read.fds + read.count, CMSG_DATA(part), size);
    read.count += size / sizeof(int);
  }
  return read;
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
  fds.reserve(fds.size() + 2 * scm_max_fds);
  const auto keep = [&](const Read& read) {
    for (size_t i = 0; i < read.count; ++i) fds.push_back(lane_ ? lane_->adopt(read.fds[i]) : UniqueFd(read.fds[i]));
  };
  const Read look = read_some(fd(), bytes, MSG_PEEK);
  if (look.bytes <= 0) return look.bytes;
  Read taken;
  int error = EMFILE;
  if (!look.truncated) {
    taken = read_some(fd(), bytes.first(static_cast<size_t>(look.bytes)), 0);
    if (taken.bytes < 0) error = errno;
    if (taken.truncated) taken.bytes = -1;
    keep(taken);
    if (fds.size() > most_fds) taken.bytes = -1;
  }
  if (taken.bytes < 0) {
    keep(look);
    errno = error;
  } else {  // each of these files is open as one of `fds`, or still in the socket
    for (size_t i = 0; i < look.count; ++i) ::close(look.fds[i]);
  }
  return taken.bytes;
}

}  // namespace vhost_ioat
