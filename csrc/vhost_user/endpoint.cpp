// SPDX-License-Identifier: BSD-3-Clause
#include "vhost_user/endpoint.hpp"

#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/error.hpp"

namespace vhost_ioat::vhost_user {
namespace {

using Clock = EventLoop::Clock;

constexpr auto pause = std::chrono::milliseconds(1);  // until it is looked again whether the helper has caught up

}  // namespace

Endpoint::Endpoint(std::shared_ptr<EventLoop> loop, EndpointConfig config, EndpointOwner& owner)
    : loop_(std::move(loop)),
      config_(std::move(config)),
      owner_(owner),
      timer_(loop_, [this]() REQUIRES(control_thread) { on_timer(); }),
      pause_over_(loop_, [this]() REQUIRES(control_thread) { watch_socket(); }),
      half_open_(config_.patience),
      delay_(budget::first_retry) {}

Endpoint::~Endpoint() = default;

void Endpoint::start() {
  check_socket_path(config_.path);
  if (!config_.client) {
    listener_ = std::make_unique<SocketListener>(config_.path, config_.socket_mode,
                                                 HelperLane::create(SocketListener::backlog + 1));
  }
  running_ = true;
  delay_ = budget::first_retry;
  last_error_ = 0;
  timer_.arm(Clock::now());
}

void Endpoint::stop(std::function<void()> stopped) {
  stopped_ = std::move(stopped);
  running_ = false;
  timer_.cancel();
  watch_listener(false);
  listener_.reset();
  if (session_) return end("the port was stopped", false);
  flush();
}

void Endpoint::drop_peer(const char* reason, bool costly) noexcept {
  costly_ |= costly;
  end(reason, true);
}

void Endpoint::failed(const char* what) noexcept {
  if (session_) return end(what, true);
  forget_session();
  if (!running_) return;
  owner_.trouble(what);
  last_error_ = 0;
  timer_.arm_after(delay_);
  delay_ = std::min<Clock::duration>(2 * delay_, budget::last_retry);
}

// --- Looking for a front end

/// The time has come to look for the next front end; to let another one come, if the present one is silent; or, when
/// stopping, to leave the rest to the helper.
void Endpoint::on_timer() {
  if (!running_) {
    if (stopped_) std::exchange(stopped_, nullptr)();  // the rest is the helper's
  } else if (session_) {
    if (half_open_.makes_way(Clock::now())) watch_listener(true);
  } else {
    seek();
  }
}

void Endpoint::seek() {
  if (!may_begin()) return;
  if (config_.client) {
    try_connect();
  } else {
    watch_listener(true);
  }
}

void Endpoint::watch_listener(bool on) {
  if (on == listener_watched_) return;
  if (on) {
    loop_->add_fd(listener_->fd(), EPOLLIN, [this](uint32_t) REQUIRES(control_thread) { on_listener(); });
  } else {
    loop_->remove_fd(listener_->fd());
  }
  listener_watched_ = on;
}

void Endpoint::on_listener() {
  if (session_) {  // watched again since this one has been silent for too long, and now another waits
    char reason[128];
    std::snprintf(reason, sizeof reason, "it did not send SET_OWNER within %lld ms, and another front end is waiting",
                  static_cast<long long>(half_open_.patience().count()));
    return end(reason, true);
  }
  if (!may_begin()) return;
  Lanes lanes = make_lanes();
  UniqueFd socket = listener_->accept();
  if (socket) return begin(std::move(socket), std::move(lanes));
  if (errno != EAGAIN) try_again_later("accept", errno);
}

void Endpoint::try_connect() {
  Lanes lanes = make_lanes();
  UniqueFd socket = connect_socket(config_.path);
  if (socket) return begin(std::move(socket), std::move(lanes));
  try_again_later("connect", errno);
}

void Endpoint::try_again_later(const char* what, int error) noexcept {
  const bool nobody_there = error == ENOENT || error == ECONNREFUSED || error == EAGAIN;
  if (!nobody_there && error != last_error_) {
    char text[256];
    std::snprintf(text, sizeof text, "%s: cannot %s: %s; trying again", config_.path.c_str(), what,
                  std::strerror(error));
    owner_.trouble(text);
  }
  last_error_ = error;
  watch_listener(false);  // it stays readable and would call at once
  timer_.arm_after(delay_);
  delay_ = std::min<Clock::duration>(2 * delay_, budget::last_retry);
}

/// Not while too much of former sessions is still to be let go of.
bool Endpoint::may_begin() noexcept {
  size_t busy = 0;
  for (Lanes& lanes : former_) {
    if (lanes.pending() == 0) lanes = {};
    busy += lanes.memory != nullptr;
  }
  if (busy < budget::former_sessions) return true;
  try_again_later("accept a front end while files and memory of earlier ones are still being closed", EBUSY);
  return false;
}

/// Before the connection: when they cannot be had, there must not be a socket to close, in which something may wait.
Endpoint::Lanes Endpoint::make_lanes() {
  const auto flush_task = [this] {
    return std::make_unique<HelperTask>(
        loop_, [] {}, [this](const std::exception_ptr&) REQUIRES(control_thread) { flush(); });
  };
  return {HelperLane::create(), HelperLane::create(budget::fds_kept), flush_task(), flush_task()};
}

void Endpoint::begin(UniqueFd socket, Lanes lanes) {
  lanes_ = std::move(lanes);
  socket = lanes_.fds->adopt(socket.release());
  last_error_ = 0;
  watch_listener(false);
  connection_ = std::make_unique<Connection>(std::move(socket), lanes_.fds);
  session_ = owner_.make_session();
  watched_ = EPOLLIN;
  loop_->add_fd(connection_->fd(), watched_, [this](uint32_t events) REQUIRES(control_thread) { on_socket(events); });
  half_open_.connected(Clock::now());
  if (listener_) timer_.arm(half_open_.ends());
}

// --- A session

void Endpoint::on_socket(uint32_t events) {
  if (watched_ == 0) {  // nothing was asked for, but a hang-up cannot be masked
    if ((events & (EPOLLHUP | EPOLLERR)) != 0) end("the peer left", false);
    return;
  }
  if (!connection_->flush()) return end(connection_->error().c_str(), connection_->broken());
  handle_messages();
}

void Endpoint::handle_messages() {
  const auto turn_ends = Clock::now() + budget::time_a_turn;
  for (int i = 0; i < budget::messages_a_turn && !connection_->sending(); ++i) {
    if (i != 0 && Clock::now() >= turn_ends) break;
    if (lanes_.pending() > budget::helper_jobs) return watch_socket(true);
    Message message;
    const Connection::Received received = connection_->receive(message);
    if (received == Connection::Received::closed) return end(connection_->error().c_str(), connection_->broken());
    if (received == Connection::Received::too_many_fds) return watch_socket(true);
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
    if (session_->work()) start_work();
    return false;
  }
  if (next == BackendSession::Next::close) {
    end(session_->error().c_str(), true);
    return false;
  }
  if (reply && !connection_->send(std::move(*reply))) {
    end(connection_->error().c_str(), connection_->broken());
    return false;
  }
  if (session_->state().owned) {
    half_open_.greeted();
    delay_ = budget::first_retry;
    timer_.cancel();
    watch_listener(false);
  }
  owner_.after_message(session_->state());
  return session_ && !ending_;
}

void Endpoint::start_work() {
  work_ = std::make_unique<HelperTask>(
      loop_, [work = session_->work(), lane = lanes_.memory] { work->run(lane); },
      [this](const std::exception_ptr&) REQUIRES(control_thread) { resume(); });
  work_->start(*lanes_.memory);
}

void Endpoint::resume() {
  if (!suspended_) return;
  suspended_ = false;
  work_.reset();
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
/// holds up only itself. `pause`: nothing is asked for a moment.
void Endpoint::watch_socket(bool pause_first) {
  if (!session_ || ending_) return;
  if (pause_first) pause_over_.arm_after(pause);
  const uint32_t events = suspended_ || pause_first ? 0u : connection_->sending() ? EPOLLOUT : EPOLLIN;
  if (events == watched_) return;
  loop_->modify_fd(connection_->fd(), events);
  watched_ = events;
}

// --- The end of a session

/// The connection is closed only when the session has let go of the rings: until then the peer's memory may be written.
void Endpoint::end(const char* reason, bool broken) noexcept {
  if (!session_ || ending_) return;
  ending_ = true;
  std::snprintf(reason_, sizeof reason_, "%s", reason);
  broken_ = broken;
  costly_ |= connection_->costly();
  timer_.cancel();
  pause_over_.cancel();
  watch_listener(false);
  loop_->remove_fd(connection_->fd());
  if (suspended_ && work_) suspended_ = false;  // that work ends by itself, and nobody waits for it
  work_.reset();
  suspended_ = session_->stop() == BackendSession::Next::suspended;
  if (!suspended_) ended();
}

void Endpoint::ended() noexcept {
  ending_ = false;
  forget_session();
  owner_.disconnected(reason_, broken_);
  if (!running_) return flush();
  if (std::exchange(costly_, false)) {
    timer_.arm_after(penalty_);
    penalty_ = std::min<Clock::duration>(2 * penalty_, budget::last_penalty);
    return;
  }
  penalty_ = budget::first_penalty;
  timer_.arm_after(config_.client ? delay_ : Clock::duration::zero());
  if (config_.client) delay_ = std::min<Clock::duration>(2 * delay_, budget::last_retry);
}

void Endpoint::forget_session() noexcept {
  session_.reset();
  connection_.reset();
  if (!lanes_.memory) return;
  for (Lanes& former : former_) {
    if (former.memory) continue;
    former = std::move(lanes_);
    break;
  }
  lanes_ = {};
}

/// After stop(): waits until what sessions left is closed and unmapped, but not for ever.
void Endpoint::flush() noexcept {
  bool more = false;
  for (Lanes& lanes : former_) {
    if (lanes.flushing()) {
      more = true;
    } else if (lanes.pending() != 0) {
      lanes.flush_memory->start(*lanes.memory);
      lanes.flush_fds->start(*lanes.fds);
      more = true;
    } else {
      lanes = {};
    }
  }
  if (more && !timer_.armed()) timer_.arm_after(budget::patience_at_stop);
  if (more) return;
  timer_.cancel();
  if (stopped_) std::exchange(stopped_, nullptr)();
}

}  // namespace vhost_ioat::vhost_user
