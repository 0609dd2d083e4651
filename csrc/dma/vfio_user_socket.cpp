// SPDX-License-Identifier: BSD-3-Clause
#include "dma/vfio_user_socket.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <chrono>
#include <cstring>
#include <utility>

#include "base/error.hpp"

namespace vhost_ioat::dma::vfio_user {
namespace {

constexpr auto reply_time = std::chrono::seconds(1);

}  // namespace

/// Reads until `part`, which lies `before` bytes into the message, is full; never beyond it, since the kernel hands fds
/// over with the first byte they were sent with, and that must be a byte of their own message.
bool Socket::fill(std::span<std::byte> part, size_t before) {
  while (have_ < before + part.size()) {
    const std::span<std::byte> rest = part.subspan(have_ - before);
    const ssize_t got = socket_.receive(rest, incoming_.fds);
    if (got < 0 && errno == EAGAIN) return false;
    if (got < 0 && errno == EMFILE) {
      throw Error(format("a message arrived with more than %zu fds, or this process cannot open any more",
                         PeerSocket::most_fds));
    }
    if (got <= 0) {
      closed_ = true;
      return false;
    }
    have_ += static_cast<size_t>(got);
  }
  return true;
}

Socket::Answer Socket::receive(Message& message) {
  if (!socket_.has_room()) return Answer::pause;
  std::byte head[sizeof(Header)];
  std::memcpy(head, &incoming_.header, sizeof head);
  const bool whole_head = have_ >= sizeof head || fill(head, 0);
  std::memcpy(&incoming_.header, head, sizeof head);
  if (!whole_head) return closed_ ? Answer::closed : Answer::nothing_yet;

  const uint32_t size = incoming_.header.size;
  if (size < sizeof head || size > max_message) {
    throw Error(format("a message has %u bytes (command %u), but must have 16 to %zu", size, incoming_.header.command,
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
    const ssize_t put = ::send(fd(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (put >= 0) {
      sent += static_cast<size_t>(put);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
      pollfd room{fd(), POLLOUT, 0};
      if (left.count() <= 0 || ::poll(&room, 1, static_cast<int>(left.count())) == 0) {
        throw Error("the peer does not read its replies");
      }
    } else if (errno != EINTR) {
      throw std::system_error(errno, std::generic_category(), "the peer went away");
    }
  }
}

}  // namespace vhost_ioat::dma::vfio_user
