// SPDX-License-Identifier: BSD-3-Clause
#include "base/event_loop.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <array>
#include <atomic>
#include <exception>
#include <future>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/unique_fd.hpp"

namespace vhost_ioat {
namespace {

[[noreturn]] void throw_errno(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

/// The one loop of this process. Never destroyed: it must outlive every static object that holds a loop.
struct Registry {
  std::mutex mutex;
  std::weak_ptr<EventLoop> loop;
  std::atomic<uint32_t> forks{0};  // how often a fork made this process; a loop of an earlier count is the parent's
};

Registry& registry() {
  static Registry& one = []() -> Registry& {
    auto* made = new Registry;
    // The mutex is taken over the fork, so that the child does not inherit it locked by a thread that it lacks.
    pthread_atfork([] { registry().mutex.lock(); }, [] { registry().mutex.unlock(); },
                   [] {
                     registry().forks.fetch_add(1, std::memory_order_relaxed);
                     registry().mutex.unlock();
                   });
    return *made;
  }();
  return one;
}

class Loop final : public EventLoop {
 public:
  Loop();
  /// Of the last shared_ptr: ends the thread, from whichever thread lets go.
  static void end(Loop* loop);

  void post(Callback callback) override;
  void run(const Callback& callback) override;
  void add_fd(int fd, uint32_t epoll_events, FdCallback callback) override;
  void modify_fd(int fd, uint32_t epoll_events) override;
  void remove_fd(int fd) override;
  TimerId call_at(Clock::time_point when, Callback callback) override;
  void cancel(TimerId id) override;
  bool on_loop_thread() const override { return !forked() && std::this_thread::get_id() == thread_id_; }
  bool forked() const override { return registry().forks.load(std::memory_order_relaxed) != born_; }

 private:
  struct Watch {
    uint32_t generation;  // tells an fd from an earlier one of the same number
    std::shared_ptr<FdCallback> callback;
  };
  void thread_main();
  void dispatch(const epoll_event& event);
  void run_posted();
  void run_due_timers();
  void arm_timer();
  void control(int operation, int fd, uint32_t events, uint32_t generation);

  const uint32_t born_ = registry().forks.load(std::memory_order_relaxed);
  UniqueFd epoll_, wake_ = make_eventfd(), timer_;
  std::atomic<bool> ending_{false};
  bool delete_itself_ = false;  // the last user let go on the loop's own thread

  std::mutex mutex_;  // guards posted_
  std::vector<Callback> posted_;

  std::unordered_map<int, Watch> watches_;
  uint32_t generation_ = 0;
  std::map<std::pair<Clock::time_point, TimerId>, Callback> timers_;
  std::unordered_map<TimerId, Clock::time_point> deadlines_;
  TimerId last_timer_ = 0;
  Clock::time_point armed_ = Clock::time_point::max();  // what timer_ is set to

  std::thread thread_;
  std::thread::id thread_id_;
};

Loop::Loop() {
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) throw_errno("epoll_create1");
  timer_.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!timer_) throw_errno("timerfd_create");
  control(EPOLL_CTL_ADD, wake_.get(), EPOLLIN, 0);
  control(EPOLL_CTL_ADD, timer_.get(), EPOLLIN, 0);

  // Signals are for the program's own threads; but a fault must reach its handler on the thread that caused it.
  sigset_t blocked, before;
  sigfillset(&blocked);
  for (int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGSYS}) sigdelset(&blocked, fault);
  pthread_sigmask(SIG_SETMASK, &blocked, &before);
  try {
    thread_ = std::thread([this] { thread_main(); });
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  thread_id_ = thread_.get_id();
}

void Loop::end(Loop* loop) {
  // In a forked child thread and fds are the parent's: taking an fd out of the shared epoll would take it from there.
  if (loop->forked()) return;
  if (loop->on_loop_thread()) {
    loop->delete_itself_ = true;
    loop->thread_.detach();
    loop->ending_.store(true, std::memory_order_relaxed);
    return;
  }
  loop->ending_.store(true, std::memory_order_relaxed);  // the thread is woken and joined below: no order needed
  eventfd_signal(loop->wake_.get());
  loop->thread_.join();
  delete loop;
}

void Loop::thread_main() {
  pthread_setname_np(pthread_self(), "vhost_ioat");
  std::array<epoll_event, 64> events;
  while (!ending_.load(std::memory_order_relaxed)) {
    arm_timer();
    const int n = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), -1);
    for (int i = 0; i < n && !ending_.load(std::memory_order_relaxed); ++i) dispatch(events[static_cast<size_t>(i)]);
  }
  if (delete_itself_) delete this;
}

