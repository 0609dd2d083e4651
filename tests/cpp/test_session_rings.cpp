// SPDX-License-Identifier: BSD-3-Clause
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <optional>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "open_fds.hpp"
#include "session_bench.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::testing;
using Next = BackendSession::Next;

namespace {

wire::VringAddr addresses(uint32_t ring) { return {ring, 0, 0x10000, 0x12004, 0x11002, 0}; }

Message with_fd(Request request, uint64_t body, UniqueFd fd) {
  Message message(request, body);
  message.fds.push_back(std::move(fd));
  return message;
}

}  // namespace

TEST_CASE("session rings: a message holds the ring it changes, alone, and only when that runs") {
  SessionBench bench;
  bench.done(Request::SET_VRING_NUM, wire::VringState{3, 1024});
  bench.done(Request::SET_VRING_BASE, wire::VringState{3, 65535});
  bench.done(Request::SET_VRING_ADDR, addresses(3));
  REQUIRE(bench.send(Request::SET_VRING_CALL, uint64_t{3}, make_eventfd()) == Next::proceed);
  REQUIRE(bench.send(Request::SET_VRING_ERR, uint64_t{3}, make_eventfd()) == Next::proceed);
  CHECK_FALSE(bench.ring(3).started);
  REQUIRE(bench.send(Request::SET_VRING_KICK, uint64_t{3}, make_eventfd()) == Next::proceed);
  bench.done(Request::SET_VRING_ENABLE, wire::VringState{3, 1});
  CHECK(bench.device.released == std::vector<RingSet>(2, RingSet(8)));
  CHECK(bench.device.drains == 2);
  const Vring& ring = bench.ring(3);
  CHECK(ring.size == 1024);
  CHECK(ring.base == 65535);
  CHECK(ring.has_addresses);
  CHECK(ring.desc_uva == 0x10000);
  CHECK(ring.avail_uva == 0x11002);
  CHECK(ring.used_uva == 0x12004);
  CHECK((ring.started && ring.enabled && ring.kick && ring.call && ring.err));
  CHECK_FALSE(ring.polled);
}

TEST_CASE("session rings: an index is checked in all its bits") {
  SessionBench bench;
  bench.negotiate();
  for (uint32_t index : {5u, 256u, 0x10000u, 0x80000000u, 0xffffffffu}) {
    const std::string why = "there is no ring " + std::to_string(index);
    bench.refused(Message(Request::SET_VRING_NUM, wire::VringState{index, 256}), why);
    bench.refused(Message(Request::SET_VRING_BASE, wire::VringState{index, 0}), why);
    bench.refused(Message(Request::SET_VRING_ENABLE, wire::VringState{index, 1}), why);
    bench.refused(Message(Request::SET_VRING_ADDR, addresses(index)), why);
    CHECK(bench.send(Request::GET_VRING_BASE, wire::VringState{index, 0}) == Next::close);
  }
  for (Request request : {Request::SET_VRING_KICK, Request::SET_VRING_CALL, Request::SET_VRING_ERR}) {
    bench.refused(Message(request, uint64_t{0x1ff}), "there is no ring 255");
    bench.refused(Message(request, uint64_t{0x300}), "has bits other than");
    bench.refused(Message(request, uint64_t{1} << 32 | 0x100), "has bits other than");
  }
}

TEST_CASE("session rings: a size is a power of two up to 32768") {
  SessionBench bench;
  bench.negotiate();
  for (uint32_t size = 1; size <= 32768; size *= 2) bench.done(Request::SET_VRING_NUM, wire::VringState{0, size});
  for (uint32_t size : {0u, 3u, 255u, 257u, 32769u, 65536u, 0x80000000u, 0xffffffffu}) {
    bench.refused(Message(Request::SET_VRING_NUM, wire::VringState{0, size}), std::to_string(size) + " entries");
  }
  CHECK(bench.ring(0).size == 32768);
}

