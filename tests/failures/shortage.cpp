// SPDX-License-Identifier: BSD-3-Clause
// Stand-ins for operator new and the calls of libc that can run short. Each asks whether it is its turn to fail and
// goes on to what the dynamic linker would have found: libc's, or a sanitizer's.
#include "shortage.hpp"

#include <dlfcn.h>
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <new>

namespace vhost_ioat::testing {
namespace {

std::atomic<bool> armed{false};
std::atomic<uint64_t> seen{0};
std::atomic<uint64_t> first{0}, last{0};  // [first, last) fail
std::atomic<Shortages::Hit*> report{nullptr};
std::atomic<uint64_t> one_in{0}, seed{0};  // at random, when one_in is not 0
constinit thread_local bool own = false;
constinit thread_local bool inside = false;  // what the test itself calls on the way

bool is_products_thread() noexcept {
  char name[16] = {};
  ::prctl(PR_GET_NAME, name);
  return std::strncmp(name, "vhost_ioat", 10) == 0 || std::strcmp(name, "ioat-model") == 0;
}

/// Is it the turn of call `n`?
bool is_due(uint64_t n) noexcept {
  const uint64_t odds = one_in.load(std::memory_order_relaxed);
  if (odds == 0) return n >= first.load(std::memory_order_relaxed) && n < last.load(std::memory_order_relaxed);
  uint64_t dice = (n + 1) * 0x9e3779b97f4a7c15 + seed.load(std::memory_order_relaxed);  // splitmix64
  dice = (dice ^ dice >> 30) * 0xbf58476d1ce4e5b9;
  dice = (dice ^ dice >> 27) * 0x94d049bb133111eb;
  return (dice ^ dice >> 31) % odds == 0;
}

bool falls_short(Shortage kind) noexcept {
  if (!armed.load(std::memory_order_relaxed) || own || inside) return false;
  if (one_in.load(std::memory_order_relaxed) != 0 && !is_products_thread()) return false;
  if (!is_due(seen.fetch_add(1, std::memory_order_relaxed))) return false;
  if (Shortages::Hit* hit = report.load(std::memory_order_relaxed)) {
    if (__atomic_fetch_add(&hit->calls, 1, __ATOMIC_RELAXED) == 0) {
      inside = true;
      hit->kind = kind;
      hit->depth = ::backtrace(hit->frames, static_cast<int>(std::size(hit->frames)));
      inside = false;
    }
  }
  return true;
}

bool falls_short(Shortage kind, int error) noexcept {
  if (!falls_short(kind)) return false;
  errno = error;
  return true;
}

template <typename Function>
Function* next(const char* name, std::atomic<Function*>& known) noexcept {
  Function* function = known.load(std::memory_order_relaxed);
  if (!function) {
    function = reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
    known.store(function, std::memory_order_relaxed);
  }
  return function;
}

void* allocate(std::size_t size, std::size_t alignment) noexcept {
  if (falls_short(Shortage::memory)) return nullptr;
  if (size == 0) size = 1;
  if (alignment <= alignof(std::max_align_t)) return std::malloc(size);
  return std::aligned_alloc(alignment, (size + alignment - 1) & ~(alignment - 1));
}

void* allocate_or_throw(std::size_t size, std::size_t alignment) {
  if (void* made = allocate(size, alignment)) return made;
  throw std::bad_alloc();
}

}  // namespace

const char* name_of(Shortage kind) {
  constexpr const char* names[] = {
      "memory",    "mmap",         "madvise",   "memfd_create",    "ftruncate",    "epoll_create",
      "epoll_add", "epoll_modify", "eventfd",   "timerfd",         "timerfd_arm",  "duplicate",
      "socket",    "pipe",         "accept",    "connect",         "received_fds", "send",
      "open",      "stat",         "sigaction", "alternate_stack", "thread",       "none"};
  static_assert(std::size(names) == static_cast<size_t>(Shortage::count) + 1);
  return names[static_cast<size_t>(kind)];
}

void Shortages::arm(uint64_t n, uint64_t calls, Hit* hit) {
  seen = 0;
  first = n;
  last = calls > UINT64_MAX - n ? UINT64_MAX : n + calls;
  one_in = 0;
  report = hit;
  armed = true;
}

void Shortages::arm_at_random(uint64_t odds, uint64_t chosen_seed, Hit* hit) {
  seed = chosen_seed;
  one_in = odds;
  report = hit;
  armed = odds != 0;
}

uint64_t Shortages::disarm() {
  armed = false;
  return seen;
}

Shortages::Own::Own() : before_(own) { own = true; }
Shortages::Own::~Own() { own = before_; }
Shortages::Counted::Counted() : before_(own) { own = false; }
Shortages::Counted::~Counted() { own = before_; }

}  // namespace vhost_ioat::testing

