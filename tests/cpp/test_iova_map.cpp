// SPDX-License-Identifier: BSD-3-Clause
#include <optional>
#include <thread>

#include "dma/iova_map.hpp"
#include "doctest/doctest.h"

using namespace vhost_ioat;
using dma::IovaMap;

TEST_CASE("a map is revoked when no device is at work in it any more, and until then keeps what it may touch") {
  IovaMap map;
  uint8_t memory[64];
  map.map(0x10000, memory, sizeof memory);
  std::optional<IovaMap::Access> at_work(map);
  IovaMap::Hint hint;
  uint64_t len = 8;
  CHECK(at_work->at(0x10000, len, dma::Rights::both, hint) == memory);
  dma::Step answer = dma::Step::done;
  std::thread([&] { answer = map.revoke(); }).join();
  CHECK(answer == dma::Step::pending);
  CHECK(at_work->at(0x10000, len, dma::Rights::both, hint) == memory);  // the copy that had begun
  at_work.reset();
  const IovaMap::Access late(map);
  CHECK(late.at(0x10000, len, dma::Rights::both, hint) == nullptr);
  CHECK(map.revoke() == dma::Step::done);
  CHECK(map.size() == 0);
}
