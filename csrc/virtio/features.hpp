// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>

namespace vhost_ioat::virtio {

/// Feature bits by number (VIRTIO 1.2, 5.1.3 and 6; bit 30 is vhost-user's). A bit number and a mask are different
/// types, so that one cannot be used as the other.
enum class Feature : uint8_t {
  CSUM = 0,
  GUEST_CSUM = 1,
  CTRL_GUEST_OFFLOADS = 2,
  MTU = 3,
  MAC = 5,
  GUEST_TSO4 = 7,
  GUEST_TSO6 = 8,
  GUEST_ECN = 9,
  HOST_TSO4 = 11,
  HOST_TSO6 = 12,
  HOST_ECN = 13,
  MRG_RXBUF = 15,
  STATUS = 16,
  CTRL_VQ = 17,
  CTRL_RX = 18,
  GUEST_ANNOUNCE = 21,
  MQ = 22,
  ANY_LAYOUT = 27,
  INDIRECT_DESC = 28,
  EVENT_IDX = 29,
  PROTOCOL_FEATURES = 30,
  VERSION_1 = 32,
  IN_ORDER = 35,
  GUEST_USO4 = 54,
  GUEST_USO6 = 55,
  HOST_USO = 56,
};

class FeatureSet {
 public:
  constexpr FeatureSet() = default;
  constexpr explicit FeatureSet(uint64_t mask) : mask_(mask) {}
  template <typename... Bits>
  static constexpr FeatureSet of(Bits... bits) {
    return FeatureSet((0ull | ... | (1ull << static_cast<unsigned>(static_cast<Feature>(bits)))));
  }

  constexpr bool has(Feature bit) const { return mask_ >> static_cast<unsigned>(bit) & 1; }
  constexpr FeatureSet with(Feature bit) const { return FeatureSet(mask_ | 1ull << static_cast<unsigned>(bit)); }
  constexpr FeatureSet without(Feature bit) const { return FeatureSet(mask_ & ~(1ull << static_cast<unsigned>(bit))); }
  constexpr bool within(FeatureSet offered) const { return (mask_ & ~offered.mask_) == 0; }
  constexpr FeatureSet operator&(FeatureSet other) const { return FeatureSet(mask_ & other.mask_); }
  constexpr uint64_t mask() const { return mask_; }
  constexpr bool operator==(const FeatureSet&) const = default;

  /// Length of the virtio-net header: 12 with num_buffers, 10 without (VIRTIO 1.2, 5.1.6.1 and 5.1.6.3.1).
  constexpr uint32_t net_header_size() const { return has(Feature::VERSION_1) || has(Feature::MRG_RXBUF) ? 12 : 10; }

 private:
  uint64_t mask_ = 0;
};

/// All this back end knows how to do; nothing else is ever offered.
constexpr FeatureSet supported_features =
    FeatureSet::of(Feature::CSUM, Feature::GUEST_CSUM, Feature::MTU, Feature::GUEST_TSO4, Feature::GUEST_TSO6,
                   Feature::GUEST_ECN, Feature::HOST_TSO4, Feature::HOST_TSO6, Feature::HOST_ECN, Feature::MRG_RXBUF,
                   Feature::STATUS, Feature::CTRL_VQ, Feature::CTRL_RX, Feature::GUEST_ANNOUNCE, Feature::MQ,
                   Feature::ANY_LAYOUT, Feature::INDIRECT_DESC, Feature::EVENT_IDX, Feature::PROTOCOL_FEATURES,
                   Feature::VERSION_1, Feature::IN_ORDER, Feature::GUEST_USO4, Feature::GUEST_USO6, Feature::HOST_USO);

}  // namespace vhost_ioat::virtio
