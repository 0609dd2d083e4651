// SPDX-License-Identifier: BSD-3-Clause
#include "vhost_user/message.hpp"

#include "base/error.hpp"

namespace vhost_ioat::vhost_user {

std::string message_name(uint32_t request) {
  const MessageType* type = find_message_type(request);
  return type ? std::string(type->name) : format("message %u", request);
}

std::string malformed(const Message& request) {
  const std::string name = message_name(request.request);
  // Reserved bits (4 to 31) say nothing and are passed over, as DPDK and libvhost-user do.
  if ((request.flags & (wire::version_mask | wire::reply_flag)) != wire::version) {
    return format("%s has flags 0x%x; a request must have version 1 in bits 0-1 and no reply bit (2)", name.c_str(),
                  request.flags);
  }
  const MessageType* type = find_message_type(request.request);
  if (!type) return {};

  uint32_t size = type->size;
  size_t min_fds = type->min_fds, max_fds = type->max_fds;
  if (type->id == Request::SET_MEM_TABLE) {
    const uint32_t regions = request.body<wire::MemTable>().count;
    if (regions > wire::max_table_regions) {
      return format("SET_MEM_TABLE has %u regions, but at most %u fit", regions, wire::max_table_regions);
    }
    size = wire::mem_table_size(regions);
    min_fds = max_fds = regions;
  }
  if (request.size < size) {
    return format("%s has a payload of %u bytes, but needs %u", name.c_str(), request.size, size);
  }
  if (request.fds.size() < min_fds || request.fds.size() > max_fds) {
    return format("%s arrived with %zu file descriptors instead of %zu%s", name.c_str(), request.fds.size(), min_fds,
                  max_fds > min_fds ? format(" to %zu", max_fds).c_str() : "");
  }
  return {};
}

}  // namespace vhost_ioat::vhost_user
