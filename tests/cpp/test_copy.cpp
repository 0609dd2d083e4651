// SPDX-License-Identifier: BSD-3-Clause
#include <vector>

#include "base/copy.hpp"
#include "doctest/doctest.h"

TEST_CASE("copy_packet: every length is copied whole, and nothing beside it is touched") {
  constexpr size_t guard = 32;
  for (size_t len = 0; len < 700; ++len) {
    std::vector<uint8_t> from(len + 1), to(len + 2 * guard, 0xee);
    for (size_t i = 0; i < len; ++i) from[i] = static_cast<uint8_t>(i * 7 + len);
    vhost_ioat::copy_packet(to.data() + guard, from.data(), len);
    bool same = true;
    for (size_t i = 0; i < len; ++i) same &= to[guard + i] == from[i];
    for (size_t i = 0; i < guard; ++i) same &= to[i] == 0xee && to[guard + len + i] == 0xee;
    CHECK_MESSAGE(same, "length ", len);
  }
}
