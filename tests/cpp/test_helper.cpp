// SPDX-License-Identifier: BSD-3-Clause
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <future>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/helper.hpp"
#include "base/latch.hpp"
#include "base/port_loop.hpp"
#include "doctest/doctest.h"
#include "open_fds.hpp"

using namespace vhost_ioat;

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;  // it starts threads in a forked child
#else
constexpr bool sanitized = false;
#endif

struct Call final : HelperJob {
  explicit Call(std::function<void()> made) : call(std::move(made)) {}
  void run() noexcept override { call(); }
  std::function<void()> call;
};

void add(HelperLane& lane, std::function<void()> call) { lane.add(*new Call(std::move(call))); }

void wait_until(const auto& condition) {
  while (!condition()) std::this_thread::yield();
}

}  // namespace

TEST_CASE("helper: the jobs of a lane are done in order, away from whoever added them") {
  const auto lane = HelperLane::create();
  std::vector<int> order;
  std::thread::id where;
  Latch done;
  for (int i = 0; i < 100; ++i) add(*lane, [&order, i] { order.push_back(i); });
  add(*lane, [&] {
    where = std::this_thread::get_id();
    done.open();
  });
  done.wait();
  REQUIRE(order.size() == 100);
  for (int i = 0; i < 100; ++i) CHECK(order[static_cast<size_t>(i)] == i);
  CHECK(where != std::this_thread::get_id());
}

TEST_CASE("helper: a lane whose job blocks keeps up no other lane") {
  std::vector<std::shared_ptr<HelperLane>> stuck;
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  std::atomic<int> blocked{0}, ended{0};
  for (int i = 0; i < 5; ++i) {
    stuck.push_back(HelperLane::create());
    add(*stuck.back(), [&] {
      ++blocked;
      released.wait();
      ++ended;
    });
  }
  wait_until([&] { return blocked == 5; });
  const auto lane = HelperLane::create();
  for (int i = 0; i < 10; ++i) {
    Latch done;
    add(*lane, [&] { done.open(); });
    done.wait();
  }
  CHECK(ended == 0);
  CHECK(stuck[0]->pending() == 1);
  stuck.clear();  // what waits is done all the same
  release.set_value();
  wait_until([&] { return ended == 5; });
}

TEST_CASE("helper: where no more threads can be had, the last one does nothing for lanes with fds" *
          doctest::skip(sanitized)) {
  const pid_t child = ::fork();
  if (child == 0) {
    Latch begun, mapped;
    std::promise<void> never;
    std::atomic<bool> closing{false};
    const auto stuck = HelperLane::create(1), next = HelperLane::create(1), memory = HelperLane::create();
    add(*stuck, [&] {
      begun.open();
      never.get_future().wait();
    });
    begun.wait();
    // From now on every attempt to start a thread fails, in all threads.
    sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAGAIN),
    };
    const sock_fprog program{std::size(filter), filter};
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0) ::_exit(2);
    add(*next, [&] { closing = true; });
    add(*memory, [&] { mapped.open(); });
    mapped.wait();
    ::_exit(closing ? 1 : 0);
  }
  int status = -1;
  CHECK(testing::eventually([&] { return ::waitpid(child, &status, WNOHANG) == child; }));
  if (status == -1) ::kill(child, SIGKILL);
  CHECK(status == 0);
}

TEST_CASE("helper: fds of a lane are closed by it, and counted until then") {
  const size_t fds = testing::open_fds_at_rest();
  const auto lane = HelperLane::create(3);
  std::promise<void> begun, release;
  add(*lane, [&begun, released = release.get_future().share()] {
    begun.set_value();
    released.wait();
  });
  begun.get_future().wait();  // what is closed before the job has begun need not wait for it
  CHECK(lane->pending() == 1);
  {
    std::vector<UniqueFd> received;
    for (int i = 0; i < 3; ++i) {
      REQUIRE(lane->has_room_for_fds(1));
      received.push_back(lane->adopt(make_eventfd().release()));
    }
    CHECK_FALSE(lane->has_room_for_fds(1));
    UniqueFd moved = std::move(received[0]);
    moved = std::move(received[1]);
    CHECK(testing::open_fds() == fds + 3);
  }
  release.set_value();
  wait_until([&] { return lane->pending() == 0; });
  CHECK(lane->has_room_for_fds(3));
  CHECK(testing::open_fds() == fds);
}

TEST_CASE("helper: a task tells the loop of its end and of what it threw, and can be started again") {
  const auto loop = EventLoop::get();
  std::vector<std::string> told;
  const auto port = std::make_shared<PortLoop>(loop, [&](const char* what) { told.emplace_back(what); });
  const auto lane = HelperLane::create();
  int runs = 0;
  std::promise<void> twice;
  std::unique_ptr<HelperTask> task;
  task = std::make_unique<HelperTask>(
      port,
      [&] {
        if (++runs == 2) throw std::runtime_error("the second time");
      },
      [&](const std::exception_ptr& problem) {
        CHECK_FALSE(task->running());
        if (!problem) return task->start(*lane);
        task.reset();  // from within
        twice.set_value();
        std::rethrow_exception(problem);
      });
  loop->run([&] { task->start(*lane); });
  twice.get_future().get();
  loop->run([&] { CHECK(told == std::vector<std::string>{"the second time"}); });
}

TEST_CASE("helper: a task that is given up ends by itself and tells nobody") {
  const auto loop = EventLoop::get();
  const auto lane = HelperLane::create();
  std::promise<void> release;
  std::atomic<bool> ended{false}, told{false};
  auto task = std::make_unique<HelperTask>(
      loop,
      [&, released = release.get_future().share()] {
        released.wait();
        ended = true;
      },
      [&](const std::exception_ptr&) { told = true; });
  loop->run([&] { task->start(*lane); });
  loop->run([&] { task.reset(); });
  release.set_value();
  wait_until([&] { return ended && lane->pending() == 0; });
  loop->run([] {});
  CHECK_FALSE(told);
}

#ifndef __SANITIZE_THREAD__
TEST_CASE("helper: a forked child leaves the parent's lanes alone and may have lanes of its own") {
  const auto lane = HelperLane::create(1);
  UniqueFd received = lane->adopt(make_eventfd().release());
  const pid_t child = ::fork();
  if (child == 0) {
    const int fd = received.get();
    received.reset();
    const bool left_open = ::fcntl(fd, F_GETFD) >= 0;
    const auto own = HelperLane::create();
    Latch done;
    add(*own, [&] { done.open(); });
    done.wait();
    ::_exit(left_open ? 0 : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}
#endif
