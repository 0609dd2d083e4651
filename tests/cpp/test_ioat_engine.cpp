// SPDX-License-Identifier: BSD-3-Clause
// The I/OAT as a copy engine of host addresses: translation, all-or-nothing, statuses, and the ladder of stopping.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "base/error.hpp"
#include "dma/ioat_engine.hpp"
#include "ioat_rig.hpp"

using namespace ioat_rig;
using vhost_ioat::DmaError;

namespace {

/// A software engine with two areas mapped, as a guest's memory and a packet arena are.
struct Rig {
  SoftEngine soft;
  DmaEngine& engine;
  std::vector<uint8_t> src, dst;

  explicit Rig(Mode mode = Mode::inline_, uint8_t xfercap = 20, uint32_t ring = 1024, size_t size = 1 << 20)
      : soft(make_soft_engine("sw0", {.mode = mode, .xfercap = xfercap}, {.ring_size = ring})),
        engine(*soft.engine),
        src(random_bytes(size)),
        dst(size) {
    engine.map(src.data(), src.size());
    engine.map(dst.data(), dst.size());
  }
  Refusal copy(size_t to, size_t from, uint32_t len, uint32_t cookie = 0) {
    const Copy one{&dst[to], &src[from], len};
    return engine.enqueue({&one, 1}, cookie);
  }
  std::vector<Completion> poll() {
    Completion out[1024];
    return {out, out + engine.poll(out)};
  }
  std::vector<Completion> drain() {
    std::vector<Completion> all;
    while (engine.outstanding() > 0 && !engine.failed()) {
      for (const Completion& done : poll()) all.push_back(done);
      std::this_thread::yield();
    }
    return all;
  }
  Step finish(Step (DmaEngine::*step)() noexcept) {
    Step answer;
    while ((answer = (engine.*step)()) == Step::pending) std::this_thread::yield();
    return answer;
  }
};

/// A space that fails on demand and remembers: what map() and revoke() of hardware may do.
struct FakeSpace : DmaSpace {
  std::shared_ptr<IoatModel> model;
  std::map<uint64_t, size_t> maps;
  std::vector<IovaRange> ranges{{4096, ~uint64_t{0}}};
  bool refuse = false;
  Step revoke_answer = Step::done;

  explicit FakeSpace(std::shared_ptr<IoatModel> m) : model(std::move(m)) {}
  std::vector<IovaRange> usable() const override { return ranges; }
  void map(uint64_t iova, void* host, size_t size) override {
    if (refuse) throw DmaError("no");
    model->memory().map(iova, host, size);
    maps[iova] = size;
  }
  void unmap(uint64_t iova, size_t size) override {
    CHECK(maps[iova] == size);
    maps.erase(iova);
    model->memory().unmap(iova);
  }
  Step revoke() noexcept override { return revoke_answer; }
};

uint64_t count(const std::vector<Completion>& completions, CopyStatus status) {
  return static_cast<uint64_t>(
      std::count_if(completions.begin(), completions.end(), [&](const Completion& c) { return c.status == status; }));
}

}  // namespace

TEST_CASE("engine: says what it is") {
  Rig rig(Mode::threaded, 18, 256);
  const Capabilities& capabilities = rig.engine.capabilities();
  CHECK(capabilities.name == "sw0");
  CHECK(capabilities.description == "software I/OAT 3.4");
  CHECK_FALSE(capabilities.hardware);
  CHECK(capabilities.in_order);
  CHECK(capabilities.ring_size == 256);
  CHECK(capabilities.max_copy == 1 << 18);
  CHECK(capabilities.address_bits == 48);
}

