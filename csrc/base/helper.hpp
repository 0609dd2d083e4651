// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <vector>

#include "base/event_loop.hpp"
#include "base/mutex.hpp"
#include "base/unique_fd.hpp"

namespace vhost_ioat {

/// Something that may block: closing what a peer sent, mapping and unmapping memory, stopping a device.
class HelperJob {
 public:
  virtual ~HelperJob() = default;
  /// On a helper thread.
  virtual void run() noexcept = 0;
  /// After run(), on the same thread: the job is not used any more.
  virtual void dispose() noexcept { delete this; }

 private:
  friend class HelperLane;
  HelperJob* next_ = nullptr;
};

/// A line of jobs for the helper threads, done one after the other; a port has some of its own.
///
/// One helper thread serves the process. It has another one wait beside it before it begins a job, so a job that blocks
/// keeps up its own lane and no other. Where no more threads can be had, the last one leaves alone what lanes with fds
/// have to do, and one is tried for again and again. Threads that nobody needs end. What a lane holds is bounded by
/// whoever fills it: pending() says how much waits, and a port asks its peer for no more while that is a lot.
///
/// Any thread may add to a lane; nothing of that can fail or wait. A lane is let go of by dropping it: jobs that wait
/// are still done. In a forked child, which has no helper threads, jobs are kept undone and fds open.
class HelperLane final : public FdCloser, public std::enable_shared_from_this<HelperLane> {
 public:
  /// `most_fds`: how many fds may belong to this lane, see adopt(). Throws std::bad_alloc, and std::system_error when
  /// not one helper thread can be had.
  static std::shared_ptr<HelperLane> create(size_t most_fds = 0);
  ~HelperLane() override;

  void add(HelperJob& job) noexcept;
  /// Jobs and fds that wait or are being done.
  size_t pending() const noexcept;

  /// May `n` more fds be adopted?
  bool has_room_for_fds(size_t n) const noexcept;
  /// The fd will be closed by this lane. There must be room.
  UniqueFd adopt(int fd) noexcept;
  void close_later(int fd) noexcept override;
  /// Ends a connection, and closes the socket on this lane: in what nobody has read of it fds may wait, and end with
  /// it. Unless it was adopted, there must be room.
  void end_connection(UniqueFd socket) noexcept;

 private:
  friend class HelperThreads;  // of which the mutex guards next_scheduled_
  explicit HelperLane(size_t most_fds);
  void schedule() noexcept REQUIRES(mutex_);
  std::shared_ptr<HelperLane> do_one() noexcept;

  const uint32_t born_;
  mutable Mutex mutex_;
  HelperJob* first_ GUARDED_BY(mutex_) = nullptr;
  HelperJob* last_ GUARDED_BY(mutex_) = nullptr;
  size_t pending_ GUARDED_BY(mutex_) = 0;
  std::vector<int> to_close_ GUARDED_BY(mutex_);  // room for most_fds
  const size_t most_fds_;
  size_t fds_ GUARDED_BY(mutex_) = 0;                    // adopted and not closed yet
  bool scheduled_ GUARDED_BY(mutex_) = false;            // known to the threads
  std::shared_ptr<HelperLane> kept_ GUARDED_BY(mutex_);  // itself, while it is scheduled
  HelperLane* next_scheduled_ = nullptr;                 // guarded by the threads' mutex
};

/// Work for a helper thread whose end the control thread is told of. Made ready beforehand and used again and again;
/// start() cannot fail.
class HelperTask {
 public:
  /// `work` runs on a helper thread and may throw; `done` runs on the loop with what it threw.
  HelperTask(std::shared_ptr<EventLoop> loop, std::function<void()> work, std::function<void(std::exception_ptr)> done);
  HelperTask(const HelperTask&) = delete;
  HelperTask& operator=(const HelperTask&) = delete;
  /// On the loop. Work that is still at it goes on without being waited for, and nobody is told of its end: so it must
  /// own what it uses.
  ~HelperTask();

  void start(HelperLane& lane) noexcept;
  bool running() const noexcept;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace vhost_ioat
