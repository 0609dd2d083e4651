// SPDX-License-Identifier: BSD-3-Clause
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstddef>
#include <iterator>
#include <string>
#include <vector>

#include "base/helper.hpp"
#include "base/latch.hpp"
#include "base/peer_fd.hpp"
#include "base/unique_fd.hpp"
#include "crowd.hpp"
#include "doctest/doctest.h"
#include "watchdog.hpp"

using namespace vhost_ioat;
using Use = PeerFd::Use;
using Kind = PeerFd::Kind;
using Signalled = PeerFd::Signalled;

namespace {

struct Pair {
  UniqueFd read, write;
};

Pair make_pipe() {
  int fds[2];
  REQUIRE(::pipe2(fds, O_CLOEXEC) == 0);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

Pair make_sockets(int type) {
  int fds[2];
  REQUIRE(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) == 0);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

void set_blocking(int fd, bool blocking) {
  const int flags = ::fcntl(fd, F_GETFL);
  REQUIRE(::fcntl(fd, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK) == 0);
}

/// So full that one more write would wait, and blocking.
void fill(int fd) {
  set_blocking(fd, false);
  const uint64_t most = UINT64_MAX - 1;
  const std::vector<uint8_t> bytes(4096);
  if (::write(fd, &most, sizeof most) < 0) REQUIRE(errno == EAGAIN);
  if (PeerFd(fd, Use::signal).kind() != Kind::eventfd) {
    while (::write(fd, bytes.data(), bytes.size()) > 0) {
    }
    while (::write(fd, bytes.data(), 1) > 0) {
    }
  }
  set_blocking(fd, true);
}

bool readable(int fd) {
  pollfd watched{fd, POLLIN, 0};
  return ::poll(&watched, 1, 0) == 1;
}

/// Each test is run as the kernel is, and as one without the calls that never wait.
struct Kernels {
  explicit Kernels(bool old) { detail::pretend_old_kernel(old); }
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;
  ~Kernels() { detail::pretend_old_kernel(false); }
};

#define ON_EVERY_KERNEL                \
  for (const bool old : {false, true}) \
    if (const Kernels kernel(old); true)

}  // namespace

TEST_CASE("peer fd: eventfds, pipes and Unix sockets are known, without a look at /proc") {
  ON_EVERY_KERNEL {
    const UniqueFd event(::eventfd(0, EFD_CLOEXEC)), semaphore(::eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE));
    CHECK(PeerFd(event.get(), Use::signal).kind() == Kind::eventfd);
    CHECK(PeerFd(event.get(), Use::wait));
    CHECK(PeerFd(semaphore.get(), Use::signal));
    const Pair pipe = make_pipe();
    CHECK(PeerFd(pipe.write.get(), Use::signal).kind() == Kind::pipe);
    for (const int type : {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM}) {
      const Pair sockets = make_sockets(type);
      CHECK(PeerFd(sockets.write.get(), Use::signal).kind() == Kind::socket);
    }
    CHECK(PeerFd(-1, Use::signal).kind() == Kind::none);
    CHECK_FALSE(PeerFd(-1, Use::wait));
  }
}

TEST_CASE("peer fd: telling the kind takes no signal, adds none and changes no flag") {
  const UniqueFd event(::eventfd(5, EFD_CLOEXEC));
  const int flags = ::fcntl(event.get(), F_GETFL);
  CHECK(PeerFd(event.get(), Use::wait));
  CHECK(PeerFd(event.get(), Use::signal));
  CHECK(::fcntl(event.get(), F_GETFL) == flags);
  uint64_t count = 0;
  CHECK(::read(event.get(), &count, sizeof count) == sizeof count);
  CHECK(count == 5);
  CHECK_FALSE(readable(event.get()));
  const Kernels kernel(true);
  CHECK(PeerFd(event.get(), Use::wait));
  CHECK_FALSE(readable(event.get()));
}

