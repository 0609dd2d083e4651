// SPDX-License-Identifier: BSD-3-Clause
#include "base/peer_fd.hpp"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <system_error>
#include <utility>

#include "base/eventfd_aio.hpp"

namespace vhost_ioat {
namespace {

bool old_kernel = false;  // detail::pretend_old_kernel()

constexpr uint64_t one = 1;

/// Is there anything to read, or room to write? The peer may change that before we come to it.
bool ready(int fd, short events) noexcept {
  pollfd watched{fd, events, 0};
  return ::poll(&watched, 1, 0) == 1;
}

void set_nonblocking(int fd) noexcept {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags >= 0 && !(flags & O_NONBLOCK)) ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

/// -1 and EAGAIN instead of waiting.
ssize_t read_now(int fd, void* to, size_t size) noexcept {
  iovec part{to, size};
  if (!old_kernel) {
    const ssize_t n = ::preadv2(fd, &part, 1, -1, RWF_NOWAIT);
    if (n >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS)) return n;
  }
  set_nonblocking(fd);
  if (ready(fd, POLLIN)) return ::read(fd, to, size);
  errno = EAGAIN;
  return -1;
}

ssize_t write_now(int fd, const void* from, size_t size) noexcept {
  iovec part{const_cast<void*>(from), size};
  if (!old_kernel) {
    const ssize_t n = ::pwritev2(fd, &part, 1, -1, RWF_NOWAIT);
    if (n >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS)) return n;
  }
  set_nonblocking(fd);
  if (ready(fd, POLLOUT)) return ::write(fd, from, size);
  errno = EAGAIN;
  return -1;
}

/// Keeps the SIGPIPE of a write in this thread away from everybody: blocked, and taken if it came of this write.
class WithoutSigpipe {
 public:
  WithoutSigpipe() noexcept {
    sigset_t pending;
    ::sigemptyset(&pending);
    ::sigpending(&pending);
    waited_before_ = ::sigismember(&pending, SIGPIPE) == 1;
    ::sigemptyset(&pipe_);
    ::sigaddset(&pipe_, SIGPIPE);
    ::pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  WithoutSigpipe(const WithoutSigpipe&) = delete;
  WithoutSigpipe& operator=(const WithoutSigpipe&) = delete;
  ~WithoutSigpipe() {
    const int saved = errno;
    if (broken_ && !waited_before_) {
      const timespec now{};
      while (::sigtimedwait(&pipe_, nullptr, &now) < 0 && errno == EINTR) {
      }
    }
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    errno = saved;
  }
  void broken() noexcept { broken_ = true; }

 private:
  sigset_t pipe_, before_;
  bool waited_before_, broken_ = false;
};

ssize_t write_pipe(int fd) noexcept {
  WithoutSigpipe guard;
  const ssize_t n = write_now(fd, &one, sizeof one);
  if (n < 0 && errno == EPIPE) guard.broken();
  return n;
}

/// A write of 0 changes no eventfd, and every other file without a type of its own refuses it. Asked of the kernel
/// without AT_STATX_DONT_SYNC, the type of a file may be a question to a file system that never answers.
bool is_eventfd_by_trial(int fd) noexcept {
  struct statx file{};
  if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &file) != 0) return false;
  if ((file.stx_mode & S_IFMT) != 0) return false;
  set_nonblocking(fd);
  const uint64_t zero = 0;
  return ::write(fd, &zero, sizeof zero) == sizeof zero || errno == EAGAIN;
}

PeerFd::Kind kind_of(int fd) noexcept {
  int value = 0;
  socklen_t size = sizeof value;
  if (::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &value, &size) == 0) {
    return value == AF_UNIX ? PeerFd::Kind::socket : PeerFd::Kind::unusable;
  }
  struct statx file{};  // F_GETPIPE_SZ takes the lock of the pipe
  if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &file) == 0 && S_ISFIFO(file.stx_mode))
    return PeerFd::Kind::pipe;
  const auto answer = old_kernel ? eventfd_aio::Answer::unknown : eventfd_aio::is_eventfd(fd);
  const bool eventfd =
      answer == eventfd_aio::Answer::unknown ? is_eventfd_by_trial(fd) : answer == eventfd_aio::Answer::yes;
  return eventfd ? PeerFd::Kind::eventfd : PeerFd::Kind::unusable;
}

}  // namespace

/// A pipe that a lane of the helper writes. Signals that come while it does are one, and come after it.
class PeerFd::PipeWriter final : public HelperJob, public std::enable_shared_from_this<PipeWriter> {
 public:
  PipeWriter(UniqueFd fd, std::shared_ptr<HelperLane> lane) : fd_(std::move(fd)), lane_(std::move(lane)) {}

