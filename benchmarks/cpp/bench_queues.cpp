// SPDX-License-Identifier: BSD-3-Clause
// Cost of one packet in RxQueue::dequeue and TxQueue::enqueue, beside a bare loop over the same ring and beside memcpy.
//   bench_queues rx|tx|ring|memcpy SIZE [BURST [RING [REGIONS [PACKETS]]]]      prints ns per packet
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "port/rx_queue.hpp"
#include "port/tx_queue.hpp"
#include "ring_rig.hpp"

using namespace vhost_ioat;

namespace {

uint64_t run_rx(uint32_t len, uint32_t burst, uint32_t ring, uint32_t regions, uint64_t packets) {
  bench::RingRig rig(ring, len + 12, false, regions);
  port::RxQueue queue;
  queue.setup(rig.setup());
  auto arena = memory::PacketArena::create(64 << 20);
  uint64_t done = 0;
  while (done < packets) {
    rig.make_available(burst);
    done += queue.dequeue(*arena, burst).count;
  }
  return done;
}

uint64_t run_tx(uint32_t len, uint32_t burst, uint32_t ring, uint32_t regions, uint64_t packets) {
  bench::RingRig rig(ring, len + 12, true, regions);
  port::TxQueue queue;
  queue.setup(rig.setup());
  auto arena = memory::PacketArena::create(64 << 20);
  virtio::Burst out = virtio::Burst::allocate(*arena, burst, len);
  for (uint32_t i = 0; i < burst; ++i) {
    out.lengths[i] = len;
    out.headers[i] = {};
    std::memset(out.row(i), 0x55 & ~1, len);
  }
  uint64_t done = 0;
  while (done < packets) {
    rig.make_available(burst);
    done += queue.enqueue(port::PacketView::of(out));
  }
  return done;
}

/// What the ring itself costs: heads and descriptors are read, used elements written, no packet is touched.
uint64_t run_ring(uint32_t len, uint32_t burst, uint32_t ring, uint32_t regions, uint64_t packets) {
  bench::RingRig rig(ring, len + 12, false, regions);
  virtio::SplitRing device;
  port::RingSetup setup = rig.setup();
  device.start(setup.at, setup.size, setup.features, RingIndex());
  uint64_t done = 0, sum = 0;
  while (done < packets) {
    rig.make_available(burst);
    const uint32_t n = device.available();
    for (uint32_t k = 0; k < n; ++k) {
      const uint16_t head = device.head(k);
      sum += device.descriptor(head).len;
      device.push_used(head, 0);
    }
    device.consume(n);
    device.publish(device.used_next());
    done += n;
  }
  return sum != 0 ? done : 0;
}

/// The same bytes, between as many buffers, without a ring.
uint64_t run_memcpy(uint32_t len, uint32_t burst, uint32_t ring, uint32_t, uint64_t packets) {
  bench::RingRig rig(ring, len + 12, false);
  auto arena = memory::PacketArena::create(64 << 20);
  uint64_t done = 0;
  while (done < packets) {
    virtio::Burst out = virtio::Burst::allocate(*arena, burst, len);
    for (uint32_t i = 0; i < burst; ++i) {
      std::memcpy(out.row(i), rig.buffer(static_cast<uint32_t>(done) + i) + 12, len);
      asm volatile("" : : "r"(out.row(i)) : "memory");
    }
    done += burst;
  }
  return done;
}

uint32_t argument(int argc, char** argv, int i, uint32_t otherwise) {
  return argc > i ? static_cast<uint32_t>(std::strtoul(argv[i], nullptr, 10)) : otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  const uint32_t len = argument(argc, argv, 2, 64), burst = argument(argc, argv, 3, 64);
  const uint32_t ring = argument(argc, argv, 4, 256), regions = argument(argc, argv, 5, 1);
  const uint64_t packets = argument(argc, argv, 6, 10'000'000);
  auto* run = what == "rx" ? run_rx : what == "tx" ? run_tx : what == "ring" ? run_ring : run_memcpy;
  if (what != "rx" && what != "tx" && what != "ring" && what != "memcpy") {
    std::fprintf(stderr, "usage: bench_queues rx|tx|ring|memcpy SIZE [BURST [RING [REGIONS [PACKETS]]]]\n");
    return 2;
  }
  const auto begin = std::chrono::steady_clock::now();
  const uint64_t done = run(len, burst, ring, regions, packets);
  const double ns = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count();
  std::printf("%.3f\n", ns / static_cast<double>(done));
}
