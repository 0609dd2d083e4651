// SPDX-License-Identifier: BSD-3-Clause
#include "dma/vfio_user_socket.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <chrono>
#include <cstring>
#include <utility>

#include "base/error.hpp"

namespace vhost_ioat::dma::vfio_user {
namespace {

constexpr auto reply_time = std::chrono::seconds(1);
/// As many fds as the kernel lets through in one message (SCM_MAX_FD), more than we take: what does not fit it closes
/// itself, in the middle of our call, and that may wait.
constexpr size_t scm_max_fds = 253;

}  // namespace

/// Takes every fd out of the control data, so that none leaks whatever happens next.
void Socket::collect_fds(msghdr& message) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      incoming_.fds.push_back(lane_->adopt(fd));  // there is room, see receive()
    }
  }
}

Socket::Socket(UniqueFd fd, std::shared_ptr<HelperLane> lane) : fd_(std::move(fd)), lane_(std::move(lane)) {
  const int flags = ::fcntl(fd_.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd_.get(), F_SETFL, flags | O_NONBLOCK) < 0) {
    throw std::system_error(errno, std::generic_category(), "cannot make the socket non-blocking");
  }
}

Socket::~Socket() { lane_->end_connection(std::move(fd_)); }

/// Reads until `part`, which lies `before` bytes into the message, is full; never beyond it, since the kernel hands fds
/// over with the first byte they were sent with, and that must be a byte of their own message.
bool Socket::fill(std::span<std::byte> part, size_t before) {
  while (have_ < before + part.size()) {
    const std::span<std::byte> rest = part.subspan(have_ - before);
    alignas(cmsghdr) char control[CMSG_SPACE(scm_max_fds * sizeof(int))];
    iovec data{rest.data(), rest.size()};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t got = ::recvmsg(fd_.get(), &message, MSG_CMSG_CLOEXEC);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
    if (got <= 0) {
      closed_ = true;
      return false;
    }
    collect_fds(message);
    if ((message.msg_flags & MSG_CTRUNC) != 0 || incoming_.fds.size() > max_fds) {
      throw Error(format("a message came with more than %zu fds", max_fds));
    }
    have_ += static_cast<size_t>(got);
  }
  return true;
}

Socket::Answer Socket::receive(Message& message) {
  if (!lane_->has_room_for_fds(2 * scm_max_fds + 1)) return Answer::pause;
  std::byte head[sizeof(Header)];
  std::memcpy(head, &incoming_.header, sizeof head);
  const bool whole_head = have_ >= sizeof head || fill(head, 0);
  std::memcpy(&incoming_.header, head, sizeof head);
  if (!whole_head) return closed_ ? Answer::closed : Answer::nothing_yet;

  const uint32_t size = incoming_.header.size;
  if (size < sizeof head || size > max_message) {
    throw Error(format("a message of %u bytes (command %u): 16 to %zu are possible", size, incoming_.header.command,
                       max_message));
  }
  incoming_.payload.resize(size - sizeof head);
  if (!fill(incoming_.payload, sizeof head)) return closed_ ? Answer::closed : Answer::nothing_yet;
  message = std::exchange(incoming_, {});
  have_ = 0;
  return Answer::message;
}

void Socket::send(const Header& header, std::span<const std::byte> payload) {
  const auto* head = reinterpret_cast<const std::byte*>(&header);
  std::vector<std::byte> bytes(head, head + sizeof header);
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  const auto end = std::chrono::steady_clock::now() + reply_time;
  for (size_t sent = 0; sent < bytes.size();) {
    const ssize_t put = ::send(fd_.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (put >= 0) {
      sent += static_cast<size_t>(put);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
      pollfd room{fd_.get(), POLLOUT, 0};
      if (left.count() <= 0 || ::poll(&room, 1, static_cast<int>(left.count())) == 0) {
        throw Error("the peer does not read its replies");
      }
    } else if (errno != EINTR) {
      throw std::system_error(errno, std::generic_category(), "the peer went away");
    }
  }
}

}  // namespace vhost_ioat::dma::vfio_user
