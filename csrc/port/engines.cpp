// SPDX-License-Identifier: BSD-3-Clause
// The DMA engines of a port: which one serves which tx queue, and what memory each knows.
#include <algorithm>

#include "base/error.hpp"
#include "dma/registry.hpp"
#include "port/calibration.hpp"
#include "port/eth_vhost.hpp"

namespace vhost_ioat::port {

void EthVhost::make_engines() {
  dma::EngineOpener opener(config_.sw_mode);
  for (const auto& [queue, name] : config_.ioats) {
    make_engine(queue, name, opener);
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

void EthVhost::make_engine(uint32_t queue, const std::string& name, dma::EngineOpener& opener) {
  EngineSlot& slot = *engines_[queue];
  const auto open = [&](const std::string& of, bool alone) {
    dma::NamedEngine opened = opener.open(of, alone);
    slot.set_engine(std::move(opened.engine), std::move(opened.model));
  };
  const bool alone = std::ranges::count(config_.ioats, name, &decltype(config_.ioats)::value_type::second) == 1;
  std::string why;
  try {
    return open(name, alone);
  } catch (const ConfigError&) {
    throw;  // a mistake of the program, such as an address that serves another port
  } catch (const std::exception& error) {
    if (dma::is_software(name) || !config_.ioat_fallback) throw;
    why = error.what();
  }
  slot.set_state(format("stands in for %s: %s", name.c_str(), why.c_str()).c_str());
  const std::string stand_in = format("sw%u", queue);
  report({.kind = Kind::engine, .queue = tx_queue(queue), .enabled = true},
         ": %s cannot be had, the software engine %s stands in: %s", name.c_str(), stand_in.c_str(), why.c_str());
  open(stand_in, true);
}

/// Of a queue that is taken for good.
void EthVhost::release_engine(uint32_t queue) noexcept {
  EngineSlot* slot = engines_[queue].get();
  if (!slot || !slot->engine()) return;
  txqs_[queue]->pipe().set_engine(nullptr, UINT32_MAX, Publish::cpu, {});
  slot->end();
}

}  // namespace vhost_ioat::port
