// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

#include "port/eth_vhost.hpp"

namespace vhost_ioat::port {

enum class ForwardMode : uint8_t { io, macswap, icmpecho, rxonly, txonly };
ForwardMode forward_mode(const std::string& name);  // throws ConfigError

/// Moves packets between two ports (or one and itself), both ways and on all queues. What a destination does not take
/// is dropped, as testpmd does.
class Forwarder {
 public:
  static constexpr uint32_t max_burst = 1024;

  /// Throws ConfigError unless 1 <= burst <= max_burst.
  Forwarder(EthVhost& a, EthVhost& b, ForwardMode mode, uint32_t burst);
  void run(std::chrono::steady_clock::time_point until);

 private:
  void pass(EthVhost& from, EthVhost& to, uint32_t queue);
  virtio::Burst generated() const;

  EthVhost& a_;
  EthVhost& b_;
  ForwardMode mode_;
  uint32_t burst_;
  virtio::Burst filler_;  // what txonly sends
};

}  // namespace vhost_ioat::port
