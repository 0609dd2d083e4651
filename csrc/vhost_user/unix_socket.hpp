// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <sys/types.h>

#include <memory>
#include <string>

#include "base/helper.hpp"
#include "base/unique_fd.hpp"

namespace vhost_ioat::vhost_user {

/// Throws ConfigError unless `path` fits into a socket address: 1 to 107 bytes, no zero among them.
void check_socket_path(const std::string& path);

/// A non-blocking connection, or an empty fd and errno when nobody accepts there (ENOENT, ECONNREFUSED, EAGAIN, ...).
UniqueFd connect_socket(const std::string& path);

/// A listening socket file. Takes the place of a socket nobody serves any more, never of anything else,
/// and takes away at the end only what it made itself, and only in the process that made it.
class SocketListener {
 public:
  static constexpr int backlog = 128;

  /// `closer` ends those who still wait at the end; it has room for `backlog` and one more. Throws ConfigError (path)
  /// or std::system_error (directory missing, address in use, permission).
  SocketListener(const std::string& path, mode_t mode, std::shared_ptr<HelperLane> closer = nullptr);
  SocketListener(const SocketListener&) = delete;
  SocketListener& operator=(const SocketListener&) = delete;
  ~SocketListener();

  int fd() const { return fd_.get(); }
  /// A non-blocking connection, or an empty fd and errno (EAGAIN: nobody waits).
  UniqueFd accept() const;

 private:
  std::string path_;
  UniqueFd fd_;
  std::shared_ptr<HelperLane> closer_;
  pid_t process_ = 0;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace vhost_ioat::vhost_user
