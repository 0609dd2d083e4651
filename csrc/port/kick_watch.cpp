// SPDX-License-Identifier: BSD-3-Clause
#include "port/kick_watch.hpp"

#include <sys/epoll.h>

#include <utility>

#include "base/budget.hpp"
#include "base/shared_field.hpp"
#include "virtio/ring_layout.hpp"

namespace vhost_ioat::port {

namespace {
/// The driver's index, which every driver starts at 0.
bool moved(const uint8_t* avail) { return load_relaxed<uint16_t>(avail + 2) != 0; }
}  // namespace

KickWatch::KickWatch(std::shared_ptr<EventLoop> loop, Advise advise)
    : loop_(std::move(loop)),
      advise_(std::move(advise)),
      patience_(loop_, [this]() REQUIRES(control_thread) { this->advise(Advice::not_running); }) {}

void KickWatch::setup(vhost_user::SharedFd kick, const uint8_t* avail,
                      std::shared_ptr<const memory::RegionTable> memory) noexcept {
  stop();
  if (!kick) return;
  if (avail && moved(avail)) return;
  try {
    loop_->add_fd(kick->owned.get(), EPOLLIN | EPOLLET, [this](uint32_t) REQUIRES(control_thread) { on_kick(); });
  } catch (const std::exception&) {
    return;
  }
  kick_ = std::move(kick);
  avail_ = avail;
  memory_ = std::move(memory);
}

void KickWatch::stop() noexcept {
  patience_.cancel();
  if (kick_) loop_->remove_fd(kick_->owned.get());
  kick_.reset();
  memory_.reset();
  avail_ = nullptr;
  in_vain_ = 0;
}

void KickWatch::on_kick() {
  if (!avail_) {
    if (!patience_.armed()) patience_.arm_after(budget::advice_after);
  } else if (moved(avail_)) {
    stop();
  } else if (++in_vain_ == budget::kicks_in_vain) {
    advise(Advice::stays_empty);
  }
}

void KickWatch::advise(Advice advice) {
  stop();
  advise_(advice);
}

}  // namespace vhost_ioat::port
