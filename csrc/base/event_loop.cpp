// SPDX-License-Identifier: BSD-3-Clause
#include "base/event_loop.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/fork_generation.hpp"
#include "base/latch.hpp"
#include "base/mutex.hpp"
#include "base/signals.hpp"
#include "base/thread_start.hpp"
#include "base/unique_fd.hpp"

namespace vhost_ioat {
namespace {

[[noreturn]] void throw_errno(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

/// Only for what no port can be blamed for, and without which none can be served.
[[noreturn]] void die(const char* what) noexcept {
  std::fprintf(stderr, "vhost_ioat: the control thread cannot continue: %s: %s\n", what, std::strerror(errno));
  std::abort();
}

/// The one loop of this process. Never destroyed: it must outlive every static object that holds a loop.
struct Registry {
  Mutex mutex;
  std::weak_ptr<EventLoop> loop GUARDED_BY(mutex);
};

Registry& registry() {
  static Registry& one = []() -> Registry& {
    auto* made = new Registry;
    // The mutex is taken over the fork, so that the child does not inherit it locked by a thread that it lacks.
    pthread_atfork([]() NO_THREAD_SAFETY_ANALYSIS { registry().mutex.lock(); },
                   []() NO_THREAD_SAFETY_ANALYSIS { registry().mutex.unlock(); },
                   []() NO_THREAD_SAFETY_ANALYSIS { registry().mutex.unlock(); });
    return *made;
  }();
  return one;
}

}  // namespace

class Loop final : public EventLoop {
 public:
  Loop();
  ~Loop() override;
  /// Of the last shared_ptr: ends the thread, from whichever thread lets go.
  static void end(Loop* loop);

  void post(Callback callback) override;
  void post(Posted& call) noexcept override;
  void run(const Callback& callback) override;
  void add_fd(int fd, uint32_t epoll_events, FdCallback callback) override REQUIRES(control_thread);
  void modify_fd(int fd, uint32_t epoll_events) override REQUIRES(control_thread);
  void remove_fd(int fd) noexcept override REQUIRES(control_thread);
  bool on_loop_thread() const noexcept override { return !forked() && std::this_thread::get_id() == thread_id_; }
  bool forked() const noexcept override { return fork_generation() != born_; }

 protected:
  void arm(Timer& timer, Clock::time_point when) noexcept override;
  void disarm(Timer& timer) noexcept override;
  void withdraw(Posted& call) noexcept override;

 private:
  struct Watch {
    uint32_t generation = 0;  // tells an fd from an earlier one of the same number
    std::shared_ptr<const FdCallback> callback;
  };
  void thread_main() noexcept;
  void dispatch(const epoll_event& event);
  void run_posted();
  void run_due_timers();
  int arm_timer_fd() noexcept;
  void control(int operation, int fd, uint32_t events, uint32_t generation);
  Posted* take_posted() noexcept;

  const uint32_t born_ = fork_generation();
  UniqueFd epoll_, wake_ = make_eventfd(), timer_;
  std::atomic<bool> ending_{false};
  bool delete_itself_ = false;  // the last user let go on the loop's own thread

  Mutex mutex_;
  Posted* first_posted_ GUARDED_BY(mutex_) = nullptr;  // calls that wait, linked by members that mutex_ guards as well
  Posted* last_posted_ GUARDED_BY(mutex_) = nullptr;

  std::unordered_map<int, Watch> watches_;
  uint32_t generation_ = 0;
  Timer::Queue timers_;
  Timer* first_due_ = nullptr;  // of this round
  Timer* last_due_ = nullptr;
  Clock::time_point armed_ = Clock::time_point::max();  // what timer_ is set to

