// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/budget.hpp"
#include "base/unique_fd.hpp"

namespace vhost_ioat::vhost_user {

/// Front-end requests this back end answers (vhost-user specification, "Front-end message types").
enum class Request : uint32_t {
  GET_FEATURES = 1,
  SET_FEATURES = 2,
  SET_OWNER = 3,
  RESET_OWNER = 4,
  SET_MEM_TABLE = 5,
  SET_VRING_NUM = 8,
  SET_VRING_ADDR = 9,
  SET_VRING_BASE = 10,
  GET_VRING_BASE = 11,
  SET_VRING_KICK = 12,
  SET_VRING_CALL = 13,
  SET_VRING_ERR = 14,
  GET_PROTOCOL_FEATURES = 15,
  SET_PROTOCOL_FEATURES = 16,
  GET_QUEUE_NUM = 17,
  SET_VRING_ENABLE = 18,
  SEND_RARP = 19,
  NET_SET_MTU = 20,
  SET_BACKEND_REQ_FD = 21,
  RESET_DEVICE = 34,
  GET_MAX_MEM_SLOTS = 36,
  ADD_MEM_REG = 37,
  REM_MEM_REG = 38,
  SET_STATUS = 39,
  GET_STATUS = 40,
};

/// Protocol features as masks.
namespace protocol {
constexpr uint64_t mq = 1ull << 0;
constexpr uint64_t rarp = 1ull << 2;
constexpr uint64_t reply_ack = 1ull << 3;
constexpr uint64_t net_mtu = 1ull << 4;
constexpr uint64_t backend_req = 1ull << 5;
constexpr uint64_t backend_send_fd = 1ull << 10;
constexpr uint64_t reset_device = 1ull << 13;
constexpr uint64_t configure_mem_slots = 1ull << 15;
constexpr uint64_t status = 1ull << 16;
/// All this back end knows; nothing else is ever offered.
constexpr uint64_t supported =
    mq | rarp | reply_ack | net_mtu | backend_req | backend_send_fd | reset_device | configure_mem_slots | status;
}  // namespace protocol

/// What goes over the socket, in the byte order of the machine.
namespace wire {
constexpr uint32_t version_mask = 0x3;
constexpr uint32_t version = 0x1;
constexpr uint32_t reply_flag = 0x4;
constexpr uint32_t need_reply_flag = 0x8;

struct Header {
  uint32_t request;
  uint32_t flags;
  uint32_t size;  // of the payload behind it
};
static_assert(sizeof(Header) == 12);

struct VringState {
  uint32_t index;
  uint32_t num;
};
static_assert(sizeof(VringState) == 8);

struct VringAddr {
  uint32_t index;
  uint32_t flags;
  uint64_t desc;
  uint64_t used;
  uint64_t avail;
  uint64_t log;
};
static_assert(sizeof(VringAddr) == 40);

struct MemRegion {
  uint64_t gpa;
  uint64_t size;
  uint64_t uva;
  uint64_t mmap_offset;
};
static_assert(sizeof(MemRegion) == 32);

constexpr uint32_t max_table_regions = 8;
struct MemTable {
  uint32_t count;
  uint32_t padding;
  MemRegion regions[max_table_regions];
};
static_assert(sizeof(MemTable) == 264);
constexpr uint32_t mem_table_size(uint32_t regions) { return static_cast<uint32_t>(8 + regions * sizeof(MemRegion)); }

struct SingleMemRegion {
  uint64_t padding;
  MemRegion region;
};
static_assert(sizeof(SingleMemRegion) == 40);

struct Rarp {
  uint8_t mac[6];  // the low bytes of a u64
  uint8_t padding[2];
};
static_assert(sizeof(Rarp) == 8);

constexpr uint64_t vring_fd_index_mask = 0xff;  // of SET_VRING_KICK, _CALL and _ERR
constexpr uint64_t vring_fd_none = 0x100;
}  // namespace wire

/// Room for every payload of the specification that a front end may send; a larger size ends the connection unread.
constexpr uint32_t max_payload = 512;
constexpr size_t max_message_fds = budget::fds_a_message;

/// One message, either way. It owns its fds: those a handler does not take are closed with it.
struct Message {
  uint32_t request = 0;  // may be none of enum Request
  uint32_t flags = wire::version;
  uint32_t size = 0;
  std::array<uint8_t, max_payload> payload;  // the first `size` bytes mean something
  std::vector<UniqueFd> fds;

  Message() = default;
  explicit Message(Request type) : request(static_cast<uint32_t>(type)) {}
  template <typename Body>
    requires std::is_trivially_copyable_v<Body>
  Message(Request type, const Body& body) : Message(type) {
    set_body(body);
  }

