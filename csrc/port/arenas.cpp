// SPDX-License-Identifier: BSD-3-Clause
#include "port/arenas.hpp"

#include <atomic>

#include "base/mutex.hpp"

namespace vhost_ioat::port {

namespace {
constexpr size_t common_arena_size = size_t{64} << 20;

struct Registry {
  Mutex mutex;
  std::vector<std::weak_ptr<memory::PacketArena>> arenas GUARDED_BY(mutex);
  std::atomic<size_t> generation{0};
};
Registry& registry() {
  static auto* instance = new Registry;  // never destroyed: ports may be closed by exit handlers
  return *instance;
}
}  // namespace

void register_arena(const std::shared_ptr<memory::PacketArena>& arena) {
  Registry& all = registry();
  const MutexLock lock(all.mutex);
  std::erase_if(all.arenas, [](const auto& known) { return known.expired(); });
  all.arenas.push_back(arena);
  all.generation.fetch_add(1, std::memory_order_release);  // pairs with the load in arena_generation()
}

std::vector<std::shared_ptr<memory::PacketArena>> registered_arenas(size_t& generation) {
  Registry& all = registry();
  const MutexLock lock(all.mutex);
  generation = all.generation.load(std::memory_order_relaxed);
  std::vector<std::shared_ptr<memory::PacketArena>> living;
  for (const auto& known : all.arenas)
    if (auto arena = known.lock()) living.push_back(std::move(arena));
  return living;
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
