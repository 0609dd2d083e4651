// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <sys/socket.h>

#include <cstddef>
#include <cstring>
#include <vector>

namespace vhost_ioat::testing {

/// Sends bytes and fds as they are, in one piece, whether they are a message or not.
inline ssize_t send_raw(int socket, const void* bytes, size_t size, const std::vector<int>& fds = {}, int flags = 0) {
  iovec piece{const_cast<void*>(bytes), size};
  std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
  msghdr header{};
  header.msg_iov = &piece;
  header.msg_iovlen = 1;
  if (!fds.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size() * sizeof(int));
  }
  return ::sendmsg(socket, &header, MSG_NOSIGNAL | flags);
}

}  // namespace vhost_ioat::testing