TEST_CASE("session rings: addresses have their alignment and no logging") {
  SessionBench bench;
  bench.negotiate();
  auto wrong = addresses(0);
  wrong.desc += 8;
  bench.refused(Message(Request::SET_VRING_ADDR, wrong), "descriptor table address 0x10008 is not a multiple of 16");
  wrong = addresses(0);
  wrong.avail += 1;
  bench.refused(Message(Request::SET_VRING_ADDR, wrong), "available ring");
  wrong = addresses(0);
  wrong.used += 2;
  bench.refused(Message(Request::SET_VRING_ADDR, wrong), "used ring");
  wrong = addresses(0);
  wrong.flags = 1;
  bench.refused(Message(Request::SET_VRING_ADDR, wrong), "logging");
  CHECK_FALSE(bench.ring(0).has_addresses);
}

TEST_CASE("session rings: base and enable have their range") {
  SessionBench bench;
  bench.negotiate();
  bench.refused(Message(Request::SET_VRING_BASE, wire::VringState{0, 65536}), "16-bit");
  bench.refused(Message(Request::SET_VRING_ENABLE, wire::VringState{0, 2}), "0 or 1");
}

TEST_CASE("session rings: GET_VRING_BASE stops the ring and answers where it stands") {
  const size_t fds = open_fds_at_rest();
  SessionBench bench;
  bench.done(Request::SET_VRING_NUM, wire::VringState{1, 256});
  bench.done(Request::SET_VRING_BASE, wire::VringState{1, 17});
  bench.done(Request::GET_VRING_BASE, wire::VringState{1, 0});  // never started: what was set
  CHECK(bench.replied<wire::VringState>().num == 17);

  bench.done(Request::SET_VRING_ADDR, addresses(1));
  for (Request request : {Request::SET_VRING_CALL, Request::SET_VRING_ERR, Request::SET_VRING_KICK}) {
    REQUIRE(bench.send(request, uint64_t{1}, make_eventfd()) == Next::proceed);
  }
  bench.done(Request::SET_VRING_ENABLE, wire::VringState{1, 1});
  bench.device.bases[1] = 40000;
  const int drains = bench.device.drains;
  bench.done(Request::GET_VRING_BASE, wire::VringState{1, 0});
  CHECK(bench.device.drains == drains + 1);
  CHECK(bench.replied<wire::VringState>().index == 1);
  CHECK(bench.replied<wire::VringState>().num == 40000);
  const Vring& ring = bench.ring(1);
  CHECK_FALSE(ring.started);
  CHECK(ring.has_addresses);  // they stand until they are said anew
  CHECK_FALSE(ring.kick);
  CHECK_FALSE(ring.call);
  CHECK(ring.err);
  CHECK(ring.enabled);  // the other axis
  CHECK(ring.size == 256);
  CHECK(ring.base == 40000);
  CHECK(open_fds() == fds + 1);
  // Started again without SET_VRING_BASE it goes on from there.
  bench.done(Request::SET_VRING_KICK, wire::vring_fd_none | 1);
  CHECK(bench.ring(1).started);
  CHECK(bench.ring(1).base == 40000);
}

TEST_CASE("session rings: a running ring that is held for another message goes on from where it stands") {
  SessionBench bench;
  bench.done(Request::SET_VRING_KICK, wire::vring_fd_none);
  bench.device.bases[0] = 7;
  bench.done(Request::SET_VRING_ENABLE, wire::VringState{0, 1});
  CHECK(bench.ring(0).base == 7);
  bench.done(Request::SET_VRING_BASE, wire::VringState{0, 100});
  CHECK(bench.ring(0).base == 100);
}

