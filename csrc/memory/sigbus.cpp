// SPDX-License-Identifier: BSD-3-Clause
#include "memory/sigbus.hpp"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <system_error>

#include "base/mutex.hpp"

namespace vhost_ioat::memory {

/// The signal handler reads these while other threads change others: `version` is odd during a change (a seqlock).
/// The handler may skip a range in change, since nobody touches that one yet or any more.
struct WatchedRange {
  std::atomic<uint32_t> version{0};
  std::atomic<uintptr_t> start{0};
  std::atomic<uintptr_t> size{0};  // 0: free
  std::atomic<uintptr_t> page_size{0};
  std::atomic<bool> torn{false};
  std::atomic<uintptr_t> spare{0};  // a mapping that the handler may give up, to have another one
};

namespace {

struct RangeChunk {
  std::array<WatchedRange, 256> ranges;
  std::atomic<RangeChunk*> next{nullptr};  // chunks are never freed: the handler may be walking
};

/// A handler that was replaced by the guard. Never freed, for the same reason.
struct Previous {
  struct sigaction action;
  const Previous* older;
};

RangeChunk first_chunk;
Mutex change_mutex;  // for changes only; the handler takes no lock
std::atomic<const Previous*> newest_previous{nullptr};
std::atomic<uint64_t> mended_count{0};

static_assert(std::atomic<uintptr_t>::is_always_lock_free && std::atomic<const Previous*>::is_always_lock_free);

/// The previous handler that runs now and its thread. faulthandler reinstates what it found and raises again, which may
/// be the guard: then the signal goes to the one before it, not round in circles.
std::atomic<pid_t> passing_thread{0};
std::atomic<const Previous*> passing_to{nullptr};
/// The thread that was let pass last, until a fault was mended.
std::atomic<pid_t> raised_by{0};

constexpr size_t page_size_of_spare = 4096;

/// A mapping to give up when there are too many for another one. Shared, so that the kernel does not make one of two.
uintptr_t make_spare() {
  void* spare = mmap(nullptr, page_size_of_spare, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (spare == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap of a spare page");
  return reinterpret_cast<uintptr_t>(spare);
}

void set_range(WatchedRange& range, uintptr_t start, uintptr_t size, uintptr_t page_size) {
  const uint32_t version = range.version.load(std::memory_order_relaxed);
  range.version.store(version + 1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);  // pairs with the acquire fence in mend()
  range.start.store(start, std::memory_order_relaxed);
  range.size.store(size, std::memory_order_relaxed);
  range.page_size.store(page_size, std::memory_order_relaxed);
  range.torn.store(false, std::memory_order_relaxed);
  range.version.store(version + 2, std::memory_order_release);  // pairs with the first load in mend()
}

/// Only what is async-signal-safe from here on.

bool replace(uintptr_t start, uintptr_t size) {
  return mmap(reinterpret_cast<void*>(start), size, PROT_READ | PROT_WRITE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
}

/// Truncation takes a file's end away, so everything from the faulting page to the end of the range is replaced: a
/// front end that truncates gigabytes costs one mapping and not one for each page.
bool mend(WatchedRange& range, uintptr_t address) {
  const uint32_t version = range.version.load(std::memory_order_acquire);
  const uintptr_t start = range.start.load(std::memory_order_relaxed);
  const uintptr_t size = range.size.load(std::memory_order_relaxed);
  const uintptr_t page_size = range.page_size.load(std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_acquire);  // pairs with the release fence in set_range()
  if (version % 2 || version != range.version.load(std::memory_order_relaxed)) return false;
  if (address < start || address - start >= size) return false;

  const uintptr_t page = address & ~(page_size - 1);
  range.torn.store(true, std::memory_order_relaxed);
  mended_count.fetch_add(1, std::memory_order_release);  // pairs with the load in times_mended(): torn is set before
  // There is no other way out: a process that is short of memory or mappings for a moment is given that moment.
  for (int tries = 0; tries < 64; ++tries) {
    if (replace(page, start + size - page)) return true;
    const uintptr_t spare = range.spare.exchange(0, std::memory_order_relaxed);
    if (spare != 0) munmap(reinterpret_cast<void*>(spare), page_size_of_spare);
  }
  return false;
}

bool mend_any(uintptr_t address) {
  for (RangeChunk* chunk = &first_chunk; chunk; chunk = chunk->next.load(std::memory_order_acquire)) {
    for (WatchedRange& range : chunk->ranges) {
      if (mend(range, address)) return true;
    }
  }
  return false;
}

bool any_watched() {
  for (RangeChunk* chunk = &first_chunk; chunk; chunk = chunk->next.load(std::memory_order_acquire)) {
    for (const WatchedRange& range : chunk->ranges)
      if (range.size.load(std::memory_order_relaxed) != 0) return true;
  }
  return false;
}

void die_by_default(int signal, const siginfo_t* info) {
  struct sigaction by_default{};
  by_default.sa_handler = SIG_DFL;
  sigaction(signal, &by_default, nullptr);
  if (info->si_code <= 0) raise(signal);  // sent, not a fault: nothing would fault again
}

void pass_on(int signal, siginfo_t* info, void* context) {
  const pid_t self = gettid();
  const bool nested = passing_thread.load(std::memory_order_relaxed) == self;
  const Previous* outer = nested ? passing_to.load(std::memory_order_relaxed) : nullptr;
  const Previous* previous = nested ? outer->older : newest_previous.load(std::memory_order_acquire);
  if (!previous || previous->action.sa_handler == SIG_DFL) return die_by_default(signal, info);
  if (previous->action.sa_handler == SIG_IGN) {
    if (info->si_code > 0) die_by_default(signal, info);  // the kernel does not let a fault be ignored either
    return;
  }
  passing_to.store(previous, std::memory_order_relaxed);
  passing_thread.store(self, std::memory_order_relaxed);
  if (previous->action.sa_flags & SA_SIGINFO) {
    previous->action.sa_sigaction(signal, info, context);
  } else {
    previous->action.sa_handler(signal);
  }
  passing_to.store(outer, std::memory_order_relaxed);
  if (!nested) passing_thread.store(0, std::memory_order_relaxed);
}

/// A handler that was installed after the guard, such as faulthandler's, may take a fault first, reinstate the guard
/// and raise the signal again, without the address. So what a thread sends itself, while there is something to mend, is
/// let pass once: if it was a fault, it comes again, and here.
bool raised_anew(const siginfo_t& info) {
  return info.si_code == SI_TKILL && info.si_pid == getpid() && any_watched() &&
         raised_by.exchange(gettid(), std::memory_order_relaxed) != gettid();
}

void on_sigbus(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  const bool fault = info->si_code > 0;  // else sent by kill(), and si_addr means nothing
  if (fault && mend_any(reinterpret_cast<uintptr_t>(info->si_addr))) {
    raised_by.store(0, std::memory_order_relaxed);
  } else if (fault || !raised_anew(*info)) {
    pass_on(signal, info, context);
  }
  errno = saved_errno;
}

}  // namespace

void ensure_sigbus_guard() {
  const MutexLock lock(change_mutex);
  struct sigaction now{};
  if (sigaction(SIGBUS, nullptr, &now) != 0) throw std::system_error(errno, std::generic_category(), "sigaction");
  if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_sigbus) return;

  const auto* before = newest_previous.load(std::memory_order_relaxed);
  newest_previous.store(new Previous{now, before}, std::memory_order_release);  // pairs with the load in pass_on()
  struct sigaction guard{};
  guard.sa_sigaction = on_sigbus;
  // NODEFER: a previous handler that raises the signal again expects to be interrupted by it.
  guard.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  if (sigaction(SIGBUS, &guard, nullptr) != 0) throw std::system_error(errno, std::generic_category(), "sigaction");
}

void unblock_sigbus() noexcept {
  sigset_t only;
  sigemptyset(&only);
  sigaddset(&only, SIGBUS);
  pthread_sigmask(SIG_UNBLOCK, &only, nullptr);
}

WatchedRange* watch_range(void* start, size_t size, size_t page_size) {
  const MutexLock lock(change_mutex);
  for (RangeChunk* chunk = &first_chunk;; chunk = chunk->next.load(std::memory_order_relaxed)) {
    for (WatchedRange& range : chunk->ranges) {
      if (range.size.load(std::memory_order_relaxed) != 0) continue;
      range.spare.store(make_spare(), std::memory_order_relaxed);  // ours alone until the range is set
      set_range(range, reinterpret_cast<uintptr_t>(start), size, page_size);
      return &range;
    }
    if (!chunk->next.load(std::memory_order_relaxed)) chunk->next.store(new RangeChunk, std::memory_order_release);
  }
}

void forget_range(WatchedRange* range) {
  const MutexLock lock(change_mutex);
  set_range(*range, 0, 0, 0);
  const uintptr_t spare = range->spare.exchange(0, std::memory_order_relaxed);
  if (spare != 0) munmap(reinterpret_cast<void*>(spare), page_size_of_spare);
}

const std::atomic<bool>& torn_flag(const WatchedRange* range) { return range->torn; }

uint64_t times_mended() noexcept { return mended_count.load(std::memory_order_acquire); }

}  // namespace vhost_ioat::memory
