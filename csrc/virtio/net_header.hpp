// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>

#include "virtio/features.hpp"

namespace vhost_ioat::virtio {

/// The virtio-net header without num_buffers (VIRTIO 1.2, 5.1.6); this is what `Burst.net_hdr` shows.
struct NetHeader {
  uint8_t flags = 0;
  uint8_t gso_type = 0;
  uint16_t hdr_len = 0;
  uint16_t gso_size = 0;
  uint16_t csum_start = 0;
  uint16_t csum_offset = 0;
};
static_assert(sizeof(NetHeader) == 10);
constexpr size_t num_buffers_offset = 10;

constexpr uint8_t NET_HDR_F_NEEDS_CSUM = 1;
constexpr uint8_t NET_HDR_F_DATA_VALID = 2;
constexpr uint8_t NET_HDR_GSO_NONE = 0;
constexpr uint8_t NET_HDR_GSO_TCPV4 = 1;
constexpr uint8_t NET_HDR_GSO_TCPV6 = 4;
constexpr uint8_t NET_HDR_GSO_UDP_L4 = 5;
constexpr uint8_t NET_HDR_GSO_ECN = 0x80;

/// Largest packet a queue takes: 65535 bytes of IP, an Ethernet header and a VLAN tag.
constexpr uint32_t max_packet = 65553;
/// Shortest Ethernet frame, without its checksum (IEEE 802.3): a receive buffer is expected to hold it.
constexpr uint32_t least_packet = 60;

/// May this header stand before a packet of `len` bytes? (VIRTIO 1.2, 5.1.6.2.1: what a receiver must check.)
inline bool valid(const NetHeader& h, uint32_t len) {
  if (h.flags & NET_HDR_F_NEEDS_CSUM) {
    if (uint32_t{h.csum_start} + h.csum_offset + 2 > len) return false;
  }
  const uint8_t gso = h.gso_type & static_cast<uint8_t>(~NET_HDR_GSO_ECN);
  if (gso == NET_HDR_GSO_NONE) return h.gso_type == NET_HDR_GSO_NONE;
  if (gso != NET_HDR_GSO_TCPV4 && gso != NET_HDR_GSO_TCPV6 && gso != NET_HDR_GSO_UDP_L4) return false;
  // A segment needs its partial checksum (5.1.6.2.1) and a size to be cut at.
  return (h.flags & NET_HDR_F_NEEDS_CSUM) != 0 && h.gso_size != 0 && h.hdr_len <= len;
}

/// Asks for segmentation without the partial checksum that must come with it (5.1.6.2.1).
inline bool segment_without_checksum(const NetHeader& h) {
  return h.gso_type != NET_HDR_GSO_NONE && !(h.flags & NET_HDR_F_NEEDS_CSUM);
}
/// ... but needs no segmentation: the packet is no longer than one segment.
inline bool is_one_segment(const NetHeader& h, uint32_t len) {
  return h.gso_size != 0 && h.hdr_len <= len && uint32_t{h.hdr_len} + h.gso_size >= len;
}

/// Is the segmentation that `h` asks for among what a driver with these features receives (5.1.3.1)?
inline bool receives_segment(FeatureSet features, const NetHeader& h) {
  if ((h.gso_type & NET_HDR_GSO_ECN) && !features.has(Feature::GUEST_ECN)) return false;
  switch (h.gso_type & static_cast<uint8_t>(~NET_HDR_GSO_ECN)) {
    case NET_HDR_GSO_NONE:
      return true;
    case NET_HDR_GSO_TCPV4:
      return features.has(Feature::GUEST_TSO4);
    case NET_HDR_GSO_TCPV6:
      return features.has(Feature::GUEST_TSO6);
    case NET_HDR_GSO_UDP_L4:  // the type does not say which IP: both must have been negotiated
      return features.has(Feature::GUEST_USO4) && features.has(Feature::GUEST_USO6);
    default:
      return false;
  }
}

/// May a driver with these features ask for what `h` asks for (HOST_*, 5.1.3.1)?
inline bool may_send_segment(FeatureSet features, const NetHeader& h) {
  if ((h.gso_type & NET_HDR_GSO_ECN) && !features.has(Feature::HOST_ECN)) return false;
  switch (h.gso_type & static_cast<uint8_t>(~NET_HDR_GSO_ECN)) {
    case NET_HDR_GSO_NONE:
      return true;
    case NET_HDR_GSO_TCPV4:
      return features.has(Feature::HOST_TSO4);
    case NET_HDR_GSO_TCPV6:
      return features.has(Feature::HOST_TSO6);
    case NET_HDR_GSO_UDP_L4:
      return features.has(Feature::HOST_USO);
    default:
      return false;
  }
}

/// The Internet checksum (RFC 1071) over [data, data + len), folded and inverted: what belongs into the packet at
/// csum_start + csum_offset when the sender has left the pseudo-header sum there. Never 0, which UDP reads as "none".
uint16_t internet_checksum(const uint8_t* data, size_t len);

}  // namespace vhost_ioat::virtio
