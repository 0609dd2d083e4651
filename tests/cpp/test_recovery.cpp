// SPDX-License-Identifier: BSD-3-Clause
#include <chrono>

#include "doctest/doctest.h"
#include "port/owner.hpp"
#include "port/recovery.hpp"
#include "scripted_engine.hpp"

using namespace vhost_ioat;
using namespace std::chrono_literals;
using port::Recovery;
using Outcome = Recovery::Outcome;
using dma::Step;
using testing::ScriptedEngine;

namespace {

constexpr Recovery::Time t0{std::chrono::hours(1)};

}  // namespace

TEST_CASE("watchdog: stuck means no progress over 200 ms and over 1000 polls, both") {
  Recovery recovery;
  auto look = [&](auto at, uint64_t polls, uint64_t progress = 7) {
    return recovery.stuck(t0 + at, polls, progress, true);
  };
  CHECK_FALSE(look(0ms, 0));
  for (int ms = 10; ms < 200; ms += 10) CHECK_FALSE(look(std::chrono::milliseconds(ms), 5000));
  CHECK(look(200ms, 5000));

  Recovery few_polls;
  for (int ms = 0; ms < 1000; ms += 10) CHECK_FALSE(few_polls.stuck(t0 + std::chrono::milliseconds(ms), 999, 7, true));
}

TEST_CASE("watchdog: progress, an empty engine or a paused process starts the count again") {
  auto run = [](auto&& disturb) {
    Recovery recovery;
    uint64_t progress = 0;
    for (int ms = 0; ms <= 380; ms += 10) {
      auto at = t0 + std::chrono::milliseconds(ms);
      bool outstanding = true;
      if (ms >= 190) disturb(ms, at, progress, outstanding);
      if (recovery.stuck(at, static_cast<uint64_t>(ms) * 100, progress, outstanding)) return true;
    }
    return false;
  };
  CHECK(run([](int ms, auto& at, auto&, auto&) { at += std::chrono::milliseconds(ms == 380 ? 20 : 0); }));
  CHECK_FALSE(run([](int ms, auto&, auto& progress, auto&) { progress = ms == 190 ? progress + 1 : progress; }));
  CHECK_FALSE(run([](int ms, auto&, auto&, bool& outstanding) { outstanding = ms != 190; }));
  CHECK_FALSE(run([](int, auto& at, auto&, auto&) { at += 1s; }));
}

TEST_CASE("watchdog: an engine that makes progress is too slow when it was waited for during two seconds") {
  Recovery recovery;
  CHECK_FALSE(recovery.too_slow(t0));
  CHECK_FALSE(recovery.too_slow(t0 + 1999ms));
  recovery.drained();
  CHECK_FALSE(recovery.too_slow(t0 + 2s));
  CHECK_FALSE(recovery.too_slow(t0 + 3999ms));
  CHECK(recovery.too_slow(t0 + 4s));
  recovery.begin(t0 + 4s, ScriptedEngine());
  CHECK_FALSE(recovery.too_slow(t0 + 4s));
}

TEST_CASE("recovery: suspend, then reset; a channel that resets works again") {
  Recovery recovery;
  ScriptedEngine engine;
  engine.quiesce_answers = {Step::pending, Step::done};
  engine.reset_answers = {Step::pending, Step::done};
  recovery.begin(t0, ScriptedEngine());
  CHECK(recovery.active());
  CHECK(recovery.step(engine, t0) == Outcome::working);
  CHECK(recovery.step(engine, t0 + 1ms) == Outcome::working);
  CHECK(recovery.step(engine, t0 + 2ms) == Outcome::recovered);
  CHECK_FALSE(recovery.active());
}

TEST_CASE("recovery: what does not suspend is reset, what does not reset is revoked, each after its time") {
  Recovery recovery;
  ScriptedEngine engine;
  recovery.begin(t0, ScriptedEngine());
  CHECK(recovery.step(engine, t0 + 19ms) == Outcome::working);
  CHECK(recovery.step(engine, t0 + 20ms) == Outcome::working);  // resetting since now
  CHECK(recovery.step(engine, t0 + 219ms) == Outcome::working);
  CHECK(recovery.step(engine, t0 + 220ms) == Outcome::working);  // revoking since now
  engine.revoke_answers = {Step::done};
  CHECK(recovery.step(engine, t0 + 230ms) == Outcome::given_up);
}

TEST_CASE("recovery: an engine that cannot be revoked is lost") {
  Recovery recovery;
  ScriptedEngine engine;
  engine.quiesce_answers = {Step::failed};
  engine.reset_answers = {Step::failed};
  engine.revoke_answers = {Step::failed};
  recovery.begin(t0, ScriptedEngine());
  CHECK(recovery.step(engine, t0) == Outcome::lost);

  Recovery slow;
  slow.begin(t0, ScriptedEngine());
  auto at = t0;
  for (; at < t0 + 2220ms; at += 10ms) CHECK(slow.step(engine, at) == Outcome::working);
  CHECK(slow.step(engine, at) == Outcome::lost);
}

TEST_CASE("recovery: repeated failures end in giving up, rare ones do not") {
  for (bool repeated : {true, false}) {
    Recovery recovery;
    ScriptedEngine engine;
    Outcome last = Outcome::working;
    for (uint32_t i = 0; i < Recovery::max_failures; ++i) {
      const auto at = t0 + i * (repeated ? 1s : 11s);
      engine.quiesce_answers = {Step::done};
      engine.reset_answers = {Step::done};
      recovery.begin(at, ScriptedEngine());
      last = recovery.step(engine, at);
      CHECK((last == Outcome::recovered || i + 1 == Recovery::max_failures));
    }
    CHECK(last == (repeated ? Outcome::given_up : Outcome::recovered));
  }
}

TEST_CASE("owner: a second caller is told, the control thread is let in, nobody waits") {
  port::Owner owner;
  using Entry = port::Owner::Entry;
  CHECK(owner.enter() == Entry::entered);
  CHECK(owner.enter() == Entry::second_caller);
  CHECK_FALSE(owner.try_slip_in());
  CHECK_FALSE(owner.try_take());
  CHECK(owner.enter() == Entry::second_caller);
  owner.leave();
  CHECK(owner.enter() == Entry::control);  // kept out for the control thread
  CHECK(owner.try_take());
  CHECK(owner.enter() == Entry::control);
  CHECK(owner.try_take());  // held already
  owner.give_back();
  CHECK(owner.enter() == Entry::entered);
}
