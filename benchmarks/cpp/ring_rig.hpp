// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "base/shared_field.hpp"
#include "memory/guest_mapping.hpp"
#include "memory/region_table.hpp"
#include "port/vring_queue.hpp"
#include "virtio/ring_layout.hpp"

namespace bench {

using namespace vhost_ioat;

/// A ring whose driver does as little as a driver can: descriptor i describes buffer i for ever, the avail ring lists
/// them in order for ever, and making n buffers available is one store. So what is measured is the device.
class RingRig {
 public:
  RingRig(uint32_t ring_size, uint32_t buffer_len, bool writable, uint32_t regions = 1, uint64_t spread = 0,
          virtio::FeatureSet features = virtio::supported_features)
      : size_(ring_size), features_(features) {
    const uint64_t ring_bytes =
        (virtio::desc_bytes(size_) + virtio::avail_bytes(size_, true) + 64 + virtio::used_bytes(size_, true) + 8191) &
        ~uint64_t{4095};
    const uint64_t stride = std::max<uint64_t>(spread / size_, (buffer_len + 63) & ~63u) & ~uint64_t{63};
    const uint64_t total = (ring_bytes + stride * size_ + 4095) & ~uint64_t{4095};
    memory_ = memory::GuestMapping::memfd(total);
    std::memset(memory_->data(), 0, total);
    // The other regions lie beside it, untouched: a table that is long but whose traffic stays in one place.
    std::vector<memory::Region> all{{0x100000000, total, 0x100000000, memory_->data(), memory_}};
    for (uint32_t i = 1; i < regions; ++i) {
      auto other = memory::GuestMapping::anonymous(4096);
      all.push_back({uint64_t{i} << 13, 4096, uint64_t{i} << 13, other->data(), other});
    }
    table_ = std::make_shared<memory::RegionTable>(std::move(all));
    uint8_t* base = memory_->data();
    at_.desc = reinterpret_cast<virtio::Descriptor*>(base);
    at_.avail = base + virtio::desc_bytes(size_);
    at_.used = base + ((virtio::desc_bytes(size_) + virtio::avail_bytes(size_, true) + 63) & ~uint64_t{63});
    for (uint32_t i = 0; i < size_; ++i) {
      at_.desc[i] = {0x100000000 + ring_bytes + stride * i, buffer_len, writable ? virtio::DESC_F_WRITE : uint16_t{0},
                     0};
      const auto head = static_cast<uint16_t>(i);
      std::memcpy(at_.avail + 4 + 2 * size_t{i}, &head, sizeof head);
    }
    buffers_ = base + ring_bytes;
    stride_ = stride;
  }

  port::RingSetup setup() const {
    port::RingSetup s;
    s.running = s.enabled = true;
    s.at = at_;
    s.size = size_;
    s.features = features_;
    s.memory = table_;
    return s;
  }
  void make_available(uint32_t n) {
    avail_ = static_cast<uint16_t>(avail_ + n);
    store_release<uint16_t>(at_.avail + 2, avail_);
  }
  uint16_t used() const { return load_acquire<uint16_t>(at_.used + 2); }
  uint8_t* buffer(uint32_t i) const { return buffers_ + stride_ * (i & (size_ - 1)); }
  const std::shared_ptr<memory::GuestMapping>& memory() const { return memory_; }

 private:
  uint32_t size_;
  virtio::FeatureSet features_;
  std::shared_ptr<memory::GuestMapping> memory_;
  std::shared_ptr<memory::RegionTable> table_;
  virtio::RingAddresses at_;
  uint8_t* buffers_ = nullptr;
  uint64_t stride_ = 0;
  uint16_t avail_ = 0;
};

}  // namespace bench
