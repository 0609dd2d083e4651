// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>

namespace vhost_ioat::port {

/// A counter with one writer (the owner of the queue) and any readers.
class Counter {
 public:
  void add(uint64_t n) noexcept { value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed); }
  void raise_to(uint64_t n) noexcept {
    if (n > value_.load(std::memory_order_relaxed)) value_.store(n, std::memory_order_relaxed);
  }
  void set(uint64_t n) noexcept { value_.store(n, std::memory_order_relaxed); }
  uint64_t get() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

/// What one packet is counted as, named as net_vhost names it in its extended statistics.
constexpr std::array<const char*, 8> size_bucket_names = {
    "undersize_packets",    "size_64_packets",       "size_65_127_packets",    "size_128_255_packets",
    "size_256_511_packets", "size_512_1023_packets", "size_1024_1518_packets", "size_1519_max_packets"};
constexpr uint32_t size_bucket(uint32_t len) {
  if (len <= 64) return len == 64;
  if (len > 1518) return 7;
  return len >= 1024 ? 6 : static_cast<uint32_t>(std::bit_width(len)) - 5;
}
static_assert(size_bucket(63) == 0 && size_bucket(64) == 1 && size_bucket(65) == 2 && size_bucket(127) == 2 &&
              size_bucket(128) == 3 && size_bucket(1023) == 5 && size_bucket(1024) == 6 && size_bucket(1519) == 7);

/// Counters of one queue and direction. Byte counts leave out the virtio header.
struct QueueCounters {
  Counter packets, bytes;
  Counter multicast, broadcast;
  std::array<Counter, 8> sizes;
  Counter errors;  // malformed or unsendable packets: taken, dropped
  Counter missed;  // rx: dropped from a started but disabled ring
  Counter nombuf;  // rx: times there was no packet memory: packets waited, or one was dropped
  Counter notifications, notifications_suppressed, notification_errors;
};

/// What the packets of one burst add to the counters, kept on the stack until it ends.
struct Tally {
  uint32_t packets = 0, multicast = 0, broadcast = 0;
  uint64_t bytes = 0;
  std::array<uint32_t, 8> sizes{};

  /// Reads the destination address of the packet.
  void count(const uint8_t* packet, uint32_t len) noexcept {
    ++packets;
    bytes += len;
    ++sizes[size_bucket(len)];
    if (packet[0] & 1) [[unlikely]]
      classify(packet, len);
  }
  void add_classes_to(QueueCounters& counters) const noexcept {
    for (size_t i = 0; i < sizes.size(); ++i)
      if (sizes[i] != 0) counters.sizes[i].add(sizes[i]);
    if (multicast != 0) counters.multicast.add(multicast);
    if (broadcast != 0) counters.broadcast.add(broadcast);
  }

 private:
  [[gnu::noinline]] void classify(const uint8_t* packet, uint32_t len) noexcept {
    constexpr uint8_t ones[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    ++(len >= 6 && std::memcmp(packet, ones, 6) == 0 ? broadcast : multicast);
  }
};

/// Additional counters of an rx queue. Those that end in _dropped are what `errors` is made of, by reason.
struct RxCounters : QueueCounters {
  Counter empty_dropped;        // a chain without a byte of a packet
  Counter oversize_dropped;     // more bytes than any packet has
  Counter pieces_dropped;       // more pieces than a packet may lie in, or too long a walk (base/budget.hpp)
  Counter header_dropped;       // the net header contradicts itself or the packet
  Counter gso_dropped;          // segmentation that was not negotiated
  Counter gso_no_csum_dropped;  // segmentation without NEEDS_CSUM
  Counter nombuf_dropped;       // no piece of packet memory was large enough; not an error of the guest's
  Counter rarp_lost;            // announcements that nobody took before they were replaced, or the ring stopped
};

/// Counters of the copies of a queue's packets (copy_pipe.hpp).
struct CopyCounters {
  Counter cpu_bytes;
  Counter engine_lost;  // packets in flight in an engine that could not even be stopped
  Counter fallback_ring_full, fallback_unmapped, fallback_address, fallback_disabled;
  Counter dma_submitted, dma_completed, dma_bytes, dma_errors, dma_resets;  // the engine's, as last reaped
  Counter dma_inflight_max, dma_publish_batches;
};

/// Additional counters of a tx queue.
struct TxCounters : QueueCounters, CopyCounters {
  Counter oversize_dropped, gso_dropped;  // what `errors` is made of
  Counter short_buffers;                  // receive buffers given back because no packet fits into them
};

}  // namespace vhost_ioat::port
