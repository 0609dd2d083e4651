// SPDX-License-Identifier: BSD-3-Clause
#include "port/arenas.hpp"

#include <algorithm>
#include <atomic>
#include <mutex>

namespace vhost_ioat::port {

namespace {
constexpr size_t common_arena_size = size_t{64} << 20;

struct Registry {
  std::mutex mutex;
  std::vector<std::shared_ptr<memory::PacketArena>> arenas;
  std::atomic<size_t> generation{0};
};
Registry& registry() {
  static auto* instance = new Registry;  // never destroyed: ports may be closed by exit handlers
  return *instance;
}
}  // namespace

void register_arena(std::shared_ptr<memory::PacketArena> arena) {
  std::lock_guard lock(registry().mutex);
  registry().arenas.push_back(std::move(arena));
  registry().generation.fetch_add(1, std::memory_order_release);  // pairs with the load in arena_generation()
}

void unregister_arena(const std::shared_ptr<memory::PacketArena>& arena) {
  std::lock_guard lock(registry().mutex);
  std::erase(registry().arenas, arena);
}

std::vector<std::shared_ptr<memory::PacketArena>> registered_arenas(size_t& generation) {
  std::lock_guard lock(registry().mutex);
  generation = registry().generation.load(std::memory_order_relaxed);
  return registry().arenas;
}

size_t arena_generation() noexcept { return registry().generation.load(std::memory_order_acquire); }

const std::shared_ptr<memory::PacketArena>& common_arena() {
  static auto* arena = new std::shared_ptr<memory::PacketArena>([] {
    auto made = memory::PacketArena::create(common_arena_size);
    register_arena(made);
    return made;
  }());
  return *arena;
}

}  // namespace vhost_ioat::port
