// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstdint>
#include <string>

namespace vhost_ioat::port {

/// Something a queue wants said once, beside its counters: not a fault, the queue goes on. Kept as numbers, so that the
/// data path neither allocates nor formats; text() does, on the control thread.
struct Notice {
  enum class Kind : uint8_t {
    short_buffer,          // value: bytes of the buffer, limit: the least that is of use
    gso_without_checksum,  // value: gso_type
    memory_exhausted,      // value: bytes wanted in one piece, limit: bytes of the arena
    memory_cut_up,         // value: bytes wanted in one piece, limit: bytes of the arena, extra: largest free piece
    call_failed,           // nothing more to say
    costly_fd,             // the same; the session ends
  };
  static constexpr size_t kinds = 6;

  uint64_t value = 0, limit = 0, extra = 0;

  static std::string text(Kind kind, const Notice& notice);
};

/// The notices of one queue: written by its owner, said by the control thread while it is the owner.
class Notices {
 public:
  /// Said once until again() or reset().
  void add(Notice::Kind kind, uint64_t value, uint64_t limit, uint64_t extra = 0) noexcept {
    if (told_ & bit(kind)) return;
    told_ |= bit(kind);
    waiting_ |= bit(kind);
    what_[static_cast<size_t>(kind)] = {value, limit, extra};
  }
  void again(Notice::Kind kind) noexcept { told_ &= static_cast<uint8_t>(~bit(kind)); }
  void reset() noexcept { told_ = 0; }

  bool waiting() const { return waiting_ != 0; }
  /// each(kind, notice) for those that wait.
  template <typename Each>
  void take(Each&& each) {
    for (size_t k = 0; k < Notice::kinds; ++k)
      if (waiting_ & bit(static_cast<Notice::Kind>(k))) each(static_cast<Notice::Kind>(k), what_[k]);
    waiting_ = 0;
  }

 private:
  static uint8_t bit(Notice::Kind kind) { return static_cast<uint8_t>(1u << static_cast<unsigned>(kind)); }
  uint8_t told_ = 0, waiting_ = 0;
  std::array<Notice, Notice::kinds> what_;
};

}  // namespace vhost_ioat::port
