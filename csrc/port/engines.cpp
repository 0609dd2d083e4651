// SPDX-License-Identifier: BSD-3-Clause
// The DMA engines of a port: which one serves which tx queue, and what memory each knows.
#include <algorithm>
#include <cstring>
#include <set>

#include "base/error.hpp"
#include "dma/hardware_engine.hpp"
#include "dma/soft_engine.hpp"
#include "port/eth_vhost.hpp"

namespace vhost_ioat::port {

namespace {

/// PCI functions that serve a queue somewhere in this process.
class Claims {
 public:
  static bool take(const std::string& bdf) {
    std::lock_guard lock(mutex());
    return taken().insert(bdf).second;
  }
  static void give_back(const std::string& bdf) {
    std::lock_guard lock(mutex());
    taken().erase(bdf);
  }

 private:
  static std::mutex& mutex() {
    static auto* instance = new std::mutex;
    return *instance;
  }
  static std::set<std::string>& taken() {
    static auto* instance = new std::set<std::string>;
    return *instance;
  }
};

bool is_software(const std::string& name) { return name.rfind("sw", 0) == 0; }

/// The smallest copy whose hand-over to the engine costs the CPU less than making it, measured on this machine.
uint32_t calibrate(dma::DmaEngine& engine, memory::PacketArena& arena) {
  using Clock = std::chrono::steady_clock;
  constexpr uint32_t rounds = 16, batch = 16, largest = 16384, never = 65536;
  memory::Block from = arena.allocate(batch * largest), to = arena.allocate(batch * largest);
  if (!from || !to) return never;
  std::memset(from.data(), 1, from.size());
  std::memset(to.data(), 2, to.size());
  for (uint32_t size = 256; size <= largest; size *= 2) {
    auto by_engine = Clock::duration::max(), by_cpu = Clock::duration::max();
    for (uint32_t round = 0; round < rounds; ++round) {
      auto begin = Clock::now();
      for (uint32_t i = 0; i < batch; ++i) std::memcpy(to.data() + i * largest, from.data() + i * largest, size);
      by_cpu = std::min(by_cpu, Clock::now() - begin);
      begin = Clock::now();
      for (uint32_t i = 0; i < batch; ++i) {
        const dma::Copy copy{to.data() + i * largest, from.data() + i * largest, size};
        if (engine.enqueue({&copy, 1}, i) != dma::Refusal::none) return never;
      }
      engine.submit();
      by_engine = std::min(by_engine, Clock::now() - begin);
      dma::Completion done[batch];
      const auto patience = begin + std::chrono::seconds(1);
      while (engine.outstanding() != 0) {
        engine.poll(done);
        if (engine.failed() || Clock::now() > patience) return never;
      }
    }
    if (by_engine < by_cpu) return size;
  }
  return never;
}

}  // namespace

void EthVhost::make_engines() {
  for (const auto& [queue, name] : config_.ioats) {
    make_engine(queue, name);
    EngineSlot& slot = *engines_[queue];
    TxQueue& txq = *txqs_[queue];
    // Two bytes for each cookie of the longest in-flight list.
    memory::Block slots = arenas_[queue]->allocate(2 * sizeof(uint16_t) * virtio::max_ring_size);
    if (!slots) throw ConfigError("mempool is too small for the engine's index slots; give at least 1 MiB");
    const Publish publish = slot.engine()->capabilities().in_order ? config_.publish : Publish::cpu;
    txq.set_engine(slot.shared_engine(), config_.ioat_threshold, publish, std::move(slots));
    slot.map_arenas_now();
    if (config_.ioat_threshold == 0) txq.set_threshold(calibrate(*slot.engine(), *arenas_[queue]));
  }
}

void EthVhost::make_engine(uint32_t queue, const std::string& name) {
  EngineSlot& slot = *engines_[queue];
  const auto software = [&](const std::string& sw_name) {
    dma::SoftEngine made = dma::make_soft_engine(sw_name, {.mode = dma::model_mode(config_.sw_mode)});
    slot.set_engine(std::move(made.engine), std::move(made.model));
  };
  if (is_software(name)) return software(name);
  if (!Claims::take(name))
    throw ConfigError(
        format("ioats: %s already serves a queue in this process; one engine serves one queue", name.c_str()));
  std::string why;
  try {
    return slot.set_engine(dma::make_hardware_engine(name), nullptr);
  } catch (const std::exception& error) {
    Claims::give_back(name);
    if (!config_.ioat_fallback) throw;
    why = error.what();
  }
  slot.set_state(format("stands in for %s: %s", name.c_str(), why.c_str()).c_str());
  const std::string stand_in = format("sw%u", queue);
  report("engine", static_cast<int>(queue), false, true, Reports::warning,
         "tx queue %u: %s cannot be had, the software engine %s stands in: %s", queue, name.c_str(), stand_in.c_str(),
         why.c_str());
  software(stand_in);
}

/// Of a queue that is taken for good.
void EthVhost::release_engine(uint32_t queue) noexcept {
  EngineSlot* slot = engines_[queue].get();
  if (!slot || !slot->engine()) return;
  if (slot->engine()->capabilities().hardware) Claims::give_back(slot->engine()->capabilities().name);
  txqs_[queue]->set_engine(nullptr, UINT32_MAX, Publish::cpu, {});
  slot->end();
}

}  // namespace vhost_ioat::port
