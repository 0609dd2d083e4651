// SPDX-License-Identifier: BSD-3-Clause
#include "vhost_user/endpoint.hpp"

#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.hpp"

namespace vhost_ioat::vhost_user {
namespace {

using namespace std::chrono_literals;
using Clock = EventLoop::Clock;

constexpr Clock::duration first_delay = 100ms;
constexpr Clock::duration last_delay = 1s;
constexpr int messages_per_turn = 16;  // then other sockets and timers have theirs

}  // namespace

Endpoint::Endpoint(std::shared_ptr<EventLoop> loop, EndpointConfig config, EndpointOwner& owner)
    : loop_(std::move(loop)), config_(std::move(config)), owner_(owner), delay_(first_delay) {}

Endpoint::~Endpoint() = default;

void Endpoint::start() {
  check_socket_path(config_.path);
  if (!config_.client) listener_ = std::make_unique<SocketListener>(config_.path, config_.socket_mode);
  running_ = true;
  delay_ = first_delay;
  last_error_ = 0;
  seek();
}

void Endpoint::stop(std::function<void()> stopped) {
  running_ = false;
  loop_->cancel(std::exchange(timer_, 0));
  watch_listener(false);
  listener_.reset();
  if (!session_) return stopped();
  stopped_ = std::move(stopped);
  end("the port was stopped", false);
}

void Endpoint::drop_peer(std::string reason) { end(reason, true); }

/// Looks for the next front end.
void Endpoint::seek() {
  if (config_.client) {
    try_connect();
  } else {
    watch_listener(true);
  }
}

void Endpoint::watch_listener(bool on) {
  if (on == listener_watched_) return;
  listener_watched_ = on;
  if (on) {
    loop_->add_fd(listener_->fd(), EPOLLIN, [this](uint32_t) { on_listener(); });
  } else {
    loop_->remove_fd(listener_->fd());
  }
}

void Endpoint::on_listener() {
  if (session_) {  // watched again since this one has been silent for too long, and now another waits
    return end(format("it did not send SET_OWNER within %lld ms and another front end waits",
                      static_cast<long long>(config_.patience.count())),
               true);
  }
  UniqueFd socket = listener_->accept();
  if (socket) return begin(std::move(socket));
  if (errno != EAGAIN) try_again_later("accept");
}

void Endpoint::try_connect() {
  timer_ = 0;
  UniqueFd socket = connect_socket(config_.path);
  if (socket) return begin(std::move(socket));
  try_again_later("connect");
}

void Endpoint::try_again_later(const char* what) {
  const int error = errno;
  const bool nobody_there = error == ENOENT || error == ECONNREFUSED || error == EAGAIN;
  if (!nobody_there && error != last_error_) {
    owner_.trouble(format("%s: cannot %s: %s; trying again", config_.path.c_str(), what, std::strerror(error)));
  }
  last_error_ = error;
  watch_listener(false);  // it stays readable and would call at once
  timer_ = loop_->call_at(Clock::now() + delay_, [this] {
    timer_ = 0;
    seek();
  });
  delay_ = std::min(2 * delay_, last_delay);
}

void Endpoint::begin(UniqueFd socket) {
  last_error_ = 0;
  watch_listener(false);
  connection_ = std::make_unique<Connection>(std::move(socket));
  session_ = owner_.make_session();
  watched_ = EPOLLIN;
  loop_->add_fd(connection_->fd(), watched_, [this](uint32_t) { on_socket(); });
  if (!listener_) return;
  timer_ = loop_->call_at(Clock::now() + config_.patience, [this] {
    timer_ = 0;
    watch_listener(true);
  });
}

void Endpoint::on_socket() {
  // While suspended nothing is asked of the socket, so that this is a hang-up, which cannot be masked.
  if (suspended_) return end("the peer left", false);
  if (!connection_->flush()) return end(connection_->error(), connection_->broken());
  handle_messages();
}

void Endpoint::handle_messages() {
  for (int i = 0; i < messages_per_turn && !connection_->sending(); ++i) {
    Message message;
    const Connection::Received received = connection_->receive(message);
    if (received == Connection::Received::closed) return end(connection_->error(), connection_->broken());
    if (received == Connection::Received::nothing) break;
    std::optional<Message> reply;
    const BackendSession::Next next = session_->receive(std::move(message), reply);
    if (!proceed(next, reply)) return;
  }
  watch_socket();
}

/// What follows from a message. False when no other may be handled now.
bool Endpoint::proceed(BackendSession::Next next, std::optional<Message>& reply) {
  if (next == BackendSession::Next::suspended) {
    suspended_ = true;
    watch_socket();
    return false;
  }
  if (next == BackendSession::Next::close) {
    end(session_->error(), true);
    return false;
  }
  if (reply && !connection_->send(std::move(*reply))) {
    end(connection_->error(), connection_->broken());
    return false;
  }
  if (session_->state().owned) {
    delay_ = first_delay;
    loop_->cancel(std::exchange(timer_, 0));
    watch_listener(false);
  }
  owner_.after_message(session_->state());
  return session_ && !ending_;
}

void Endpoint::resume() {
  if (!suspended_) return;
  suspended_ = false;
  std::optional<Message> reply;
  const BackendSession::Next next = session_->resume(reply);
  if (!ending_) {
    if (proceed(next, reply)) handle_messages();
  } else if (next == BackendSession::Next::suspended) {
    suspended_ = true;
  } else {
    ended();
  }
}

/// At most one direction is asked for: no request is read while a reply waits for room, so a peer that does not read
/// holds up only itself.
void Endpoint::watch_socket() {
  const uint32_t events = suspended_ ? 0u : connection_->sending() ? EPOLLOUT : EPOLLIN;
  if (events == watched_) return;
  watched_ = events;
  loop_->modify_fd(connection_->fd(), events);
}

/// The connection is closed only when the session has let go of the rings: until then the peer's memory may be written.
void Endpoint::end(const std::string& reason, bool broken) {
  if (!session_ || ending_) return;
  ending_ = true;
  reason_ = reason;
  broken_ = broken;
  loop_->cancel(std::exchange(timer_, 0));
  watch_listener(false);
  loop_->remove_fd(connection_->fd());
  suspended_ = session_->stop() == BackendSession::Next::suspended;
  if (!suspended_) ended();
}

void Endpoint::ended() {
  ending_ = false;
  session_.reset();
  connection_.reset();
  owner_.disconnected(reason_, broken_);
  if (running_ && config_.client) {
    timer_ = loop_->call_at(Clock::now() + delay_, [this] { try_connect(); });
    delay_ = std::min(2 * delay_, last_delay);
  } else if (running_) {
    seek();
  } else if (stopped_) {
    std::exchange(stopped_, nullptr)();
  }
}

}  // namespace vhost_ioat::vhost_user
