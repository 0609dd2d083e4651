// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <utility>

#include "virtio/features.hpp"
#include "virtio/split_ring.hpp"

namespace vhost_ioat::virtio {

/// Calls make.operator()<Ring>() with the kind of ring that a driver with these features uses.
template <typename Make>
auto with_ring_of(FeatureSet, Make&& make) {
  return std::forward<Make>(make).template operator()<SplitRing>();
}

}  // namespace vhost_ioat::virtio
