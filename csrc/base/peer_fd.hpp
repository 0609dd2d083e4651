// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <memory>

#include "base/helper.hpp"
#include "base/wake_cost.hpp"

namespace vhost_ioat {

/// A file descriptor that a peer sent to be signalled by (a call, an err, an interrupt) or to be waited for (a kick).
///
/// The rule for all of them: nothing here waits, whatever the fd is and whatever the peer does to it at the same time.
/// The peer shares the open file, so it can take O_NONBLOCK off and fill a counter or a buffer at any moment; the flag
/// is therefore not relied on:
///
/// | kind    | signal()                                                         | drain()             |
/// |---------|------------------------------------------------------------------|---------------------|
/// | eventfd | completion of an empty read (aio): the kernel adds 1, saturating | preadv2 RWF_NOWAIT  |
/// | pipe    | a helper's write (signal_on), SIGPIPE kept from the process      | not used, see below |
/// | socket  | send MSG_DONTWAIT MSG_NOSIGNAL                                   | not used, see below |
///
/// Each use of a pipe, RWF_NOWAIT or not, takes a lock of the kernel that the peer holds while it writes into it from a
/// page that has yet to come; and what is read from a socket may carry further fds, and closing those may wait. So
/// neither is taken as a kick. Only where the kernel lacks these calls (no CONFIG_AIO) O_NONBLOCK and a poll() before
/// the call have to do. Anything else (files, directories, terminals, epoll, timerfd, signalfd, io_uring, devices,
/// O_PATH) is unusable and is neither written, read, polled nor asked for its attributes: the ring is polled instead.
///
/// Does not own the fd, and needs it open. One thread at a time. Telling the kind needs no /proc.
class PeerFd {
 public:
  enum class Kind : uint8_t { none, eventfd, pipe, socket, unusable };
  enum class Use : uint8_t { signal, wait };
  enum class Signalled : uint8_t { delivered, failed, nobody };  // nobody: there is none, or it failed before

  PeerFd() = default;
  /// -1: none.
  PeerFd(int fd, Use use) noexcept;

  Kind kind() const { return kind_; }
  /// Can it be used as was asked? False for none, too.
  explicit operator bool() const { return usable_; }
  int fd() const { return usable_ ? fd_ : -1; }
  /// Why it is of no use, for an event; empty when it is usable or none.
  const char* why() const { return why_; }

  /// Signals a pipe from that lane from now on; nothing for other kinds. Throws when memory or an fd is short.
  void signal_on(const std::shared_ptr<HelperLane>& lane);
  /// Tells the peer; one that has more than enough signals waiting counts as told. `failed` comes once: its other end
  /// is gone, and it is not tried again.
  Signalled signal() noexcept;
  /// Takes the signals that wait; were there any? What is left of a semaphore shows as readable again.
  bool drain() noexcept;
  /// Signals or drains took far too much of this thread's time (wake_cost.hpp), as far as this copy knows.
  bool costly() const noexcept { return cost_.costly(); }

 private:
  int fd_ = -1;
  Kind kind_ = Kind::none;
  bool usable_ = false;
  const char* why_ = "";
  Signalled signal_now() noexcept;
  class PipeWriter;
  std::shared_ptr<PipeWriter> writer_;  // of a pipe
  WakeCost cost_;
};

namespace detail {
/// For tests: as on a kernel without aio and RWF_NOWAIT. Not while other threads signal.
void pretend_old_kernel(bool old) noexcept;
}  // namespace detail

}  // namespace vhost_ioat
