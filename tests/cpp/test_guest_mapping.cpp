// SPDX-License-Identifier: BSD-3-Clause
#include <fcntl.h>
#include <linux/memfd.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "base/unique_fd.hpp"
#include "doctest/doctest.h"
#include "memory/guest_mapping.hpp"
#include "memory/sigbus.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::memory;

namespace {

// Sanitizers answer deadly signals themselves, so how a process dies is to be seen without them only.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif

const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));

UniqueFd memory_file(size_t size) {
  UniqueFd fd(memfd_create("test", MFD_CLOEXEC));
  REQUIRE(ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
  return fd;
}

/// Lines of /proc/self/maps that name our test file.
int mappings_of(const std::string& name) {
  std::ifstream maps("/proc/self/maps");
  int n = 0;
  for (std::string line; std::getline(maps, line);) n += line.find(name) != std::string::npos;
  return n;
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

/// Runs `body` in a forked child and returns its wait status.
int in_child(const std::function<void()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // a fault that comes again and again would never end
    body();
    _exit(0);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return status;
}

/// Touches a mapping of a truncated file that is no guest memory.
void foreign_fault() {
  const UniqueFd fd = memory_file(page);
  auto* p = static_cast<volatile char*>(mmap(nullptr, page, PROT_READ, MAP_SHARED, fd.get(), 0));
  (void)!ftruncate(fd.get(), 0);
  (void)*p;
}

void exit_7(int) { _exit(7); }

/// Does what Python's faulthandler does: puts back what it found and raises again.
struct sigaction found_by_restorer;
void restore_and_raise(int signal) {
  sigaction(signal, &found_by_restorer, nullptr);
  raise(signal);
}

void set_handler(void (*handler)(int)) {
  struct sigaction action{};
  action.sa_handler = handler;
  action.sa_flags = SA_NODEFER;
  sigaction(SIGBUS, &action, handler == restore_and_raise ? &found_by_restorer : nullptr);
}

}  // namespace

TEST_CASE("a mapping shows its part of the file, whatever the offset, and goes with its last user") {
  const UniqueFd fd = memory_file(4 * page);
  auto whole = GuestMapping::from_fd(fd.get(), 0, 4 * page);
  auto part = GuestMapping::from_fd(fd.get(), page + 24, page);
  std::memcpy(whole->data() + page + 24, "hello", 5);
  CHECK(std::memcmp(part->data(), "hello", 5) == 0);
  CHECK(part->size() == page);
  CHECK(mappings_of("/memfd:test") == 2);
  part.reset();
  CHECK(mappings_of("/memfd:test") == 1);
  whole.reset();
  CHECK(mappings_of("/memfd:test") == 0);
}

TEST_CASE("a region that its file does not hold is refused") {
  const UniqueFd fd = memory_file(4 * page);
  CHECK_THROWS_AS(GuestMapping::from_fd(fd.get(), 0, 4 * page + 1), Error);
  CHECK_THROWS_AS(GuestMapping::from_fd(fd.get(), 4 * page, 1), Error);
  CHECK_THROWS_AS(GuestMapping::from_fd(fd.get(), UINT64_MAX - 10, 20), Error);
  CHECK_THROWS_AS(GuestMapping::from_fd(fd.get(), 20, UINT64_MAX - 10), Error);
  CHECK_THROWS_AS(GuestMapping::from_fd(fd.get(), 0, 0), Error);
  CHECK(message_of([&] { GuestMapping::from_fd(fd.get(), page, 4 * page); }).find("ends beyond its file") !=
        std::string::npos);
}

TEST_CASE("memory that cannot be shared is told from what is wrong, with its reason and a hint") {
  const auto reason = [](int fd) {
    try {
      GuestMapping::from_fd(fd, 0, page);
    } catch (const NotShared& why) {
      return std::string(why.what());
    }
    return std::string();
  };
  const UniqueFd disk(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)), event = make_eventfd();
  const UniqueFd zero(open("/dev/zero", O_RDWR | O_CLOEXEC)), folder(open("/dev/shm", O_RDONLY | O_CLOEXEC));
  CHECK(reason(disk.get()).find("memory-backend-memfd") != std::string::npos);
  for (const int fd : {event.get(), zero.get(), -1}) {
    CHECK(message_of([&] { GuestMapping::from_fd(fd, 0, page); }).find("not a regular file") != std::string::npos);
  }
  const UniqueFd file = memory_file(page);
  const std::string path = format("/proc/self/fd/%d", file.get());
  const UniqueFd rom(open(path.c_str(), O_RDONLY | O_CLOEXEC)), name(open(path.c_str(), O_PATH | O_CLOEXEC));
  CHECK(reason(rom.get()) == "its fd is open for reading only, like that of a ROM");
  CHECK(reason(name.get()).find("memory-backend-memfd") != std::string::npos);

  const UniqueFd sealed(memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(ftruncate(sealed.get(), static_cast<off_t>(page)) == 0);
  REQUIRE(fcntl(sealed.get(), F_ADD_SEALS, F_SEAL_WRITE) == 0);
  CHECK(reason(sealed.get()) == "its file is sealed against writing");
  const UniqueFd later(memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(ftruncate(later.get(), static_cast<off_t>(page)) == 0);
  if (fcntl(later.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0) {
    CHECK(reason(later.get()) == "its file is sealed against writing");
  }
  CHECK(reason(file.get()) == "");
  CHECK_THROWS_AS(GuestMapping::from_fd(folder.get(), 0, page), std::exception);
}

TEST_CASE("huge pages are mapped whole, and torn ones mended") {
  const size_t huge = size_t{2} << 20;
  const UniqueFd fd(memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB));
  if (!fd || ftruncate(fd.get(), static_cast<off_t>(2 * huge)) != 0) return;  // this kernel has none
  auto mapping = GuestMapping::from_fd(fd.get(), huge + 4096, 4096);
  CHECK(mapping->size() == 4096);
  REQUIRE(ftruncate(fd.get(), 0) == 0);
  CHECK(mapping->data()[0] == 0);
  CHECK(mapping->torn());
}

TEST_CASE("a front end's own memory is a file that can be sent") {
  auto mapping = GuestMapping::memfd(3 * page);
  mapping->data()[5] = 42;
  auto other_side = GuestMapping::from_fd(mapping->fd(), 0, 3 * page);
  CHECK(other_side->data()[5] == 42);
}

TEST_CASE("a page whose file was truncated reads as zeros and can be written, and the mapping says so") {
  const UniqueFd fd = memory_file(8 * page);
  auto mapping = GuestMapping::from_fd(fd.get(), 0, 8 * page);
  auto bystander = GuestMapping::from_fd(fd.get(), 0, page);
  std::memset(mapping->data(), 0xee, 8 * page);
  REQUIRE(ftruncate(fd.get(), static_cast<off_t>(page)) == 0);
  CHECK_FALSE(mapping->torn());
  CHECK(mapping->data()[3 * page + 7] == 0);
  CHECK(mapping->torn());
  mapping->data()[7 * page] = 1;          // mended in the same go
  mapping->data()[page] = 2;              // another fault, below the first
  CHECK(mapping->data()[7 * page] == 0);  // and that mended all behind it again
  CHECK(mapping->data()[0] == 0xee);      // what the file still has stays shared
  CHECK_FALSE(bystander->torn());
  CHECK(bystander->data()[0] == 0xee);
}

TEST_CASE("many mappings are watched at once, and a place in the table is used again") {
  const UniqueFd fd = memory_file(page);
  std::vector<std::shared_ptr<GuestMapping>> mappings;
  for (int i = 0; i < 600; ++i) mappings.push_back(GuestMapping::from_fd(fd.get(), 0, page));
  REQUIRE(ftruncate(fd.get(), 0) == 0);
  CHECK(mappings[0]->data()[0] == 0);
  CHECK(mappings[599]->data()[0] == 0);
  CHECK(mappings[599]->torn());
  CHECK_FALSE(mappings[300]->torn());
  mappings.clear();
  const UniqueFd fresh = memory_file(page);
  CHECK_FALSE(GuestMapping::from_fd(fresh.get(), 0, page)->torn());
}

TEST_CASE("a leaked mapping stays mapped and stays watched") {
  const UniqueFd fd = memory_file(page);
  auto mapping = GuestMapping::from_fd(fd.get(), 0, page);
  const uint8_t* data = mapping->data();
  mapping->leak();
  mapping.reset();
  REQUIRE(ftruncate(fd.get(), 0) == 0);
  CHECK(*static_cast<const volatile uint8_t*>(data) == 0);
}

TEST_CASE("a bus error elsewhere reaches the handler that was there before") {
  const int status = in_child([] {
    set_handler(exit_7);
    ensure_sigbus_guard();
    foreign_fault();
  });
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 7);
}

TEST_CASE("a bus error elsewhere kills when no handler was there before, sent signals too" * doctest::skip(sanitized)) {
  const auto fault = in_child([] {
    ensure_sigbus_guard();
    foreign_fault();
  });
  CHECK(WIFSIGNALED(fault));
  CHECK(WTERMSIG(fault) == SIGBUS);
  const auto sent = in_child([] {
    ensure_sigbus_guard();
    for (int i = 0; i < 2; ++i) raise(SIGBUS);  // once it may be a fault that another handler passes on
  });
  CHECK(WIFSIGNALED(sent));
}

TEST_CASE("a handler that came after the guard is asked once when it puts the guard back and raises again" *
          doctest::skip(sanitized)) {
  const auto status = in_child([] {
    set_handler(exit_7);
    ensure_sigbus_guard();
    set_handler(restore_and_raise);
    ensure_sigbus_guard();
    foreign_fault();
  });
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 7);
}

