// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <functional>
#include <memory>

#include "base/event_loop.hpp"
#include "memory/region_table.hpp"
#include "vhost_user/session.hpp"

namespace vhost_ioat::port {

/// Looks at the kicks of one ring until it has moved once, for the two commonest ways in which nothing works and nobody
/// says why: the ring that is kicked but never got all it needs, and the ring that stays empty because the memory of
/// the guest is not shared with this process. All on the control thread.
///
/// Takes no kick from those who wait for it: the fd is watched for its edges and not read.
class KickWatch {
 public:
  enum class Advice : uint8_t { not_running, stays_empty };
  using Advise = std::function<void(Advice)>;  // at most once each setup()

  KickWatch(std::shared_ptr<EventLoop> loop, Advise advise);
  ~KickWatch() { stop(); }
  KickWatch(const KickWatch&) = delete;
  KickWatch& operator=(const KickWatch&) = delete;

  /// The ring as it is from now on. avail: its available ring, null while it does not run. It is good advice only, so
  /// where there are no fds or memory to watch with, there is none.
  void setup(vhost_user::SharedFd kick, const uint8_t* avail,
             std::shared_ptr<const memory::RegionTable> memory) noexcept REQUIRES(control_thread);
  void stop() noexcept REQUIRES(control_thread);

 private:
  void on_kick() REQUIRES(control_thread);
  void advise(Advice advice) REQUIRES(control_thread);

  std::shared_ptr<EventLoop> loop_;
  Advise advise_;
  vhost_user::SharedFd kick_;  // while it is watched
  const uint8_t* avail_ = nullptr;
  std::shared_ptr<const memory::RegionTable> memory_;  // avail_ lies in it
  int in_vain_ = 0;
  EventLoop::Timer patience_;
};

}  // namespace vhost_ioat::port
