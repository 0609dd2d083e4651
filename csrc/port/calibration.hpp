// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <functional>

#include "dma/engine.hpp"
#include "memory/packet_arena.hpp"
#include "port/recovery.hpp"

namespace vhost_ioat::port {

/// What calibrate() has found out about an engine.
struct Calibration {
  static constexpr uint32_t never = 65536;  // longer than any packet

  uint32_t threshold = never;  // bytes
  /// `none`: the engine kept up. Else it was late or failed, and this is how it was stopped; of one that is `lost`
  /// the memory it may still touch is never used again.
  Recovery::Outcome stopped = Recovery::Outcome::none;
};

/// Measures on this machine the smallest copy that costs the CPU less to hand over than to make.
///
/// On the caller's thread, which it keeps for some seconds at most; nobody else uses the engine. The memory of its
/// copies is its own, and when it returns none of them can run any more: all cookies were handed back.
Calibration calibrate(dma::DmaEngine& engine, memory::PacketArena& arena, Recovery& recovery,
                      const std::function<Recovery::Time()>& clock = std::chrono::steady_clock::now);

}  // namespace vhost_ioat::port
