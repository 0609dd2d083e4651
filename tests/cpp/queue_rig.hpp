// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/shared_field.hpp"
#include "dma/soft_engine.hpp"
#include "memory/guest_mapping.hpp"
#include "port/rx_queue.hpp"
#include "port/tx_queue.hpp"
#include "virtio/driver_ring.hpp"

namespace rig {

using namespace vhost_ioat;
using Bytes = std::vector<uint8_t>;

inline Bytes pattern(uint32_t len, uint8_t seed) {
  Bytes bytes(len);
  for (uint32_t i = 0; i < len; ++i) bytes[i] = static_cast<uint8_t>(seed + i * 7);
  if (len != 0) bytes[0] &= 0xfe;  // not multicast
  return bytes;
}

/// A guest of one ring: memory of one or more regions, a driver's side, and what a queue is set up with.
class GuestRig {
 public:
  static constexpr uint64_t base = 0x100000;
  static constexpr uint64_t buffers = base + 0x80000;

  explicit GuestRig(uint32_t ring_size = 256, virtio::FeatureSet features = virtio::supported_features,
                    uint64_t bytes = 32 << 20, RingIndex start = {})
      : size_(ring_size), features_(features), arena_(memory::PacketArena::create(16 << 20)), start_(start) {
    mapping_ = memory::GuestMapping::memfd(bytes);
    table_ = std::make_shared<memory::RegionTable>(
        std::vector<memory::Region>{{base, bytes, base, mapping_->data(), mapping_}});
    at_.desc = reinterpret_cast<virtio::Descriptor*>(host(base));
    at_.avail = host(base + 0x10000);
    at_.used = host(base + 0x20000);
    driver_.start(at_, ring_size, features, start,
                  {reinterpret_cast<virtio::Descriptor*>(host(base + 0x30000)), base + 0x30000, 16});
  }

  uint8_t* host(uint64_t gpa) const { return mapping_->data() + (gpa - base); }
  uint64_t end() const { return base + mapping_->size(); }

  port::RingSetup setup(bool enabled = true) const {
    port::RingSetup s;
    s.running = true;
    s.enabled = enabled;
    s.at = at_;
    s.size = size_;
    s.last_avail = start_;
    s.features = features_;
    s.memory = table_;
    return s;
  }

  /// Gives the device one buffer; returns its head.
  uint16_t post(uint64_t gpa, uint32_t len) { return post_chain({{gpa, len}}); }
  uint16_t post_chain(const std::vector<virtio::Segment>& writable) {
    const uint16_t head = driver_.add({}, writable).value();
    driver_.publish();
    return head;
  }
  void send(const std::vector<virtio::Segment>& readable, bool indirect = false) {
    (indirect ? driver_.add_indirect(readable, {}) : driver_.add(readable, {})).value();
    driver_.publish();
  }
  /// Puts header and packet at `gpa` for sending in one descriptor.
  virtio::Segment place(uint64_t gpa, const Bytes& packet, virtio::NetHeader header = {}) {
    std::memset(host(gpa), 0, features_.net_header_size());
    std::memcpy(host(gpa), &header, sizeof header);
    std::memcpy(host(gpa) + features_.net_header_size(), packet.data(), packet.size());
    return {gpa, static_cast<uint32_t>(features_.net_header_size() + packet.size())};
  }

  virtio::Burst burst(const std::vector<Bytes>& packets, virtio::NetHeader header = {}) {
    uint32_t longest = 0;
    for (const Bytes& p : packets) longest = std::max(longest, static_cast<uint32_t>(p.size()));
    virtio::Burst out = virtio::Burst::allocate(*arena_, static_cast<uint32_t>(packets.size()), longest);
    for (uint32_t i = 0; i < out.count; ++i) {
      out.lengths[i] = static_cast<uint32_t>(packets[i].size());
      out.headers[i] = header;
      if (!packets[i].empty()) std::memcpy(out.row(i), packets[i].data(), packets[i].size());
    }
    return out;
  }

  virtio::DriverRing& driver() { return driver_; }
  virtio::RingAddresses at() const { return at_; }
  const std::shared_ptr<memory::PacketArena>& arena() const { return arena_; }
  const std::shared_ptr<memory::GuestMapping>& mapping() const { return mapping_; }
  const std::shared_ptr<const memory::RegionTable>& table() const { return table_; }
  uint32_t header_size() const { return features_.net_header_size(); }
  uint16_t used_idx() const { return load_acquire<uint16_t>(at_.used + 2); }

 private:
  uint32_t size_;
  virtio::FeatureSet features_;
  std::shared_ptr<memory::PacketArena> arena_;
  RingIndex start_;
  std::shared_ptr<memory::GuestMapping> mapping_;
  std::shared_ptr<const memory::RegionTable> table_;
  virtio::RingAddresses at_;
  virtio::DriverRing driver_;
};

/// A software engine that knows the rig's memory, given to a queue.
inline std::shared_ptr<dma::IoatModel> attach_engine(port::TxQueue& queue, GuestRig& guest, dma::IoatModel::Mode mode,
                                                     port::Publish publish = port::Publish::cpu,
                                                     uint32_t threshold = 1024) {
  dma::SoftEngine made = dma::make_soft_engine("sw0", {.mode = mode});
  made.engine->map(guest.mapping()->data(), guest.mapping()->size());
  made.engine->map(guest.arena()->data(), guest.arena()->size());
  queue.pipe().set_engine(std::move(made.engine), threshold, publish,
                          guest.arena()->allocate(2 * 2 * virtio::max_ring_size));
  return made.model;
}

}  // namespace rig
