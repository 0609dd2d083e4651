// SPDX-License-Identifier: BSD-3-Clause
#include "vhost_user/frontend.hpp"

#include <fcntl.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "base/error.hpp"

namespace vhost_ioat::vhost_user {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// One call's time, spent in slices so that the caller's tick is heard in between.
class Deadline {
 public:
  Deadline(const Patience& patience, std::string what)
      : patience_(patience), what_(std::move(what)), end_(Clock::now() + patience.timeout) {}

  /// Returns when `fd` is ready, or the slice is over for fd -1. Throws Disconnected at the end of the time.
  void wait(int fd, short events, milliseconds slice) const {
    for (;;) {
      const auto left = std::chrono::ceil<milliseconds>(end_ - Clock::now());
      if (left <= milliseconds(0)) {
        throw Disconnected(format("%s: timed out after %lld ms; is the other side running?", what_.c_str(),
                                  static_cast<long long>(patience_.timeout.count())));
      }
      pollfd watched{fd, events, 0};
      const int ready = ::poll(&watched, fd >= 0 ? 1 : 0, static_cast<int>(std::min(left, slice).count()));
      if (ready > 0) return;
      patience_.tick();
      if (fd < 0) return;
    }
  }

 private:
  const Patience& patience_;
  std::string what_;
  Clock::time_point end_;
};

constexpr milliseconds slice{50};

UniqueFd duplicate(int fd) {
  const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) throw std::system_error(errno, std::generic_category(), "cannot send a file descriptor");
  return UniqueFd(copy);
}

}  // namespace

Frontend::Frontend(UniqueFd socket, Patience patience)
    : connection_(std::move(socket)), patience_(std::move(patience)) {}

Frontend Frontend::connect(const std::string& path, Patience patience) {
  const Deadline deadline(patience, "connect to " + path);
  for (;;) {
    if (UniqueFd socket = connect_socket(path)) return Frontend(std::move(socket), std::move(patience));
    if (errno != ENOENT && errno != ECONNREFUSED && errno != EAGAIN) {
      throw std::system_error(errno, std::generic_category(), "cannot connect to " + path);
    }
    deadline.wait(-1, 0, milliseconds(10));
  }
}

Frontend Frontend::accept(const SocketListener& listener, Patience patience) {
  const Deadline deadline(patience, "wait for a back end");
  for (;;) {
    if (UniqueFd socket = listener.accept()) return Frontend(std::move(socket), std::move(patience));
    if (errno != EAGAIN) throw std::system_error(errno, std::generic_category(), "accept");
    deadline.wait(listener.fd(), POLLIN, slice);
  }
}

void Frontend::send(Message message) {
  const Deadline deadline(patience_, "send " + message_name(message.request));
  bool there = connection_.send(std::move(message));
  while (there && connection_.sending()) {
    deadline.wait(connection_.fd(), POLLOUT, slice);
    there = connection_.flush();
  }
  if (!there) throw Disconnected(connection_.error());
}

Message Frontend::receive() {
  const Deadline deadline(patience_, "wait for an answer");
  for (;;) {
    Message message;
    switch (connection_.receive(message)) {
      case Connection::Received::message:
        return message;
      case Connection::Received::closed:
        if (connection_.broken()) throw ProtocolError(connection_.error());
        throw Disconnected(connection_.error());
      case Connection::Received::too_many_fds:  // not without a closer
      case Connection::Received::nothing:
        deadline.wait(connection_.fd(), POLLIN, slice);
    }
  }
}

bool Frontend::alive() const {
  pollfd watched{connection_.fd(), POLLRDHUP, 0};
  return connection_.error().empty() && ::poll(&watched, 1, 0) == 0;
}

/// Sends a request and returns its reply.
Message Frontend::ask(Message message) {
  const uint32_t request = message.request;
  send(std::move(message));
  Message reply = receive();
  if (!reply.is_reply() || reply.request != request) {
    throw ProtocolError(format("%s was answered with %s and flags 0x%x", message_name(request).c_str(),
                               message_name(reply.request).c_str(), reply.flags));
  }
  return reply;
}