  std::thread thread_;
  std::thread::id thread_id_;
};

EventLoop::Timer::Timer(std::shared_ptr<EventLoop> loop, Callback callback)
    : loop_(std::move(loop)), callback_(std::make_shared<const Callback>(loop_->guarded(std::move(callback)))) {
  Queue made;
  made.emplace(Clock::time_point(), this);
  node_ = made.extract(made.begin());
}

EventLoop::Posted::Posted(std::shared_ptr<EventLoop> loop, Callback callback)
    : loop_(std::move(loop)),
      callback_(std::make_shared<const Callback>(loop_ ? loop_->guarded(std::move(callback)) : std::move(callback))) {}

/// Borrows both, for as long as it lives.
EventLoop::Posted::Posted(EventLoop& loop, const Callback& callback) noexcept
    : loop_(std::shared_ptr<void>(), &loop), callback_(std::shared_ptr<void>(), &callback) {}

EventLoop::Posted::~Posted() {
  if (loop_) loop_->withdraw(*this);
}

Loop::Loop() {
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) throw_errno("epoll_create1");
  timer_.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!timer_) throw_errno("timerfd_create");
  control(EPOLL_CTL_ADD, wake_.get(), EPOLLIN, 0);
  control(EPOLL_CTL_ADD, timer_.get(), EPOLLIN, 0);
  const BlockSignals blocked;  // inherited by the thread
  thread_ = std::thread([this, reserve = ThrowReserve()]() mutable {
    reserve.ready();
    thread_main();
  });
  thread_id_ = thread_.get_id();
}

Loop::~Loop() {
  while (Posted* const call = take_posted()) {
    if (!call->loop_) delete call;
  }
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

void Loop::thread_main() noexcept {
  pthread_setname_np(pthread_self(), "vhost_ioat");
  std::array<epoll_event, 64> events;
  while (!ending_.load(std::memory_order_relaxed)) {
    const int n = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), arm_timer_fd());
    if (n < 0 && errno != EINTR) die("epoll_wait");
    if (n == 0) run_due_timers();
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
  const std::shared_ptr<const FdCallback> callback = watch->second.callback;  // it may remove itself while it runs
  (*callback)(event.events);
}

// --- Posted calls

void Loop::post(Callback callback) {
  if (forked()) return;
  post(*new Posted(nullptr, std::move(callback)));
}

void Loop::post(Posted& call) noexcept {
  if (forked()) return;
  {
    const MutexLock lock(mutex_);
    if (std::exchange(call.waits_, true)) return;
    call.next_ = nullptr;
    (last_posted_ ? last_posted_->next_ : first_posted_) = &call;
    last_posted_ = &call;
  }
  eventfd_signal(wake_.get());
}

void Loop::withdraw(Posted& call) noexcept {
  if (forked()) return;
  const MutexLock lock(mutex_);
  if (!std::exchange(call.waits_, false)) return;
  Posted* before = nullptr;
  for (Posted* one = first_posted_; one != &call; one = one->next_) before = one;
  (before ? before->next_ : first_posted_) = call.next_;
  if (last_posted_ == &call) last_posted_ = before;
}

EventLoop::Posted* Loop::take_posted() noexcept {
  const MutexLock lock(mutex_);
  Posted* const call = first_posted_;
  if (!call) return nullptr;
  first_posted_ = call->next_;
  if (!first_posted_) last_posted_ = nullptr;
  call->waits_ = false;
  return call;
}

/// Only those that waited when the round began: one that posts itself again must not keep the sockets waiting.
void Loop::run_posted() {
  eventfd_clear(wake_.get());
  Posted* last;
  {
    const MutexLock lock(mutex_);
    last = last_posted_;
  }
  bool more = last != nullptr;
  while (more && !ending_.load(std::memory_order_relaxed)) {
    Posted* const call = take_posted();
    if (!call) return;
    more = call != last;
    const std::shared_ptr<const Callback> callback = call->callback_;  // the call may destroy itself while it runs
    if (!call->loop_) delete call;
    (*callback)();
  }
  // `last` may have been withdrawn meanwhile; what is left then is taken up in the next round.
  const MutexLock lock(mutex_);
  if (first_posted_) eventfd_signal(wake_.get());
}

void Loop::run(const Callback& callback) {
  if (forked()) return;
  if (on_loop_thread()) return callback();
  // Nothing here allocates: who stops or closes a port must come through when there is no memory.
  struct Call {
    const Callback& callback;
    Latch done;
    std::exception_ptr problem;
  } call{callback, {}, {}};
  const Callback wrapped = [&call] {  // one pointer: std::function keeps it inside
    try {
      call.callback();
    } catch (...) {
      call.problem = std::current_exception();
    }
    call.done.open();
  };
  Posted posted(*this, wrapped);
  post(posted);
  call.done.wait();
  if (call.problem) std::rethrow_exception(call.problem);
}

// --- File descriptors

void Loop::control(int operation, int fd, uint32_t events, uint32_t generation) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = static_cast<uint64_t>(generation) << 32 | static_cast<uint32_t>(fd);
  if (::epoll_ctl(epoll_.get(), operation, fd, &event) < 0) throw_errno("epoll_ctl");
}