  Signalled signal() noexcept {
    pollfd end{fd_.get(), 0, 0};  // takes no lock
    if (broken_.load(std::memory_order_relaxed) || (::poll(&end, 1, 0) == 1 && (end.revents & POLLERR) != 0)) {
      return told_.exchange(true, std::memory_order_relaxed) ? Signalled::nobody : Signalled::failed;
    }
    // Acquire, pairs with the release in dispose(): self_ is ours while there is nothing to do.
    State state = state_.load(std::memory_order_acquire);
    while (state == State::idle || state == State::writing) {
      const State next = state == State::idle ? State::queued : State::writing_again;
      if (!state_.compare_exchange_weak(state, next, std::memory_order_acq_rel)) continue;
      if (next == State::queued) queue(shared_from_this());
      break;
    }
    return Signalled::delivered;
  }

 private:
  enum class State : uint8_t { idle, queued, writing, writing_again };

  void queue(std::shared_ptr<PipeWriter> self) noexcept {
    self_ = std::move(self);
    lane_->add(*this);
  }
  void run() noexcept override {
    state_.store(State::writing, std::memory_order_release);  // who signals from now on may not be meant by this write
    ssize_t n;
    do {
      n = write_pipe(fd_.get());
    } while (n < 0 && errno == EINTR);
    if (n < 0 && errno != EAGAIN && errno != ENOMEM) broken_.store(true, std::memory_order_relaxed);
  }
  void dispose() noexcept override {
    auto self = std::move(self_);
    State state = State::writing;
    if (state_.compare_exchange_strong(state, State::idle, std::memory_order_acq_rel)) return;
    state_.store(State::queued, std::memory_order_release);
    queue(std::move(self));
  }

  const UniqueFd fd_;
  const std::shared_ptr<HelperLane> lane_;
  std::atomic<State> state_{State::idle};
  std::shared_ptr<PipeWriter> self_;  // while there is something to write
  std::atomic<bool> broken_{false}, told_{false};
};

PeerFd::PeerFd(int fd, Use use) noexcept : fd_(fd) {
  if (fd < 0) return;
  const int flags = ::fcntl(fd, F_GETFL);
  const int mode = flags & O_ACCMODE;
  if (flags < 0 || flags & O_PATH) {
    why_ = "it was opened with O_PATH, and so only names a file";
  } else if (kind_ = kind_of(fd); kind_ == Kind::unusable) {
    why_ = "it is not an eventfd, a pipe or a Unix socket";
  } else if (use == Use::wait && kind_ == Kind::socket) {
    why_ = "it is a socket, which may carry further fds";
  } else if (use == Use::signal && mode == O_RDONLY) {
    why_ = "it is open for reading only";
  } else if (use == Use::wait && kind_ == Kind::pipe) {
    why_ = "it is a pipe, whose writers can block its readers";
  }
  usable_ = *why_ == 0;
  if (!usable_) kind_ = Kind::unusable;
}

void PeerFd::signal_on(const std::shared_ptr<HelperLane>& lane) {
  if (kind_ != Kind::pipe) return;
  const int fd = ::fcntl(fd_, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) throw std::system_error(errno, std::generic_category(), "dup of a pipe");
  writer_ = std::make_shared<PipeWriter>(lane->adopt(fd), lane);
}

PeerFd::Signalled PeerFd::signal() noexcept {
  if (!usable_) return Signalled::nobody;
  if (writer_) return writer_->signal();
  return cost_([this] { return signal_now(); });
}

PeerFd::Signalled PeerFd::signal_now() noexcept {
  if (kind_ == Kind::eventfd && !old_kernel && eventfd_aio::signal(fd_)) return Signalled::delivered;
  ssize_t n;
  do {
    n = kind_ == Kind::socket ? ::send(fd_, &one, sizeof one, MSG_DONTWAIT | MSG_NOSIGNAL)
        : kind_ == Kind::pipe ? write_pipe(fd_)
                              : write_now(fd_, &one, sizeof one);
  } while (n < 0 && errno == EINTR);
  // Full: whoever reads has signals enough. A datagram socket says so with ENOBUFS, too.
  if (n >= 0 || errno == EAGAIN || errno == ENOBUFS) return Signalled::delivered;
  if (errno != ENOMEM) {
    usable_ = false;
    why_ = "its other end is gone";
  }
  return Signalled::failed;
}

bool PeerFd::drain() noexcept {
  if (!usable_) return false;
  const auto drain_now = [this] {
    uint64_t count;
    ssize_t n;
    do {
      n = read_now(fd_, &count, sizeof count);
    } while (n < 0 && errno == EINTR);
    return n > 0;
  };
  return cost_(drain_now);
}

namespace detail {
void pretend_old_kernel(bool old) noexcept { old_kernel = old; }
}  // namespace detail

}  // namespace vhost_ioat