/// Sends a request that has no reply of its own, and waits for its acknowledgement if there is any.
void Frontend::perform(Message message) {
  if (!(protocol_features_ & protocol::reply_ack)) return send(std::move(message));
  const std::string name = message_name(message.request);
  message.flags |= wire::need_reply_flag;
  const Message reply = ask(std::move(message));
  const auto result = reply.body<uint64_t>();
  if (reply.size != sizeof result || result != 0) {
    throw ProtocolError(
        format("the back end refused %s (%llu)", name.c_str(), static_cast<unsigned long long>(result)));
  }
}

uint64_t Frontend::get_u64(Request request) {
  const Message reply = ask(Message(request));
  if (reply.size != sizeof(uint64_t)) {
    throw ProtocolError(
        format("%s was answered with %u bytes instead of 8", message_name(reply.request).c_str(), reply.size));
  }
  return reply.body<uint64_t>();
}

void Frontend::set_u64(Request request, uint64_t value) {
  perform(Message(request, value));
  if (request == Request::SET_FEATURES) features_ = virtio::FeatureSet(value);
  if (request == Request::SET_PROTOCOL_FEATURES) protocol_features_ = value;
}

void Frontend::command(Request request) { perform(Message(request)); }

void Frontend::negotiate(virtio::FeatureSet wanted, uint64_t wanted_protocol) {
  const auto agreed = virtio::FeatureSet(get_u64(Request::GET_FEATURES)) & wanted;
  if (agreed.has(virtio::Feature::PROTOCOL_FEATURES)) {
    set_u64(Request::SET_PROTOCOL_FEATURES, get_u64(Request::GET_PROTOCOL_FEATURES) & wanted_protocol);
  }
  command(Request::SET_OWNER);
  set_u64(Request::SET_FEATURES, agreed.mask());
}

void Frontend::set_mem_table(std::span<const FrontendRegion> regions) {
  wire::MemTable table{};
  if (regions.size() > wire::max_table_regions) {
    throw ConfigError(format("%zu regions do not fit into one memory table, which holds %u; add them one by one",
                             regions.size(), wire::max_table_regions));
  }
  Message message(Request::SET_MEM_TABLE);
  for (const FrontendRegion& region : regions) {
    table.regions[table.count++] = region.region;
    message.fds.push_back(duplicate(region.fd));
  }
  message.set_body(table);
  message.size = wire::mem_table_size(table.count);
  perform(std::move(message));
}

void Frontend::add_mem_region(const FrontendRegion& region) {
  Message message(Request::ADD_MEM_REG, wire::SingleMemRegion{0, region.region});
  message.fds.push_back(duplicate(region.fd));
  perform(std::move(message));
}

void Frontend::remove_mem_region(const wire::MemRegion& region) {
  perform(Message(Request::REM_MEM_REG, wire::SingleMemRegion{0, region}));
}

void Frontend::set_vring(Request request, uint32_t ring, uint32_t num) {
  perform(Message(request, wire::VringState{ring, num}));
}

void Frontend::set_vring_addr(const wire::VringAddr& address) { perform(Message(Request::SET_VRING_ADDR, address)); }

void Frontend::set_vring_fd(Request request, uint32_t ring, int fd) {
  Message message(request, uint64_t{ring} | (fd < 0 ? wire::vring_fd_none : 0));
  if (fd >= 0) message.fds.push_back(duplicate(fd));
  perform(std::move(message));
}

uint16_t Frontend::get_vring_base(uint32_t ring) {
  const Message reply = ask(Message(Request::GET_VRING_BASE, wire::VringState{ring, 0}));
  const auto state = reply.body<wire::VringState>();
  if (reply.size != sizeof state || state.index != ring || state.num > UINT16_MAX) {
    throw ProtocolError(format("GET_VRING_BASE of ring %u was answered with %u bytes, ring %u, index %u", ring,
                               reply.size, state.index, state.num));
  }
  return static_cast<uint16_t>(state.num);
}

}  // namespace vhost_ioat::vhost_user