TEST_CASE("engine: random copies equal memcpy, in order, in every mode") {
  for (Mode mode : {Mode::inline_, Mode::threaded}) {
    Rig rig(mode, 12, 64);
    std::vector<uint8_t> expected = rig.dst;
    std::mt19937 random(11);
    uint32_t cookie = 0, seen = 0;
    while (seen < 3000) {
      std::vector<Copy> copies;
      std::vector<Copy> on_paper;
      for (size_t n = 1 + random() % 4; n > 0 && cookie < 3000; --n) {
        const auto len = static_cast<uint32_t>(1 + random() % 9000);
        const size_t to = random() % (rig.dst.size() - len), from = random() % (rig.src.size() - len);
        copies.push_back({&rig.dst[to], &rig.src[from], len});
        on_paper.push_back({&expected[to], &rig.src[from], len});
      }
      if (!copies.empty() && rig.engine.enqueue(copies, cookie) == Refusal::none) {
        for (const Copy& copy : on_paper) std::memcpy(copy.dst, copy.src, copy.len);
        ++cookie;
      }
      if (random() % 3 == 0) rig.engine.submit();
      if (cookie == 3000 || random() % 8 == 0) {
        rig.engine.submit();
        for (const Completion& done : rig.poll()) {
          REQUIRE(done.status == CopyStatus::ok);
          REQUIRE(done.cookie == seen++);
        }
      }
    }
    CHECK(rig.dst == expected);
    CHECK(rig.engine.stats().submitted == rig.engine.stats().completed);
    CHECK(rig.engine.stats().errors == 0);
  }
}

TEST_CASE("engine: a copy is split where host memory is contiguous and the mappings are not") {
  Rig rig;
  std::vector<uint8_t> both = random_bytes(8192);
  std::vector<uint8_t> wedge(4096);
  rig.engine.map(both.data(), 3000);
  rig.engine.map(wedge.data(), wedge.size());  // so that the second half's IOVAs do not follow the first's
  rig.engine.map(both.data() + 3000, 8192 - 3000);
  const Copy copy{rig.dst.data(), both.data(), 8192};
  const uint64_t before = rig.engine.stats().submitted;
  REQUIRE(rig.engine.enqueue({&copy, 1}, 5) == Refusal::none);
  rig.engine.submit();
  CHECK(rig.engine.stats().submitted - before == 2);
  CHECK(rig.poll().size() == 1);
  CHECK(std::memcmp(rig.dst.data(), both.data(), 8192) == 0);
  CHECK(rig.engine.stats().bytes == 8192);
}

TEST_CASE("engine: all copies of a job or none") {
  Rig rig(Mode::inline_, 12, 64);
  uint8_t elsewhere[64];
  SUBCASE("the last one is not mapped") {
    const Copy copies[] = {{&rig.dst[0], &rig.src[0], 64}, {elsewhere, &rig.src[64], 64}};
    CHECK(rig.engine.enqueue(copies, 1) == Refusal::unmapped);
    const Copy other[] = {{&rig.dst[0], &rig.src[0], 64}, {&rig.dst[0], elsewhere, 64}};
    CHECK(rig.engine.enqueue(other, 1) == Refusal::unmapped);
  }
  SUBCASE("it runs over the end of a mapping") {
    const Copy copies[] = {{&rig.dst[0], &rig.src[0], 64}, {&rig.dst[rig.dst.size() - 10], &rig.src[64], 11}};
    CHECK(rig.engine.enqueue(copies, 1) == Refusal::unmapped);
  }
  SUBCASE("the ring has no room for the whole job") {
    const std::vector<Copy> copies(64, Copy{&rig.dst[0], &rig.src[0], 64});
    CHECK(rig.engine.enqueue(copies, 1) == Refusal::ring_full);
    CHECK(rig.copy(0, 0, 64 * 4096) == Refusal::ring_full);
    CHECK(rig.engine.enqueue(std::span(copies).first(63), 1) == Refusal::none);
    CHECK(rig.copy(0, 0, 1) == Refusal::ring_full);
    rig.engine.submit();
    CHECK(rig.poll().size() == 1);
    CHECK(rig.engine.stats().completed == 63);
    return;
  }
  SUBCASE("a length of 0, and a job of nothing") {
    const Copy copies[] = {{&rig.dst[0], &rig.src[0], 64}, {&rig.dst[0], &rig.src[0], 0}};
    CHECK(rig.engine.enqueue(copies, 1) == Refusal::address);
    CHECK(rig.engine.enqueue({}, 1) == Refusal::address);
  }
  rig.engine.submit();
  CHECK(rig.engine.outstanding() == 0);
  CHECK(rig.soft.model->counters().descriptors == 1);  // the null descriptor of the start
  CHECK(rig.dst[0] == 0);
}

