// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "memory/guest_mapping.hpp"
#include "vhost_user/session.hpp"

namespace vhost_ioat::testing {

using namespace vhost_user;

/// A device that writes down what a session asks of it, and can be told not to hold at once.
struct FakeDevice : Device {
  void prepare(const RingSet& rings, const SessionState&) override {
    if (fails_to_prepare) throw std::bad_alloc();
    prepared = rings;
  }
  void prepare_halt() noexcept override { prepared.reset(); }
  bool hold(const RingSet& rings, Hold how) noexcept override {
    CHECK_MESSAGE((held & ~rings).none(), "one hold at a time, but for the end, which extends it to all");
    held = rings;
    drains += how == Hold::drained;
    ++holds;
    return holds_at_once;
  }
  std::optional<uint16_t> ring_base(uint32_t ring) noexcept override {
    CHECK(held[ring]);
    return bases[ring];
  }
  void commit(const RingSet& rings, const SessionState& next) noexcept override {
    CHECK(rings == held);
    CHECK(rings == prepared);
    let_go(rings, next.memory);
  }
  void halt() noexcept override { let_go(held, nullptr); }
  void announce(const uint8_t (&mac)[6]) noexcept override { announced.assign(mac, mac + 6); }
  void remark(const char* text) noexcept override { remarks.emplace_back(text); }

  void let_go(const RingSet& rings, std::shared_ptr<const memory::RegionTable> now) {
    released.push_back(rings);
    memory = std::move(now);
    held.reset();
    prepared.reset();
  }

  bool fails_to_prepare = false;
  bool holds_at_once = true;
  RingSet held;
  int holds = 0, drains = 0;
  RingSet prepared;
  std::vector<RingSet> released;
  std::optional<uint16_t> bases[max_vrings];  // of rings that run
  std::shared_ptr<const memory::RegionTable> memory;
  std::vector<uint8_t> announced;
  std::vector<std::string> remarks;
};

/// A session of two queue pairs, and a front end that says one thing at a time.
struct SessionBench {
  using Next = BackendSession::Next;

  explicit SessionBench(SessionConfig config = {.queue_pairs = 2}) : session(config, device) {}

  Next send(Message message) {
    reply.reset();
    Next next = session.receive(std::move(message), reply);
    if (next == Next::suspended && session.work()) {  // an endpoint has it done by a helper
      session.work()->run(nullptr);
      next = session.resume(reply);
    }
    return next;
  }
  Next send(Request request) { return send(Message(request)); }
  Next send(Request request, const auto& body) { return send(Message(request, body)); }
  Next send(Request request, const auto& body, UniqueFd fd) {
    Message message(request, body);
    message.fds.push_back(std::move(fd));
    return send(std::move(message));
  }
  /// With need_reply set.
  Next ask(Message message) {
    message.flags |= wire::need_reply_flag;
    return send(std::move(message));
  }
  /// A request that must be done.
  void done(Request request, const auto& body) { REQUIRE(send(request, body) == Next::proceed); }
  void done(Request request) { REQUIRE(send(request) == Next::proceed); }

  uint64_t answer(Request request) {
    REQUIRE(send(request) == Next::proceed);
    return replied<uint64_t>();
  }
  template <typename Body>
  Body replied() {
    REQUIRE(reply.has_value());
    CHECK(reply->flags == (wire::version | wire::reply_flag));
    REQUIRE(reply->size == sizeof(Body));
    return reply->body<Body>();
  }
  /// A front end that can be told what went wrong.
  void negotiate(uint64_t protocol_features = protocol::supported) {
    done(Request::SET_PROTOCOL_FEATURES, protocol_features);
  }
  /// Whether a request is refused with an acknowledgement, the text holding `why`, and nothing of the rings changed.
  void refused(Message message, const std::string& why) {
    const int holds = device.holds;
    REQUIRE(ask(std::move(message)) == Next::proceed);
    CHECK(replied<uint64_t>() == 1);
    CAPTURE(session.error());
    CHECK(session.error().find(why) != std::string::npos);
    CHECK(device.holds == holds);
  }
  const Vring& ring(uint32_t index) const { return session.state().vrings[index]; }

  FakeDevice device;
  BackendSession session;
  std::optional<Message> reply;
};

/// Memory as a front end has it: one memfd, shown to the back end in pieces.
struct GuestFile {
  explicit GuestFile(uint64_t size) : mapping(memory::GuestMapping::memfd(size)) {}
  UniqueFd fd() const { return UniqueFd(::fcntl(mapping->fd(), F_DUPFD_CLOEXEC, 0)); }
  Message table(const std::vector<wire::MemRegion>& regions) const {
    wire::MemTable table{};
    Message message(Request::SET_MEM_TABLE);
    for (const wire::MemRegion& region : regions) {
      table.regions[table.count++] = region;
      message.fds.push_back(fd());
    }
    message.set_body(table);
    message.size = wire::mem_table_size(table.count);
    return message;
  }
  Message add(const wire::MemRegion& region) const {
    Message message(Request::ADD_MEM_REG, wire::SingleMemRegion{0, region});
    message.fds.push_back(fd());
    return message;
  }
  std::shared_ptr<memory::GuestMapping> mapping;
};

}  // namespace vhost_ioat::testing
