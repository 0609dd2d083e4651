// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/peer_socket.hpp"
#include "vhost_user/message.hpp"

namespace vhost_ioat::vhost_user {

/// Messages over a non-blocking stream socket: cut at any byte, fds with the first byte of a header only.
///
/// It holds at most one unfinished message each way, so a peer cannot make it grow: whoever drives it reads no further
/// while sending() is true.
class Connection {
 public:
  enum class Received { message, nothing, closed, too_many_fds };

  /// `closer`: closes the fds that the peer sends, and says how many it may have, and the socket; without one they are
  /// closed here. Throws std::system_error.
  explicit Connection(UniqueFd socket, std::shared_ptr<HelperLane> closer = nullptr)
      : socket_(std::move(socket), std::move(closer)) {}

  int fd() const { return socket_.fd(); }

  /// `message`: one has come whole. `nothing`: wait for the socket. `closed`: the peer left or broke the framing;
  /// error() says which, and it stays so. `too_many_fds`: nothing is read until fds sent before are closed.
  Received receive(Message& message);

  /// Starts to send; needs !sending(). False: the peer is gone, see error().
  bool send(Message message);
  /// Goes on sending once the socket is writable.
  bool flush();
  bool sending() const { return outgoing_.has_value(); }

  const std::string& error() const { return error_; }
  bool broken() const { return broken_; }  // closed since the framing was wrong, not since the peer left
  bool costly() const { return costly_; }  // closed since messages took too much time to wake those who wait for them

 private:
  void close(std::string why, bool broken);
  void lose(int error);

  PeerSocket socket_;
  wire::Header header_{};  // of incoming_
  Message incoming_;
  size_t received_ = 0;  // bytes of header_ and then of the payload
  std::optional<Message> outgoing_;
  size_t sent_ = 0;  // bytes of outgoing_, header included
  std::string error_;
  bool broken_ = false, costly_ = false;
};

}  // namespace vhost_ioat::vhost_user
