// SPDX-License-Identifier: BSD-3-Clause
// CPU time inside TxQueue::enqueue for one packet, with the copies made by the CPU and by a threaded software engine on
// another core, in alternating bursts. Waiting for the engine is not counted: that is the time it gives back.
//   bench_engine SIZE SPREAD_MB [ROUNDS]       prints: cpu_ns engine_ns ratio (medians over rounds)
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "dma/soft_engine.hpp"
#include "port/tx_queue.hpp"
#include "ring_rig.hpp"

using namespace vhost_ioat;
using Clock = std::chrono::steady_clock;

namespace {

constexpr uint32_t burst_size = 32, ring_size = 4096, threshold = 1024;

void pin(uint32_t core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  ::pthread_setaffinity_np(::pthread_self(), sizeof set, &set);
}

struct Side {
  Side(uint32_t buffer, uint64_t spread, uint32_t len)
      : rig(ring_size, buffer, true, 1, spread), arena(memory::PacketArena::create(64 << 20)) {
    queue.setup(rig.setup());
    packets = virtio::Burst::allocate(*arena, burst_size, len);
    for (uint32_t i = 0; i < burst_size; ++i) {
      packets.lengths[i] = len;
      packets.headers[i] = {};
      std::memset(packets.row(i), 0x54, len);
    }
  }
  /// Nanoseconds of one burst in enqueue; then waits until it is through.
  double burst() {
    rig.make_available(burst_size);
    const auto begin = Clock::now();
    const uint32_t sent = queue.enqueue(port::PacketView::of(packets));
    const double ns = std::chrono::duration<double, std::nano>(Clock::now() - begin).count();
    if (sent != burst_size) std::abort();
    while (!queue.idle()) queue.reap();
    return ns / burst_size;
  }
  bench::RingRig rig;
  std::shared_ptr<memory::PacketArena> arena;
  port::TxQueue queue;
  virtio::Burst packets;
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: bench_engine SIZE SPREAD_MB [ROUNDS]\n");
    return 2;
  }
  const auto len = static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10));
  const uint64_t spread = std::strtoul(argv[2], nullptr, 10) << 20;
  const size_t rounds = argc > 3 ? std::strtoul(argv[3], nullptr, 10) : 400;
  const uint32_t buffer = std::max(len + 12, 16384u);
  Side cpu(buffer, spread, len), offloading(buffer, spread, len);
  // The worker is made on core 1 and inherits its place; then this thread goes to core 0.
  pin(1);
  dma::SoftEngine made = dma::make_soft_engine("sw0");
  made.engine->map(offloading.rig.memory()->data(), offloading.rig.memory()->size());
  made.engine->map(offloading.arena->data(), offloading.arena->size());
  offloading.queue.pipe().set_engine(std::move(made.engine), threshold, port::Publish::cpu,
                                     offloading.arena->allocate(size_t{4} * virtio::max_ring_size));
  offloading.queue.setup(offloading.rig.setup());
  pin(0);
  for (uint32_t i = 0; i < ring_size / burst_size; ++i) cpu.burst(), offloading.burst();  // every page once
  std::vector<double> cpu_ns, engine_ns, ratios;
  for (size_t i = 0; i < rounds; ++i) {
    cpu_ns.push_back(cpu.burst());
    engine_ns.push_back(offloading.burst());
    ratios.push_back(cpu_ns.back() / engine_ns.back());
  }
  std::printf("%.1f %.1f %.2f\n", median(cpu_ns), median(engine_ns), median(ratios));
}
