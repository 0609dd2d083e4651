// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace vhost_ioat {

/// memcpy for packets: up to 256 bytes in place by moves of 16, which spares small packets the call and its dispatch.
/// Never writes or reads outside the two ranges: moves overlap instead.
inline void copy_packet(uint8_t* to, const uint8_t* from, size_t len) noexcept {
  if (len > 256 || len < 16) [[unlikely]] {
    std::memcpy(to, from, len);
    return;
  }
  auto move16 = [&](size_t at) { __builtin_memcpy(to + at, from + at, 16); };
  if (len > 64) {
    size_t at = 0;
    for (; at + 64 < len; at += 64) {
      move16(at);
      move16(at + 16);
      move16(at + 32);
      move16(at + 48);
    }
    to += at;
    from += at;
    len -= at;
    if (len < 16) {  // the end overlaps what is there already
      to -= 16 - len;
      from -= 16 - len;
      len = 16;
    }
  }
  move16(0);
  if (len > 32) {
    move16(16);
    move16(len - 32);
  }
  move16(len - 16);
}

}  // namespace vhost_ioat
