// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <sys/types.h>

#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/budget.hpp"
#include "base/event_loop.hpp"
#include "base/half_open.hpp"
#include "base/helper.hpp"
#include "vhost_user/connection.hpp"
#include "vhost_user/session.hpp"
#include "vhost_user/unix_socket.hpp"

namespace vhost_ioat::vhost_user {

struct EndpointConfig {
  std::string path;
  bool client = false;                                     // connect to the front end's socket, instead of listening
  mode_t socket_mode = 0600;                               // of a listening socket
  std::chrono::milliseconds patience = budget::half_open;  // of a server, with a front end that has not sent SET_OWNER
};

/// What an endpoint tells the port. All calls come on the event loop.
class EndpointOwner {
 public:
  virtual ~EndpointOwner() = default;
  /// A front end has connected. May throw: then it is turned away, and the endpoint tries again later.
  virtual std::unique_ptr<BackendSession> make_session() = 0;
  /// The session has handled a message; when it was suspended: has finished it. May call drop_peer(), and may throw,
  /// which ends the session.
  virtual void after_message(const SessionState& state) = 0;
  /// The front end is gone and its session with it: all rings were held and stopped, the memory is let go.
  /// `broken`: the front end broke the protocol or was dropped; else it just left.
  virtual void disconnected(const char* reason, bool broken) noexcept = 0;
  /// Something hinders connections (out of fds, no permission for the path); told once, the endpoint keeps trying.
  virtual void trouble(const char* what) noexcept = 0;
};

/// The socket of a port: listens or connects, and drives one session at a time on the event loop.
///
/// Server: while a front end is connected, others wait in the backlog; one that has not sent SET_OWNER within
/// `patience` makes way as soon as another waits. Client: tries again until the front end is there, and after it was
/// lost. Every method, and the destructor unless forked, is called on the loop (EventLoop::run).
///
/// What it gives to the loop may throw, when memory or fds are short; the barrier of the port's loop then calls
/// failed().
class Endpoint {
 public:
  Endpoint(std::shared_ptr<EventLoop> loop, EndpointConfig config, EndpointOwner& owner);
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;
  ~Endpoint();  // needs stop() to have ended; in a forked child it leaves everything to the parent

  /// Throws ConfigError or std::system_error when a server cannot listen; nothing is started then. A client with a
  /// usable path never fails here.
  void start() REQUIRES(control_thread);
  /// No more connections; ends the session. `stopped` is called once it has ended and what it left is closed and
  /// unmapped (but a peer can make that take long, so after budget::patience_at_stop in any case), maybe before stop()
  /// returns; it must not destroy the endpoint.
  void stop(std::function<void()> stopped) REQUIRES(control_thread);
  /// The device has held the rings it was asked for (Device::hold, never from inside it).
  void resume() REQUIRES(control_thread);
  /// Ends the present session, if any; the next front end may come. `costly`: it took too much of our time for what it
  /// did (base/wake_cost.hpp), so the next one waits, longer each time in a row.
  void drop_peer(const char* reason, bool costly = false) noexcept REQUIRES(control_thread);
  /// A callback of this port threw: the session ends, or what was being tried is tried again later.
  void failed(const char* what) noexcept REQUIRES(control_thread);

  bool connected() const REQUIRES(control_thread) { return session_ != nullptr; }
  /// What the present front end has said; null when there is none.
  const SessionState* state() const REQUIRES(control_thread) { return session_ ? &session_->state() : nullptr; }

 private:
  /// What one connection has of its own, so that one whose end takes long keeps up no other.
  struct Lanes {
    std::shared_ptr<HelperLane> memory, fds;
    std::unique_ptr<HelperTask> flush_memory, flush_fds;  // end when all before them has

    size_t pending() const { return memory ? memory->pending() + fds->pending() : 0; }
    bool flushing() const { return memory && (flush_memory->running() || flush_fds->running()); }
  };

  void seek() REQUIRES(control_thread);
  void watch_listener(bool on) REQUIRES(control_thread);
  void on_listener() REQUIRES(control_thread);
  void try_connect() REQUIRES(control_thread);
  void try_again_later(const char* what, int error) noexcept REQUIRES(control_thread);
  bool may_begin() noexcept REQUIRES(control_thread);
  Lanes make_lanes() REQUIRES(control_thread);
  void begin(UniqueFd socket, Lanes lanes) REQUIRES(control_thread);
  void on_socket(uint32_t events) REQUIRES(control_thread);
  void handle_messages() REQUIRES(control_thread);
  void start_work() REQUIRES(control_thread);
  bool proceed(BackendSession::Next next, std::optional<Message>& reply) REQUIRES(control_thread);
  void watch_socket(bool pause = false) REQUIRES(control_thread);
  void on_timer() REQUIRES(control_thread);
  void end(const char* reason, bool broken) noexcept REQUIRES(control_thread);
  void ended() noexcept REQUIRES(control_thread);
  void forget_session() noexcept REQUIRES(control_thread);
  void flush() noexcept REQUIRES(control_thread);

  std::shared_ptr<EventLoop> loop_;
  EndpointConfig config_;
  EndpointOwner& owner_;
  bool running_ = false;
  std::function<void()> stopped_;

  std::unique_ptr<SocketListener> listener_;
  bool listener_watched_ = false;
  EventLoop::Timer timer_;       // next try, or the end of patience: with a front end without SET_OWNER, at stop()
  EventLoop::Timer pause_over_;  // messages may be read again
  HalfOpen half_open_;
  EventLoop::Clock::duration delay_;  // before the next try
  bool costly_ = false;               // this session
  EventLoop::Clock::duration penalty_ = budget::first_penalty;
  int last_error_ = 0;  // of the last try, so that the same trouble is told once

  Lanes lanes_;                                            // of the present session
  std::array<Lanes, budget::former_sessions + 1> former_;  // of sessions that ended, and of the present one when it has
  std::unique_ptr<Connection> connection_;
  std::unique_ptr<BackendSession> session_;
  std::unique_ptr<HelperTask> work_;  // the session waits for it
  uint32_t watched_ = 0;              // epoll events asked of the connection
  bool suspended_ = false;            // the session waits, for work_ or for the device
  bool ending_ = false;
  bool broken_ = false;
  char reason_[256] = {};
};

}  // namespace vhost_ioat::vhost_user
