// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "port/eth_vhost.hpp"

namespace vhost_ioat::port {

enum class ForwardMode : uint8_t { io, macswap, icmpecho, rxonly, txonly };
ForwardMode forward_mode(const std::string& name);  // throws ConfigError

/// What becomes of packets that the destination does not take.
///
/// drop: they are dropped at once, as testpmd does. retry: they are offered again, one burst for each queue and
/// direction, and until they are gone that queue is not received from, so that its guest feels it. Only where sending
/// again is in vain are they dropped: the link is down, the ring stopped or broken, or the run ended.
enum class OnFull : uint8_t { drop, retry };
OnFull on_full(const std::string& name);  // throws ConfigError

/// Moves packets between two ports (or one and itself), both ways and on all queues. Every packet received is in one of
/// the counters, or waits to be offered again. One thread at a time.
class Forwarder {
 public:
  static constexpr uint32_t max_burst = 1024;

  /// Of one of the two ports, as source and as destination.
  struct Side {
    uint64_t received = 0;      // from it
    uint64_t consumed = 0;      // from it, and not sent on: all in rxonly, in icmpecho what is no request
    uint64_t sent = 0;          // taken by it
    uint64_t dropped_full = 0;  // not taken by it: no room
    uint64_t dropped_down = 0;  // not taken by it: link down, ring stopped or broken, or the port closed
    uint64_t dropped() const { return dropped_full + dropped_down; }
  };

  /// Throws ConfigError unless 1 <= burst <= max_burst.
  Forwarder(EthVhost& a, EthVhost& b, ForwardMode mode, uint32_t burst, OnFull on_full = OnFull::drop);

  void run(std::chrono::steady_clock::time_point until);
  /// Offers what waits once more, and drops the rest; a later run() may go on.
  void finish() noexcept;
  /// Of a and b; when both are one port, all is with a.
  const std::array<Side, 2>& sides() const { return sides_; }

 private:
  /// What was received from one queue of one port and is not sent yet.
  struct Lane {
    virtio::Burst packets;
    PacketView view;             // the rest of them
    std::vector<uint32_t> rows;  // those that icmpecho answers
    EthVhost* target = nullptr;
    uint32_t queue = 0;  // of the target
  };

  void pass(EthVhost& from, EthVhost& to, uint32_t queue);
  void generate(EthVhost& to, uint32_t queue);
  bool receive(Lane& lane, EthVhost& from, EthVhost& to, uint32_t queue);
  uint32_t answer_requests(Lane& lane) const;
  void send(Lane& lane);
  void drop(Lane& lane, bool serves) noexcept;
  Side& side(const EthVhost& port) { return sides_[&port != &a_]; }
  virtio::Burst generated() const;

  EthVhost& a_;
  EthVhost& b_;
  ForwardMode mode_;
  uint32_t burst_;
  OnFull on_full_;
  virtio::Burst filler_;                    // what txonly sends
  std::array<std::vector<Lane>, 2> lanes_;  // by source and queue
  std::array<Side, 2> sides_;
};

}  // namespace vhost_ioat::port
