// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/mutex.hpp"
#include "dma/engine.hpp"

namespace vhost_ioat::dma {

/// What a device may do with a mapping; an IOMMU refuses the rest as if nothing were mapped there.
enum class Rights : uint8_t { none = 0, read = 1, write = 2, both = 3 };
constexpr bool allow(Rights given, Rights wanted) {
  return (static_cast<uint8_t>(given) & static_cast<uint8_t>(wanted)) == static_cast<uint8_t>(wanted);
}

/// What the software device can reach: IOVA ranges and the host memory behind them. It plays the IOMMU, so a device
/// that is at work holds an Access, and memory is given back to its owner only between two of them.
///
/// The first page is never reachable, whatever is mapped there: address 0 in a descriptor is a mistake everywhere.
/// Any thread.
class IovaMap {
 public:
  static constexpr uint64_t first_reachable = 4096;
  static constexpr size_t max_pieces = 65535;  // as VFIO's own limit

  /// `owner` keeps the memory for as long as a part of it is mapped. Throws DmaError when the range is empty, wraps, or
  /// overlaps another, when there are max_pieces, and after revoke().
  void map(uint64_t iova, void* host, uint64_t size, Rights rights = Rights::both, std::shared_ptr<void> owner = {});
  /// Drops the mapping that starts at `iova`; false when none does. Waits for the descriptor at work.
  bool unmap(uint64_t iova);
  /// Nothing from `first` to `last` is mapped after it: a mapping that reaches over an end of the range keeps the rest.
  /// Returns how many bytes were. Throws DmaError when that makes one more than max_pieces. Waits likewise.
  uint64_t unmap_range(uint64_t first, uint64_t last);
  /// Is a byte from `first` to `last` mapped?
  bool holds(uint64_t first, uint64_t last) const;
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
    // Not for clang to check: whether the mutex is held is known at run time only.
    explicit Access(IovaMap& map) NO_THREAD_SAFETY_ANALYSIS;
    Access(const Access&) = delete;
    Access& operator=(const Access&) = delete;
    ~Access() NO_THREAD_SAFETY_ANALYSIS;
    /// The host address of `iova`; `len` is lowered to the bytes that follow it in the same mapping. Null: unmapped, or
    /// not for that.
    uint8_t* at(uint64_t iova, uint64_t& len, Rights wanted, Hint& hint) const noexcept NO_THREAD_SAFETY_ANALYSIS;
    /// Copies out [iova, iova + len), over borders of mappings; false when a byte of it cannot be read.
    bool read(uint64_t iova, void* to, uint64_t len, Hint& hint) const noexcept;

   private:
    const IovaMap& map_;
    const bool held_;  // the mutex, until revoked
  };

 private:
  struct Piece {
    uint64_t iova;
    uint64_t size;
    uint8_t* host;
    Rights rights;
    std::shared_ptr<void> owner;

    uint64_t last() const { return iova + (size - 1); }
    bool holds(uint64_t address) const { return address - iova < size; }
  };
  using Pieces = std::vector<Piece>;
  /// A busy device takes the mutex again and again, and a plain one would let it win every time.
  class SCOPED_CAPABILITY Change {
   public:
    explicit Change(IovaMap& map) ACQUIRE(map.mutex_);
    Change(const Change&) = delete;
    Change& operator=(const Change&) = delete;
    ~Change() RELEASE() { map_.mutex_.unlock(); }

   private:
    IovaMap& map_;
  };
  Pieces::const_iterator first_after(uint64_t iova) const REQUIRES(mutex_);
  void split(uint64_t iova) noexcept REQUIRES(mutex_);
  void check_room() const REQUIRES(mutex_);

  mutable Mutex mutex_;
  Pieces pieces_ GUARDED_BY(mutex_);  // by IOVA
  std::atomic<int> changing_{0};      // threads that want to change the map: the device lets them go first
  std::atomic<bool> revoked_{false};
};

}  // namespace vhost_ioat::dma
