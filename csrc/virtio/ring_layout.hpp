// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>

// Where things lie in a virtqueue: sizes, offsets and bits, for the device's and the driver's side alike. Little
// endian, as is every host we build for. Names keep the specification's spelling.
namespace vhost_ioat::virtio {

struct Descriptor {  // VIRTIO 1.2, 2.7.5
  uint64_t addr;
  uint32_t len;
  uint16_t flags;
  uint16_t next;
};
static_assert(sizeof(Descriptor) == 16);

constexpr uint16_t DESC_F_NEXT = 1;
constexpr uint16_t DESC_F_WRITE = 2;
constexpr uint16_t DESC_F_INDIRECT = 4;

struct UsedElement {  // 2.7.8
  uint32_t id;
  uint32_t len;
};
static_assert(sizeof(UsedElement) == 8);

constexpr uint16_t AVAIL_F_NO_INTERRUPT = 1;
constexpr uint16_t USED_F_NO_NOTIFY = 1;

constexpr uint32_t max_ring_size = 32768;  // 2.7
constexpr uint64_t desc_align = 16, avail_align = 2, used_align = 4;
constexpr size_t desc_bytes(uint32_t size) { return 16ull * size; }
constexpr size_t avail_bytes(uint32_t size, bool event_idx) { return 4 + 2ull * size + (event_idx ? 2 : 0); }
constexpr size_t used_bytes(uint32_t size, bool event_idx) { return 4 + 8ull * size + (event_idx ? 2 : 0); }

/// Where the three parts of one ring lie in our address space.
///
/// Split virtqueue: the avail ring (2.7.6) is flags, idx, uint16_t ring[size], used_event; the used ring (2.7.8) is
/// flags, idx, UsedElement ring[size], avail_event. The event fields are there with EVENT_IDX only.
struct RingAddresses {
  Descriptor* desc = nullptr;
  uint8_t* avail = nullptr;
  uint8_t* used = nullptr;

  uint8_t* avail_flags() const { return avail; }
  uint8_t* avail_idx() const { return avail + 2; }
  uint8_t* avail_ring(uint32_t slot) const { return avail + 4 + 2 * size_t{slot}; }
  uint8_t* used_event(uint32_t size) const { return avail_ring(size); }

  uint8_t* used_flags() const { return used; }
  uint8_t* used_idx() const { return used + 2; }
  UsedElement* used_ring() const { return reinterpret_cast<UsedElement*>(used + 4); }
  uint8_t* avail_event(uint32_t size) const { return reinterpret_cast<uint8_t*>(used_ring() + size); }
};

/// The two halves of a descriptor, each read or written by one access.
constexpr uint64_t pack_descriptor(uint32_t len, uint16_t flags, uint16_t next) {
  return uint64_t{next} << 48 | uint64_t{flags} << 32 | len;
}
constexpr Descriptor unpack_descriptor(uint64_t addr, uint64_t rest) {
  return {addr, static_cast<uint32_t>(rest), static_cast<uint16_t>(rest >> 32), static_cast<uint16_t>(rest >> 48)};
}

}  // namespace vhost_ioat::virtio
