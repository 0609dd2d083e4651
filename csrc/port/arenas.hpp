// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "memory/packet_arena.hpp"

namespace vhost_ioat::port {

/// The packet arenas of this process: a burst received on one port may be sent on any other, so every engine has to
/// know every arena. Any thread. One that nobody uses any more is forgotten.
void register_arena(const std::shared_ptr<memory::PacketArena>& arena);
/// Those in use; `generation` changes whenever one is added.
std::vector<std::shared_ptr<memory::PacketArena>> registered_arenas(size_t& generation);
size_t arena_generation() noexcept;

/// The arena of bursts that belong to no port (Burst.from_packets, sequences given to tx_burst); made at first use.
const std::shared_ptr<memory::PacketArena>& common_arena();

}  // namespace vhost_ioat::port
