// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

// Split virtqueue as laid down in VIRTIO 1.2, 2.7. Sizes, offsets and bits only; little endian, as is every host we
// build for. Names keep the specification's spelling.
namespace vhost_ioat::virtio {

struct Descriptor {  // 2.7.5
  uint64_t addr;
  uint32_t len;
  uint16_t flags;
  uint16_t next;
};
static_assert(sizeof(Descriptor) == 16);

constexpr uint16_t DESC_F_NEXT = 1;
constexpr uint16_t DESC_F_WRITE = 2;
constexpr uint16_t DESC_F_INDIRECT = 4;

struct AvailHeader {  // 2.7.6; then uint16_t ring[size], then used_event with EVENT_IDX
  uint16_t flags;
  uint16_t idx;
};
static_assert(sizeof(AvailHeader) == 4);
constexpr uint16_t AVAIL_F_NO_INTERRUPT = 1;

struct UsedElement {
  uint32_t id;
  uint32_t len;
};
struct UsedHeader {  // 2.7.8; then UsedElement ring[size], then avail_event with EVENT_IDX
  uint16_t flags;
  uint16_t idx;
};
static_assert(sizeof(UsedHeader) == 4 && sizeof(UsedElement) == 8);
constexpr uint16_t USED_F_NO_NOTIFY = 1;

constexpr uint32_t max_ring_size = 32768;  // 2.7
constexpr uint64_t desc_align = 16, avail_align = 2, used_align = 4;
constexpr size_t desc_bytes(uint32_t size) { return 16ull * size; }
constexpr size_t avail_bytes(uint32_t size, bool event_idx) { return 4 + 2ull * size + (event_idx ? 2 : 0); }
constexpr size_t used_bytes(uint32_t size, bool event_idx) { return 4 + 8ull * size + (event_idx ? 2 : 0); }

/// Where the three parts of one ring lie in our address space.
struct RingAddresses {
  Descriptor* desc = nullptr;
  uint8_t* avail = nullptr;
  uint8_t* used = nullptr;
};

/// A field that the other side reads or writes at the same time. One access, never torn, never repeated.
template <typename T>
T load_relaxed(const void* field) {
  return std::atomic_ref<T>(*static_cast<T*>(const_cast<void*>(field))).load(std::memory_order_relaxed);
}
template <typename T>
T load_acquire(const void* field) {
  return std::atomic_ref<T>(*static_cast<T*>(const_cast<void*>(field))).load(std::memory_order_acquire);
}
template <typename T>
void store_relaxed(void* field, T value) {
  std::atomic_ref<T>(*static_cast<T*>(field)).store(value, std::memory_order_relaxed);
}
template <typename T>
void store_release(void* field, T value) {
  std::atomic_ref<T>(*static_cast<T*>(field)).store(value, std::memory_order_release);
}

/// The virtio-net header without num_buffers (5.1.6); this is what `Burst.net_hdr` shows.
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

}  // namespace vhost_ioat::virtio
