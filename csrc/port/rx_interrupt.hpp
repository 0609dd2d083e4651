// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <sys/epoll.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <system_error>
#include <utility>

#include "base/unique_fd.hpp"
#include "vhost_user/session.hpp"

namespace vhost_ioat::port {

/// The interrupt of an rx queue, as its user sees it: a pollable fd that stays the same, and a wish for it that holds
/// until it is taken back, whatever the front end does to the ring meanwhile.
///
/// The fd is an epoll set of the ring's kick fd, which comes and goes, and of an eventfd of ours. With the latter the
/// control thread wakes the waiter: once after each change of the ring, as a kick may have been missed, and whenever
/// packets wait in a ring without a kick fd.
class RxInterrupt {
 public:
  RxInterrupt() : set_(::epoll_create1(EPOLL_CLOEXEC)), wake_(make_eventfd()) {
    if (!set_) throw std::system_error(errno, std::generic_category(), "epoll_create1");
    if (!watch(wake_.get())) throw std::system_error(errno, std::generic_category(), "epoll_ctl");
  }

  int fileno() const { return set_.get(); }

  // ---- any thread
  void want(bool wanted) noexcept { wanted_.store(wanted, std::memory_order_seq_cst); }
  bool wanted() const noexcept { return wanted_.load(std::memory_order_seq_cst); }
  void wake() noexcept { eventfd_signal(wake_.get()); }

  // ---- whoever owns the queue
  /// What was signalled so far is known. False: that took far too long, by the fault of the front end.
  bool clear() noexcept {
    eventfd_clear(wake_.get());
    if (!kick_) return true;
    kick_->peer.drain();
    return !kick_->peer.costly();
  }

  // ---- the control thread, with the queue held
  /// The ring's kick fd from now on; none: the ring does not run, or is polled. False: it cannot be waited for, so the
  /// ring must be polled.
  bool set_kick(vhost_user::SharedFd kick) noexcept {
    if (kick == kick_) return true;
    if (has_kick()) ::epoll_ctl(set_.get(), EPOLL_CTL_DEL, kick_->owned.get(), nullptr);
    kick_ = std::move(kick);
    if (!kick_ || watch(kick_->owned.get())) return true;
    kick_.reset();
    return false;
  }
  /// The control thread at any time, as it alone changes kick_; others as owners of the queue.
  bool has_kick() const noexcept { return kick_ != nullptr; }

 private:
  bool watch(int fd) noexcept {
    epoll_event event{};
    event.events = EPOLLIN;
    return ::epoll_ctl(set_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
  }

  UniqueFd set_, wake_;
  vhost_user::SharedFd kick_;
  std::atomic<bool> wanted_{false};
};

}  // namespace vhost_ioat::port