TEST_CASE("engine: mappings come and go, their addresses stay compact and are used again") {
  auto model = std::make_shared<IoatModel>(IoatModel::Options{.cbver = 0x32});
  auto space = std::make_shared<FakeSpace>(model);
  IoatEngine engine(model, space, {.name = "sw0", .description = "software I/OAT"});
  std::vector<uint8_t> memory(64 << 20);
  for (int round = 0; round < 1000; ++round) {
    for (size_t i = 0; i < 4; ++i) engine.map(&memory[i * (16 << 20)], 16 << 20);
    CHECK(space->maps.rbegin()->first < (256u << 20));
    for (size_t i = 0; i < 4; ++i) engine.unmap(&memory[i * (16 << 20)]);
  }
  CHECK(space->maps.size() == 1);
  CHECK_THROWS_AS(engine.unmap(memory.data()), DmaError);
  engine.map(&memory[1000], 5000);
  CHECK((space->maps.rbegin()->first & 4095) == (reinterpret_cast<uintptr_t>(&memory[1000]) & 4095));
  CHECK_THROWS_AS(engine.map(&memory[0], 1001), DmaError);
  CHECK_THROWS_AS(engine.map(&memory[5999], 1), DmaError);
  CHECK_THROWS_AS(engine.map(&memory[7000], 0), DmaError);
  space->refuse = true;
  CHECK_THROWS_AS(engine.map(&memory[0], 1000), DmaError);
  const Copy copy{&memory[2000], &memory[500], 10};
  CHECK(engine.enqueue({&copy, 1}, 0) == Refusal::unmapped);
}

TEST_CASE("engine: a mapping that is gone is refused even when it was the one hit last") {
  Rig rig;
  REQUIRE(rig.copy(0, 0, 64) == Refusal::none);
  rig.engine.submit();
  CHECK(rig.poll().size() == 1);
  rig.engine.unmap(rig.src.data());
  CHECK(rig.copy(0, 0, 64) == Refusal::unmapped);
  rig.engine.map(rig.src.data(), rig.src.size());
  CHECK(rig.copy(0, 0, 64) == Refusal::none);
}

TEST_CASE("engine: what was done before a revoke is ok, though nobody had polled") {
  Rig rig;
  rig.soft.model->inject(Fault::stuck, 4);
  for (uint32_t i = 0; i < 6; ++i) REQUIRE(rig.copy(0, 0, 64, i) == Refusal::none);
  rig.engine.submit();
  CHECK(rig.finish(&DmaEngine::revoke) == Step::done);
  const auto done = rig.poll();
  CHECK(count(done, CopyStatus::ok) == 4);
  CHECK(count(done, CopyStatus::not_attempted) == 2);
}

TEST_CASE("engine: addresses keep to what the space can use, and to the device's bits") {
  auto model = std::make_shared<IoatModel>(IoatModel::Options{.cbver = 0x32});
  auto space = std::make_shared<FakeSpace>(model);
  space->ranges = {{0x100000, 0x1fffff}, {0x80000000, ~uint64_t{0}}};
  IoatEngine engine(model, space, {.name = "sw0", .description = "software I/OAT"});
  std::vector<uint8_t> memory(1 << 20);
  engine.map(memory.data(), memory.size());  // no room beside the ring in the first range
  CHECK(space->maps.begin()->first >= 0x100000);
  CHECK(space->maps.rbegin()->first >= 0x80000000);
  engine.unmap(memory.data());
  space->ranges = {{uint64_t{1} << 46, ~uint64_t{0}}};
  CHECK_THROWS_AS(engine.map(memory.data(), memory.size()), DmaError);
}

TEST_CASE("engine: a failed copy, its statuses, and the reset that makes it work again") {
  for (Mode mode : {Mode::inline_, Mode::threaded}) {
    Rig rig(mode);
    rig.soft.model->inject(Fault::error, 10, spec::chanerr::read_data);
    for (uint32_t i = 0; i < 32; ++i) REQUIRE(rig.copy(i * 64, i * 64, 64, i) == Refusal::none);
    rig.engine.submit();
    CHECK(rig.drain().size() == 10);
    CHECK(rig.engine.failed());
    CHECK(rig.engine.why() == "sw0: the channel halted with CHANERR 0x100: read data (bit 8)");
    CHECK(rig.copy(0, 0, 1) == Refusal::disabled);
    REQUIRE(rig.finish(&DmaEngine::quiesce) == Step::done);
    const auto rest = rig.poll();
    CHECK(rest.size() == 22);
    CHECK(rest[0].status == CopyStatus::error);
    CHECK(count(rest, CopyStatus::not_attempted) == 21);
    REQUIRE(rig.finish(&DmaEngine::reset) == Step::done);
    CHECK_FALSE(rig.engine.failed());
    REQUIRE(rig.copy(0, 0, 5000, 77) == Refusal::none);
    rig.engine.submit();
    CHECK(rig.drain().size() == 1);
    CHECK(rig.engine.stats().resets == 1);
    CHECK(rig.engine.stats().errors == 1);
  }
}

