// SPDX-License-Identifier: BSD-3-Clause
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <future>
#include <optional>
#include <vector>

#include "base/peer_socket.hpp"
#include "doctest/doctest.h"
#include "open_fds.hpp"
#include "send_raw.hpp"
#include "watchdog.hpp"

using namespace vhost_ioat;

namespace {

std::array<UniqueFd, 2> socket_pair() {
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

/// A socket of a peer, and a file that only exists in what the peer sends: is it open yet?
struct Bench {
  Bench() {
    auto [ours, theirs] = socket_pair();
    socket.emplace(std::move(ours), HelperLane::create(PeerSocket::fds_at_worst));
    peer = std::move(theirs);
  }
  void send(const char* text, size_t copies, int flags = 0) {
    auto [near, far] = socket_pair();
    REQUIRE(testing::send_raw(peer.get(), text, std::strlen(text), std::vector<int>(copies, far.get()), flags) > 0);
    end = std::move(near);
  }
  bool sent_is_open() const {
    pollfd state{end.get(), POLLIN, 0};
    return ::poll(&state, 1, 0) == 0;
  }
  std::string receive(size_t most = 100) {
    std::string text(most, 0);
    const ssize_t n = socket->receive(std::as_writable_bytes(std::span(text)), fds);
    if (n < 0) return "";
    text.resize(static_cast<size_t>(n));
    return text;
  }

  std::optional<PeerSocket> socket;
  UniqueFd peer, end;
  std::vector<UniqueFd> fds;
};

/// As long as this is there, no fd can be opened.
struct NoMoreFds {
  NoMoreFds() {
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
    const rlimit none{0, before.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  }
  ~NoMoreFds() { ::setrlimit(RLIMIT_NOFILE, &before); }
  rlimit before;
};

}  // namespace

TEST_CASE("peer socket: bytes come with the fds they were sent with, once") {
  Bench bench;
  bench.send("abc", 2);
  REQUIRE(testing::send_raw(bench.peer.get(), "def", 3) == 3);
  CHECK(bench.receive(2) == "ab");
  CHECK(bench.fds.size() == 2);
  CHECK(bench.receive(2) == "cd");
  CHECK(bench.receive() == "ef");
  CHECK(bench.fds.size() == 2);
  CHECK(bench.sent_is_open());
  bench.fds.clear();
  CHECK(testing::eventually([&] { return !bench.sent_is_open(); }));
  CHECK((bench.receive() == "" && errno == EAGAIN));
  bench.peer.reset();
  char byte;
  CHECK(bench.socket->receive(std::as_writable_bytes(std::span(&byte, 1)), bench.fds) == 0);
}

TEST_CASE("peer socket: a copy of an fd is not closed by who reads, as its file system may be asked about that") {
  Bench bench;
  std::promise<void> begun, release;
  struct Wait final : HelperJob {
    explicit Wait(std::promise<void>& begins, std::future<void> ends) : begun(begins), end(std::move(ends)) {}
    void run() noexcept override {
      begun.set_value();
      end.wait();
    }
    std::promise<void>& begun;
    std::future<void> end;
  };
  const std::shared_ptr<HelperLane> lane = bench.socket->lane();
  lane->add(*new Wait(begun, release.get_future()));
  begun.get_future().wait();
  REQUIRE(testing::send_raw(bench.peer.get(), "abc", 3) == 3);
  bench.send("def", 2);
  CHECK(bench.receive(3) == "abc");
  const size_t copies = lane->pending() - 1;  // of the next message's fds, where a look goes that far
  CHECK((copies == 0 || copies == 2));
  CHECK(bench.receive(3) == "def");
  CHECK(bench.fds.size() == 2);
  bench.fds.clear();
  CHECK(lane->pending() == 1 + copies + 2);
  release.set_value();
}

TEST_CASE("peer socket: more fds than a message has are all the lane's") {
  Bench bench;
  for (const size_t count : {PeerSocket::most_fds + 1, PeerSocket::scm_max_fds}) {
    bench.send("abc", count);
    CHECK((bench.receive() == "" && errno == EMFILE));
    CHECK(bench.fds.size() >= count);
    CHECK(bench.sent_is_open());
    for (const UniqueFd& fd : bench.fds) CHECK(fd.closer());
    bench.fds.clear();
    CHECK(testing::eventually([&] { return !bench.sent_is_open(); }));
  }
}

TEST_CASE("peer socket: fds that this process cannot open stay in the socket, and the lane closes them with it") {
  Bench bench;
  bench.send("abc", 1);
  {
    const NoMoreFds shortage;
    CHECK((bench.receive() == "" && errno == EMFILE));
  }
  CHECK(bench.fds.empty());
  CHECK(bench.sent_is_open());
  bench.socket.reset();
  CHECK(testing::eventually([&] { return !bench.sent_is_open(); }));
}

TEST_CASE("peer socket: urgent data are data, and no fd is dropped with them") {
  Bench bench;
  bench.send("!", 1, MSG_OOB);
  REQUIRE(testing::send_raw(bench.peer.get(), "abc", 3) == 3);
  std::string text;
  while (text.size() < 4) {
    const std::string more = bench.receive();
    REQUIRE(!more.empty());
    text += more;
  }
  CHECK(text == "!abc");
  CHECK(bench.fds.size() == 1);
  CHECK(bench.sent_is_open());
}