TEST_CASE("peer fd: what is something else is of no use, says why, and is never written or read") {
  ON_EVERY_KERNEL {
    sigset_t none;
    ::sigemptyset(&none);
    char name[] = "/tmp/vhost_ioat_peer_fd_XXXXXX";
    const UniqueFd file(::mkostemp(name, O_CLOEXEC));
    ::unlink(name);
    const UniqueFd memory(::memfd_create("no eventfd", MFD_CLOEXEC));
    const UniqueFd fds[] = {
        UniqueFd(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC)),
        UniqueFd(::open("/dev/zero", O_RDWR | O_CLOEXEC)),
        UniqueFd(::open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC)),
        UniqueFd(::epoll_create1(EPOLL_CLOEXEC)),
        UniqueFd(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)),
        UniqueFd(::signalfd(-1, &none, SFD_CLOEXEC)),
        UniqueFd(::inotify_init1(IN_CLOEXEC)),
        UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)),
        UniqueFd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0)),
    };
    auto check = [](int fd) {
      CAPTURE(fd);
      for (const Use use : {Use::signal, Use::wait}) {
        PeerFd peer(fd, use);
        CHECK(peer.kind() == Kind::unusable);
        CHECK_FALSE(peer);
        CHECK(peer.fd() == -1);
        CHECK(std::string(peer.why()) != "");
        CHECK(peer.signal() == Signalled::nobody);
        CHECK_FALSE(peer.drain());
      }
    };
    for (const UniqueFd& fd : fds) {
      if (fd) check(fd.get());
    }
    check(file.get());
    check(memory.get());
    CHECK(::lseek(file.get(), 0, SEEK_END) == 0);
    CHECK(::lseek(memory.get(), 0, SEEK_END) == 0);
    check(99999);  // not open at all
  }
}

TEST_CASE("peer fd: only a name of a file, even of a pipe, is of no use") {
  char folder[] = "/tmp/vhost_ioat_fifo_XXXXXX";
  REQUIRE(::mkdtemp(folder) != nullptr);
  const std::string path = std::string(folder) + "/fifo";
  REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  const UniqueFd named(::open(path.c_str(), O_PATH | O_CLOEXEC)), opened(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  CHECK_FALSE(PeerFd(named.get(), Use::signal));
  PeerFd fifo(opened.get(), Use::signal);
  CHECK(fifo.signal() == Signalled::delivered);
  ::unlink(path.c_str());
  ::rmdir(folder);
}

TEST_CASE("peer fd: the reading end of a pipe cannot be written, and the reason says so") {
  const Pair pipe = make_pipe();
  const PeerFd call(pipe.read.get(), Use::signal);
  CHECK_FALSE(call);
  CHECK(std::string(call.why()) == "it is open for reading only");
}

TEST_CASE("peer fd: sockets and pipes are no kicks, since reading them may bring fds, or wait for a writer") {
  const Pair sockets = make_sockets(SOCK_STREAM), pipe = make_pipe();
  CHECK_FALSE(PeerFd(pipe.read.get(), Use::wait));
  CHECK_FALSE(PeerFd(sockets.read.get(), Use::wait));
}

TEST_CASE("peer fd: a signal is 8 bytes with the value 1, whatever carries it") {
  ON_EVERY_KERNEL {
    const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
    const Pair pipe = make_pipe(), stream = make_sockets(SOCK_STREAM), datagrams = make_sockets(SOCK_DGRAM),
               packets = make_sockets(SOCK_SEQPACKET);
    const std::array<std::pair<int, int>, 5> ends = {{{event.get(), event.get()},
                                                      {pipe.write.get(), pipe.read.get()},
                                                      {stream.write.get(), stream.read.get()},
                                                      {datagrams.write.get(), datagrams.read.get()},
                                                      {packets.write.get(), packets.read.get()}}};
    for (const auto& [ours, theirs] : ends) {
      PeerFd peer(ours, Use::signal);
      CHECK(peer.signal() == Signalled::delivered);
      REQUIRE(readable(theirs));
      uint64_t value = 0;
      CHECK(::read(theirs, &value, sizeof value) == sizeof value);
      CHECK(value == 1);
      CHECK_FALSE(readable(theirs));
    }
  }
}

TEST_CASE("peer fd: many signals from one thread, each adds one") {
  const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
  PeerFd peer(event.get(), Use::signal);
  for (int i = 0; i < 10000; ++i) REQUIRE(peer.signal() == Signalled::delivered);
  uint64_t count = 0;
  CHECK(::read(event.get(), &count, sizeof count) == sizeof count);
  CHECK(count == 10000);
}

TEST_CASE("peer fd: a peer that is full counts as told, and does not hold us though it made the fd blocking") {
  ON_EVERY_KERNEL {
    const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
    const Pair pipe = make_pipe(), stream = make_sockets(SOCK_STREAM), datagrams = make_sockets(SOCK_DGRAM),
               packets = make_sockets(SOCK_SEQPACKET);
    for (const int fd :
         {event.get(), pipe.write.get(), stream.write.get(), datagrams.write.get(), packets.write.get()}) {
      PeerFd peer(fd, Use::signal);
      fill(fd);
      CHECK(peer.signal() == Signalled::delivered);  // a watchdog ends the run if this waits
      CHECK(peer);
    }
  }
}

TEST_CASE("peer fd: an eventfd is signalled without a write, which could wait whatever was looked at before it") {
  const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
  const pid_t child = ::fork();
  if (child == 0) {
    PeerFd peer(event.get(), Use::signal);
    sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pwritev2, 0, 2),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args)),  // the fd: a sanitizer writes to others
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(event.get()), 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    const sock_fprog program{std::size(filter), filter};
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) ::_exit(2);
    ::_exit(peer.signal() == Signalled::delivered ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  CHECK(status == 0);
  CHECK(PeerFd(event.get(), Use::wait).drain());
}

