// SPDX-License-Identifier: BSD-3-Clause
#include <array>
#include <atomic>
#include <memory>

#include "base/budget.hpp"
#include "base/event_loop.hpp"
#include "base/shared_field.hpp"
#include "doctest/doctest.h"
#include "port/kick_watch.hpp"
#include "ring_fd.hpp"
#include "virtio/ring_layout.hpp"
#include "watchdog.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::port;

namespace {

struct Bench {
  std::shared_ptr<EventLoop> loop = EventLoop::get();
  UniqueFd kick_fd = make_eventfd();
  alignas(4) std::array<uint8_t, 16> avail{};
  std::atomic<int> not_running{0}, stays_empty{0};
  std::unique_ptr<KickWatch> watch;

  Bench() {
    watch = std::make_unique<KickWatch>(loop, [this](KickWatch::Advice advice) {
      ++(advice == KickWatch::Advice::not_running ? not_running : stays_empty);
    });
  }
  ~Bench() {
    loop->run([&] { watch.reset(); });
  }
  void setup(bool running, bool with_kick = true) {
    const auto shared = testing::ring_fd(kick_fd, PeerFd::Use::wait);
    loop->run([&] { watch->setup(with_kick ? shared : nullptr, running ? avail.data() : nullptr, nullptr); });
  }
  void kick() {
    eventfd_signal(kick_fd.get());
    for (int i = 0; i < 2; ++i) loop->run([] {});  // the second one comes after the loop has looked at its fds
  }
  void moves(uint16_t index) { store_release<uint16_t>(avail.data() + 2, index); }
};

}  // namespace

TEST_CASE("kick watch: a ring that is kicked and does not run is told once, and no kick is taken from anybody") {
  Bench bench;
  bench.setup(false);
  bench.kick();
  bench.kick();
  CHECK(testing::eventually([&] { return bench.not_running == 1; }));
  bench.kick();
  CHECK(bench.not_running == 1);
  CHECK(eventfd_clear(bench.kick_fd.get()) == 3);
}

TEST_CASE("kick watch: a ring that starts in time is nothing to tell") {
  Bench bench;
  bench.setup(false);
  bench.kick();
  bench.setup(true);
  bench.loop->run([&] { bench.watch->stop(); });
  CHECK(bench.not_running == 0);
}

TEST_CASE("kick watch: a ring that stays empty for all its kicks is told once") {
  Bench bench;
  bench.setup(true);
  for (int i = 0; i < budget::kicks_in_vain - 1; ++i) bench.kick();
  CHECK(bench.stays_empty == 0);
  for (int i = 0; i < 3; ++i) bench.kick();
  CHECK(testing::eventually([&] { return bench.stays_empty == 1; }));
  bench.setup(true);
  for (int i = 0; i < budget::kicks_in_vain + 1; ++i) bench.kick();
  CHECK(testing::eventually([&] { return bench.stays_empty == 2; }));
}

TEST_CASE("kick watch: a ring that has moved is not looked at any more") {
  Bench bench;
  bench.setup(true);
  bench.kick();
  bench.moves(1);
  bench.kick();
  bench.moves(0);  // 65536 buffers later
  for (int i = 0; i < 2 * budget::kicks_in_vain; ++i) bench.kick();
  bench.moves(7);
  bench.setup(true);
  bench.moves(0);
  for (int i = 0; i < 2 * budget::kicks_in_vain; ++i) bench.kick();
  bench.setup(true, false);
  bench.kick();
  CHECK(bench.stays_empty == 0);
}
