// SPDX-License-Identifier: BSD-3-Clause
// What a hostile ring makes one call cost, beside an honest one: the longest of the calls of a run, and the smallest of
// that in several runs. In CPU time of the thread, so that what else runs on the machine matters little.
//   bench_hostile [CALLS]      prints a table, microseconds
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../../tests/cpp/hostile_ring.hpp"
#include "port/rx_queue.hpp"
#include "port/tx_queue.hpp"

using namespace vhost_ioat;
using rig::HostileRing;

namespace {

constexpr uint32_t size = virtio::max_ring_size, burst = 32, len = 1514;

struct Case {
  const char* name;
  uint32_t regions;
  void (*spread)(HostileRing&, bool writable);
};

void offer_singles(HostileRing& ring, bool writable, uint32_t bytes) {
  for (uint32_t i = 0; i < size; ++i)
    ring.descriptors()[i] = {HostileRing::data + uint64_t{i} * 2048, bytes,
                             writable ? virtio::DESC_F_WRITE : uint16_t{0}, 0};
  ring.offer(size, [](uint32_t i) { return i; });
}

constexpr Case cases[] = {
    {"honest: 32 packets of 1514 bytes", 1,
     [](HostileRing& ring, bool w) { offer_singles(ring, w, w ? 2048 : len + 12); }},
    {"chains of 32768 empty descriptors", 1,
     [](HostileRing& ring, bool) {
       ring.chain(ring.descriptors(), HostileRing::in_order(size), 0, 0);
       ring.offer_all(0);
     }},
    {"the same, linked at random", 1,
     [](HostileRing& ring, bool) {
       ring.chain(ring.descriptors(), HostileRing::shuffled(size), 0, 0);
       ring.offer_all(0);
     }},
    {"the same, in 64 tables", 1,
     [](HostileRing& ring, bool) {
       for (uint16_t i = 0; i < 64; ++i) {
         ring.chain(ring.table(i * size), HostileRing::shuffled(size), 0, 0);
         ring.indirect(i, i * size, size);
       }
       ring.offer(size, [](uint32_t i) { return i % 64; });
     }},
    {"single empty descriptors", 1, [](HostileRing& ring, bool w) { offer_singles(ring, w, 0); }},
    {"packets in single bytes, a page apart", 1,
     [](HostileRing& ring, bool) {
       ring.chain(ring.descriptors(), HostileRing::in_order(size), 1, 4096 + 64);
       ring.offer_all(0);
     }},
    {"the same, linked at random, 500 regions", 500,
     [](HostileRing& ring, bool) {
       const auto order = HostileRing::shuffled(size);
       ring.chain(ring.descriptors(), HostileRing::in_order(size), 1, 0);
       for (uint32_t i = 0; i < size; ++i) ring.descriptors()[i].addr = HostileRing::data + order[i] * uint64_t{4160};
       ring.offer_all(0);
     }},
    {"packets over the borders of 500 regions", 500,
     [](HostileRing& ring, bool w) {
       const uint64_t each = (uint64_t{192} << 20) / 500;
       ring.chain(ring.descriptors(), HostileRing::in_order(16), 2, 0);
       for (uint32_t i = 0; i < size; ++i)
         ring.descriptors()[i] = {HostileRing::data + (i % 499 + 1) * each - 1, 2,
                                  static_cast<uint16_t>((w ? virtio::DESC_F_WRITE : 0) | virtio::DESC_F_NEXT),
                                  static_cast<uint16_t>(i + 1)};
       ring.descriptors()[size - 1].flags = w ? virtio::DESC_F_WRITE : uint16_t{0};
       ring.descriptors()[size - 1].next = 0;
       ring.offer_all(0);
     }},
};

double now() {  // microseconds
  timespec t{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) / 1e3;
}

/// Microseconds of the longest call.
double longest(const Case& one, bool writable, bool merged, uint32_t calls) {
  const auto features =
      merged ? virtio::supported_features : virtio::supported_features.without(virtio::Feature::MRG_RXBUF);
  static const auto arena = memory::PacketArena::create(16 << 20);
  virtio::Burst out = virtio::Burst::allocate(*arena, burst, len);
  for (uint32_t i = 0; i < burst; ++i) {
    out.lengths[i] = len;
    out.headers[i] = {};
    std::memset(out.row(i), 2, len);
  }
  double best = 1e9;
  for (int run = 0; run < 5; ++run) {
    HostileRing ring(size, writable, features, one.regions);
    one.spread(ring, writable);
    port::RxQueue rx;
    port::TxQueue tx;
    double worst = 0;
    for (uint32_t call = 0; call < calls; ++call) {
      // A ring that has broken is started again, and costs the same once more.
      if (call == 0 || rx.fault() || tx.fault()) {
        port::RingSetup again = ring.setup();
        again.last_avail = RingIndex(ring.used());
        writable ? tx.setup(std::move(again)) : rx.setup(std::move(again));
      }
      const double begin = now();
      if (writable)
        tx.enqueue(port::PacketView::of(out));
      else
        rx.dequeue(*arena, burst);
      if (call >= 2) worst = std::max(worst, now() - begin);  // the first ones meet untouched pages
    }
    best = std::min(best, worst);
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const uint32_t calls = argc > 1 ? static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10)) : 20;
  std::printf("%-42s %9s %9s %9s   longest of %u calls, us\n", "ring of 32768", "rx", "tx", "tx merged", calls);
  double honest[3] = {}, extra = 0;
  for (const Case& one : cases) {
    const double took[] = {longest(one, false, true, calls), longest(one, true, false, calls),
                           longest(one, true, true, calls)};
    std::printf("%-42s %9.1f %9.1f %9.1f\n", one.name, took[0], took[1], took[2]);
    for (int i = 0; i < 3; ++i) {
      if (&one == &cases[0]) honest[i] = took[i];
      extra = std::max(extra, took[i] - honest[i]);
    }
  }
  std::printf("most that a hostile ring adds to a call: %.1f us\n", extra);
}
