// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <array>
#include <random>

#include "base/error.hpp"
#include "doctest/doctest.h"
#include "memory/region_table.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::memory;

namespace {

uint8_t* host(uint64_t n) { return reinterpret_cast<uint8_t*>(n); }  // only compared, never touched

Region region(uint64_t gpa, uint64_t size, uint64_t uva, uint64_t host_address) {
  return {gpa, size, uva, host(host_address), nullptr};
}

}  // namespace

TEST_CASE("an address translates inside its region only, first and last byte included") {
  const RegionTable table({region(0x10000, 0x1000, 0x70000, 0x5000), region(0, 0x1000, 0x90000, 0x9000)});
  const Region* hint = nullptr;
  CHECK(table.translate(0x10000, 1, hint) == host(0x5000));
  CHECK(hint == &table.regions()[1]);
  CHECK(table.translate(0x10fff, 1, hint) == host(0x5fff));
  CHECK(table.translate(0x10000, 0x1000, hint) == host(0x5000));
  CHECK(table.translate(0x10000, 0x1001, hint) == nullptr);
  CHECK(table.translate(0x10fff, 2, hint) == nullptr);
  CHECK(table.translate(0x11000, 1, hint) == nullptr);
  CHECK(table.translate(0xffff, 1, hint) == nullptr);
  CHECK(table.translate(0x10001, UINT64_MAX, hint) == nullptr);
  CHECK(table.translate(0x10, 0x10, hint) == host(0x9010));
  CHECK(hint == &table.regions()[0]);
}

TEST_CASE("an empty table translates nothing") {
  const RegionTable table;
  const Region* hint = nullptr;
  std::array<Piece, 2> out{};
  CHECK(table.translate(0, 1, hint) == nullptr);
  CHECK(table.pieces(0, 1, out) == 0);
  CHECK(table.translate_uva(0, 1) == nullptr);
}

TEST_CASE("a range over a region border comes in pieces, or not at all") {
  const RegionTable table(
      {region(0, 0x1000, 0, 0x5000), region(0x1000, 0x1000, 0x1000, 0xa000), region(0x3000, 0x1000, 0x3000, 0xf000)});
  std::array<Piece, 2> out{};
  REQUIRE(table.pieces(0xff0, 0x20, out) == 2);
  CHECK(out[0].host == host(0x5ff0));
  CHECK(out[0].len == 0x10);
  CHECK(out[1].host == host(0xa000));
  CHECK(out[1].len == 0x10);
  CHECK(table.pieces(0x1000, 0x1000, out) == 1);
  CHECK(table.pieces(0x1ff0, 0x20, out) == 0);                            // a hole behind
  CHECK(table.pieces(0xff0, 0x20, std::span<Piece>(out).first(1)) == 0);  // no room for both
}

TEST_CASE("a region may end at the very end of the address space, and nothing goes round it") {
  const uint64_t top = UINT64_MAX - 0xfff;
  const RegionTable table({region(top, 0x1000, top, 0x5000), region(0, 0x1000, 0, 0x9000)});
  const Region* hint = nullptr;
  std::array<Piece, 4> out{};
  CHECK(table.translate(UINT64_MAX, 1, hint) == host(0x5fff));
  CHECK(table.translate(UINT64_MAX, 2, hint) == nullptr);
  CHECK(table.pieces(UINT64_MAX - 1, 2, out) == 1);
  CHECK(table.pieces(UINT64_MAX - 1, 3, out) == 0);
  CHECK(table.translate_uva(UINT64_MAX, 1) == host(0x5fff));
  CHECK(table.translate_uva(UINT64_MAX, 2) == nullptr);
}

TEST_CASE("front-end addresses translate within one region") {
  const RegionTable table({region(0, 0x1000, 0x7000, 0x5000), region(0x1000, 0x1000, 0x8000, 0xa000)});
  CHECK(table.translate_uva(0x7010, 0xff0) == host(0x5010));
  CHECK(table.translate_uva(0x7010, 0xff1) == nullptr);
  CHECK(table.translate_uva(0x8000, 0x1000) == host(0xa000));
  CHECK(table.translate_uva(0x6fff, 1) == nullptr);
}

