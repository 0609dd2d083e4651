// SPDX-License-Identifier: BSD-3-Clause
#include "virtio/driver_ring.hpp"

#include <numeric>

#include "base/error.hpp"
#include "base/shared_field.hpp"

namespace vhost_ioat::virtio {

std::string DeviceFault::text() const {
  switch (kind) {
    case Kind::none:
      break;
    case Kind::used_index:
      return format("the device's used index is %u ahead, but it has %u chains", value, limit);
    case Kind::head:
      return format("the device returned head %u, but the ring has %u entries", value, limit);
    case Kind::not_given:
      return format("the device returned head %u, which it does not have", value);
    case Kind::length:
      return format("the device wrote %u bytes into a chain with %u writable ones", value, limit);
    case Kind::order:
      return format("the device returned head %u out of order, although IN_ORDER was negotiated", value);
  }
  return "";
}

void DriverRing::start(RingAddresses at, uint32_t size, FeatureSet features, RingIndex index, IndirectTables tables) {
  at_ = at;
  size_ = free_ = size;
  mask_ = size - 1;
  tables_ = tables;
  event_idx_ = features.has(Feature::EVENT_IDX);
  in_order_ = features.has(Feature::IN_ORDER);
  avail_next_ = shown_ = used_seen_ = last_used_ = index;
  first_free_ = 0;
  last_free_ = static_cast<uint16_t>(mask_);
  in_batch_ = false;
  next_.resize(size);
  std::iota(next_.begin(), next_.end(), uint16_t{1});
  next_.back() = 0;
  chains_.assign(size, {});
  heads_.assign(size, 0);
  fault_ = {};

  store_relaxed<uint16_t>(at.avail_flags(), 0);
  store_relaxed<uint16_t>(at.used_flags(), 0);
  if (event_idx_) {
    // One behind: no signal and no kick before somebody asks for it.
    store_relaxed<uint16_t>(at.used_event(size), (index - 1).value());
    store_relaxed<uint16_t>(at.avail_event(size), index.value());
  }
  store_relaxed<uint16_t>(at.avail_idx(), index.value());
  store_relaxed<uint16_t>(at.used_idx(), index.value());
}

}  // namespace vhost_ioat::virtio
