// SPDX-License-Identifier: BSD-3-Clause
#include <set>

#include "base/unique_fd.hpp"
#include "doctest/doctest.h"
#include "vhost_user/message.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::vhost_user;

namespace {

/// A request of the right shape, whatever it is.
Message right_shape(const MessageType& type) {
  Message message(type.id);
  message.size = type.size;
  message.payload.fill(0);
  while (message.fds.size() < type.min_fds) message.fds.push_back(make_eventfd());
  return message;
}

}  // namespace

TEST_CASE("message table: one row for each request, and all of them fit a Message") {
  std::set<uint32_t> ids;
  for (const MessageType& type : message_types) {
    CAPTURE(type.name);
    CHECK(ids.insert(static_cast<uint32_t>(type.id)).second);
    CHECK(find_message_type(static_cast<uint32_t>(type.id)) == &type);
    CHECK(type.size <= max_payload);
    CHECK(type.max_fds <= max_message_fds);
    CHECK((type.needs & ~protocol::supported) == 0);
  }
  CHECK(wire::mem_table_size(wire::max_table_regions) <= max_payload);
  CHECK(find_message_type(0) == nullptr);
  CHECK(find_message_type(6) == nullptr);  // SET_LOG_BASE: not offered
}

TEST_CASE("message table: requests have names in error texts, unknown ones their number") {
  CHECK(message_name(2) == "SET_FEATURES");
  CHECK(message_name(99) == "message 99");
}

TEST_CASE("message shape: room to spare in a payload is legal, a byte too few is not, fds are exact") {
  for (const MessageType& type : message_types) {
    CAPTURE(type.name);
    CHECK(malformed(right_shape(type)) == "");

    for (const uint32_t size : {type.size + 1, type.size + 32, max_payload}) {
      Message longer = right_shape(type);
      longer.size = size;
      CHECK(malformed(longer) == "");
    }
    if (type.size > 0) {
      Message shorter = right_shape(type);
      --shorter.size;
      CHECK(malformed(shorter) != "");
    }
    Message crowded = right_shape(type);
    while (crowded.fds.size() <= type.max_fds) crowded.fds.push_back(make_eventfd());
    CHECK(malformed(crowded) != "");
    if (type.min_fds > 0) {
      Message bare = right_shape(type);
      bare.fds.clear();
      CHECK(malformed(bare) != "");
    }
  }
}

TEST_CASE("message shape: flags are version 1 and no reply; bits that are reserved say nothing") {
  for (uint32_t flags = 0; flags < 64; ++flags) {
    const bool legal = (flags & 7) == 1;
    for (const uint32_t reserved : {0u, 1u << 16, 1u << 31}) {
      Message message(Request::GET_FEATURES);
      message.flags = flags | reserved;
      CAPTURE(flags);
      CHECK(malformed(message).empty() == legal);
      message.request = 63;  // also of unknown ones
      CHECK(malformed(message).empty() == legal);
    }
  }
}

TEST_CASE("message shape: a memory table has room for the regions it says, and their number of fds") {
  for (uint32_t regions = 0; regions <= 9; ++regions) {
    Message message(Request::SET_MEM_TABLE);
    message.payload.fill(0);
    message.set_body(regions);
    message.size = wire::mem_table_size(regions);
    for (uint32_t i = 0; i < regions; ++i) message.fds.push_back(make_eventfd());
    CAPTURE(regions);
    CHECK(malformed(message).empty() == (regions <= 8));
    message.size += sizeof(wire::MemRegion);  // as User-Mode Linux sends it: one region in room for two
    CHECK(malformed(message).empty() == (regions <= 8));
    message.size -= uint32_t{sizeof(wire::MemRegion)} + 1;
    CHECK(malformed(message) != "");
    message.size += 1;
    message.fds.push_back(make_eventfd());
    CHECK(malformed(message) != "");
    message.fds.resize(regions > 0 ? regions - 1 : 1);
    CHECK(malformed(message) != "");
  }
  Message lying(Request::SET_MEM_TABLE);
  lying.set_body(wire::MemTable{0xffffffff, 0, {}});
  CHECK(malformed(lying).find("4294967295 regions") != std::string::npos);
}

TEST_CASE("message: bytes that did not come read as zero") {
  Message message(Request::SET_VRING_NUM);
  message.payload.fill(0xff);
  message.size = 4;
  const auto state = message.body<wire::VringState>();
  CHECK(state.index == 0xffffffff);
  CHECK(state.num == 0);
}
