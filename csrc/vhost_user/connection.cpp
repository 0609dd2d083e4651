// SPDX-License-Identifier: BSD-3-Clause
#include "vhost_user/connection.hpp"

#include <sys/socket.h>

#include <cassert>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "base/error.hpp"

namespace vhost_ioat::vhost_user {
namespace {

constexpr size_t header_size = sizeof(wire::Header);

}  // namespace

void Connection::close(std::string why, bool broken) {
  error_ = std::move(why);
  broken_ = broken;
  incoming_.fds.clear();
  outgoing_.reset();
}

/// A peer that has gone is no news. Anything else, such as a want of buffers, is ours to tell.
void Connection::lose(int error) {
  costly_ = error == ETIME;
  if (costly_) return close("so many wait for its socket that each message takes too long", true);
  close(format("the connection was lost: %s", std::strerror(error)), error != EPIPE && error != ECONNRESET);
}

Connection::Received Connection::receive(Message& message) {
  while (error_.empty()) {
    const bool in_header = received_ < header_size;
    if (!in_header && received_ == header_size + incoming_.size) {
      received_ = 0;
      message = std::exchange(incoming_, Message());
      return Received::message;
    }
    if (received_ == 0 && !socket_.has_room()) return Received::too_many_fds;
    // One read never goes past this message, so that fds cannot be taken for those of another one.
    std::span<std::byte> piece;
    if (in_header) {
      piece = std::as_writable_bytes(std::span(&header_, 1)).subspan(received_);
    } else {
      piece = std::as_writable_bytes(std::span(incoming_.payload))
                  .subspan(received_ - header_size, header_size + incoming_.size - received_);
    }
    const size_t fds_before = incoming_.fds.size();
    const ssize_t n = socket_.receive(piece, incoming_.fds);
    if (n < 0 && errno == EAGAIN) return Received::nothing;
    if (n < 0 && errno == EMFILE) {
      close(format("a message arrived with more than %zu file descriptors, or this process cannot open any more",
                   max_message_fds),
            true);
    } else if (n < 0) {
      lose(errno);
    } else if (n == 0) {
      close(received_ ? "the peer left in the middle of a message" : "the peer left", false);
    } else if (received_ > 0 && incoming_.fds.size() > fds_before) {
      close("file descriptors arrived in the middle of a message; they must go with the first byte of its header",
            true);
    } else {
      received_ += static_cast<size_t>(n);
      if (in_header && received_ == header_size) {
        incoming_.request = header_.request;
        incoming_.flags = header_.flags;
        incoming_.size = header_.size;
        if (header_.size > max_payload) {
          close(format("%s announces a payload of %u bytes, but at most %u are accepted",
                       message_name(header_.request).c_str(), header_.size, max_payload),
                true);
        }
      }
    }
  }
  return Received::closed;
}

bool Connection::send(Message message) {
  if (!error_.empty()) return false;
  assert(message.fds.size() <= max_message_fds);
  outgoing_ = std::move(message);
  sent_ = 0;
  return flush();
}

bool Connection::flush() {
  while (outgoing_ && error_.empty()) {
    wire::Header head{outgoing_->request, outgoing_->flags, outgoing_->size};
    const size_t head_sent = std::min(sent_, header_size), payload_sent = sent_ - head_sent;
    iovec pieces[2] = {{reinterpret_cast<uint8_t*>(&head) + head_sent, header_size - head_sent},
                       {outgoing_->payload.data() + payload_sent, outgoing_->size - payload_sent}};
    alignas(cmsghdr) char control[CMSG_SPACE(max_message_fds * sizeof(int))] = {};
    msghdr header{};
    header.msg_iov = pieces;
    header.msg_iovlen = 2;
    if (sent_ == 0 && !outgoing_->fds.empty()) {
      const size_t bytes = outgoing_->fds.size() * sizeof(int);
      header.msg_control = control;
      header.msg_controllen = CMSG_SPACE(bytes);
      cmsghdr* rights = CMSG_FIRSTHDR(&header);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(bytes);
      for (size_t i = 0; i < outgoing_->fds.size(); ++i) {
        const int fd = outgoing_->fds[i].get();
        std::memcpy(CMSG_DATA(rights) + i * sizeof fd, &fd, sizeof fd);
      }
    }
    const ssize_t n = socket_.send(header);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) return true;
      lose(errno);
      break;
    }
    sent_ += static_cast<size_t>(n);
    if (sent_ == header_size + outgoing_->size) outgoing_.reset();
  }
  return error_.empty();
}

}  // namespace vhost_ioat::vhost_user
