// SPDX-License-Identifier: BSD-3-Clause
#include "base/helper.hpp"

#include <pthread.h>
#include <sys/socket.h>

#include <chrono>
#include <condition_variable>
#include <system_error>
#include <thread>
#include <utility>

#include "base/fork_generation.hpp"
#include "base/signals.hpp"
#include "base/thread_start.hpp"

namespace vhost_ioat {

namespace {
constexpr auto idle_time = std::chrono::seconds(5);          // after it, a thread that nobody needs ends
constexpr auto retry_time = std::chrono::milliseconds(100);  // before another try to start one
}  // namespace

/// The helper threads of this process. Never destroyed: a thread may be stuck in a job when the process ends.
class HelperThreads {
 public:
  static HelperThreads& get() {
    static HelperThreads* one = new HelperThreads;
    // A forked child has none of the threads, and perhaps a mutex that one of them held: it begins anew.
    static uint32_t born = fork_generation();
    if (born != fork_generation()) {
      born = fork_generation();
      one = new HelperThreads;
    }
    return *one;
  }

  /// Makes sure that there is a thread as long as the lane lives.
  void admit_lane() {
    const MutexLock lock(mutex_);
    if (threads_ == 0) start();
    ++lanes_;
  }
  void dismiss_lane() noexcept {
    const MutexLock lock(mutex_);
    if (--lanes_ == 0) work_.notify_all();
  }

  void schedule(HelperLane& lane) noexcept {
    const MutexLock lock(mutex_);
    append(lane);
    if (waiting_ == 0) try_start();  // no other could be had when the last one began its job
    work_.notify_one();
  }

 private:
  void append(HelperLane& lane) noexcept REQUIRES(mutex_) {
    lane.next_scheduled_ = nullptr;
    (last_ ? last_->next_scheduled_ : first_) = &lane;
    last_ = &lane;
  }

  void start() REQUIRES(mutex_) {
    const BlockSignals blocked;  // inherited by the thread
    std::thread([this, reserve = ThrowReserve()]() mutable {
      reserve.ready();
      serve();
    }).detach();
    ++threads_;
    ++waiting_;
  }

  void try_start() noexcept REQUIRES(mutex_) {
    try {
      start();
    } catch (const std::exception&) {
      // No more threads are to be had.
    }
  }

  /// The next lane. With `last`, no other thread is left to serve the rest: then none on which peers' files are closed,
  /// as that may never end, and one peer would keep all others from having their memory mapped.
  HelperLane* take(bool last) noexcept REQUIRES(mutex_) {
    HelperLane* before = nullptr;
    for (HelperLane* lane = first_; lane; before = std::exchange(lane, lane->next_scheduled_)) {
      if (last && lane->most_fds_ != 0) continue;
      (before ? before->next_scheduled_ : first_) = lane->next_scheduled_;
      if (last_ == lane) last_ = before;
      return lane;
    }
    return nullptr;
  }

  void serve() noexcept {
    pthread_setname_np(pthread_self(), "vhost_ioat-help");
    const MutexLock lock(mutex_);
    for (;;) {
      // The last thread stays while there are lanes: it may not be possible to start another one.
      while (!first_ && (lanes_ != 0 || waiting_ != threads_)) {
        const auto end = std::chrono::steady_clock::now() + idle_time;
        if (mutex_.wait_until(work_, end) == std::cv_status::timeout && waiting_ > 1 && !first_) break;
      }
      if (!first_) {
        --waiting_;
        --threads_;
        return;
      }
      if (waiting_ == 1) try_start();  // so that the next lane need not wait for this one's job
      HelperLane* const lane = take(waiting_ == 1 && threads_ > 1);
      if (!lane) {
        mutex_.wait_until(work_, std::chrono::steady_clock::now() + retry_time);
        continue;
      }
      --waiting_;
      mutex_.unlock();
      std::shared_ptr<HelperLane> through = lane->do_one();
      const bool more = !through;
      through.reset();  // may be the end of the lane, which locks
      mutex_.lock();
      ++waiting_;
      if (!more) continue;
      append(*lane);
      work_.notify_one();
    }
  }

