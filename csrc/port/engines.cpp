// SPDX-License-Identifier: BSD-3-Clause
// The DMA engines of a port: which one serves which tx queue, and what memory each knows.
#include <algorithm>
#include <set>

#include "base/error.hpp"
#include "base/mutex.hpp"
#include "dma/hardware_engine.hpp"
#include "dma/soft_engine.hpp"
#include "port/calibration.hpp"
#include "port/eth_vhost.hpp"

namespace vhost_ioat::port {

namespace {

/// PCI functions that serve a queue somewhere in this process.
class Claims {
 public:
  static bool take(const std::string& bdf) {
    const MutexLock lock(all().mutex);
    return all().taken.insert(bdf).second;
  }
  static void give_back(const std::string& bdf) {
    const MutexLock lock(all().mutex);
    all().taken.erase(bdf);
  }

 private:
  static Claims& all() {
    static auto* instance = new Claims;
    return *instance;
  }

  Mutex mutex;
  std::set<std::string> taken GUARDED_BY(mutex);
};

bool is_software(const std::string& name) { return name.rfind("sw", 0) == 0; }

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
    txq.pipe().set_engine(slot.shared_engine(), config_.ioat_threshold, publish, std::move(slots));
    slot.map_arenas_now();
    if (config_.ioat_threshold == 0) calibrate_engine(queue);
  }
}

void EthVhost::calibrate_engine(uint32_t queue) {
  EngineSlot& slot = *engines_[queue];
  TxQueue& txq = *txqs_[queue];
  const Calibration found = calibrate(*slot.engine(), *arenas_[queue], slot.recovery());
  txq.pipe().set_threshold(found.threshold);
  const char* const name = slot.engine()->capabilities().name.c_str();
  switch (found.stopped) {
    case Recovery::Outcome::none:
    case Recovery::Outcome::working:
      return;
    case Recovery::Outcome::recovered:
      return report({.kind = Kind::engine, .queue = tx_queue(queue), .enabled = true},
                    ": engine %s could not be measured (%s) and was reset; the CPU copies", name,
                    slot.recovery().why());
    case Recovery::Outcome::given_up:
      return give_up(queue);
    case Recovery::Outcome::lost:
      return abandon(queue);
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
  report({.kind = Kind::engine, .queue = tx_queue(queue), .enabled = true},
         ": %s cannot be had, the software engine %s stands in: %s", name.c_str(), stand_in.c_str(), why.c_str());
  software(stand_in);
}

/// Of a queue that is taken for good.
void EthVhost::release_engine(uint32_t queue) noexcept {
  EngineSlot* slot = engines_[queue].get();
  if (!slot || !slot->engine()) return;
  if (slot->engine()->capabilities().hardware) Claims::give_back(slot->engine()->capabilities().name);
  txqs_[queue]->pipe().set_engine(nullptr, UINT32_MAX, Publish::cpu, {});
  slot->end();
}

}  // namespace vhost_ioat::port