TEST_CASE("peer fd: an eventfd never holds us, whatever its peer does to the flag and the counter meanwhile") {
  const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
  PeerFd peer(event.get(), Use::signal);
  const pid_t hostile = ::fork();
  if (hostile == 0) {  // fills the counter and takes the flag off, over and over
    for (;;) {
      uint64_t value = UINT64_MAX - 1;
      set_blocking(event.get(), false);
      (void)!::write(event.get(), &value, sizeof value);
      set_blocking(event.get(), true);
    }
  }
  for (int i = 0; i < 20000; ++i) {
    REQUIRE(peer.signal() == Signalled::delivered);
    if (i % 16 == 0) (void)peer.drain();
  }
  ::kill(hostile, SIGKILL);
  ::waitpid(hostile, nullptr, 0);
}

TEST_CASE("peer fd: a peer whose other end is gone fails once and raises no signal in anybody") {
  ON_EVERY_KERNEL {
    struct sigaction before{}, deadly{};
    deadly.sa_handler = SIG_DFL;
    REQUIRE(::sigaction(SIGPIPE, &deadly, &before) == 0);
    Pair pipe = make_pipe(), stream = make_sockets(SOCK_STREAM), datagrams = make_sockets(SOCK_DGRAM);
    pipe.read.reset();
    stream.read.reset();
    datagrams.read.reset();
    const UniqueFd alone(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    for (const int fd : {pipe.write.get(), stream.write.get(), datagrams.write.get(), alone.get()}) {
      PeerFd peer(fd, Use::signal);
      CHECK(peer);
      CHECK(peer.signal() == Signalled::failed);
      CHECK(peer.signal() == Signalled::nobody);
      CHECK_FALSE(peer);
    }
    sigset_t pending, blocked;
    ::sigpending(&pending);
    CHECK_FALSE(::sigismember(&pending, SIGPIPE));
    ::pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
    CHECK_FALSE(::sigismember(&blocked, SIGPIPE));
    REQUIRE(::sigaction(SIGPIPE, &before, nullptr) == 0);
  }
}

TEST_CASE("peer fd: a SIGPIPE that waits for the caller is left to it") {
  sigset_t pipe_signal, before, pending;
  ::sigemptyset(&pipe_signal);
  ::sigaddset(&pipe_signal, SIGPIPE);
  ::pthread_sigmask(SIG_BLOCK, &pipe_signal, &before);
  ::pthread_kill(::pthread_self(), SIGPIPE);
  Pair pipe = make_pipe();
  pipe.read.reset();
  PeerFd peer(pipe.write.get(), Use::signal);
  CHECK(peer.signal() == Signalled::failed);
  ::sigpending(&pending);
  CHECK(::sigismember(&pending, SIGPIPE));
  const timespec now{};
  ::sigtimedwait(&pipe_signal, nullptr, &now);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

TEST_CASE("peer fd: kicks are taken without waiting, and bounded") {
  ON_EVERY_KERNEL {
    const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
    PeerFd counter(event.get(), Use::wait);
    CHECK(!counter.drain());  // blocking, and empty
    const uint64_t three = 3;
    (void)!::write(event.get(), &three, sizeof three);
    CHECK(counter.drain());
    CHECK(!counter.drain());
  }
}

TEST_CASE("peer fd: a semaphore eventfd counts down, and shows what is left") {
  const UniqueFd event(::eventfd(2, EFD_CLOEXEC | EFD_SEMAPHORE));
  PeerFd kick(event.get(), Use::wait);
  CHECK(kick.drain());
  CHECK(readable(event.get()));
}

TEST_CASE("peer fd: a forked child signals, too") {
  const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
  PeerFd peer(event.get(), Use::signal);
  CHECK(peer.signal() == Signalled::delivered);
  const pid_t child = ::fork();
  if (child == 0) {
    PeerFd fresh(event.get(), Use::signal);
    ::_exit(peer.signal() == Signalled::delivered && fresh.signal() == Signalled::delivered ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  CHECK(status == 0);
  uint64_t count = 0;
  CHECK(::read(event.get(), &count, sizeof count) == sizeof count);
  CHECK(count == 3);
}

TEST_CASE("peer fd: a pipe is written by its lane, which alone waits for it") {
  const Pair pipe = make_pipe();
  const auto lane = HelperLane::create(8);
  struct Block final : HelperJob {
    Latch let_go;
    void run() noexcept override { let_go.wait(); }
    void dispose() noexcept override {}
  } block;
  lane->add(block);
  {
    PeerFd peer(pipe.write.get(), Use::signal);
    peer.signal_on(lane);
    for (int i = 0; i < 1000; ++i) CHECK(peer.signal() == Signalled::delivered);
    PeerFd copy = peer;  // of the same pipe
    CHECK(copy.signal() == Signalled::delivered);
  }
  CHECK_FALSE(readable(pipe.read.get()));  // none of them has waited
  block.let_go.open();
  CHECK(testing::eventually([&] { return readable(pipe.read.get()); }));
  CHECK(testing::eventually([&] { return lane->pending() == 0; }));
  uint64_t told[8];
  CHECK(::read(pipe.read.get(), told, sizeof told) == sizeof told[0]);  // and they were one
}

TEST_CASE("peer fd: no signal through a lane is lost") {
  const Pair pipe = make_pipe();
  const auto lane = HelperLane::create(8);
  PeerFd peer(pipe.write.get(), Use::signal);
  peer.signal_on(lane);
  for (int i = 0; i < 2000; ++i) {
    REQUIRE(peer.signal() == Signalled::delivered);
    pollfd told{pipe.read.get(), POLLIN, 0};
    REQUIRE(::poll(&told, 1, testing::watchdog_ms) == 1);
    uint8_t bytes[64];
    REQUIRE(::read(pipe.read.get(), bytes, sizeof bytes) > 0);
  }
}

TEST_CASE("peer fd: a lane says once that the other end of a pipe is gone") {
  Pair pipe = make_pipe();
  const auto lane = HelperLane::create(8);
  PeerFd peer(pipe.write.get(), Use::signal);
  peer.signal_on(lane);
  pipe.read.reset();
  CHECK(peer.signal() == Signalled::failed);
  CHECK(peer.signal() == Signalled::nobody);
}

TEST_CASE("peer fd: one for which very many wait is found out by what it costs, a quiet one never") {
  const UniqueFd event(::eventfd(0, EFD_NONBLOCK));
  PeerFd quiet(event.get(), Use::signal);
  for (int i = 0; i < 10000; ++i) REQUIRE(quiet.signal() == Signalled::delivered);
  CHECK_FALSE(quiet.costly());
  const Crowd crowd(event.get());
  for (int i = 0; i < budget::costly_wake_ups + 1; ++i)  // the first one is only suspicious
    CHECK(quiet.signal() == Signalled::delivered);
  CHECK(quiet.costly());
  PeerFd kick(event.get(), Use::wait);
  for (int i = 0; i < budget::costly_wake_ups + 1; ++i) {
    CHECK(kick.drain());
    const uint64_t one = 1;
    REQUIRE(::write(event.get(), &one, sizeof one) == sizeof one);
  }
  CHECK(kick.costly());
}
