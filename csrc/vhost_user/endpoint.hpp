// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/event_loop.hpp"
#include "vhost_user/connection.hpp"
#include "vhost_user/session.hpp"
#include "vhost_user/unix_socket.hpp"

namespace vhost_ioat::vhost_user {

struct EndpointConfig {
  std::string path;
  bool client = false;                       // connect to the front end's socket, instead of listening
  mode_t socket_mode = 0600;                 // of a listening socket
  std::chrono::milliseconds patience{5000};  // of a server, with a front end that has not sent SET_OWNER
};

/// What an endpoint tells the port. All calls come on the event loop and must not throw.
class EndpointOwner {
 public:
  virtual ~EndpointOwner() = default;
  /// A front end has connected.
  virtual std::unique_ptr<BackendSession> make_session() = 0;
  /// The session has handled a message; when it was suspended: has finished it. May call drop_peer().
  virtual void after_message(const SessionState& state) = 0;
  /// The front end is gone and its session with it: all rings were held, stopped and released, the memory is let go.
  /// `broken`: the front end broke the protocol or was dropped; else it just left.
  virtual void disconnected(const std::string& reason, bool broken) = 0;
  /// Something hinders connections (out of fds, no permission for the path); told once, the endpoint keeps trying.
  virtual void trouble(const std::string& what) = 0;
};

/// The socket of a port: listens or connects, and drives one session at a time on the event loop.
///
/// Server: while a front end is connected, others wait in the backlog; one that has not sent SET_OWNER within
/// `patience` makes way as soon as another waits. Client: tries again until the front end is there, and after it was
/// lost. Every method, and the destructor unless forked, is called on the loop (EventLoop::run).
class Endpoint {
 public:
  Endpoint(std::shared_ptr<EventLoop> loop, EndpointConfig config, EndpointOwner& owner);
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;
  ~Endpoint();  // needs stop() to have ended; in a forked child it leaves everything to the parent

  /// Throws ConfigError or std::system_error when a server cannot listen; nothing is started then. A client with a
  /// usable path never fails here.
  void start();
  /// No more connections; ends the session. `stopped` is called once it has ended, maybe before stop() returns; it
  /// must not destroy the endpoint.
  void stop(std::function<void()> stopped);
  /// The device has held the rings it was asked for (Device::hold, never from inside it).
  void resume();
  /// Ends the present session, if any; the next front end may come.
  void drop_peer(std::string reason);

  bool connected() const { return session_ != nullptr; }

 private:
  void seek();
  void watch_listener(bool on);
  void on_listener();
  void try_connect();
  void try_again_later(const char* what);
  void begin(UniqueFd socket);
  void on_socket();
  void handle_messages();
  bool proceed(BackendSession::Next next, std::optional<Message>& reply);
  void watch_socket();
  void end(const std::string& reason, bool broken);
  void ended();

  std::shared_ptr<EventLoop> loop_;
  EndpointConfig config_;
  EndpointOwner& owner_;
  bool running_ = false;
  std::function<void()> stopped_;

  std::unique_ptr<SocketListener> listener_;
  bool listener_watched_ = false;
  EventLoop::TimerId timer_ = 0;      // next try, or the end of patience with a front end without SET_OWNER
  EventLoop::Clock::duration delay_;  // before the next try
  int last_error_ = 0;                // of the last try, so that the same trouble is told once

  std::unique_ptr<Connection> connection_;
  std::unique_ptr<BackendSession> session_;
  uint32_t watched_ = 0;    // epoll events asked of the connection
  bool suspended_ = false;  // the session waits for the device
  bool ending_ = false;
  bool broken_ = false;
  std::string reason_;
};

}  // namespace vhost_ioat::vhost_user
