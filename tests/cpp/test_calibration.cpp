// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "base/latch.hpp"
#include "dma/soft_engine.hpp"
#include "doctest/doctest.h"
#include "memory/packet_arena.hpp"
#include "port/calibration.hpp"

using namespace vhost_ioat;
using namespace std::chrono_literals;
using dma::IoatModel;
using port::Calibration;
using port::Recovery;

namespace {

/// An engine with an arena, and a clock that goes on by a step at each look, so that patience ends by counting.
struct Bench {
  std::shared_ptr<memory::PacketArena> arena = memory::PacketArena::create(4 << 20);
  dma::SoftEngine soft;
  Recovery recovery;
  Recovery::Time now{1h};
  std::chrono::nanoseconds tick;

  explicit Bench(IoatModel::Mode mode, std::chrono::nanoseconds tick_of = 1us)
      : soft(dma::make_soft_engine("sw0", {.mode = mode})), tick(tick_of) {
    soft.engine->map(arena->data(), arena->size());
  }
  Calibration calibrate() {
    return port::calibrate(*soft.engine, *arena, recovery, [this] { return now += tick; });
  }
  void check_nothing_left() {
    CHECK(soft.engine->outstanding() == 0);
    CHECK(arena->bytes_in_use() == 0);
    // All packet memory, as packets received meanwhile would have it: nothing may still be copied there.
    std::vector<memory::Block> packets;
    while (memory::Block block = arena->allocate(256 << 10)) {
      std::fill_n(block.data(), block.size(), uint8_t{0x55});
      packets.push_back(std::move(block));
    }
    if (soft.model->mode() == IoatModel::Mode::stepped) soft.model->step(10'000);
    for (const memory::Block& block : packets)
      CHECK(std::all_of(block.data(), block.data() + block.size(), [](uint8_t byte) { return byte == 0x55; }));
  }
};

}  // namespace

TEST_CASE("calibration: an engine that keeps up is left as it was, with nothing in it") {
  Bench bench(IoatModel::Mode::inline_);
  const Calibration found = bench.calibrate();
  CHECK(found.stopped == Recovery::Outcome::none);
  // By this clock, which counts looks, both ways cost the same: the engine is not worth it.
  CHECK(found.threshold == Calibration::never);
  CHECK_FALSE(bench.soft.engine->failed());
  bench.check_nothing_left();
}

TEST_CASE("calibration: copies of an engine that is late never run in memory that is used for something else") {
  Bench bench(IoatModel::Mode::stepped, 100ms);
  const Calibration found = bench.calibrate();
  CHECK(found.threshold == Calibration::never);
  CHECK(found.stopped == Recovery::Outcome::recovered);
  CHECK_FALSE(bench.soft.engine->failed());
  bench.check_nothing_left();
}

TEST_CASE("calibration: an engine that fails is reset") {
  Bench bench(IoatModel::Mode::inline_);
  bench.soft.model->inject(IoatModel::Fault::error, 40, 8);
  const Calibration found = bench.calibrate();
  CHECK(found.threshold == Calibration::never);
  CHECK(found.stopped == Recovery::Outcome::recovered);
  CHECK_FALSE(bench.soft.engine->failed());
  bench.check_nothing_left();
}

TEST_CASE("calibration: an engine that does not take its copies is not in doubt") {
  Bench bench(IoatModel::Mode::inline_);
  bench.soft.engine->unmap(bench.arena->data());
  const Calibration found = bench.calibrate();
  CHECK(found.threshold == Calibration::never);
  CHECK(found.stopped == Recovery::Outcome::none);
  bench.check_nothing_left();
}

TEST_CASE("calibration: an engine that hangs is revoked, and one that cannot even be revoked keeps its memory") {
  Bench bench(IoatModel::Mode::stepped, 10ms);
  bench.soft.model->inject(IoatModel::Fault::stuck);
  bench.soft.model->inject(IoatModel::Fault::reset_hang);
  SUBCASE("revoked") {
    CHECK(bench.calibrate().stopped == Recovery::Outcome::given_up);
    bench.check_nothing_left();
  }
  SUBCASE("lost") {
    Latch at_work, let_go;
    std::thread device([&] {
      const dma::IovaMap::Access access(bench.soft.model->memory());
      at_work.open();
      let_go.wait();
    });
    at_work.wait();
    const Calibration found = bench.calibrate();
    let_go.open();
    device.join();
    static const auto* const lost = new std::shared_ptr(bench.arena);  // it is on purpose never freed: not a leak
    CHECK(*lost == bench.arena);
    CHECK(found.stopped == Recovery::Outcome::lost);
    CHECK(found.threshold == Calibration::never);
    CHECK(bench.arena->bytes_in_use() == 2 * 256 << 10);
  }
}
