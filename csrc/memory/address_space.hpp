// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <memory>
#include <span>
#include <utility>

#include "memory/region_table.hpp"

namespace vhost_ioat::memory {

/// What became of a guest address: it is in this process's memory; it is nobody's, so that whoever named it is at
/// fault; or it is in more pieces than were asked for.
enum class Answer : uint8_t { here, never, too_many_pieces };

/// Guest memory as one ring sees it, and the only way from an address in it to a pointer.
///
/// It holds the region table and the region that was hit last. One thread at a time; to change the table, make another.
class AddressSpace {
 public:
  AddressSpace() = default;
  explicit AddressSpace(std::shared_ptr<const RegionTable> table) : table_(std::move(table)) {}

  explicit operator bool() const { return table_ != nullptr; }
  const std::shared_ptr<const RegionTable>& table() const { return table_; }

  /// Host address of [gpa, gpa + len), len >= 1, when all of it is in one region, or nullptr: then resolve() answers.
  uint8_t* translate(uint64_t gpa, uint64_t len) noexcept { return table_->translate(gpa, len, hint_); }
  /// The region that was hit last, for a loop that keeps it in registers.
  Window window() const noexcept { return Window::of(hint_); }

  struct Resolved {
    Answer answer;
    uint32_t pieces;  // of `out`; 0 unless here
  };
  /// The host pieces of [gpa, gpa + len), len >= 1, over region borders.
  Resolved resolve(uint64_t gpa, uint64_t len, std::span<Piece> out) noexcept {
    if (out.empty()) return {Answer::too_many_pieces, 0};
    if (uint8_t* host = translate(gpa, len)) {
      out[0] = {host, len};
      return {Answer::here, 1};
    }
    const size_t n = table_->pieces(gpa, len, out);
    if (n != 0) return {Answer::here, static_cast<uint32_t>(n)};
    return {out.size() < RegionTable::max_regions ? Answer::too_many_pieces : Answer::never, 0};
  }

 private:
  std::shared_ptr<const RegionTable> table_;
  const Region* hint_ = nullptr;  // of table_
};

}  // namespace vhost_ioat::memory