void Loop::add_fd(int fd, uint32_t epoll_events, FdCallback callback) {
  if (forked()) return;
  assert(on_loop_thread());
  Watch watch{++generation_, std::make_shared<const FdCallback>(std::move(callback))};
  const auto [place, made] = watches_.try_emplace(fd);
  if (!made) throw std::system_error(EEXIST, std::generic_category(), "an fd is already watched");
  try {
    control(EPOLL_CTL_ADD, fd, epoll_events, watch.generation);
  } catch (...) {
    watches_.erase(place);
    throw;
  }
  place->second = std::move(watch);
}

void Loop::modify_fd(int fd, uint32_t epoll_events) {
  if (forked()) return;
  assert(on_loop_thread());
  control(EPOLL_CTL_MOD, fd, epoll_events, watches_.at(fd).generation);
}

void Loop::remove_fd(int fd) noexcept {
  if (forked()) return;
  assert(on_loop_thread());
  if (watches_.erase(fd) == 0) return;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

// --- Timers

void Loop::arm(Timer& timer, Clock::time_point when) noexcept {
  if (forked()) return;
  assert(on_loop_thread());
  disarm(timer);
  timer.node_.key() = when;
  timer.place_ = timers_.insert(std::move(timer.node_));
  timer.state_ = Timer::State::armed;
}

void Loop::disarm(Timer& timer) noexcept {
  if (forked()) return;
  assert(timer.state_ == Timer::State::idle || on_loop_thread());
  if (timer.state_ == Timer::State::armed) timer.node_ = timers_.extract(timer.place_);
  if (timer.state_ == Timer::State::due) {
    (timer.due_previous_ ? timer.due_previous_->due_next_ : first_due_) = timer.due_next_;
    (timer.due_next_ ? timer.due_next_->due_previous_ : last_due_) = timer.due_previous_;
  }
  timer.state_ = Timer::State::idle;
}

/// Sets the timer fd to the first deadline; that also clears an expiry already taken, so nothing reads it.
int Loop::arm_timer_fd() noexcept {
  const auto first = timers_.empty() ? Clock::time_point::max() : timers_.begin()->first;
  if (first == armed_) return -1;
  itimerspec spec{};
  if (first != Clock::time_point::max()) {
    // A time of zero would disarm it; steady_clock is CLOCK_MONOTONIC, where 1 ns is long past.
    const auto since = std::max(first.time_since_epoch(), Clock::duration(1));
    const auto seconds = std::chrono::floor<std::chrono::seconds>(since);
    spec.it_value.tv_sec = seconds.count();
    spec.it_value.tv_nsec = std::chrono::nanoseconds(since - seconds).count();
  }
  if (::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &spec, nullptr) == 0) {
    armed_ = first;
    return -1;
  }
  // It may not fail by its manual. Should it, the wait itself ends in time, and an expiry already taken is cleared
  // here.
  eventfd_clear(timer_.get());
  armed_ = Clock::time_point::min();
  if (first == Clock::time_point::max()) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(first - Clock::now());
  return static_cast<int>(std::clamp<int64_t>(left.count(), 0, 1000));
}

void Loop::run_due_timers() {
  armed_ = Clock::time_point::min();  // expired: it must be set again, even to the same time
  const auto now = Clock::now();
  // Only those that were due when the round began: a callback that asks for "now" must not keep the sockets waiting.
  while (!timers_.empty() && timers_.begin()->first <= now) {
    Timer& timer = *timers_.begin()->second;
    timer.node_ = timers_.extract(timer.place_);
    timer.state_ = Timer::State::due;
    timer.due_previous_ = last_due_;
    timer.due_next_ = nullptr;
    (last_due_ ? last_due_->due_next_ : first_due_) = &timer;
    last_due_ = &timer;
  }
  while (first_due_ && !ending_.load(std::memory_order_relaxed)) {
    Timer& timer = *first_due_;
    disarm(timer);
    const std::shared_ptr<const Callback> callback = timer.callback_;
    (*callback)();
  }
}

std::shared_ptr<EventLoop> EventLoop::get() {
  Registry& all = registry();
  const MutexLock lock(all.mutex);
  std::shared_ptr<EventLoop> loop = all.loop.lock();
  if (!loop || loop->forked()) {
    loop = std::shared_ptr<Loop>(new Loop, &Loop::end);
    all.loop = loop;
  }
  return loop;
}

}  // namespace vhost_ioat