TEST_CASE("regions that are empty, wrap, overlap or are too many are refused") {
  CHECK_THROWS_AS(RegionTable({region(0, 0, 0, 0x1000)}), Error);
  CHECK_THROWS_AS(RegionTable({region(UINT64_MAX, 2, 0, 0x1000)}), Error);
  CHECK_THROWS_AS(RegionTable({region(0, 2, UINT64_MAX, 0x1000)}), Error);
  CHECK_THROWS_AS(RegionTable({region(0, 0x1001, 0, 0x1000), region(0x1000, 0x1000, 0x9000, 0x1000)}), Error);
  CHECK_THROWS_AS(RegionTable({region(0, 0x1000, 0x500, 0x1000), region(0x1000, 0x1000, 0, 0x1000)}), Error);

  RegionTable table;
  for (uint64_t i = 0; i < RegionTable::max_regions; ++i) table = table.with(region(i * 2, 1, i * 2, i));
  CHECK(table.regions().size() == 509);
  CHECK_THROWS_AS(table.with(region(5000, 1, 5000, 0)), Error);
}

TEST_CASE("a region goes by exactly its own description, and the old table stays as it was") {
  const RegionTable before({region(0, 0x1000, 0x7000, 0x5000), region(0x1000, 0x1000, 0x8000, 0xa000)});
  CHECK_THROWS_AS(before.without(0, 0x7000, 0x1001), Error);
  CHECK_THROWS_AS(before.without(0, 0x7001, 0x1000), Error);
  const RegionTable after = before.without(0, 0x7000, 0x1000);
  const Region* hint = nullptr;
  CHECK(after.translate(0, 1, hint) == nullptr);
  CHECK(after.translate(0x1000, 1, hint) == host(0xa000));
  hint = nullptr;
  CHECK(before.translate(0, 1, hint) == host(0x5000));
}

TEST_CASE("translation agrees with a plain search over 509 random regions") {
  std::mt19937_64 random(7);
  std::vector<Region> regions;
  uint64_t gpa = 0;
  for (uint64_t i = 0; i < RegionTable::max_regions; ++i) {
    gpa += random() % 3 * 0x100;
    const uint64_t size = 1 + random() % 0x400;
    regions.push_back(region(gpa, size, gpa + 0x100000, random() & 0xffffffffffff));
    gpa += size;
  }
  std::ranges::shuffle(regions, random);
  const RegionTable table(regions);
  const Region* hint = nullptr;
  for (int i = 0; i < 20000; ++i) {
    const uint64_t address = random() % (gpa + 0x100);
    const uint64_t len = 1 + random() % 0x40;
    uint8_t* expected = nullptr;
    for (const Region& r : regions)
      if (address >= r.gpa && address + len <= r.gpa + r.size) expected = r.host + (address - r.gpa);
    REQUIRE(table.translate(address, len, hint) == expected);
    REQUIRE(table.translate_uva(address + 0x100000, len) == expected);
  }
}

TEST_CASE("a region that is not shared keeps its place, and no address in it translates") {
  Region rom = region(0x1000, 0x1000, 0x8000, 0);
  REQUIRE(rom.host == nullptr);
  const RegionTable table({region(0, 0x1000, 0x7000, 0x5000), rom, region(0x2000, 0x1000, 0x9000, 0xa000)});
  CHECK(table.regions().size() == 3);
  CHECK(table.shares_memory());
  const Region* hint = nullptr;
  std::array<Piece, 4> out{};
  CHECK(table.translate(0xfff, 1, hint) == host(0x5fff));
  const Region* const before = hint;
  for (const uint64_t address : {0x1000u, 0x1001u, 0x1fffu}) {
    CHECK(table.translate(address, 1, hint) == nullptr);
    CHECK(hint == before);  // or the next look at it would find a host address
    const Region* fresh = nullptr;
    CHECK(table.translate(address, 1, fresh) == nullptr);
    CHECK(fresh == nullptr);
    CHECK(table.pieces(address, 1, out) == 0);
  }
  CHECK(table.pieces(0xff0, 0x20, out) == 0);    // into it
  CHECK(table.pieces(0xff0, 0x1020, out) == 0);  // across it
  CHECK(table.pieces(0x1ff0, 0x20, out) == 0);   // out of it
  CHECK(table.translate_uva(0x8000, 1) == nullptr);
  CHECK(table.translate_uva(0x9000, 1) == host(0xa000));
  CHECK_THROWS_AS(table.with(region(0x1800, 1, 0x20000, 0x1)), Error);  // its addresses are taken
  CHECK_THROWS_AS(table.with(region(0x20000, 1, 0x8800, 0x1)), Error);
  CHECK(table.without(0x1000, 0x8000, 0x1000).regions().size() == 2);
}

TEST_CASE("a table shares memory when one region does") {
  CHECK_FALSE(RegionTable().shares_memory());
  CHECK_FALSE(RegionTable({region(0x1000, 0x1000, 0x8000, 0)}).shares_memory());
}
