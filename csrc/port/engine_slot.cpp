// SPDX-License-Identifier: BSD-3-Clause
#include "port/engine_slot.hpp"

#include <algorithm>
#include <cstddef>
#include <new>

#include "base/error.hpp"
#include "port/arenas.hpp"

namespace vhost_ioat::port {

EngineSlot::EngineSlot(const std::shared_ptr<EventLoop>& loop, std::function<void(std::exception_ptr)> ended)
    : lane_(HelperLane::create()),
      work_(std::make_shared<Work>()),
      task_(loop, [work = work_] { work->run(); }, std::move(ended)) {}

void EngineSlot::set_engine(std::shared_ptr<dma::DmaEngine> engine, std::shared_ptr<dma::IoatModel> model) {
  work_->engine = std::move(engine);
  model_ = std::move(model);
}

void EngineSlot::start(Job job) noexcept {
  work_->job = job;
  task_.start(*lane_);
}

bool EngineSlot::map_guest(Mappings wanted) noexcept {
  const auto same = [](const auto& mapping, const auto& asked) { return mapping == asked.lock(); };
  if (!engine() || std::ranges::equal(wanted, work_->guest_asked, same)) return false;
  work_->wanted = std::move(wanted);
  start(Job::guest);
  return true;
}

bool EngineSlot::map_arenas() noexcept {
  if (!engine() || work_->arenas_seen == arena_generation()) return false;
  start(Job::arenas);
  return true;
}

void EngineSlot::step_recovery(Recovery::Time now) noexcept {
  work_->now = now;
  start(Job::recovery);
}

void EngineSlot::end() noexcept {
  model_.reset();
  start(Job::end);
}

void EngineSlot::leak() noexcept {
  alignas(std::shared_ptr<Work>) static std::byte room[sizeof(std::shared_ptr<Work>)];
  static auto* leaked = new (room) std::shared_ptr<Work>;  // never destroyed, on purpose; needs no memory
  for (auto& mapping : work_->guest) mapping->leak();
  work_->guest.clear();
  work_->guest_asked.clear();  // a weak pointer, too, keeps the lane of a mapping
  if (model_) model_->abandon();
  work_->next_leaked = std::exchange(*leaked, work_);
}

void EngineSlot::give_up() noexcept {
  given_up_ = true;
  set_state("given up");
}

void EngineSlot::set_state(const char* state) noexcept {
  try {
    state_ = state;
  } catch (const std::exception&) {
    // The event said it.
  }
}

void EngineSlot::Work::run() {
  outcome = {};
  switch (job) {
    case Job::guest:
      return map_guest();
    case Job::arenas:
      return map_arenas();
    case Job::recovery:
      outcome.recovery = recovery.step(*engine, now);
      return;
    case Job::end:
      engine.reset();
      guest.clear();
      arenas.clear();
      return;
  }
}

/// Memory that it cannot map is left to the CPU.
void EngineSlot::Work::map_guest() {
  guest_asked.assign(wanted.begin(), wanted.end());
  if (!arenas_refused.empty()) arenas_seen = 0;  // another table, another try
  arenas_refused.clear();
  for (auto mapping = guest.begin(); mapping != guest.end();) {
    if (std::ranges::find(wanted, *mapping) != wanted.end()) {
      ++mapping;
      continue;
    }
    engine->unmap((*mapping)->data());  // what throws stays, as the device may still reach it
    mapping = guest.erase(mapping);
  }
  guest.reserve(wanted.size());
  for (auto& mapping : wanted) {
    if (std::ranges::find(guest, mapping) != guest.end()) continue;
    try {
      engine->map(mapping->data(), mapping->size());
      guest.push_back(std::move(mapping));
    } catch (const std::exception& error) {
      outcome.refused.push_back(format("%llu bytes of guest memory, the CPU copies there: %s",
                                       static_cast<unsigned long long>(mapping->size()), error.what()));
    }
  }
  wanted.clear();
}

void EngineSlot::Work::map_arenas() {
  for (auto& arena : registered_arenas(arenas_seen)) {
    const auto is_refused = [&](const auto& refused) { return refused.lock() == arena; };
    if (std::ranges::find(arenas, arena) != arenas.end() || std::ranges::any_of(arenas_refused, is_refused)) continue;
    try {
      arenas.reserve(arenas.size() + 1);
      engine->map(arena->data(), arena->size());
      arenas.push_back(std::move(arena));
    } catch (const std::exception& error) {
      arenas_refused.push_back(arena);
      outcome.refused.push_back(format("a packet arena, the CPU copies from there: %s", error.what()));
    }
  }
}

}  // namespace vhost_ioat::port
