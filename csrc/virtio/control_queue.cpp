// SPDX-License-Identifier: BSD-3-Clause
#include "virtio/control_queue.hpp"

#include <algorithm>
#include <cinttypes>
#include <cstring>

#include "base/error.hpp"
#include "base/shared_field.hpp"
#include "virtio/ring_layout.hpp"

namespace vhost_ioat::virtio {
namespace {

// VIRTIO 1.2, 5.1.6.5: classes and their commands.
enum Group : uint8_t { rx_mode = 0, mac_filter = 1, vlan_filter = 2, announce = 3, multiqueue = 4, guest_offload = 5 };
constexpr uint8_t mac_table_set = 0, mac_addr_set = 1, vlan_add = 0, vlan_del = 1;
constexpr uint8_t announce_ack = 0, vq_pairs_set = 0, offloads_set = 0;

template <typename Number>
bool take(std::span<const uint8_t>& from, Number& to) {
  if (from.size() < sizeof to) return false;
  std::memcpy(&to, from.data(), sizeof to);
  from = from.subspan(sizeof to);
  return true;
}

/// le32 entries, then as many addresses (5.1.6.5.2). Not more than the queue keeps.
bool take_table(std::span<const uint8_t>& from, std::vector<MacAddress>& to) {
  uint32_t entries = 0;
  if (!take(from, entries) || entries > ControlQueue::max_macs || from.size() < size_t{entries} * 6) return false;
  to.resize(entries);
  for (MacAddress& address : to) take(from, address);
  return true;
}

/// The bytes of up to `limit` of what the pieces hold, each read once.
void gather(std::span<const memory::Piece> pieces, size_t limit, std::vector<uint8_t>& to) {
  to.clear();
  for (const memory::Piece& piece : pieces) {
    const auto n = static_cast<size_t>(std::min<uint64_t>(piece.len, limit - to.size()));
    to.insert(to.end(), piece.host, piece.host + n);
    if (to.size() == limit) return;
  }
}

/// Where the one byte of answer belongs, or nullptr.
uint8_t* first_byte(std::span<const memory::Piece> pieces) {
  const auto room = std::ranges::find_if(pieces, [](const memory::Piece& piece) { return piece.len != 0; });
  return room == pieces.end() ? nullptr : room->host;
}

}  // namespace

std::string text_of(const MacAddress& mac) {
  return format("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
}

void ControlQueue::reset(FeatureSet features, uint32_t queue_pairs) {
  features_ = features;
  max_queue_pairs_ = queue_pairs;
  state_ = {};
  command_.reserve(max_command);
}

ControlQueue::Answer ControlQueue::handle(std::span<const memory::Piece> command,
                                          std::span<const memory::Piece> reply) {
  Answer answer;
  uint8_t* const ack = first_byte(reply);
  if (!ack) return answer;  // nothing is done that could not be answered
  gather(command, max_command, command_);
  if (command_.size() >= 2) {
    if (auto change = carry_out(command_[0], command_[1], Bytes(command_).subspan(2))) {
      answer.ack = ok;
      answer.change = *std::move(change);
    }
  }
  answer.acknowledged = true;
  store_relaxed<uint8_t>(ack, answer.ack);
  return answer;
}

/// The change in words, "" when it is as it was; nothing: refused.
std::optional<std::string> ControlQueue::carry_out(uint8_t group, uint8_t code, Bytes body) {
  switch (group) {
    case rx_mode:
      return receive_mode(code, body);
    case mac_filter:
      return mac(code, body);
    case vlan_filter:
      return vlan(code, body);
    case announce:  // the guest has told its neighbours that it moved here
      return code == announce_ack ? std::optional<std::string>("") : std::nullopt;
    case multiqueue:
      return queue_pairs(code, body);
    case guest_offload:
      return offloads(code, body);
    default:  // coalescing and what came after it needs features that are not offered
      return std::nullopt;
  }
}

std::optional<std::string> ControlQueue::receive_mode(uint8_t code, Bytes body) {
  struct Mode {
    const char* name;
    bool ControlState::* flag;
  };
  static constexpr Mode modes[] = {
      {"promiscuous", &ControlState::promiscuous}, {"all multicast", &ControlState::all_multicast},
      {"all unicast", &ControlState::all_unicast}, {"no multicast", &ControlState::no_multicast},
      {"no unicast", &ControlState::no_unicast},   {"no broadcast", &ControlState::no_broadcast},
  };
  uint8_t on = 0;
  if (code >= std::size(modes) || !take(body, on)) return std::nullopt;
  bool& flag = state_.*modes[code].flag;
  if (flag == (on != 0)) return "";
  flag = on != 0;
  return format("%s %s", modes[code].name, flag ? "on" : "off");
}

std::optional<std::string> ControlQueue::mac(uint8_t code, Bytes body) {
  if (code == mac_addr_set) {
    MacAddress address;
    if (!take(body, address)) return std::nullopt;
    if (state_.mac == address) return "";
    state_.mac = address;
    return "MAC " + text_of(address);
  }
  std::vector<MacAddress> unicast, multicast;
  if (code != mac_table_set || !take_table(body, unicast) || !take_table(body, multicast)) return std::nullopt;
  if (unicast == state_.unicast && multicast == state_.multicast) return "";
  state_.unicast = std::move(unicast);
  state_.multicast = std::move(multicast);
  return format("MAC filter of %zu unicast and %zu multicast addresses", state_.unicast.size(),
                state_.multicast.size());
}

std::optional<std::string> ControlQueue::vlan(uint8_t code, Bytes body) {
  uint16_t id = 0;
  if (code > vlan_del || !take(body, id) || id >= state_.vlans.size()) return std::nullopt;
  if (state_.vlans[id] == (code == vlan_add)) return "";
  state_.vlans[id] = code == vlan_add;
  return format("VLAN %u %s", id, code == vlan_add ? "added" : "removed");
}

std::optional<std::string> ControlQueue::queue_pairs(uint8_t code, Bytes body) {
  uint16_t pairs = 0;
  if (code != vq_pairs_set || !take(body, pairs) || pairs < 1 || pairs > max_queue_pairs_) return std::nullopt;
  if (state_.queue_pairs == pairs) return "";
  state_.queue_pairs = pairs;
  return format("queue pairs %u", pairs);
}

/// Only once negotiated: whoever answers OK must stop sending what the driver turned off (5.1.6.5.6).
std::optional<std::string> ControlQueue::offloads(uint8_t code, Bytes body) {
  uint64_t wanted = 0;
  if (!features_.has(Feature::CTRL_GUEST_OFFLOADS) || code != offloads_set || !take(body, wanted)) return std::nullopt;
  if (!FeatureSet(wanted).within(features_)) return std::nullopt;
  if (state_.guest_offloads == wanted) return "";
  state_.guest_offloads = wanted;
  return format("guest offloads 0x%" PRIx64, wanted);
}

}  // namespace vhost_ioat::virtio
