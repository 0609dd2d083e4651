// SPDX-License-Identifier: BSD-3-Clause
#include <sys/epoll.h>
#include <sys/wait.h>

#include <chrono>
#include <filesystem>
#include <future>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/event_loop.hpp"
#include "base/unique_fd.hpp"
#include "doctest/doctest.h"
#include "open_fds.hpp"

using namespace std::chrono_literals;
using namespace vhost_ioat;
using Clock = EventLoop::Clock;

namespace {

size_t threads() {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/task"), {}));
}

}  // namespace

TEST_CASE("event loop: everybody gets the same loop, and it ends with the last user") {
  const size_t threads_before = threads(), fds_before = testing::open_fds();
  {
    const auto loop = EventLoop::get();
    CHECK(EventLoop::get() == loop);
    CHECK(threads() == threads_before + 1);
  }
  CHECK(threads() == threads_before);
  CHECK(testing::open_fds() == fds_before);
  CHECK_FALSE(EventLoop::get()->forked());  // and starts again
}

TEST_CASE("event loop: posted calls run in order, on its thread") {
  const auto loop = EventLoop::get();
  std::vector<int> order;
  std::thread::id where;
  for (int i = 0; i < 100; ++i) loop->post([&order, i] { order.push_back(i); });
  loop->run([&] {
    where = std::this_thread::get_id();
    CHECK(loop->on_loop_thread());
  });
  REQUIRE(order.size() == 100);
  for (int i = 0; i < 100; ++i) CHECK(order[static_cast<size_t>(i)] == i);
  CHECK(where != std::this_thread::get_id());
  CHECK_FALSE(loop->on_loop_thread());
}

TEST_CASE("event loop: run() throws what the callback throws, and is a plain call on the loop itself") {
  const auto loop = EventLoop::get();
  CHECK_THROWS_WITH_AS(loop->run([] { throw std::runtime_error("told"); }), "told", std::runtime_error);
  bool inner = false;
  loop->run([&] { loop->run([&] { inner = true; }); });
  CHECK(inner);
}

TEST_CASE("event loop: timers run once, by time, and not when cancelled") {
  const auto loop = EventLoop::get();
  std::vector<int> order;
  std::promise<void> last;
  const auto start = Clock::now();
  loop->run([&] {
    loop->call_at(start + 3ms, [&] { order.push_back(3); });
    loop->call_at(start + 500us, [&] { order.push_back(1); });
    const auto never = loop->call_at(start + 2ms, [&] { order.push_back(2); });
    loop->call_at(start + 1ms, [&, never] { loop->cancel(never); });
    loop->call_at(start + 5ms, [&] { last.set_value(); });
    loop->call_at(start - 1h, [&] { order.push_back(0); });
  });
  last.get_future().get();
  CHECK(Clock::now() - start >= 5ms);
  CHECK(order == std::vector<int>{0, 1, 3});
}

TEST_CASE("event loop: a timer that asks for itself again at once does not keep others waiting") {
  const auto loop = EventLoop::get();
  std::function<void()> again = [&] { loop->call_at(Clock::now(), again); };
  loop->run(again);
  bool ran = false;
  loop->run([&] {
    ran = true;
    again = [] {};
  });
  CHECK(ran);
  loop->run([] {});
}

TEST_CASE("event loop: an fd removed by an earlier callback of the same round is not called") {
  const auto loop = EventLoop::get();
  UniqueFd first = make_eventfd(), second = make_eventfd();
  int calls = 0;
  loop->run([&] {
    const auto only_one = [&](uint32_t) {
      ++calls;
      loop->remove_fd(first.get());
      loop->remove_fd(second.get());
    };
    loop->add_fd(first.get(), EPOLLIN, only_one);
    loop->add_fd(second.get(), EPOLLIN, only_one);
    eventfd_signal(first.get());
    eventfd_signal(second.get());
  });
  loop->run([] {});
  loop->run([] {});
  CHECK(calls == 1);
}

TEST_CASE("event loop: events asked for can be changed") {
  const auto loop = EventLoop::get();
  UniqueFd fd = make_eventfd();
  std::promise<uint32_t> seen;
  loop->run([&] {
    loop->add_fd(fd.get(), 0, [&](uint32_t events) {
      loop->remove_fd(fd.get());
      seen.set_value(events);
    });
    loop->modify_fd(fd.get(), EPOLLOUT);
  });
  CHECK(seen.get_future().get() == EPOLLOUT);
}

TEST_CASE("event loop: the last user may let go on the loop's own thread") {
  const size_t fds_before = testing::open_fds();
  auto loop = EventLoop::get();
  std::promise<void> gone;
  EventLoop* const raw = loop.get();
  raw->post([kept = std::move(loop), &gone]() mutable {
    kept.reset();
    gone.set_value();
  });
  gone.get_future().get();
  const auto deadline = Clock::now() + 10s;
  while (testing::open_fds() != fds_before && Clock::now() < deadline) std::this_thread::yield();
  CHECK(testing::open_fds() == fds_before);
}

#ifndef __SANITIZE_THREAD__  // it forbids new threads in a forked child
TEST_CASE("event loop: a forked child leaves the parent's loop alone and may have one of its own") {
  auto loop = EventLoop::get();
  UniqueFd fd = make_eventfd();
  std::promise<void> called;
  loop->run([&] {
    loop->add_fd(fd.get(), EPOLLIN, [&](uint32_t) {
      loop->remove_fd(fd.get());
      called.set_value();
    });
  });
  const pid_t child = ::fork();
  if (child == 0) {
    bool right = loop->forked() && !loop->on_loop_thread();
    loop->remove_fd(fd.get());
    loop->post([&] { right = false; });
    loop->run([&] { right = false; });
    right = right && loop->call_at(Clock::now(), [] {}) == 0;
    loop.reset();
    bool own = false;
    EventLoop::get()->run([&] { own = true; });
    ::_exit(right && own ? 0 : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  eventfd_signal(fd.get());  // still watched here
  called.get_future().get();
  CHECK_FALSE(loop->forked());
}
#endif
