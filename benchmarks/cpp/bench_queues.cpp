// SPDX-License-Identifier: BSD-3-Clause
// Cost of one packet in RxQueue::dequeue and TxQueue::enqueue, beside a bare loop over the same ring and beside memcpy.
//   bench_queues rx|tx|ring|memcpy-rx|memcpy-tx SIZE [BURST [RING [REGIONS [PACKETS]]]]      prints ns per packet
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "port/rx_queue.hpp"
#include "port/tx_queue.hpp"
#include "ring_rig.hpp"
#include "virtio/split_ring.hpp"

using namespace vhost_ioat;

namespace {

/// Calls `turn`, which returns how many packets it took, until there were enough; nanoseconds a packet. Set-up is not
/// counted.
template <typename Turn>
double measure(uint64_t packets, Turn&& turn) {
  uint64_t done = 0;
  const auto begin = std::chrono::steady_clock::now();
  while (done < packets) done += turn();
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count() /
         static_cast<double>(done);
}

double run_rx(uint32_t len, uint32_t burst, uint32_t ring, uint32_t regions, uint64_t packets) {
  bench::RingRig rig(ring, len + 12, false, regions);
  port::RxQueue queue;
  queue.setup(rig.setup());
  auto arena = memory::PacketArena::create(64 << 20);
  return measure(packets, [&] {
    rig.make_available(burst);
    return queue.dequeue(*arena, burst).count;
  });
}

double run_tx(uint32_t len, uint32_t burst, uint32_t ring, uint32_t regions, uint64_t packets) {
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
  return measure(packets, [&] {
    rig.make_available(burst);
    return queue.enqueue(port::PacketView::of(out));
  });
}

/// What the ring itself costs: heads and descriptors are read, used elements written, no packet is touched.
double run_ring(uint32_t len, uint32_t burst, uint32_t ring, uint32_t regions, uint64_t packets) {
  bench::RingRig rig(ring, len + 12, false, regions);
  virtio::SplitRing device;
  port::RingSetup setup = rig.setup();
  device.start(setup.at, setup.size, setup.features, RingIndex());
  return measure(packets, [&] {
    rig.make_available(burst);
    uint32_t n = 0;
    virtio::SplitRing::Commits commits = device.commits();
    for (virtio::SplitRing::Cursor at = device.cursor(burst); at.more(); ++n) {
      const virtio::SplitRing::Chain chain = at.chain();
      const uint32_t read = at.first(chain).len;
      asm volatile("" : : "r"(read));
      commits.push(chain, 0);
      at.next(chain);
    }
    device.committed(commits);
    device.publish(device.filled());
    return n;
  });
}

/// The same bytes, between as many buffers and in the same direction, without a ring.
double run_memcpy(bool to_buffers, uint32_t len, uint32_t burst, uint32_t ring, uint64_t packets) {
  bench::RingRig rig(ring, len + 12, false);
  auto arena = memory::PacketArena::create(64 << 20);
  uint32_t next = 0;
  return measure(packets, [&] {
    virtio::Burst rows = virtio::Burst::allocate(*arena, burst, len);
    for (uint32_t i = 0; i < burst; ++i) {
      uint8_t* const buffer = rig.buffer(next++) + 12;
      std::memcpy(to_buffers ? buffer : rows.row(i), to_buffers ? rows.row(i) : buffer, len);
      asm volatile("" : : "r"(buffer), "r"(rows.row(i)) : "memory");
    }
    return burst;
  });
}
double run_memcpy_rx(uint32_t len, uint32_t burst, uint32_t ring, uint32_t, uint64_t packets) {
  return run_memcpy(false, len, burst, ring, packets);
}
double run_memcpy_tx(uint32_t len, uint32_t burst, uint32_t ring, uint32_t, uint64_t packets) {
  return run_memcpy(true, len, burst, ring, packets);
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
  const std::map<std::string, decltype(&run_rx)> runs{
      {"rx", run_rx}, {"tx", run_tx}, {"ring", run_ring}, {"memcpy-rx", run_memcpy_rx}, {"memcpy-tx", run_memcpy_tx}};
  const auto run = runs.find(what);
  if (run == runs.end()) {
    std::fprintf(stderr,
                 "usage: bench_queues rx|tx|ring|memcpy-rx|memcpy-tx SIZE [BURST [RING [REGIONS [PACKETS]]]]\n");
    return 2;
  }
  std::printf("%.3f\n", run->second(len, burst, ring, regions, packets));
}
