// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "base/shared_field.hpp"
#include "memory/guest_mapping.hpp"
#include "memory/region_table.hpp"
#include "port/vring_queue.hpp"
#include "virtio/ring_layout.hpp"

namespace rig {

using namespace vhost_ioat;

/// A ring written by hand, in one direction, whatever the rules say. What costs a device most is here, for the tests,
/// which count steps, and for the benchmark, which takes the time.
class HostileRing {
 public:
  static constexpr uint64_t gpa = 0x100000000;
  static constexpr uint64_t tables = gpa + (4 << 20), data = gpa + (64 << 20);

  /// With `regions` > 1 the data lies in as many regions of equal size, adjacent for the guest and apart for us.
  explicit HostileRing(uint32_t size, bool writable, virtio::FeatureSet features = virtio::supported_features,
                       uint32_t regions = 1, uint64_t data_bytes = 192 << 20)
      : size_(size), direction_(writable ? virtio::DESC_F_WRITE : uint16_t{0}), features_(features) {
    constexpr uint64_t front = data - gpa;
    mapping_ = memory::GuestMapping::anonymous(front + 2 * data_bytes);
    std::vector<memory::Region> all{{gpa, front, gpa, mapping_->data(), mapping_}};
    const uint64_t each = data_bytes / regions;
    for (uint64_t i = 0; i < regions; ++i)
      all.push_back({data + i * each, each, data + i * each, mapping_->data() + front + 2 * i * each, mapping_});
    table_ = std::make_shared<memory::RegionTable>(std::move(all));
    at_ = {reinterpret_cast<virtio::Descriptor*>(mapping_->data()), mapping_->data() + (1 << 20),
           mapping_->data() + (2 << 20)};
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
  uint32_t size() const { return size_; }
  virtio::Descriptor* descriptors() const { return at_.desc; }
  virtio::Descriptor* table(uint32_t i) const {
    return reinterpret_cast<virtio::Descriptor*>(mapping_->data() + (tables - gpa)) + size_t{i};
  }
  uint8_t* front(uint64_t address) const { return mapping_->data() + (address - gpa); }  // not of data in many regions
  uint16_t used() const { return load_acquire<uint16_t>(at_.used + 2); }
  virtio::UsedElement used_element(uint32_t i) const {
    virtio::UsedElement element;
    std::memcpy(&element, at_.used + 4 + 8 * size_t{i & (size_ - 1)}, sizeof element);
    return element;
  }

  /// Links `n` descriptors of a table in the given order, each of `len` bytes, `stride` apart.
  void chain(virtio::Descriptor* table, const std::vector<uint16_t>& order, uint32_t len, uint64_t stride,
             uint64_t from = data) const {
    for (size_t i = 0; i < order.size(); ++i) {
      const bool last = i + 1 == order.size();
      table[order[i]] = {from + stride * i, len, static_cast<uint16_t>(direction_ | (last ? 0 : virtio::DESC_F_NEXT)),
                         last ? uint16_t{0} : order[i + 1]};
    }
  }
  static std::vector<uint16_t> in_order(uint32_t n) {
    std::vector<uint16_t> order(n);
    std::iota(order.begin(), order.end(), uint16_t{0});
    return order;
  }
  static std::vector<uint16_t> shuffled(uint32_t n) {
    auto order = in_order(n);
    std::shuffle(order.begin() + 1, order.end(), std::mt19937(7));
    return order;
  }
  void indirect(uint16_t head, uint32_t first, uint32_t entries) const {
    at_.desc[head] = {tables + 16ull * first, 16 * entries, virtio::DESC_F_INDIRECT, 0};
  }
  /// Makes the i-th of `n` heads available; offered once more, they go on where the last ones ended.
  template <typename Head>
  void offer(uint32_t n, Head&& head) {
    for (uint32_t i = 0; i < n; ++i)
      store_relaxed<uint16_t>(at_.avail + 4 + 2 * size_t{(avail_ + i) & (size_ - 1)}, static_cast<uint16_t>(head(i)));
    avail_ = static_cast<uint16_t>(avail_ + n);
    store_release<uint16_t>(at_.avail + 2, avail_);
  }
  void offer_all(uint16_t head) {
    offer(size_, [=](uint32_t) { return head; });
  }

 private:
  uint32_t size_;
  uint16_t direction_;
  virtio::FeatureSet features_;
  std::shared_ptr<memory::GuestMapping> mapping_;
  std::shared_ptr<const memory::RegionTable> table_;
  virtio::RingAddresses at_;
  uint16_t avail_ = 0;
};

}  // namespace rig
