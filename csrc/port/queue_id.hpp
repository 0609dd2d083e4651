// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>

namespace vhost_ioat::port {

enum class Direction : uint8_t { rx, tx };

/// A queue of a port, as its user counts them. Ring 2N of the front end is tx queue N of the port (the guest receives),
/// ring 2N + 1 is rx queue N; this is the only place that knows.
struct QueueId {
  Direction direction;
  uint32_t number;

  static constexpr QueueId of_ring(uint32_t ring) { return {ring % 2 == 0 ? Direction::tx : Direction::rx, ring / 2}; }
  constexpr uint32_t ring() const { return 2 * number + (direction == Direction::rx); }
  constexpr bool rx() const { return direction == Direction::rx; }
  constexpr const char* direction_name() const { return rx() ? "rx" : "tx"; }

  friend constexpr bool operator==(const QueueId&, const QueueId&) = default;
};
constexpr QueueId rx_queue(uint32_t number) { return {Direction::rx, number}; }
constexpr QueueId tx_queue(uint32_t number) { return {Direction::tx, number}; }
static_assert(QueueId::of_ring(5) == rx_queue(2) && tx_queue(2).ring() == 4);

}  // namespace vhost_ioat::port
