// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <compare>
#include <cstdint>

namespace vhost_ioat {

/// A free-running 16-bit ring index (VIRTIO 1.2, 2.7.6 and 2.7.8), and the only place where such an index wraps.
///
/// Plain uint16_t subtraction is promoted to int and goes negative at the wrap; three public projects have that bug.
/// So there is no conversion to an integer here but value(), and the distance is a method.
class RingIndex {
 public:
  constexpr RingIndex() = default;
  constexpr explicit RingIndex(uint16_t value) : value_(value) {}

  constexpr uint16_t value() const { return value_; }
  /// Slot in a ring of a power-of-two size, given as mask = size - 1.
  constexpr uint16_t slot(uint32_t mask) const { return static_cast<uint16_t>(value_ & mask); }
  /// How many steps forward from here to `later`, 0..65535.
  constexpr uint16_t distance_to(RingIndex later) const { return static_cast<uint16_t>(later.value_ - value_); }

  constexpr RingIndex operator+(uint32_t n) const { return RingIndex(static_cast<uint16_t>(value_ + n)); }
  constexpr RingIndex operator-(uint32_t n) const { return RingIndex(static_cast<uint16_t>(value_ - n)); }
  constexpr RingIndex& operator+=(uint32_t n) { return *this = *this + n; }
  constexpr RingIndex& operator++() { return *this += 1; }
  constexpr bool operator==(const RingIndex&) const = default;

 private:
  uint16_t value_ = 0;
};

/// The event-index rule (VIRTIO 1.2, 2.7.7.2 and 2.7.10): does going from `before` to `now` pass `event`?
constexpr bool need_event(RingIndex event, RingIndex before, RingIndex now) {
  return event.distance_to(now - 1) < before.distance_to(now);
}

}  // namespace vhost_ioat
