// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/peer_socket.hpp"
#include "dma/vfio_user_wire.hpp"

namespace vhost_ioat::dma::vfio_user {

struct Message {
  Header header{};
  std::vector<std::byte> payload;
  std::vector<UniqueFd> fds;
};

/// Cuts the byte stream of a non-blocking socket into messages and keeps fds with the message they came with.
class Socket {
 public:
  /// Longer than any message of use for two regions of at most 16 KiB.
  static constexpr size_t max_message = 64 << 10;

  /// The socket and what the peer sends are closed by `lane`. Throws std::system_error.
  Socket(UniqueFd fd, std::shared_ptr<HelperLane> lane) : socket_(std::move(fd), std::move(lane)) {}
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return socket_.fd(); }

  enum class Answer {
    message,
    nothing_yet,
    closed,
    pause,  // too much of what it sent is still to be closed
  };
  /// Takes a whole message if there is one. Throws Error when the peer breaks the framing.
  Answer receive(Message& message);
  /// Waits a second at most. Throws Error when the peer does not read its replies, std::system_error when it is gone.
  void send(const Header& header, std::span<const std::byte> payload);

 private:
  bool fill(std::span<std::byte> part, size_t before);

  PeerSocket socket_;
  Message incoming_;
  size_t have_ = 0;  // bytes of header and payload
  bool closed_ = false;
};

}  // namespace vhost_ioat::dma::vfio_user
