// SPDX-License-Identifier: BSD-3-Clause
#include "vhost_user/unix_socket.hpp"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "base/error.hpp"

namespace vhost_ioat::vhost_user {
namespace {

[[noreturn]] void fail(int error, const std::string& what) {
  throw std::system_error(error, std::generic_category(), what);
}

sockaddr_un address_of(const std::string& path) {
  check_socket_path(path);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

UniqueFd make_socket() { return UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)); }

/// Removes a socket file that nobody listens on; throws when something else is in the way.
void remove_stale(const std::string& path) {
  struct stat found;
  if (::lstat(path.c_str(), &found) < 0) return;  // nothing there, or bind() says what is wrong with the directory
  if (!S_ISSOCK(found.st_mode)) {
    fail(EADDRINUSE, "cannot listen on " + path + ": it exists and is not a socket; choose another path");
  }
  if (connect_socket(path) || errno == EAGAIN) {  // EAGAIN: it is served, with a full backlog
    fail(EADDRINUSE, "cannot listen on " + path + ": another process serves it; stop that one or choose another path");
  }
  if (errno != ECONNREFUSED && errno != ENOENT) {
    fail(errno, "cannot listen on " + path + ": there is a socket, and whether it is in use cannot be found out");
  }
  if (errno == ECONNREFUSED && ::unlink(path.c_str()) < 0 && errno != ENOENT) {
    fail(errno, "cannot listen on " + path + ": a stale socket cannot be removed");
  }
}

}  // namespace

void check_socket_path(const std::string& path) {
  constexpr size_t limit = sizeof(sockaddr_un::sun_path) - 1;
  if (path.empty()) throw ConfigError("the socket path is empty; give the path of a socket file");
  if (path.size() > limit) {
    throw ConfigError(
        format("the socket path has %zu bytes, but a socket address holds at most %zu; choose a shorter one: %s",
               path.size(), limit, path.c_str()));
  }
  if (path.find('\0') != std::string::npos) {
    throw ConfigError("the socket path contains a zero byte; give the path of a socket file");
  }
}

UniqueFd connect_socket(const std::string& path) {
  const sockaddr_un address = address_of(path);
  UniqueFd fd = make_socket();
  if (!fd) return fd;
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return fd;
  const int error = errno;
  fd.reset();
  errno = error;
  return fd;
}

SocketListener::SocketListener(const std::string& path, mode_t mode, std::shared_ptr<HelperLane> closer)
    : path_(path), closer_(std::move(closer)), process_(::getpid()) {
  const sockaddr_un address = address_of(path);
  remove_stale(path);
  UniqueFd fd = make_socket();
  if (!fd) fail(errno, "cannot listen on " + path + ": cannot create a socket");
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
    const char* advice = errno == ENOENT       ? ": its directory does not exist; create it first"
                         : errno == EADDRINUSE ? ": something was created there just now; choose another path"
                                               : "";
    fail(errno, "cannot listen on " + path + advice);
  }
  struct stat made;
  // Nobody can connect before listen(), so the mode holds from the start.
  if (::lstat(path.c_str(), &made) < 0 || ::chmod(path.c_str(), mode) < 0 || ::listen(fd.get(), backlog) < 0) {
    const int error = errno;
    ::unlink(path.c_str());
    fail(error, "cannot listen on " + path);
  }
  device_ = made.st_dev;
  inode_ = made.st_ino;
  fd_ = std::move(fd);
}

SocketListener::~SocketListener() {
  if (::getpid() != process_) return;
  struct stat found;
  if (::lstat(path_.c_str(), &found) == 0 && found.st_dev == device_ && found.st_ino == inode_) {
    ::unlink(path_.c_str());
  }
  if (!closer_) return;
  ::shutdown(fd_.get(), SHUT_RDWR);  // from now on nobody comes
  while (UniqueFd waiting = accept()) closer_->end_connection(std::move(waiting));
  // Out of fds: those who are left end with the socket, and what they have sent.
  if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) fd_ = closer_->adopt(fd_.release());
}

UniqueFd SocketListener::accept() const {
  UniqueFd peer;
  do {
    peer.reset(::accept4(fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  } while (!peer && (errno == EINTR || errno == ECONNABORTED));
  return peer;
}

}  // namespace vhost_ioat::vhost_user
