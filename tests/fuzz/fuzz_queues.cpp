// SPDX-License-Identifier: BSD-3-Clause
// The device's side of the ring: guest memory of any content, in two regions on the heap, where every byte outside is
// guarded by the sanitizer.
#include <memory>
#include <vector>

#include "dma/soft_engine.hpp"
#include "input.hpp"
#include "port/rx_queue.hpp"
#include "port/tx_queue.hpp"

using namespace vhost_ioat;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto arena = memory::PacketArena::create(4 << 20);
  constexpr size_t low_size = 0x3000, high_size = 0x1800;
  constexpr uint64_t low_gpa = 0x1000, high_gpa = low_gpa + low_size;  // adjacent for the guest only
  Input input(data, size);
  const uint32_t ring_size = 1u << (input.take<uint8_t>() % 6);
  const virtio::FeatureSet features(input.take<uint64_t>() & virtio::supported_features.mask());
  const uint16_t last_avail = input.take<uint16_t>();
  const uint8_t how = input.take<uint8_t>();

  auto low = std::make_unique<uint8_t[]>(low_size + 16);
  auto high = std::make_unique<uint8_t[]>(high_size);
  uint8_t* aligned = low.get() + (16 - reinterpret_cast<uintptr_t>(low.get()) % 16) % 16;
  auto table = std::make_shared<memory::RegionTable>(std::vector<memory::Region>{
      {low_gpa, low_size, low_gpa, aligned, nullptr}, {high_gpa, high_size, high_gpa, high.get(), nullptr}});
  auto setup = [&] {
    port::RingSetup s;
    s.running = true;
    s.enabled = !(how & 1);
    s.at.desc = reinterpret_cast<virtio::Descriptor*>(aligned);
    s.at.avail = aligned + 0x200;
    s.at.used = aligned + 0x280;
    s.size = ring_size;
    s.last_avail = RingIndex(last_avail);
    s.features = features;
    s.memory = table;
    return s;
  };
  port::RxQueue rx;
  port::TxQueue tx;
  std::shared_ptr<dma::IoatModel> model;
  if (how & 2) {
    dma::SoftEngine made = dma::make_soft_engine("sw0", {.mode = dma::IoatModel::Mode::inline_});
    made.engine->map(arena->data(), arena->size());
    made.engine->map(aligned, low_size);
    model = made.model;
    tx.pipe().set_engine(std::move(made.engine), 64, how & 4 ? port::Publish::dma : port::Publish::cpu,
                         arena->allocate(4 * virtio::max_ring_size));
  }
  for (int round = 0; round < 3 && !input.empty(); ++round) {
    const auto low_bytes = input.take_bytes(input.take<uint16_t>() % (low_size + 1));
    std::copy(low_bytes.begin(), low_bytes.end(), aligned);
    const auto high_bytes = input.take_bytes(input.take<uint16_t>() % (high_size + 1));
    std::copy(high_bytes.begin(), high_bytes.end(), high.get());
    if (round == 0) {
      rx.setup(setup());
      tx.setup(setup());
    }
    if (how & 8) {
      virtio::Burst burst = rx.dequeue(*arena, 32);
      for (uint32_t i = 0; i < burst.count; ++i)
        if (burst.lengths[i] > burst.stride || burst.lengths[i] == 0) __builtin_trap();
      if (rx.steps() > budget::steps_of_call(ring_size)) __builtin_trap();
      const port::RxCounters& c = rx.counters;  // every drop has one reason
      if (c.errors.get() != c.empty_dropped.get() + c.oversize_dropped.get() + c.pieces_dropped.get() +
                                c.header_dropped.get() + c.gso_dropped.get() + c.gso_no_csum_dropped.get())
        __builtin_trap();
    } else {
      virtio::Burst burst = virtio::Burst::allocate(*arena, 4, 2000);
      const uint32_t lengths[] = {60, 1500, input.take<uint16_t>() % 2000u, 100};
      for (uint32_t i = 0; i < 4; ++i) {
        burst.lengths[i] = lengths[i];
        burst.headers[i] = {};
        std::memset(burst.row(i), static_cast<int>(i), lengths[i]);
      }
      const uint64_t before = tx.counters.packets.get() + tx.counters.errors.get() + tx.pending_packets();
      const uint32_t taken = tx.enqueue(port::PacketView::of(burst));
      if (tx.steps() > budget::steps_of_call(ring_size)) __builtin_trap();
      // Taken is published, dropped and counted, or pending.
      if (tx.counters.packets.get() + tx.counters.errors.get() + tx.pending_packets() != before + taken)
        __builtin_trap();
      tx.reap();
    }
  }
  return 0;
}