  Mutex mutex_;  // taken after that of a lane
  std::condition_variable work_;
  HelperLane* first_ GUARDED_BY(mutex_) = nullptr;  // lanes with jobs that no thread is at
  HelperLane* last_ GUARDED_BY(mutex_) = nullptr;
  size_t lanes_ GUARDED_BY(mutex_) = 0, threads_ GUARDED_BY(mutex_) = 0, waiting_ GUARDED_BY(mutex_) = 0;
};

HelperLane::HelperLane(size_t most_fds) : born_(fork_generation()), most_fds_(most_fds) {
  to_close_.reserve(most_fds);
  HelperThreads::get().admit_lane();
}

std::shared_ptr<HelperLane> HelperLane::create(size_t most_fds) {
  return std::shared_ptr<HelperLane>(new HelperLane(most_fds));
}

HelperLane::~HelperLane() {
  if (born_ == fork_generation()) HelperThreads::get().dismiss_lane();
}

void HelperLane::schedule() noexcept {
  if (std::exchange(scheduled_, true)) return;
  kept_ = weak_from_this().lock();  // empty when this is the destructor's doing, which has nothing left to do
  if (kept_) HelperThreads::get().schedule(*this);
}

void HelperLane::add(HelperJob& job) noexcept {
  if (born_ != fork_generation()) return;
  const MutexLock lock(mutex_);
  job.next_ = nullptr;
  (last_ ? last_->next_ : first_) = &job;
  last_ = &job;
  ++pending_;
  schedule();
}

void HelperLane::close_later(int fd) noexcept {
  if (born_ != fork_generation()) return;
  const MutexLock lock(mutex_);
  to_close_.push_back(fd);  // there is room: adopt() has seen to it
  ++pending_;
  schedule();
}

size_t HelperLane::pending() const noexcept {
  const MutexLock lock(mutex_);
  return pending_;
}

bool HelperLane::has_room_for_fds(size_t n) const noexcept {
  const MutexLock lock(mutex_);
  return fds_ + n <= most_fds_;
}

UniqueFd HelperLane::adopt(int fd) noexcept {
  const MutexLock lock(mutex_);
  ++fds_;
  return UniqueFd(fd, shared_from_this());
}

void HelperLane::end_connection(UniqueFd socket) noexcept {
  if (born_ != fork_generation()) {  // a child closes its copy, and ends nothing
    UniqueFd(socket.release()).reset();
  } else if (socket) {
    ::shutdown(socket.get(), SHUT_RDWR);  // from now on nothing comes
    if (!socket.closer()) socket = adopt(socket.release());
  }
}

/// One job, or the closing of one fd. Returns the lane when that was the last.
std::shared_ptr<HelperLane> HelperLane::do_one() noexcept {
  const MutexLock lock(mutex_);
  if (!to_close_.empty()) {
    const int fd = to_close_.back();
    to_close_.pop_back();
    mutex_.unlock();
    ::close(fd);
    mutex_.lock();
    --fds_;
  } else if (HelperJob* const job = first_) {
    first_ = job->next_;
    if (!first_) last_ = nullptr;
    mutex_.unlock();
    job->run();
    job->dispose();
    mutex_.lock();
  }
  if (--pending_ != 0) return nullptr;
  scheduled_ = false;
  return std::move(kept_);
}

// --- Tasks

struct HelperTask::State final : HelperJob {
  State(std::shared_ptr<EventLoop> loop, std::function<void()> work_of, std::function<void(std::exception_ptr)> done_of)
      : work(std::move(work_of)), done(std::move(done_of)), ended(std::move(loop), [this] { finish(); }) {}

  void run() noexcept override {
    try {
      work();
    } catch (...) {
      problem = std::current_exception();
    }
  }
  void dispose() noexcept override { ended.post(); }
  void finish() {
    const std::shared_ptr<State> kept = std::move(self);
    running = false;
    if (wanted) done(std::exchange(problem, nullptr));
  }

  const std::function<void()> work;
  const std::function<void(std::exception_ptr)> done;
  std::exception_ptr problem;
  bool running = false, wanted = true;  // used on the loop
  std::shared_ptr<State> self;          // while it runs
  EventLoop::Posted ended;
};

HelperTask::HelperTask(std::shared_ptr<EventLoop> loop, std::function<void()> work,
                       std::function<void(std::exception_ptr)> done)
    : state_(std::make_shared<State>(std::move(loop), std::move(work), std::move(done))) {}

HelperTask::~HelperTask() { state_->wanted = false; }

void HelperTask::start(HelperLane& lane) noexcept {
  state_->running = true;
  state_->self = state_;
  lane.add(*state_);
}

bool HelperTask::running() const noexcept { return state_->running; }

}  // namespace vhost_ioat