TEST_CASE("engine: gives up after failures in a row, not after many over a long time") {
  Rig rig;
  const auto fail_once = [&] {
    rig.soft.model->inject(Fault::error, 0, spec::chanerr::write_data);
    REQUIRE(rig.copy(0, 0, 64) == Refusal::none);
    rig.engine.submit();
    rig.drain();
    const Step step = rig.finish(&DmaEngine::reset);
    rig.poll();
    return step;
  };
  for (int round = 0; round < 10; ++round) {
    CHECK(fail_once() == Step::done);
    for (uint32_t i = 0; i < IoatEngine::resets_forgotten_after; ++i) {
      REQUIRE(rig.copy(0, 0, 64) == Refusal::none);
      rig.engine.submit();
      rig.poll();
    }
  }
  for (uint32_t i = 0; i < IoatEngine::max_resets; ++i) CHECK(fail_once() == Step::done);
  CHECK(fail_once() == Step::failed);
  CHECK(rig.engine.failed());
  CHECK(rig.engine.why().find("given up") != std::string::npos);
  CHECK(rig.finish(&DmaEngine::revoke) == Step::done);
}

TEST_CASE("engine: resets that follow no failure are never too many") {
  Rig rig;
  for (int round = 0; round < 50; ++round) {
    REQUIRE(rig.finish(&DmaEngine::quiesce) == Step::done);
    REQUIRE(rig.finish(&DmaEngine::reset) == Step::done);
  }
  CHECK(rig.copy(0, 0, 64) == Refusal::none);
}

TEST_CASE("engine: down the whole ladder with a stuck channel whose reset hangs") {
  for (Mode mode : {Mode::inline_, Mode::threaded}) {
    Rig rig(mode);
    rig.soft.model->inject(Fault::stuck, 3);
    rig.soft.model->inject(Fault::reset_hang);
    for (uint32_t i = 0; i < 10; ++i) REQUIRE(rig.copy(i * 64, i * 64, 64, i) == Refusal::none);
    rig.engine.submit();
    std::vector<Completion> done;
    while (done.size() < 3) {
      for (const Completion& one : rig.poll()) done.push_back(one);
    }
    CHECK(rig.finish(&DmaEngine::quiesce) == Step::failed);
    CHECK(rig.finish(&DmaEngine::reset) == Step::failed);
    CHECK(rig.poll().empty());
    CHECK(rig.engine.outstanding() == 7);
    CHECK(rig.finish(&DmaEngine::revoke) == Step::done);
    CHECK(count(rig.poll(), CopyStatus::not_attempted) == 7);
    CHECK(rig.engine.outstanding() == 0);
    CHECK(rig.engine.failed());
    CHECK(rig.copy(0, 0, 1) == Refusal::disabled);
    CHECK(rig.engine.reset() == Step::failed);
    rig.engine.unmap(rig.src.data());  // still the way to forget memory
  }
}

