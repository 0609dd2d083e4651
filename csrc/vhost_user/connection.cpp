// SPDX-License-Identifier: BSD-3-Clause
#include "vhost_user/connection.hpp"

#include <fcntl.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "base/error.hpp"

namespace vhost_ioat::vhost_user {
namespace {

constexpr size_t header_size = sizeof(wire::Header);
/// As many fds as the kernel lets through in one message (SCM_MAX_FD), more than we take: what does not fit it closes
/// itself, in the middle of our call, and that may wait.
constexpr size_t scm_max_fds = 253;
constexpr size_t control_size = CMSG_SPACE(scm_max_fds * sizeof(int));

}  // namespace

Connection::Connection(UniqueFd socket, std::shared_ptr<HelperLane> closer)
    : socket_(std::move(socket)), closer_(std::move(closer)) {
  const int flags = ::fcntl(socket_.get(), F_GETFL);
  if (flags < 0 || ::fcntl(socket_.get(), F_SETFL, flags | O_NONBLOCK) < 0) {
    throw std::system_error(errno, std::generic_category(), "cannot make a socket non-blocking");
  }
}

Connection::~Connection() {
  if (closer_) closer_->end_connection(std::move(socket_));
}

void Connection::close(std::string why, bool broken) {
  error_ = std::move(why);
  broken_ = broken;
  incoming_.fds.clear();
  outgoing_.reset();
}

/// A peer that has gone is no news. Anything else, such as a want of buffers, is ours to tell.
void Connection::lose(int error) {
  close(format("the connection was lost: %s", std::strerror(error)), error != EPIPE && error != ECONNRESET);
}

void Connection::take_fds(const msghdr& control) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&control); part; part = CMSG_NXTHDR(const_cast<msghdr*>(&control), part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      incoming_.fds.push_back(closer_ ? closer_->adopt(fd) : UniqueFd(fd));  // there is room, see receive()
    }
  }
}

Connection::Received Connection::receive(Message& message) {
  while (error_.empty()) {
    const bool in_header = received_ < header_size;
    if (!in_header && received_ == header_size + incoming_.size) {
      received_ = 0;
      message = std::exchange(incoming_, Message());
      return Received::message;
    }
    if (received_ == 0) {
      if (closer_ && !closer_->has_room_for_fds(2 * scm_max_fds + 1)) return Received::too_many_fds;
      incoming_.fds.reserve(2 * scm_max_fds);  // here, since what the kernel hands out next must not be lost
    }
    // One read never goes past this message, so that fds cannot be taken for those of another one.
    iovec piece;
    if (in_header) {
      piece = {reinterpret_cast<uint8_t*>(&header_) + received_, header_size - received_};
    } else {
      piece = {incoming_.payload.data() + (received_ - header_size), header_size + incoming_.size - received_};
    }
    alignas(cmsghdr) char control[control_size];
    msghdr header{};
    header.msg_iov = &piece;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    const ssize_t n = ::recvmsg(socket_.get(), &header, MSG_CMSG_CLOEXEC);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) return Received::nothing;
      lose(errno);
      break;
    }
    const size_t fds_before = incoming_.fds.size();
    take_fds(header);
    if ((header.msg_flags & (MSG_CTRUNC | MSG_TRUNC)) || incoming_.fds.size() > max_message_fds) {
      close(format("a message came with more than %zu file descriptors, or this process can open no more",
                   max_message_fds),
            true);
    } else if (n == 0) {
      close(received_ ? "the peer left in the middle of a message" : "the peer left", false);
    } else if (received_ > 0 && incoming_.fds.size() > fds_before) {
      close("file descriptors came in the middle of a message; they go with the first byte of its header", true);
    } else {
      received_ += static_cast<size_t>(n);
      if (in_header && received_ == header_size) {
        incoming_.request = header_.request;
        incoming_.flags = header_.flags;
        incoming_.size = header_.size;
        if (header_.size > max_payload) {
          close(format("%s announces a payload of %u bytes, at most %u are accepted",
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
    alignas(cmsghdr) char control[control_size] = {};
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
    const ssize_t n = ::sendmsg(socket_.get(), &header, MSG_NOSIGNAL);
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
