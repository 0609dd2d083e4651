// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "dma/engine.hpp"

namespace vhost_ioat::dma {

/// What the software device can reach: IOVA ranges and the host memory behind them. It plays the IOMMU, so a device
/// that is at work holds an Access, and memory is given back to its owner only between two of them.
///
/// The first page is never reachable, whatever is mapped there: address 0 in a descriptor is a mistake everywhere.
/// Any thread.
class IovaMap {
 public:
  static constexpr uint64_t first_reachable = 4096;

  /// Throws DmaError when the range is empty, wraps, or overlaps another, and after revoke().
  void map(uint64_t iova, void* host, uint64_t size);
  /// Drops the mapping that starts at `iova`; false when none does. Waits for the descriptor at work.
  bool unmap(uint64_t iova);
  /// Drops every mapping that lies within [iova, iova + size) and returns how many. Waits likewise.
  size_t unmap_range(uint64_t iova, uint64_t size);
  /// Nothing is reachable from now on; `done` when no descriptor is at work any more. Never waits.
  Step revoke() noexcept;
  size_t size() const;

  /// Remembers the mapping hit last, one for each kind of access. Only a guess: it is checked when used.
  struct Hint {
    size_t index = 0;
  };

  /// The right to use what is mapped; while it lives, nothing is unmapped.
  class Access {
   public:
    explicit Access(IovaMap& map);
    /// The host address of `iova`; `len` is lowered to the bytes that follow it in the same mapping. Null: unmapped.
    uint8_t* at(uint64_t iova, uint64_t& len, Hint& hint) const noexcept;
    /// Copies out [iova, iova + len), over borders of mappings; false when a byte of it is unmapped.
    bool read(uint64_t iova, void* to, uint64_t len, Hint& hint) const noexcept;

   private:
    const IovaMap& map_;
    std::unique_lock<std::mutex> lock_;  // not held: revoked
  };

 private:
  struct Piece {
    uint64_t iova;
    uint64_t size;
    uint8_t* host;
    bool holds(uint64_t address) const { return address - iova < size; }
  };
  std::unique_lock<std::mutex> lock_for_change();

  mutable std::mutex mutex_;
  std::vector<Piece> pieces_;     // by IOVA
  std::atomic<int> changing_{0};  // threads that want to change the map: the device lets them go first
  std::atomic<bool> revoked_{false};
};

}  // namespace vhost_ioat::dma