  /// The payload as a wire struct; bytes that did not come are zero.
  template <typename Body>
  Body body() const {
    static_assert(std::is_trivially_copyable_v<Body> && sizeof(Body) <= max_payload);
    Body out{};
    std::memcpy(&out, payload.data(), size < sizeof out ? size : sizeof out);
    return out;
  }
  template <typename Body>
  void set_body(const Body& body) {
    static_assert(std::is_trivially_copyable_v<Body> && sizeof(Body) <= max_payload);
    std::memcpy(payload.data(), &body, sizeof body);
    size = sizeof body;
  }
  bool is(Request type) const { return request == static_cast<uint32_t>(type); }
  bool is_reply() const { return flags & wire::reply_flag; }
  bool needs_reply() const { return flags & wire::need_reply_flag; }
};

/// The shape of one request.
///
/// A payload longer than this is legal, a shorter one is not: front ends send structures with room to spare
/// (User-Mode Linux a memory table of two regions with a count of one, others a number with GET_FEATURES), newer ones
/// append fields. What is behind `size` is not looked at. DPDK and libvhost-user take the same; max_payload bounds it.
/// File descriptors are another matter: one too many leaves open which is meant, so their number is exact (as with
/// DPDK; libvhost-user takes the first ones).
struct MessageType {
  Request id;
  std::string_view name;
  uint32_t size;  // least payload; of SET_MEM_TABLE: without regions
  uint8_t min_fds;
  uint8_t max_fds;
  bool has_reply;      // a reply of its own, never an acknowledgement
  uint64_t needs = 0;  // protocol features without which it must not come
};

inline constexpr MessageType message_types[] = {
    {Request::GET_FEATURES, "GET_FEATURES", 0, 0, 0, true},
    {Request::SET_FEATURES, "SET_FEATURES", 8, 0, 0, false},
    {Request::SET_OWNER, "SET_OWNER", 0, 0, 0, false},
    {Request::RESET_OWNER, "RESET_OWNER", 0, 0, 0, false},
    {Request::SET_MEM_TABLE, "SET_MEM_TABLE", 8, 0, wire::max_table_regions, false},
    {Request::SET_VRING_NUM, "SET_VRING_NUM", 8, 0, 0, false},
    {Request::SET_VRING_ADDR, "SET_VRING_ADDR", 40, 0, 0, false},
    {Request::SET_VRING_BASE, "SET_VRING_BASE", 8, 0, 0, false},
    {Request::GET_VRING_BASE, "GET_VRING_BASE", 8, 0, 0, true},
    {Request::SET_VRING_KICK, "SET_VRING_KICK", 8, 0, 1, false},
    {Request::SET_VRING_CALL, "SET_VRING_CALL", 8, 0, 1, false},
    {Request::SET_VRING_ERR, "SET_VRING_ERR", 8, 0, 1, false},
    {Request::GET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES", 0, 0, 0, true},
    {Request::SET_PROTOCOL_FEATURES, "SET_PROTOCOL_FEATURES", 8, 0, 0, false},
    {Request::GET_QUEUE_NUM, "GET_QUEUE_NUM", 0, 0, 0, true, protocol::mq},
    {Request::SET_VRING_ENABLE, "SET_VRING_ENABLE", 8, 0, 0, false},
    {Request::SEND_RARP, "SEND_RARP", 8, 0, 0, false, protocol::rarp},
    {Request::NET_SET_MTU, "NET_SET_MTU", 8, 0, 0, false, protocol::net_mtu},
    {Request::SET_BACKEND_REQ_FD, "SET_BACKEND_REQ_FD", 0, 1, 1, false, protocol::backend_req},
    {Request::RESET_DEVICE, "RESET_DEVICE", 0, 0, 0, false, protocol::reset_device},
    {Request::GET_MAX_MEM_SLOTS, "GET_MAX_MEM_SLOTS", 0, 0, 0, true, protocol::configure_mem_slots},
    {Request::ADD_MEM_REG, "ADD_MEM_REG", 40, 1, 1, false, protocol::configure_mem_slots},
    {Request::REM_MEM_REG, "REM_MEM_REG", 40, 0, 1, false, protocol::configure_mem_slots},
    {Request::SET_STATUS, "SET_STATUS", 8, 0, 0, false, protocol::status},
    {Request::GET_STATUS, "GET_STATUS", 0, 0, 0, true, protocol::status},
};

/// The row of a request, or nullptr when this back end does not know it.
constexpr const MessageType* find_message_type(uint32_t request) {
  for (const MessageType& type : message_types) {
    if (static_cast<uint32_t>(type.id) == request) return &type;
  }
  return nullptr;
}

/// "SET_FEATURES", or "message 99".
std::string message_name(uint32_t request);

/// Why a request is not of its type's shape (flags, least size, number of fds); empty when it is, and for unknown
/// types.
std::string malformed(const Message& request);

}  // namespace vhost_ioat::vhost_user
