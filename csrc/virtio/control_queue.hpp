// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <bitset>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "memory/region_table.hpp"
#include "virtio/features.hpp"

namespace vhost_ioat::virtio {

using MacAddress = std::array<uint8_t, 6>;
std::string text_of(const MacAddress& mac);

/// What the driver has asked for over its control queue. A port delivers every packet whatever this says, since there
/// is one machine on its wire; scripts may read it, and front ends without a control queue of their own need answers.
struct ControlState {
  bool promiscuous = false, all_multicast = false, all_unicast = false;
  bool no_multicast = false, no_unicast = false, no_broadcast = false;
  std::optional<MacAddress> mac;               // MAC_ADDR_SET
  std::vector<MacAddress> unicast, multicast;  // MAC_TABLE_SET
  std::bitset<4096> vlans;                     // VLAN_ADD, VLAN_DEL
  uint16_t queue_pairs = 1;                    // VQ_PAIRS_SET
  uint64_t guest_offloads = 0;                 // GUEST_OFFLOADS_SET; bits are those of the features
};

/// Device side of a network device's control queue (VIRTIO 1.2, 5.1.6.5), apart from the ring that carries it: a
/// command comes as lists of pieces of guest memory, however the driver has cut it up.
///
/// OK is answered to what was negotiated and changes nothing for a port; it is kept in state(). ERR is answered to all
/// else, and changes nothing. One thread at a time.
class ControlQueue {
 public:
  static constexpr size_t max_macs = 1024;  // of each table of MAC_TABLE_SET
  /// What is looked at of one command; the longest legal one has this many bytes.
  static constexpr size_t max_command = 2 + 2 * (4 + max_macs * 6);
  static constexpr uint8_t ok = 0, err = 1;

  /// As a driver finds the device: features just negotiated, `queue_pairs` of them on offer.
  void reset(FeatureSet features, uint32_t queue_pairs);

  struct Answer {
    bool acknowledged = false;  // there was room for the answer, and it is written
    uint8_t ack = err;
    std::string change;  // what is different now, in words; empty: nothing
  };
  /// Carries out one command. `command`: what the driver wrote, class and command code first. `reply`: where the device
  /// writes; the answer goes into the first byte. Pieces may be of any length, also empty; they must be mapped.
  Answer handle(std::span<const memory::Piece> command, std::span<const memory::Piece> reply);

  const ControlState& state() const { return state_; }

 private:
  using Bytes = std::span<const uint8_t>;
  std::optional<std::string> carry_out(uint8_t group, uint8_t code, Bytes body);
  std::optional<std::string> receive_mode(uint8_t code, Bytes body);
  std::optional<std::string> mac(uint8_t code, Bytes body);
  std::optional<std::string> vlan(uint8_t code, Bytes body);
  std::optional<std::string> queue_pairs(uint8_t code, Bytes body);
  std::optional<std::string> offloads(uint8_t code, Bytes body);

  FeatureSet features_;
  uint32_t max_queue_pairs_ = 1;
  ControlState state_;
  std::vector<uint8_t> command_;  // the copy that is looked at; a driver may change its own meanwhile
};

}  // namespace vhost_ioat::virtio