void Loop::dispatch(const epoll_event& event) {
  const int fd = static_cast<int>(event.data.u64 & 0xffffffff);
  if (fd == wake_.get()) return run_posted();
  if (fd == timer_.get()) return run_due_timers();
  const auto watch = watches_.find(fd);
  // An earlier callback of this round may have removed it, and even added another of the same number.
  if (watch == watches_.end() || watch->second.generation != event.data.u64 >> 32) return;
  const std::shared_ptr<FdCallback> callback = watch->second.callback;  // it may remove itself while it runs
  (*callback)(event.events);
}

void Loop::post(Callback callback) {
  if (forked()) return;
  {
    const std::lock_guard lock(mutex_);
    posted_.push_back(std::move(callback));
  }
  eventfd_signal(wake_.get());
}

void Loop::run(const Callback& callback) {
  if (forked()) return;
  if (on_loop_thread()) return callback();
  std::exception_ptr problem;
  const auto done = std::make_shared<std::promise<void>>();  // shared: the waiter may go on before set_value() returns
  post([&callback, &problem, done] {
    try {
      callback();
    } catch (...) {
      problem = std::current_exception();
    }
    done->set_value();
  });
  done->get_future().get();
  if (problem) std::rethrow_exception(problem);
}

void Loop::run_posted() {
  eventfd_clear(wake_.get());
  std::vector<Callback> batch;
  {
    const std::lock_guard lock(mutex_);
    batch.swap(posted_);
  }
  for (Callback& callback : batch) {
    if (ending_.load(std::memory_order_relaxed)) return;
    std::exchange(callback, nullptr)();
  }
}

void Loop::control(int operation, int fd, uint32_t events, uint32_t generation) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = static_cast<uint64_t>(generation) << 32 | static_cast<uint32_t>(fd);
  if (::epoll_ctl(epoll_.get(), operation, fd, &event) < 0) throw_errno("epoll_ctl");
}

void Loop::add_fd(int fd, uint32_t epoll_events, FdCallback callback) {
  if (forked()) return;
  control(EPOLL_CTL_ADD, fd, epoll_events, ++generation_);
  watches_[fd] = {generation_, std::make_shared<FdCallback>(std::move(callback))};
}

void Loop::modify_fd(int fd, uint32_t epoll_events) {
  if (forked()) return;
  control(EPOLL_CTL_MOD, fd, epoll_events, watches_.at(fd).generation);
}

void Loop::remove_fd(int fd) {
  if (forked() || watches_.erase(fd) == 0) return;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

EventLoop::TimerId Loop::call_at(Clock::time_point when, Callback callback) {
  if (forked()) return 0;
  const TimerId id = ++last_timer_;
  timers_.emplace(std::pair(when, id), std::move(callback));
  deadlines_.emplace(id, when);
  return id;
}

void Loop::cancel(TimerId id) {
  if (forked()) return;
  const auto deadline = deadlines_.find(id);
  if (deadline == deadlines_.end()) return;
  timers_.erase({deadline->second, id});
  deadlines_.erase(deadline);
}

/// Sets the timer fd to the first deadline; that also clears an expiry already taken, so nothing reads it.
void Loop::arm_timer() {
  const auto first = timers_.empty() ? Clock::time_point::max() : timers_.begin()->first.first;
  if (first == armed_) return;
  itimerspec spec{};
  if (first != Clock::time_point::max()) {
    // A time of zero would disarm it; steady_clock is CLOCK_MONOTONIC, where 1 ns is long past.
    const auto since = std::max(first.time_since_epoch(), Clock::duration(1));
    const auto seconds = std::chrono::floor<std::chrono::seconds>(since);
    spec.it_value.tv_sec = seconds.count();
    spec.it_value.tv_nsec = std::chrono::nanoseconds(since - seconds).count();
  }
  if (::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &spec, nullptr) < 0) throw_errno("timerfd_settime");
  armed_ = first;
}

void Loop::run_due_timers() {
  armed_ = Clock::time_point::min();  // expired: it must be set again, even to the same time
  const auto now = Clock::now();
  // Only those that were due when the round began: a callback that asks for "now" must not keep the sockets waiting.
  std::vector<std::pair<Clock::time_point, TimerId>> due;
  for (auto timer = timers_.begin(); timer != timers_.end() && timer->first.first <= now; ++timer) {
    due.push_back(timer->first);
  }
  for (const auto& key : due) {
    if (ending_.load(std::memory_order_relaxed)) return;
    auto timer = timers_.extract(key);
    if (timer.empty()) continue;  // cancelled by one before it
    deadlines_.erase(key.second);
    timer.mapped()();
  }
}

}  // namespace

std::shared_ptr<EventLoop> EventLoop::get() {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  std::shared_ptr<EventLoop> loop = all.loop.lock();
  if (!loop || loop->forked()) {
    loop = std::shared_ptr<Loop>(new Loop, &Loop::end);
    all.loop = loop;
  }
  return loop;
}

}  // namespace vhost_ioat
