// SPDX-License-Identifier: BSD-3-Clause
// The DMA engines of a port: which one serves which tx queue, and what memory each knows.
#include <algorithm>
#include <cstring>
#include <set>

#include "base/error.hpp"
#include "dma/hardware_engine.hpp"
#include "dma/soft_engine.hpp"
#include "memory/guest_mapping.hpp"
#include "port/arenas.hpp"
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
    auto engine = make_engine(queue, name);
    TxQueue& txq = *txqs_[queue];
    // Two bytes for each cookie of the longest in-flight list.
    memory::Block slots = arenas_[queue]->allocate(2 * sizeof(uint16_t) * virtio::max_ring_size);
    if (!slots) throw ConfigError("mempool is too small for the engine's index slots; give at least 1 MiB");
    const Publish publish = engine->capabilities().in_order ? config_.publish : Publish::cpu;
    txq.set_engine(std::move(engine), config_.ioat_threshold, publish, std::move(slots));
    map_arenas(queue);
    if (config_.ioat_threshold == 0) txq.set_threshold(calibrate(*txq.engine(), *arenas_[queue]));
  }
}

std::unique_ptr<dma::DmaEngine> EthVhost::make_engine(uint32_t queue, const std::string& name) {
  auto software = [&](const std::string& sw_name) {
    dma::SoftEngine made = dma::make_soft_engine(sw_name, {.mode = dma::model_mode(config_.sw_mode)});
    engines_[queue].model = std::move(made.model);
    return std::move(made.engine);
  };
  if (is_software(name)) return software(name);
  if (!Claims::take(name))
    throw ConfigError(
        format("ioats: %s already serves a queue in this process; one engine serves one queue", name.c_str()));
  std::string why;
  try {
    return dma::make_hardware_engine(name);
  } catch (const std::exception& error) {
    Claims::give_back(name);
    if (!config_.ioat_fallback) throw;
    why = error.what();
  }
  engines_[queue].state = format("stands in for %s: %s", name.c_str(), why.c_str());
  const std::string stand_in = format("sw%u", queue);
  say("engine", static_cast<int>(queue), false, true, Reports::warning,
      format("tx queue %u: %s cannot be had, the software engine %s stands in: %s", queue, name.c_str(),
             stand_in.c_str(), why.c_str()));
  return software(stand_in);
}

/// The engine of a held, idle queue knows exactly the guest memory of `table`. Memory it cannot map is left to the CPU.
void EthVhost::map_guest(uint32_t queue, const memory::RegionTable* table) {
  dma::DmaEngine* engine = txqs_[queue]->engine();
  if (!engine) return;
  auto& known = engines_[queue].guest;
  std::vector<std::shared_ptr<memory::GuestMapping>> wanted;
  if (table && txqs_[queue]->offloading()) {
    for (const memory::Region& region : table->regions())
      if (region.mapping) wanted.push_back(region.mapping);
  }
  std::erase_if(known, [&](const auto& mapping) {
    if (std::find(wanted.begin(), wanted.end(), mapping) != wanted.end()) return false;
    engine->unmap(mapping->data());
    return true;
  });
  for (auto& mapping : wanted) {
    if (std::find(known.begin(), known.end(), mapping) != known.end()) continue;
    try {
      engine->map(mapping->data(), mapping->size());
      known.push_back(std::move(mapping));
    } catch (const std::exception& error) {
      say("engine", static_cast<int>(queue), false, true, Reports::warning,
          format("tx queue %u: %s cannot reach %llu bytes of guest memory, the CPU copies there: %s", queue,
                 engine->capabilities().name.c_str(), static_cast<unsigned long long>(mapping->size()), error.what()));
    }
  }
}

/// Lets the engine of a held queue know every packet arena of the process, as bursts of other ports may be sent here.
void EthVhost::map_arenas(uint32_t queue) {
  Engine& state = engines_[queue];
  dma::DmaEngine* engine = txqs_[queue]->engine();
  if (!engine || state.arenas_seen == arena_generation()) return;
  for (auto& arena : registered_arenas(state.arenas_seen)) {
    if (std::find(state.arenas.begin(), state.arenas.end(), arena) != state.arenas.end()) continue;
    try {
      engine->map(arena->data(), arena->size());
      state.arenas.push_back(std::move(arena));
    } catch (const std::exception& error) {
      say("engine", static_cast<int>(queue), false, true, Reports::warning,
          format("tx queue %u: %s cannot reach a packet arena, the CPU copies from there: %s", queue,
                 engine->capabilities().name.c_str(), error.what()));
    }
  }
}

void EthVhost::release_engines() {
  for (uint32_t q = 0; q < config_.queues; ++q) {
    if (dma::DmaEngine* engine = txqs_[q]->engine(); engine && engine->capabilities().hardware)
      Claims::give_back(engine->capabilities().name);
    txqs_[q]->set_engine(nullptr, UINT32_MAX, Publish::cpu, {});
    engines_[q] = {};
  }
}

}  // namespace vhost_ioat::port