namespace {
/// A file of two pages that has lost the second one, mapped in this process.
std::shared_ptr<GuestMapping> truncated() {
  const UniqueFd fd = memory_file(2 * page);
  auto mapping = GuestMapping::from_fd(fd.get(), 0, 2 * page);
  (void)!ftruncate(fd.get(), static_cast<off_t>(page));
  return mapping;
}
void touch(const std::shared_ptr<GuestMapping>& mapping, size_t offset) {
  if (static_cast<const volatile uint8_t*>(mapping->data())[offset] != 0) _exit(1);
}
}  // namespace

TEST_CASE("a truncated page is mended though a handler that came later has taken the fault first") {
  const int status = in_child([] {
    const auto mapping = truncated();
    set_handler(restore_and_raise);
    touch(mapping, page);
    set_handler(restore_and_raise);
    touch(truncated(), page);
  });
  CHECK(WIFEXITED(status));
}

TEST_CASE("a truncated page is mended on a thread that blocks all signals") {
  bool touched = false;  // else this process has ended
  std::thread([&] {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    let_sigbus_through();
    touch(truncated(), page);
    touched = true;
  }).join();
  CHECK(touched);
}

TEST_CASE("a truncated page is mended when no further mapping can be had" * doctest::skip(sanitized)) {
  const int status = in_child([] {
    const auto first = truncated(), second = truncated();
    // Neighbours that differ count as mappings of their own.
    constexpr size_t most = 1 << 21;
    auto* many = static_cast<char*>(mmap(nullptr, most * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    size_t at = 0;
    while (at < most && mprotect(many + at * page, page, PROT_READ) == 0) at += 2;
    if (at >= most) _exit(0);  // this machine lets a process have more than a million: it will not be short of them
    touch(first, page);
    touch(second, page);
  });
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("an ignored bus error is ignored when it was sent") {
  const auto status = in_child([] {
    set_handler(SIG_IGN);
    ensure_sigbus_guard();
    raise(SIGBUS);
  });
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

namespace {
/// 0: the child has it, and it reads as the parent wrote it. 1: it has not.
int status_in_child(const GuestMapping& mapping) {
  return in_child([&] {
    std::vector<unsigned char> resident(1);
    if (mincore(mapping.data(), page, resident.data()) != 0) _exit(1);  // it fails on what is not mapped
    _exit(mapping.data()[0] == 7 ? 0 : 2);
  });
}
}  // namespace

TEST_CASE("a forked child does not have a front end's memory") {
  auto ours = GuestMapping::memfd(page);
  auto mapping = GuestMapping::from_fd(ours->fd(), 0, page);
  CHECK(WEXITSTATUS(status_in_child(*mapping)) == 1);
}

TEST_CASE("a forked child has memory of our own, which it may have views of") {
  for (const auto& mapping : {GuestMapping::anonymous(page), GuestMapping::memfd(page)}) {
    mapping->data()[0] = 7;
    CHECK(WEXITSTATUS(status_in_child(*mapping)) == 0);
  }
}

TEST_CASE("what a forked child writes to anonymous memory is its own") {
  auto mapping = GuestMapping::anonymous(page);
  in_child([&] {
    mapping->data()[0] = 9;
    _exit(0);
  });
  CHECK(mapping->data()[0] == 0);
}
