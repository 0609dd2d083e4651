// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/event_loop.hpp"
#include "base/latch.hpp"
#include "doctest/doctest.h"
#include "port/arenas.hpp"
#include "port/engine_slot.hpp"
#include "scripted_engine.hpp"

using namespace vhost_ioat;
using memory::GuestMapping;
using port::EngineSlot;
using testing::ScriptedEngine;

namespace {

/// A slot, whose jobs are waited for.
struct Bench {
  std::shared_ptr<EventLoop> loop = EventLoop::get();
  std::shared_ptr<ScriptedEngine> engine = std::make_shared<ScriptedEngine>();
  std::optional<EngineSlot> slot;
  std::optional<Latch> ended;

  Bench() {
    slot.emplace(loop, [this](const std::exception_ptr&) { ended->open(); });
    slot->set_engine(engine, nullptr);
  }
  ~Bench() {
    loop->run([this] { slot.reset(); });
  }

  /// What could not be reached, a sentence each; nothing when there was nothing to do.
  template <typename Start>
  std::optional<std::vector<std::string>> job(Start&& start) {
    ended.emplace();
    engine->asked.clear();
    bool started = false;
    loop->run([&] { started = start(*slot); });
    if (!started) return std::nullopt;
    ended->wait();
    EngineSlot::Outcome outcome;
    loop->run([&] { outcome = slot->take_outcome(); });
    return outcome.refused;
  }
  auto map_guest(EngineSlot::Mappings wanted) {
    return job([&](EngineSlot& of) { return of.map_guest(std::move(wanted)); });
  }
  auto map_arenas() {
    return job([](EngineSlot& of) { return of.map_arenas(); });
  }
  size_t times_asked(const void* memory) const {
    return static_cast<size_t>(std::ranges::count(engine->asked, memory));
  }
};

}  // namespace

TEST_CASE("engine slot: memory that cannot be mapped is told once, and tried again with another table") {
  Bench bench;
  const auto good = GuestMapping::anonymous(4096), bad = GuestMapping::anonymous(4096);
  bench.engine->out_of_reach.insert(bad->data());
  const auto first = bench.map_guest({good, bad});
  REQUIRE(first);
  CHECK(first->size() == 1);
  CHECK(bench.engine->asked.size() == 2);
  CHECK_FALSE(bench.map_guest({good, bad}));  // a message that changes nothing
  CHECK(bench.engine->asked.empty());

  const auto more = GuestMapping::anonymous(4096);
  const auto second = bench.map_guest({good, bad, more});
  REQUIRE(second);
  CHECK(second->size() == 1);
  CHECK(bench.times_asked(good->data()) == 0);  // known
  CHECK(bench.times_asked(bad->data()) == 1);
  CHECK(bench.times_asked(more->data()) == 1);
  bench.engine->out_of_reach.clear();
  REQUIRE(bench.map_guest({good, bad}));
  CHECK_FALSE(bench.map_guest({good, bad}));
}

TEST_CASE("engine slot: a packet arena that cannot be mapped is told once, however many others come") {
  Bench bench;
  std::vector<std::shared_ptr<memory::PacketArena>> arenas;
  const auto another = [&] {
    arenas.push_back(memory::PacketArena::create(1 << 20));
    port::register_arena(arenas.back());
    return arenas.back()->data();
  };
  const void* const bad = another();
  bench.engine->out_of_reach.insert(bad);
  const auto first = bench.map_arenas();
  REQUIRE(first);
  CHECK(first->size() == 1);
  CHECK_FALSE(bench.map_arenas());
  const void* const good = another();
  const auto second = bench.map_arenas();
  REQUIRE(second);
  CHECK(second->empty());
  CHECK(bench.times_asked(bad) == 0);
  CHECK(bench.times_asked(good) == 1);

  bench.engine->out_of_reach.clear();
  REQUIRE(bench.map_guest({GuestMapping::anonymous(4096)}));
  REQUIRE(bench.map_arenas());
  CHECK(bench.times_asked(bad) == 1);
  CHECK_FALSE(bench.map_arenas());
}
