// SPDX-License-Identifier: BSD-3-Clause
#include "memory/region_table.hpp"

#include <algorithm>
#include <cinttypes>

#include "base/error.hpp"

namespace vhost_ioat::memory {
namespace {

/// Throws unless the ranges [start, start + size) are apart from each other. `start` is Region::gpa or Region::uva.
void check_apart(std::vector<Region> regions, uint64_t Region::* start, const char* space) {
  std::ranges::sort(regions, {}, start);
  for (size_t i = 0; i + 1 < regions.size(); ++i) {
    const Region& low = regions[i];
    const Region& high = regions[i + 1];
    if (high.*start - low.*start < low.size)
      throw Error(format("memory regions overlap in %s: 0x%" PRIx64 " is within the 0x%" PRIx64
                         " bytes from 0x%" PRIx64,
                         space, high.*start, low.size, low.*start));
  }
}

void check_no_wrap(const Region& region, uint64_t start, const char* space) {
  if (region.size - 1 > UINT64_MAX - start)
    throw Error(format("memory region wraps: 0x%" PRIx64 " bytes from %s 0x%" PRIx64 " end above 2^64", region.size,
                       space, start));
}

}  // namespace

RegionTable::RegionTable(std::vector<Region> regions) : regions_(std::move(regions)) {
  if (regions_.size() > max_regions)
    throw Error(format("%zu memory regions, but at most %zu are accepted", regions_.size(), max_regions));
  for (const Region& region : regions_) {
    if (region.size == 0) throw Error(format("memory region at GPA 0x%" PRIx64 " is empty", region.gpa));
    check_no_wrap(region, region.gpa, "GPA");
    check_no_wrap(region, region.uva, "front-end address");
  }
  check_apart(regions_, &Region::gpa, "GPA");
  check_apart(regions_, &Region::uva, "front-end addresses");
  std::ranges::sort(regions_, {}, &Region::gpa);
}

RegionTable RegionTable::with(Region region) const {
  std::vector<Region> more = regions_;
  more.push_back(std::move(region));
  return RegionTable(std::move(more));
}

RegionTable RegionTable::without(uint64_t gpa, uint64_t uva, uint64_t size) const {
  RegionTable fewer = *this;
  const auto gone =
      std::erase_if(fewer.regions_, [&](const Region& r) { return r.gpa == gpa && r.uva == uva && r.size == size; });
  if (gone == 0)
    throw Error(format("no memory region with GPA 0x%" PRIx64 ", front-end address 0x%" PRIx64 " and 0x%" PRIx64
                       " bytes to remove",
                       gpa, uva, size));
  return fewer;
}

bool RegionTable::shares_memory() const {
  return std::ranges::any_of(regions_, [](const Region& region) { return region.host != nullptr; });
}

/// The region that holds `gpa` and is shared, or nullptr. Which way the search goes is the guest's to choose, from
/// buffer to buffer, so no step of it is a branch that could be mispredicted.
const Region* RegionTable::find(uint64_t gpa) const noexcept {
  if (regions_.empty()) return nullptr;
  const Region* low = regions_.data();
  for (size_t n = regions_.size(); n > 1;) {
    const size_t half = n / 2;
    low += low[half].gpa <= gpa ? half : 0;
    n -= half;
  }
  return low->host && low->holds(gpa, 1) ? low : nullptr;
}

uint8_t* RegionTable::translate_slowly(uint64_t gpa, uint64_t len, const Region*& hint) const noexcept {
  const Region* region = find(gpa);
  if (!region || !region->holds(gpa, len)) return nullptr;
  hint = region;
  return region->host + (gpa - region->gpa);
}

size_t RegionTable::pieces(uint64_t gpa, uint64_t len, std::span<Piece> out) const noexcept {
  size_t n = 0;
  const Region* region = find(gpa);
  for (const Region* const end = regions_.data() + regions_.size(); len > 0; ++region) {
    if (!region || region == end || !region->host || !region->holds(gpa, 1) || n == out.size()) return 0;
    const uint64_t offset = gpa - region->gpa;
    const uint64_t here = std::min(len, region->size - offset);
    out[n++] = {region->host + offset, here};
    gpa += here;
    len -= here;
    if (gpa == 0 && len > 0) return 0;  // past the end of the address space
  }
  return n;
}

uint8_t* RegionTable::translate_uva(uint64_t uva, uint64_t len) const noexcept {
  for (const Region& region : regions_) {
    const uint64_t offset = uva - region.uva;
    if (uva >= region.uva && offset < region.size && len <= region.size - offset)
      return region.host ? region.host + offset : nullptr;
  }
  return nullptr;
}

}  // namespace vhost_ioat::memory
