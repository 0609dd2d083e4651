// SPDX-License-Identifier: BSD-3-Clause
#include "virtio/net_header.hpp"

#include <cstring>

namespace vhost_ioat::virtio {

uint16_t internet_checksum(const uint8_t* data, size_t len) {
  // Words are summed in memory order: the one's complement sum does not care, and the result is stored the same way.
  uint64_t sum = 0;
  for (; len >= 4; data += 4, len -= 4) {
    uint32_t word;
    std::memcpy(&word, data, 4);
    sum += word;
  }
  uint32_t tail = 0;
  std::memcpy(&tail, data, len);
  sum += tail;
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  const auto inverted = static_cast<uint16_t>(~sum);
  return inverted != 0 ? inverted : uint16_t{0xffff};
}

}  // namespace vhost_ioat::virtio