using vhost_ioat::testing::falls_short;
using vhost_ioat::testing::Shortage;

void* operator new(std::size_t size) { return vhost_ioat::testing::allocate_or_throw(size, 0); }
void* operator new[](std::size_t size) { return vhost_ioat::testing::allocate_or_throw(size, 0); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return vhost_ioat::testing::allocate_or_throw(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return vhost_ioat::testing::allocate_or_throw(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return vhost_ioat::testing::allocate(size, 0); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return vhost_ioat::testing::allocate(size, 0);
}
void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return vhost_ioat::testing::allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return vhost_ioat::testing::allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* made) noexcept { std::free(made); }
void operator delete[](void* made) noexcept { std::free(made); }
void operator delete(void* made, std::size_t) noexcept { std::free(made); }
void operator delete[](void* made, std::size_t) noexcept { std::free(made); }
void operator delete(void* made, std::align_val_t) noexcept { std::free(made); }
void operator delete[](void* made, std::align_val_t) noexcept { std::free(made); }
void operator delete(void* made, std::size_t, std::align_val_t) noexcept { std::free(made); }
void operator delete[](void* made, std::size_t, std::align_val_t) noexcept { std::free(made); }

// Visible to the other libraries of the process, though everything else here is hidden: libstdc++ makes threads.
#pragma GCC visibility push(default)
#pragma GCC diagnostic ignored "-Wignored-attributes"  // of functions as template arguments
// NEXT(name) is what the dynamic linker finds after this program.
#define NEXT(name)                                                  \
  ([]() noexcept {                                                  \
    static constinit std::atomic<decltype(::name)*> known{nullptr}; \
    return vhost_ioat::testing::next(#name, known);                 \
  }())

extern "C" {

void* mmap(void* address, size_t size, int protection, int flags, int fd, off_t offset) noexcept {
  if (falls_short(Shortage::mmap, ENOMEM)) return MAP_FAILED;
  return NEXT(mmap)(address, size, protection, flags, fd, offset);
}
int madvise(void* address, size_t size, int advice) noexcept {
  return falls_short(Shortage::madvise, ENOMEM) ? -1 : NEXT(madvise)(address, size, advice);
}
int memfd_create(const char* name, unsigned flags) noexcept {
  return falls_short(Shortage::memfd_create, EMFILE) ? -1 : NEXT(memfd_create)(name, flags);
}
int ftruncate(int fd, off_t size) noexcept {
  return falls_short(Shortage::ftruncate, ENOSPC) ? -1 : NEXT(ftruncate)(fd, size);
}
int epoll_create1(int flags) noexcept {
  return falls_short(Shortage::epoll_create, EMFILE) ? -1 : NEXT(epoll_create1)(flags);
}
int epoll_ctl(int epoll, int operation, int fd, epoll_event* event) noexcept {
  if (operation == EPOLL_CTL_ADD && falls_short(Shortage::epoll_add, ENOSPC)) return -1;
  if (operation == EPOLL_CTL_MOD && falls_short(Shortage::epoll_modify, ENOMEM)) return -1;
  return NEXT(epoll_ctl)(epoll, operation, fd, event);
}
int eventfd(unsigned count, int flags) noexcept {
  return falls_short(Shortage::eventfd, EMFILE) ? -1 : NEXT(eventfd)(count, flags);
}
int timerfd_create(int clock, int flags) noexcept {
  return falls_short(Shortage::timerfd, EMFILE) ? -1 : NEXT(timerfd_create)(clock, flags);
}
int timerfd_settime(int fd, int flags, const itimerspec* wanted, itimerspec* before) noexcept {
  return falls_short(Shortage::timerfd_arm, ENOMEM) ? -1 : NEXT(timerfd_settime)(fd, flags, wanted, before);
}
int dup(int fd) noexcept { return falls_short(Shortage::duplicate, EMFILE) ? -1 : NEXT(dup)(fd); }
int fcntl(int fd, int command, ...) {
  va_list arguments;
  va_start(arguments, command);
  void* const argument = va_arg(arguments, void*);  // int or pointer: one register either way
  va_end(arguments);
  if ((command == F_DUPFD || command == F_DUPFD_CLOEXEC) && falls_short(Shortage::duplicate, EMFILE)) return -1;
  return NEXT(fcntl)(fd, command, argument);
}
int socket(int domain, int type, int protocol) noexcept {
  return falls_short(Shortage::socket, EMFILE) ? -1 : NEXT(socket)(domain, type, protocol);
}
int socketpair(int domain, int type, int protocol, int fds[2]) noexcept {
  return falls_short(Shortage::socket, EMFILE) ? -1 : NEXT(socketpair)(domain, type, protocol, fds);
}
int pipe2(int fds[2], int flags) noexcept { return falls_short(Shortage::pipe, EMFILE) ? -1 : NEXT(pipe2)(fds, flags); }
int accept4(int fd, sockaddr* address, socklen_t* size, int flags) {
  return falls_short(Shortage::accept, EMFILE) ? -1 : NEXT(accept4)(fd, address, size, flags);
}
int connect(int fd, const sockaddr* address, socklen_t size) {
  return falls_short(Shortage::connect, EAGAIN) ? -1 : NEXT(connect)(fd, address, size);
}
/// A kernel that finds no room for the fds of a message delivers its bytes and says MSG_CTRUNC (unix(7)).
ssize_t recvmsg(int fd, msghdr* message, int flags) {
  const ssize_t n = NEXT(recvmsg)(fd, message, flags);
  if (n < 0) return n;
  cmsghdr* const rights = CMSG_FIRSTHDR(message);
  if (!rights || rights->cmsg_level != SOL_SOCKET || rights->cmsg_type != SCM_RIGHTS) return n;
  if (!falls_short(Shortage::received_fds)) return n;
  for (size_t at = 0; at + sizeof(int) <= rights->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
    int received;
    std::memcpy(&received, CMSG_DATA(rights) + at, sizeof received);
    ::close(received);
  }
  message->msg_controllen = 0;
  message->msg_flags |= MSG_CTRUNC;
  return n;
}
ssize_t sendmsg(int fd, const msghdr* message, int flags) {
  return falls_short(Shortage::send, ENOBUFS) ? -1 : NEXT(sendmsg)(fd, message, flags);
}
int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = va_arg(arguments, mode_t);
  va_end(arguments);
  return falls_short(Shortage::open, EMFILE) ? -1 : NEXT(open)(path, flags, mode);
}
int fstat(int fd, struct stat* found) noexcept {
  return falls_short(Shortage::stat, ENOMEM) ? -1 : NEXT(fstat)(fd, found);
}
int fstatfs(int fd, struct statfs* found) noexcept {
  return falls_short(Shortage::stat, ENOMEM) ? -1 : NEXT(fstatfs)(fd, found);
}
// Sanitizers call these two for themselves, at each throw and at the end of each thread, and abort when they fail.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
int sigaction(int signal, const struct sigaction* wanted, struct sigaction* before) noexcept {
  return falls_short(Shortage::sigaction, ENOMEM) ? -1 : NEXT(sigaction)(signal, wanted, before);
}
int sigaltstack(const stack_t* wanted, stack_t* before) noexcept {
  return falls_short(Shortage::alternate_stack, ENOMEM) ? -1 : NEXT(sigaltstack)(wanted, before);
}
#endif
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* argument) noexcept {
  if (falls_short(Shortage::thread)) return EAGAIN;
  return NEXT(pthread_create)(thread, attributes, run, argument);
}

}  // extern "C"
#pragma GCC visibility pop
