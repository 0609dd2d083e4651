// SPDX-License-Identifier: BSD-3-Clause
// Packets per second of N threads, each on a queue of its own, rings posted before and no live generator.
//   bench_threads N       prints millions of packets a second in all
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "port/rx_queue.hpp"
#include "port/tx_queue.hpp"
#include "ring_rig.hpp"

using namespace vhost_ioat;

namespace {

constexpr uint32_t burst = 64, len = 64;

/// A guest's pair of rings whose packets go round: what is received is sent back.
struct Lane {
  bench::RingRig rx_rig{256, len + 12, false}, tx_rig{256, 2048, true};
  port::RxQueue rx;
  port::TxQueue tx;
  std::shared_ptr<memory::PacketArena> arena = memory::PacketArena::create(32 << 20);  // as in a port
  uint64_t packets = 0;

  void setup() {
    rx.setup(rx_rig.setup());
    tx.setup(tx_rig.setup());
  }
  void round() {
    rx_rig.make_available(burst);
    tx_rig.make_available(burst);
    virtio::Burst got = rx.dequeue(*arena, burst);
    packets += tx.enqueue(port::PacketView::of(got));
  }
};

}  // namespace

int main(int argc, char** argv) {
  const size_t threads = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 1;
  std::vector<std::unique_ptr<Lane>> lanes;
  for (size_t i = 0; i < threads; ++i) {
    lanes.push_back(std::make_unique<Lane>());
    lanes.back()->setup();
  }
  std::atomic<bool> stop{false};
  std::vector<std::thread> running;
  running.reserve(threads);
  const auto begin = std::chrono::steady_clock::now();
  for (auto& lane : lanes) {
    running.emplace_back([&, l = lane.get()] {
      while (!stop.load(std::memory_order_relaxed)) l->round();
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(500));  // the measured time itself
  stop = true;
  for (auto& thread : running) thread.join();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  uint64_t packets = 0;
  for (auto& lane : lanes) packets += lane->packets;
  std::printf("%.3f\n", static_cast<double>(packets) / seconds / 1e6);
}