TEST_CASE("session rings: what does not change a running ring does not touch it, new fds do not drain it") {
  SessionBench bench;
  GuestFile file(0x4000);
  const auto table = [&] { return file.table({{0, 0x2000, 0x70000, 0}}); };
  bench.done(Request::SET_FEATURES, virtio::supported_features.mask());
  REQUIRE(bench.send(table()) == Next::proceed);
  bench.done(Request::SET_VRING_NUM, wire::VringState{3, 256});
  bench.done(Request::SET_VRING_ADDR, addresses(3));
  REQUIRE(bench.send(Request::SET_VRING_KICK, uint64_t{3}, make_eventfd()) == Next::proceed);
  bench.done(Request::SET_VRING_ENABLE, wire::VringState{3, 1});

  const int holds = bench.device.holds, drains = bench.device.drains;
  bench.done(Request::SET_VRING_ENABLE, wire::VringState{3, 1});
  bench.done(Request::SET_VRING_NUM, wire::VringState{3, 256});
  bench.done(Request::SET_VRING_ADDR, addresses(3));
  bench.done(Request::SET_VRING_BASE, wire::VringState{3, 9});
  bench.done(Request::SET_FEATURES, virtio::supported_features.mask());
  REQUIRE(bench.send(table()) == Next::proceed);
  CHECK(bench.device.holds == holds);

  for (Request request : {Request::SET_VRING_CALL, Request::SET_VRING_ERR, Request::SET_VRING_KICK})
    REQUIRE(bench.send(request, uint64_t{3}, make_eventfd()) == Next::proceed);
  CHECK(bench.device.holds == holds + 3);
  REQUIRE(bench.send(file.table({{0, 0x2000, 0x70000, 0}, {0x4000, 0x2000, 0x80000, 0x2000}})) == Next::proceed);
  CHECK(bench.device.holds == holds + 4);  // memory was added, and nothing taken away
  CHECK(bench.device.drains == drains);

  REQUIRE(bench.send(file.table({{0x4000, 0x2000, 0x80000, 0x2000}})) == Next::proceed);
  CHECK(bench.device.drains == drains + 1);
  REQUIRE(bench.send(file.table({{0x4000, 0x2000, 0x80000, 0}})) == Next::proceed);  // elsewhere in the file
  CHECK(bench.device.drains == drains + 2);
}

TEST_CASE("session rings: a stopped ring resumes with a base, fds and a kick alone") {
  SessionBench bench;
  bench.done(Request::SET_VRING_NUM, wire::VringState{1, 256});
  bench.done(Request::SET_VRING_ADDR, addresses(1));
  bench.done(Request::SET_VRING_KICK, wire::vring_fd_none | 1);
  bench.done(Request::GET_VRING_BASE, wire::VringState{1, 0});
  bench.done(Request::SET_VRING_BASE, wire::VringState{1, 5});
  REQUIRE(bench.send(Request::SET_VRING_CALL, uint64_t{1}, make_eventfd()) == Next::proceed);
  bench.done(Request::SET_VRING_KICK, wire::vring_fd_none | 1);
  const Vring& ring = bench.ring(1);
  CHECK((ring.started && ring.has_addresses && ring.size == 256 && ring.desc_uva == 0x10000 && ring.base == 5));
}

TEST_CASE("session rings: polled kicks, absent and replaced fds") {
  const size_t fds = open_fds_at_rest();
  SessionBench bench;
  bench.done(Request::SET_VRING_KICK, wire::vring_fd_none | 2);
  CHECK((bench.ring(2).started && bench.ring(2).polled));
  CHECK_FALSE(bench.ring(2).kick);
  REQUIRE(bench.send(Request::SET_VRING_KICK, uint64_t{2}, make_eventfd()) == Next::proceed);
  CHECK((bench.ring(2).started && !bench.ring(2).polled && bench.ring(2).kick));
  for (int i = 0; i < 100; ++i) {
    REQUIRE(bench.send(Request::SET_VRING_CALL, uint64_t{2}, make_eventfd()) == Next::proceed);
  }
  CHECK(open_fds() == fds + 2);
  bench.done(Request::SET_VRING_CALL, wire::vring_fd_none | 2);
  CHECK_FALSE(bench.ring(2).call);
  CHECK(open_fds() == fds + 1);
}

