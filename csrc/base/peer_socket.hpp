// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <sys/socket.h>
#include <sys/types.h>

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "base/budget.hpp"
#include "base/helper.hpp"
#include "base/unique_fd.hpp"
#include "base/wake_cost.hpp"

namespace vhost_ioat {

/// A non-blocking stream socket over which a peer sends bytes and fds, made so that the kernel never closes one of
/// those on the thread that reads: that close() may take as long as the peer likes.
///
/// The kernel closes an fd itself when it has no room for it (in the control data, in the table of this process), when
/// it is dropped with urgent data, and when it waits in a socket that is closed. So a message is looked at first, which
/// leaves the fds in the socket and gives us copies, and is taken without them while those hold the files; urgent data
/// are data; and the lane closes the socket. It closes the copies, too: to some file systems each close() is told.
///
/// One thread at a time.
class PeerSocket {
 public:
  /// How many fds a message may have.
  static constexpr size_t most_fds = budget::fds_a_message;
  /// As many as the kernel lets through at once (SCM_MAX_FD).
  static constexpr size_t scm_max_fds = 253;
  /// How many fds the reads of a message may give to the lane, see has_room().
  static constexpr size_t fds_at_worst = most_fds + 2 * scm_max_fds;

  /// Throws std::system_error. `lane`: closes the fds that come. Without one all is closed here.
  explicit PeerSocket(UniqueFd socket, std::shared_ptr<HelperLane> lane = nullptr);
  PeerSocket(PeerSocket&&) = default;
  PeerSocket& operator=(PeerSocket&&) = default;  // of one without a lane
  ~PeerSocket();

  int fd() const { return socket_.get(); }
  const std::shared_ptr<HelperLane>& lane() const { return lane_; }

  /// Before each message: may its fds be given to the lane? Else nothing is to be read until some of them are closed.
  bool has_room() const { return !lane_ || lane_->has_room_for_fds(fds_at_worst); }
  /// Reads into `bytes`, and appends to `fds`. At the end of the stream 0, and -1 with errno when nothing can be read:
  /// EAGAIN; what recvmsg() says; EMFILE when `fds` has more than `most_fds` then, or this process cannot open them (it
  /// may be those of the next message, as a look goes on after the last byte; seen with Linux 6.18). ETIME when it
  /// takes far too much of this thread's time to wake those who wait for the socket (wake_cost.hpp). Then the
  /// connection is to be ended. A read ends with the bytes that fds were sent with. Throws std::bad_alloc, before it
  /// reads.
  ssize_t receive(std::span<std::byte> bytes, std::vector<UniqueFd>& fds);
  /// As sendmsg(), without SIGPIPE; -1 and ETIME as above.
  ssize_t send(const msghdr& message) noexcept;

 private:
  UniqueFd socket_;
  std::shared_ptr<HelperLane> lane_;
  WakeCost sends_, receives_;
};

}  // namespace vhost_ioat
