// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace vhost_ioat::memory {

class GuestMapping;  // guest_mapping.hpp: one mmap of guest memory, unmapped with its last user

/// One guest-memory region as a front end describes it (vhost-user "memory region description").
///
/// One that this process cannot share has no host address: it takes its place in the table, so that nothing else does,
/// and no address in it translates.
struct Region {
  uint64_t gpa = 0;         // guest physical address
  uint64_t size = 0;        // bytes, never 0
  uint64_t uva = 0;         // the front end's own virtual address of it
  uint8_t* host = nullptr;  // ours; null: not shared
  std::shared_ptr<GuestMapping> mapping;
  std::string not_shared{};  // why there is no host address

  friend bool operator==(const Region&, const Region&) = default;
  bool holds(uint64_t address, uint64_t len) const {
    return address >= gpa && address - gpa < size && len <= size - (address - gpa);
  }
};

/// The part of a region that translating needs, by value: a loop keeps it in registers.
struct Window {
  uint64_t gpa = 0, size = 0;
  uint8_t* host = nullptr;

  static Window of(const Region* region) { return region ? Window{region->gpa, region->size, region->host} : Window{}; }
  uint8_t* translate(uint64_t address, uint64_t len) const noexcept {
    const uint64_t offset = address - gpa;  // wraps to something large below gpa
    return offset < size && len <= size - offset ? host + offset : nullptr;
  }
};

/// A host range that a guest range translates to.
struct Piece {
  uint8_t* host;
  uint64_t len;
};

/// The guest's memory: immutable, so that a data path may use one while the next one is being made. Changing it means
/// making another (with(), without()) and giving that to every queue while it is held.
///
/// The caller of translate() keeps a hint, the region hit last; a miss costs a binary search.
class RegionTable {
 public:
  static constexpr size_t max_regions = 509;

  RegionTable() = default;
  /// Throws Error when regions are empty, wrap, overlap in GPA or in UVA, or are more than max_regions.
  explicit RegionTable(std::vector<Region> regions);

  RegionTable with(Region region) const;
  /// Without the region of exactly this gpa, uva and size; throws Error when there is none.
  RegionTable without(uint64_t gpa, uint64_t uva, uint64_t size) const;

  std::span<const Region> regions() const { return regions_; }  // by gpa
  /// Is there any memory that can be used?
  bool shares_memory() const;

  /// Host address of [gpa, gpa + len), or nullptr unless all of it lies in one region that is shared. len >= 1. The
  /// hint is such a region, or null.
  uint8_t* translate(uint64_t gpa, uint64_t len, const Region*& hint) const noexcept {
    if (hint && hint->holds(gpa, len)) [[likely]]
      return hint->host + (gpa - hint->gpa);
    return translate_slowly(gpa, len, hint);
  }
  /// The same over region borders: fills `out` and returns how many pieces, 0 when any byte is unmapped or not shared,
  /// or `out` is too small.
  size_t pieces(uint64_t gpa, uint64_t len, std::span<Piece> out) const noexcept;
  /// For ring addresses, which are the front end's: host address of [uva, uva + len) within one region, or nullptr.
  uint8_t* translate_uva(uint64_t uva, uint64_t len) const noexcept;

 private:
  const Region* find(uint64_t gpa) const noexcept;
  uint8_t* translate_slowly(uint64_t gpa, uint64_t len, const Region*& hint) const noexcept;

  std::vector<Region> regions_;
};

}  // namespace vhost_ioat::memory
