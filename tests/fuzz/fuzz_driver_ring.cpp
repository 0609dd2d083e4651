// SPDX-License-Identifier: BSD-3-Clause
// The driver's side of the ring against a device that writes anything into the used ring.
#include <memory>
#include <set>
#include <vector>

#include "input.hpp"
#include "virtio/driver_ring.hpp"

using namespace vhost_ioat;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const uint32_t ring_size = 1u << (input.take<uint8_t>() % 6);
  const virtio::FeatureSet features(input.take<uint64_t>() & virtio::supported_features.mask());
  const RingIndex start(input.take<uint16_t>());
  auto memory = std::make_unique<uint64_t[]>(1024);
  auto* base = reinterpret_cast<uint8_t*>(memory.get());
  auto* desc = reinterpret_cast<virtio::Descriptor*>(base + (16 - reinterpret_cast<uintptr_t>(base) % 16) % 16);
  uint8_t* avail = base + 1024;
  uint8_t* used = base + 2048;
  virtio::DriverRing ring;
  ring.start({desc, avail, used}, ring_size, features, start);
  std::set<uint16_t> out;
  while (!input.empty()) {
    switch (input.take<uint8_t>() % 4) {
      case 0:
        if (auto head = ring.add({}, std::vector<virtio::Segment>{{0x1000, 100}, {0x2000, 50}})) {
          if (!out.insert(*head).second) __builtin_trap();  // a head twice in flight
        }
        break;
      case 1:
        ring.publish();
        break;
      case 2: {
        const auto bytes = input.take_bytes(input.take<uint8_t>());
        const size_t at = input.take<uint8_t>();
        std::copy(bytes.begin(), bytes.end(), used + at);
        break;
      }
      default:
        if (auto back = ring.take_used()) {
          if (out.erase(back->head) != 1 || back->len > 150) __builtin_trap();
        }
    }
  }
  return 0;
}
