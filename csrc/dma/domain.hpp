// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.hpp"
#include "dma/dma_space.hpp"
#include "dma/engine.hpp"

namespace vhost_ioat::dma {

/// One piece of our memory that a device reaches, and where it finds it. An empty one holds nothing.
struct Mapping {
  uintptr_t host = 0;
  uintptr_t size = 0;
  uint64_t iova = 0;

  bool holds(uintptr_t address, uintptr_t len) const { return len <= size && address - host <= size - len; }
  uint64_t translate(uintptr_t address) const { return iova + (address - host); }
};

/// What a device reaches of our memory, and the IOVAs of it, which are chosen here.
///
/// Any thread may map and unmap, which may take as long as the kernel needs to pin memory, while others copy and look
/// mappings up, which does not wait. A mapping is counted: who shares a device maps the same memory again.
class Domain {
 public:
  /// `name`: of the device, for messages. IOVAs keep to `address_bits`.
  Domain(std::shared_ptr<DmaSpace> space, std::string name, uint8_t address_bits);

  /// Makes [host, host + size) known to the device, as a whole; or counts it once more when exactly this is known.
  /// Returns its IOVA. Throws DmaError, and then nothing has changed.
  uint64_t map(void* host, size_t size) EXCLUDES(table_mutex_, space_mutex_);
  /// Forgets a mapping made by map() when this was its last user. Its IOVAs are used again only after the device was
  /// kept from them. Throws DmaError when there is none.
  void unmap(void* host) EXCLUDES(table_mutex_, space_mutex_);
  /// Forgets all of it. What the space refuses to take back goes with the space.
  void clear() noexcept EXCLUDES(table_mutex_, space_mutex_);

  /// The mapping that holds this address; an empty one when there is none, or while the table is being changed.
  Mapping find(uintptr_t address) const noexcept EXCLUDES(table_mutex_);
  /// Another value after each unmap(): what find() has told before is void then. Who has copies in memory that is
  /// unmapped was told to let go of it before, so it needs no order with the table.
  uint32_t unmappings() const noexcept { return unmappings_.load(std::memory_order_relaxed); }

  /// Takes all memory away from the device, for good. Called again while it answers `pending`. From then on unmap()
  /// only forgets.
  Step revoke() noexcept EXCLUDES(table_mutex_, space_mutex_);

 private:
  struct Entry : Mapping {
    uint32_t users = 1;
    bool settled = false;  // the device has it; else the space is being asked, without the table's mutex
  };
  using Table = std::vector<Entry>;

  Table::iterator place_of(uintptr_t host) REQUIRES(table_mutex_);
  uint64_t pick_iova(uintptr_t host, size_t size) REQUIRES(table_mutex_);
  void forget(uintptr_t host) noexcept EXCLUDES(table_mutex_);

  const std::shared_ptr<DmaSpace> space_;
  const std::string name_;
  const uint8_t address_bits_;
  /// Held for as long as the kernel takes; taken before the table's, which is held for some instructions.
  Mutex space_mutex_;
  mutable Mutex table_mutex_;
  Table table_ GUARDED_BY(table_mutex_);  // by host address
  std::atomic<uint32_t> unmappings_{0};
  bool revoked_ GUARDED_BY(space_mutex_) = false;
};

}  // namespace vhost_ioat::dma
