// SPDX-License-Identifier: BSD-3-Clause
#include <sys/socket.h>

#include <cstring>
#include <vector>

#include "base/unique_fd.hpp"
#include "doctest/doctest.h"
#include "open_fds.hpp"
#include "send_raw.hpp"
#include "vhost_user/connection.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::vhost_user;
using Received = Connection::Received;

namespace {

/// A connection and the other end of its socket.
struct Pair {
  Pair() {
    int ends[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    connection.emplace(UniqueFd(ends[0]));
    peer.reset(ends[1]);
  }
  /// Sends bytes as they are, with so many fds.
  void send(const void* bytes, size_t size, size_t fds = 0) {
    const UniqueFd sent = make_eventfd();
    testing::send_raw(peer.get(), bytes, size, std::vector<int>(fds, sent.get()));
  }
  Received receive() { return connection->receive(message); }

  std::optional<Connection> connection;
  UniqueFd peer;
  Message message;
};

const struct {
  uint32_t request = 2, flags = 1, size = 8;
  uint8_t body[8] = {1, 2, 3, 4, 5, 6, 7, 8};
} set_features;
static_assert(sizeof set_features == 20);

}  // namespace

TEST_CASE("connection: a message arrives whole, wherever it was cut") {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&set_features);
  for (size_t cut = 1; cut < sizeof set_features; ++cut) {
    Pair pair;
    pair.send(bytes, cut);
    CHECK(pair.receive() == Received::nothing);
    pair.send(bytes + cut, sizeof set_features - cut);
    REQUIRE(pair.receive() == Received::message);
    CHECK(pair.message.is(Request::SET_FEATURES));
    CHECK(pair.message.body<uint64_t>() == 0x0807060504030201);
    CHECK(pair.receive() == Received::nothing);
  }
  Pair pair;
  for (size_t i = 0; i < sizeof set_features; ++i) {
    CHECK(pair.receive() == Received::nothing);
    pair.send(bytes + i, 1);
  }
  CHECK(pair.receive() == Received::message);
}

TEST_CASE("connection: messages written together come one by one, each with its own fds") {
  Pair pair;
  const size_t before = testing::open_fds_at_rest();
  pair.send(&set_features, sizeof set_features);
  pair.send(&set_features, sizeof set_features, 2);
  pair.send(&set_features, sizeof set_features, 8);
  REQUIRE(pair.receive() == Received::message);
  CHECK(pair.message.fds.empty());
  REQUIRE(pair.receive() == Received::message);
  CHECK(pair.message.fds.size() == 2);
  REQUIRE(pair.receive() == Received::message);
  CHECK(pair.message.fds.size() == 8);
  CHECK((::fcntl(pair.message.fds[0].get(), F_GETFD) & FD_CLOEXEC) != 0);
  CHECK(testing::open_fds() == before + 8);
  pair.message.fds.clear();
  CHECK(testing::open_fds() == before);
}

TEST_CASE("connection: fds may come with a header of which only the first byte is there yet") {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&set_features);
  Pair pair;
  pair.send(bytes, 1, 1);
  CHECK(pair.receive() == Received::nothing);
  pair.send(bytes + 1, sizeof set_features - 1);
  REQUIRE(pair.receive() == Received::message);
  CHECK(pair.message.fds.size() == 1);
}

TEST_CASE("connection: fds in the middle of a message are closed and end it") {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&set_features);
  for (size_t cut : {5u, 12u, 15u}) {
    Pair pair;
    const size_t before = testing::open_fds_at_rest();
    pair.send(bytes, cut, 1);
    CHECK(pair.receive() == Received::nothing);
    pair.send(bytes + cut, sizeof set_features - cut, 1);
    CHECK(pair.receive() == Received::closed);
    CHECK(pair.connection->broken());
    CHECK(pair.connection->error().find("middle") != std::string::npos);
    CHECK(testing::open_fds() == before);
    CHECK(pair.receive() == Received::closed);
  }
}

TEST_CASE("connection: too many fds are closed and end it") {
  for (size_t fds : {9u, 33u, 253u}) {
    Pair pair;
    const size_t before = testing::open_fds_at_rest();
    pair.send(&set_features, sizeof set_features, fds);
    CHECK(pair.receive() == Received::closed);
    CHECK(pair.connection->broken());
    CHECK(pair.connection->error().find("more than 8") != std::string::npos);
    CHECK(testing::open_fds() == before);
  }
}

TEST_CASE("connection: a payload too large is refused before it is read") {
  for (uint32_t size : {max_payload + 1, 4096u, 0xffffffffu}) {
    Pair pair;
    const wire::Header header{5, 1, size};
    pair.send(&header, sizeof header, 1);
    const size_t before = testing::open_fds_at_rest();
    CHECK(pair.receive() == Received::closed);
    CHECK(pair.connection->broken());
    CHECK(testing::open_fds() == before);
    CHECK(pair.connection->error().find("SET_MEM_TABLE announces") != std::string::npos);
  }
}

TEST_CASE("connection: a peer that leaves is told from one that breaks the framing") {
  Pair between, within;
  between.peer.reset();
  CHECK(between.receive() == Received::closed);
  CHECK_FALSE(between.connection->broken());
  CHECK(between.connection->error() == "the peer left");
  within.send(&set_features, 15);
  within.peer.reset();
  CHECK(within.receive() == Received::closed);
  CHECK_FALSE(within.connection->broken());
  CHECK(within.connection->error() == "the peer left in the middle of a message");
  CHECK_FALSE(within.connection->send(Message(Request::GET_FEATURES)));

  Pair unread;
  unread.peer.reset();
  CHECK_FALSE(unread.connection->send(Message(Request::GET_FEATURES)));
  CHECK(unread.receive() == Received::closed);
}

TEST_CASE("connection: a full socket delays a message, it is not lost or doubled") {
  Pair pair;
  Connection other(std::move(pair.peer));
  size_t sent = 0, received = 0;
  while (!pair.connection->sending()) {
    Message message(Request::SET_FEATURES, uint64_t{sent++});
    if (sent % 8 == 1) message.fds.push_back(make_eventfd());
    REQUIRE(pair.connection->send(std::move(message)));
    REQUIRE(sent < 100000);
  }
  CHECK(pair.connection->flush());
  CHECK(pair.connection->sending());
  for (Message message; received < sent;) {
    const Received got = other.receive(message);
    REQUIRE(got != Received::closed);
    if (got == Received::nothing) {
      REQUIRE(pair.connection->flush());
      continue;
    }
    REQUIRE(message.body<uint64_t>() == received);
    REQUIRE(message.fds.size() == (received % 8 == 0 ? 1 : 0));
    ++received;
  }
  CHECK_FALSE(pair.connection->sending());
}