TEST_CASE("engine: revoked while thousands of copies run, nothing touches the memory after it") {
  for (int round = 0; round < 10; ++round) {
    Rig rig(Mode::threaded);
    for (uint32_t i = 0; i < 1000; ++i) REQUIRE(rig.copy(0, 0, 100'000, i) == Refusal::none);
    rig.engine.submit();
    std::vector<Completion> all = rig.poll();
    while (rig.engine.revoke() == Step::pending) std::this_thread::yield();
    std::fill(rig.dst.begin(), rig.dst.end(), uint8_t{0});  // AddressSanitizer and ThreadSanitizer watch
    for (const Completion& one : rig.poll()) all.push_back(one);
    CHECK(all.size() == 1000);
    for (uint32_t i = 0; i < 1000; ++i) REQUIRE(all[i].cookie == i);
  }
}

TEST_CASE("engine: destroyed with copies in flight") {
  for (int round = 0; round < 20; ++round) {
    Rig rig(Mode::threaded);
    for (uint32_t i = 0; i < 100; ++i) REQUIRE(rig.copy(0, 0, 50'000, i) == Refusal::none);
    rig.engine.submit();
    rig.soft.model.reset();
    rig.soft.engine.reset();
    std::fill(rig.dst.begin(), rig.dst.end(), uint8_t{0});
  }
}

TEST_CASE("engine: a child of fork may drop what it inherited") {
  for (Mode mode : {Mode::inline_, Mode::threaded}) {
    Rig rig(mode);
    for (uint32_t i = 0; i < 100; ++i) REQUIRE(rig.copy(0, 0, 50'000, i) == Refusal::none);
    rig.engine.submit();
    const pid_t child = ::fork();
    if (child == 0) {
      ::alarm(20);
      rig.soft.engine.reset();
      rig.soft.model.reset();
      ::_exit(0);
    }
    int status = -1;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    CHECK(rig.drain().size() == 100);
  }
}

TEST_CASE("engine: a device that cannot be stopped keeps its ring") {
  // Leaked on purpose, so LeakSanitizer must not care: the pages come from mmap.
  auto model = std::make_shared<IoatModel>();
  auto space = std::make_shared<FakeSpace>(model);
  space->revoke_answer = Step::failed;
  auto engine = std::make_unique<IoatEngine>(model, space, IoatEngine::Identity{"sw0", "software I/OAT", false});
  model->inject(Fault::gone);
  engine.reset();
  CHECK(space->maps.size() == 1);
}

TEST_CASE("engine: 2-byte copies behind data publish it, descriptors of one job in order") {
  Rig rig(Mode::threaded);
  auto* index = reinterpret_cast<uint16_t*>(&rig.dst[0x10000]);
  for (uint16_t round = 1; round <= 500; ++round) {
    // The source of one round is not written while the engine may still read that of the one before.
    uint8_t* data = &rig.src[round % 2u * 0x1000];
    std::memset(data, round & 0xff, 300);
    std::memcpy(&rig.src[0x8000 + round % 2u * 64], &round, 2);
    const Copy copies[] = {{&rig.dst[0], data, 300}, {index, &rig.src[0x8000 + round % 2u * 64], 2}};
    REQUIRE(rig.engine.enqueue(copies, round) == Refusal::none);
    rig.engine.submit();
    while (std::atomic_ref(*index).load(std::memory_order_acquire) != round) std::this_thread::yield();
    REQUIRE(rig.dst[299] == (round & 0xff));
    rig.drain();
  }
}

TEST_CASE("engine: under random faults every cookie comes once, in order, and what is ok is there") {
  for (Mode mode : {Mode::inline_, Mode::threaded}) {
    for (uint32_t seed = 0; seed < 30; ++seed) {
      Rig rig(mode, 20, 64, 1 << 16);
      std::mt19937 random(seed);
      uint32_t next = 0, expected = 0;
      for (int round = 0; round < 60 && !(rig.engine.failed() && rig.engine.outstanding() == 0); ++round) {
        if (random() % 6 == 0) {
          const Fault faults[] = {Fault::error, Fault::drop_writeback, Fault::stuck};
          rig.soft.model->inject(faults[random() % 3], random() % 20, random() % 13);
        }
        for (auto n = random() % 30; n > 0; --n) {
          const size_t at = next % 64 * 1000;
          if (rig.copy(at, at, 1000, next) != Refusal::none) break;
          std::memset(&rig.dst[at], 0, 1000);  // before the doorbell, so it is ours
          ++next;
        }
        rig.engine.submit();
        for (int polls = 0; polls < 500 && rig.engine.outstanding() > 0; ++polls) {
          for (const Completion& done : rig.poll()) {
            REQUIRE(done.cookie == expected++);
            REQUIRE(done.status == CopyStatus::ok);
            REQUIRE(std::memcmp(&rig.dst[done.cookie % 64 * 1000], &rig.src[done.cookie % 64 * 1000], 1000) == 0);
          }
        }
        if (rig.engine.outstanding() == 0) continue;
        if (rig.finish(&DmaEngine::reset) == Step::failed) REQUIRE(rig.finish(&DmaEngine::revoke) == Step::done);
        for (const Completion& done : rig.poll()) REQUIRE(done.cookie == expected++);
      }
      CHECK(expected == next);
    }
  }
}