TEST_CASE("session rings: an fd that goes is open until the device was told, and closed then") {
  struct Watcher : FakeDevice {
    void commit(const RingSet& rings, const SessionState& next) noexcept override {
      FakeDevice::commit(rings, next);
      look();
    }
    void halt() noexcept override {
      FakeDevice::halt();
      look();
    }
    void look() {
      if (old_kick >= 0) still_open = ::fcntl(old_kick, F_GETFD) >= 0;
    }
    int old_kick = -1;
    bool still_open = false;
  };
  Watcher device;
  BackendSession session({}, device);
  std::optional<Message> reply;
  for (const bool by_stop : {false, true}) {
    REQUIRE(session.receive(with_fd(Request::SET_VRING_KICK, 0, make_eventfd()), reply) == Next::proceed);
    device.old_kick = session.state().vrings[0].kick->owned.get();
    device.still_open = false;
    if (by_stop) {
      REQUIRE(session.stop() == Next::close);
    } else {
      REQUIRE(session.receive(with_fd(Request::SET_VRING_KICK, 0, make_eventfd()), reply) == Next::proceed);
    }
    CHECK(device.still_open);
    CHECK(::fcntl(device.old_kick, F_GETFD) < 0);
    device.old_kick = -1;
  }
}

TEST_CASE("session rings: bit 8 and the fd must agree") {
  SessionBench bench;
  bench.negotiate();
  for (Request request : {Request::SET_VRING_KICK, Request::SET_VRING_CALL, Request::SET_VRING_ERR}) {
    bench.refused(Message(request, uint64_t{0}), "bit 8 says there is an fd, but there is none");
    bench.refused(with_fd(request, wire::vring_fd_none, make_eventfd()), "bit 8 says there is no fd, but there is one");
  }
}

TEST_CASE("session rings: an fd that is of no use costs only itself, and is told") {
  const size_t fds = open_fds_at_rest();
  SessionBench bench;
  for (SharedFd Vring::* which : {&Vring::kick, &Vring::call, &Vring::err}) {
    const Request request = which == &Vring::kick   ? Request::SET_VRING_KICK
                            : which == &Vring::call ? Request::SET_VRING_CALL
                                                    : Request::SET_VRING_ERR;
    int pipe[2], sockets[2];
    REQUIRE(::pipe(pipe) == 0);
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
    const bool kick = which == &Vring::kick;
    struct Sent {
      int fd;
      bool useful;
      const char* why;
    };
    for (const Sent& sent : std::initializer_list<Sent>{{::eventfd(0, EFD_CLOEXEC), true, ""},
                                                        {pipe[0], false, kick ? "a pipe" : "reading only"},
                                                        {pipe[1], !kick, "a pipe"},
                                                        {sockets[0], !kick, "a socket"},
                                                        {sockets[1], !kick, "a socket"},
                                                        {::open("/dev/null", O_RDWR), false, "not an eventfd"},
                                                        {::open("/", O_RDONLY), false, "not an eventfd"},
                                                        {::open("/", O_PATH), false, "O_PATH"}}) {
      bench.device.remarks.clear();
      REQUIRE(bench.send(request, uint64_t{0}, UniqueFd(sent.fd)) == Next::proceed);
      CHECK((bench.ring(0).*which != nullptr) == sent.useful);
      CHECK(bench.device.remarks.size() == !sent.useful);
      if (!sent.useful) CHECK(bench.device.remarks[0].find(sent.why) != std::string::npos);
      if (kick) CHECK((bench.ring(0).started && bench.ring(0).polled == !sent.useful));
    }
    REQUIRE(bench.send(request, wire::vring_fd_none) == Next::proceed);
  }
  CHECK(open_fds() == fds);
}
