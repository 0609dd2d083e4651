// SPDX-License-Identifier: BSD-3-Clause
#include <sys/epoll.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "base/event_loop.hpp"
#include "base/port_loop.hpp"
#include "base/unique_fd.hpp"
#include "doctest/doctest.h"
#include "open_fds.hpp"
#include "watchdog.hpp"

using namespace std::chrono_literals;
using namespace vhost_ioat;
using Clock = EventLoop::Clock;

TEST_CASE("event loop: everybody gets the same loop, and it ends with the last user") {
  const size_t fds_before = testing::open_fds_at_rest();
  {
    const auto loop = EventLoop::get();
    CHECK(EventLoop::get() == loop);
    CHECK(testing::threads() == testing::threads_at_start + 1);
  }
  CHECK(testing::eventually([] { return testing::threads() == testing::threads_at_start; }));
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
  const auto note = [&](int number) { return EventLoop::Callback([&order, number] { order.push_back(number); }); };
  EventLoop::Timer zero(loop, note(0)), one(loop, note(1)), two(loop, note(2)), three(loop, note(3));
  EventLoop::Timer cancels(loop, [&] { two.cancel(); }), ends(loop, [&] { last.set_value(); });
  loop->run([&] {
    three.arm(start + 1h);
    three.arm(start + 3ms);  // moves it
    one.arm(start + 500us);
    two.arm(start + 2ms);
    cancels.arm(start + 1ms);
    ends.arm(start + 5ms);
    zero.arm(start - 1h);
    CHECK(two.armed());
  });
  last.get_future().get();
  CHECK(Clock::now() - start >= 5ms);
  CHECK(order == std::vector<int>{0, 1, 3});
  loop->run([&] { CHECK_FALSE(two.armed()); });
}

TEST_CASE("event loop: a due timer may be cancelled, and any timer destroyed, by one before it") {
  const auto loop = EventLoop::get();
  int calls = 0;
  EventLoop::Timer second(loop, [&] { ++calls; });
  auto third = std::make_unique<EventLoop::Timer>(loop, [&] { ++calls; });
  std::unique_ptr<EventLoop::Timer> itself;
  EventLoop::Timer first(loop, [&] {
    second.cancel();
    third.reset();
  });
  itself = std::make_unique<EventLoop::Timer>(loop, [&] {
    itself.reset();
    ++calls;
  });
  std::promise<void> last;
  EventLoop::Timer ends(loop, [&] { last.set_value(); });
  loop->run([&] {
    const auto when = Clock::now();
    for (EventLoop::Timer* timer : {&first, &second, third.get(), itself.get(), &ends}) timer->arm(when);
  });
  last.get_future().get();
  loop->run([&] { CHECK(calls == 1); });
}

TEST_CASE("event loop: a timer that asks for itself again at once does not keep others waiting") {
  const auto loop = EventLoop::get();
  bool again = true;
  std::unique_ptr<EventLoop::Timer> timer;
  timer = std::make_unique<EventLoop::Timer>(loop, [&] {
    if (again) timer->arm(Clock::now());
  });
  EventLoop::Posted posted(loop, [&] {
    if (again) posted.post();
  });
  loop->run([&] {
    timer->arm(Clock::now());
    posted.post();
  });
  bool ran = false;
  loop->run([&] {
    ran = true;
    again = false;
  });
  CHECK(ran);
  loop->run([] {});
  loop->run([&] { timer.reset(); });
}

TEST_CASE("event loop: a call made ready is posted once, however often it is asked for, and may be withdrawn") {
  const auto loop = EventLoop::get();
  int calls = 0, never = 0;
  EventLoop::Posted call(loop, [&] { ++calls; });
  auto withdrawn = std::make_unique<EventLoop::Posted>(loop, [&] { ++never; });
  loop->run([&] {
    for (int i = 0; i < 3; ++i) {
      call.post();
      withdrawn->post();
    }
    withdrawn.reset();
  });
  loop->run([&] { CHECK(calls == 1); });
  call.post();
  loop->run([&] { CHECK(calls == 2); });
  CHECK(never == 0);
}

TEST_CASE("port loop: what a callback throws ends at the port's barrier, and the loop and its other users go on") {
  const auto loop = EventLoop::get();
  std::vector<std::string> told;
  const auto port = std::make_shared<PortLoop>(loop, [&](const char* what) { told.emplace_back(what); });
  UniqueFd fd = make_eventfd();
  eventfd_signal(fd.get());
  EventLoop::Timer timer(port, [] { throw std::bad_alloc(); });
  EventLoop::Posted posted(port, [] { throw std::system_error(EMFILE, std::generic_category(), "dup"); });
  std::promise<void> last;
  EventLoop::Timer ends(loop, [&] { last.set_value(); });
  port->run([&] {
    timer.arm(Clock::now());
    posted.post();
    port->post([] { throw 42; });  // NOLINT(bugprone-std-exception-baseclass): whatever it is
    port->add_fd(fd.get(), EPOLLIN, [&](uint32_t) {
      port->remove_fd(fd.get());
      throw std::runtime_error("fd");
    });
    ends.arm(Clock::now() + 1ms);
  });
  last.get_future().get();
  loop->run([] {});
  CHECK_THROWS_AS(port->run([] { throw std::runtime_error("the caller's"); }), std::runtime_error);
  std::ranges::sort(told);
  REQUIRE(told.size() == 4);
  CHECK(told[0] == "an exception of an unknown type");
  CHECK(told[1].find("dup") == 0);
  CHECK(told[2] == "fd");
  CHECK(told[3] == "std::bad_alloc");
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
  const size_t fds_before = testing::open_fds_at_rest();
  auto loop = EventLoop::get();
  std::promise<void> gone;
  EventLoop* const raw = loop.get();
  raw->post([kept = std::move(loop), &gone]() mutable {
    kept.reset();
    gone.set_value();
  });
  gone.get_future().get();
  CHECK(testing::eventually([&] { return testing::open_fds() == fds_before; }));
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
  EventLoop::Timer timer(loop, [] {});
  const pid_t child = ::fork();
  if (child == 0) {
    bool right = loop->forked() && !loop->on_loop_thread();
    loop->remove_fd(fd.get());
    loop->post([&] { right = false; });
    loop->run([&] { right = false; });
    timer.arm(Clock::now());
    right = right && !timer.armed();
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
