// SPDX-License-Identifier: BSD-3-Clause
// The same for a program that is not ours, such as Python: loaded before all others by LD_PRELOAD.
#include "shortage.hpp"

using namespace vhost_ioat::testing;

#pragma GCC visibility push(default)
extern "C" {

/// From now on one in `one_in` calls fails that the product's own threads make; 0: none.
void vhost_ioat_shortages(uint64_t one_in, uint64_t seed);
/// How many have failed so far.
uint64_t vhost_ioat_shortages_seen();
}
#pragma GCC visibility pop

namespace {
Shortages::Hit hit;
}

void vhost_ioat_shortages(uint64_t one_in, uint64_t seed) {
  if (one_in == 0) {
    Shortages::disarm();
  } else {
    Shortages::arm_at_random(one_in, seed, &hit);
  }
}

uint64_t vhost_ioat_shortages_seen() { return __atomic_load_n(&hit.calls, __ATOMIC_RELAXED); }
