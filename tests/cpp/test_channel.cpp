// SPDX-License-Identifier: BSD-3-Clause
// One device for several queues: turns, whose completion it is, the ladder that one climbs for all, and the ends.
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "dma/channel.hpp"
#include "dma/soft_engine.hpp"
#include "ioat_rig.hpp"
#include "watchdog.hpp"

using namespace ioat_rig;
using vhost_ioat::ConfigError;
using vhost_ioat::DmaError;
using vhost_ioat::testing::eventually;

namespace {

/// A channel over a software device, and its clients with one area each.
struct Shared {
  SoftEngine soft;
  std::shared_ptr<IoatModel> model;
  std::shared_ptr<Channel> channel;
  std::vector<std::unique_ptr<DmaEngine>> clients;
  std::vector<std::vector<uint8_t>> src, dst;

  explicit Shared(size_t n, Mode mode = Mode::inline_, uint32_t ring = 1024, size_t size = 1 << 16)
      : soft(make_soft_engine("sw0", {.mode = mode}, {.ring_size = ring})),
        model(soft.model),
        channel(Channel::create(std::move(soft.engine))) {
    for (size_t i = 0; i < n; ++i) {
      clients.push_back(channel->join());
      src.push_back(random_bytes(size));
      dst.emplace_back(size);
      clients[i]->map(src[i].data(), size);
      clients[i]->map(dst[i].data(), size);
    }
  }
  Refusal copy(size_t who, size_t at, uint32_t len, uint32_t cookie) {
    const Copy one{&dst[who][at], &src[who][at], len};
    return clients[who]->enqueue({&one, 1}, cookie);
  }
  std::vector<Completion> poll(size_t who) {
    Completion out[64];
    std::vector<Completion> all;
    while (const size_t n = clients[who]->poll(out)) all.insert(all.end(), out, out + n);
    return all;
  }
  Step finish(size_t who, Step (DmaEngine::*step)() noexcept) {
    Step answer;
    while ((answer = (*clients[who].*step)()) == Step::pending) std::this_thread::yield();
    return answer;
  }
};

/// Calls out while it is in use, as another thread would.
class BusyEngine final : public DmaEngine {
 public:
  std::function<void()> meanwhile;
  size_t submitted = 0, revoked = 0, resets_pending = 0, quiesced = 0;
  bool sick = false, stuck = false;

  static std::unique_ptr<DmaEngine> make(BusyEngine*& made) {
    auto engine = std::make_unique<BusyEngine>();
    made = engine.get();
    return engine;
  }
  BusyEngine() {
    can_.name = "busy";
    can_.ring_size = 64;
  }
  const Capabilities& capabilities() const override { return can_; }
  EngineStats stats() const override { return {}; }
  void map(void*, size_t) override {}
  void unmap(void*) override {}
  Refusal enqueue(std::span<const Copy>, uint32_t cookie) noexcept override {
    if (meanwhile) std::exchange(meanwhile, {})();
    cookies_.push_back(cookie);
    return Refusal::none;
  }
  void submit() noexcept override { submitted = cookies_.size(); }
  size_t poll(std::span<Completion> out) noexcept override {
    size_t n = 0;
    if (stuck) return 0;
    for (; n < submitted && n < out.size(); ++n) out[n] = {cookies_[n], CopyStatus::ok};
    cookies_.erase(cookies_.begin(), cookies_.begin() + static_cast<ptrdiff_t>(n));
    return n;
  }
  uint32_t outstanding() const noexcept override { return static_cast<uint32_t>(cookies_.size()); }
  bool failed() const noexcept override { return sick; }
  std::string why() const override { return {}; }
  Step quiesce() noexcept override {
    ++quiesced;
    return Step::done;
  }
  Step reset() noexcept override {
    if (resets_pending == 0) return Step::done;
    --resets_pending;
    stuck = false;  // what it was at work on ends by itself
    return Step::pending;
  }
  Step revoke() noexcept override {
    ++revoked;
    return Step::done;
  }

 private:
  Capabilities can_;
  std::vector<uint32_t> cookies_;
};

}  // namespace

TEST_CASE("channel: each client gets its own completions, whoever looks") {
  Shared shared(3);
  REQUIRE(shared.copy(0, 0, 100, 7) == Refusal::none);
  shared.clients[0]->submit();
  REQUIRE(shared.copy(1, 0, 200, 7) == Refusal::none);
  REQUIRE(shared.copy(1, 300, 50, 0xffffff) == Refusal::none);
  shared.clients[1]->submit();
  CHECK(shared.poll(2).empty());  // has nothing outstanding, and so does not look
  const auto second = shared.poll(1);
  REQUIRE(second.size() == 2);
  CHECK(second[0].cookie == 7);
  CHECK(second[1].cookie == 0xffffff);
  CHECK(shared.clients[0]->outstanding() == 1);
  REQUIRE(shared.poll(0).size() == 1);
  CHECK(shared.clients[0]->outstanding() == 0);
  CHECK(shared.dst[0][99] == shared.src[0][99]);
  CHECK(std::memcmp(shared.dst[1].data(), shared.src[1].data(), 200) == 0);

  const EngineStats first = shared.clients[0]->stats(), both = shared.clients[1]->stats();
  CHECK(first.submitted == 1);
  CHECK(first.completed == 1);
  CHECK(first.bytes == 100);
  CHECK(both.submitted == 2);
  CHECK(both.completed == 2);
  CHECK(both.bytes == 250);
  CHECK(shared.clients[2]->progress() == shared.clients[0]->progress());
}

TEST_CASE("channel: one whose burst has not ended keeps nobody out") {
  Shared shared(2);
  REQUIRE(shared.copy(0, 0, 64, 1) == Refusal::none);
  const Copy elsewhere{shared.dst[0].data(), &shared, 8};
  CHECK(shared.clients[0]->enqueue({&elsewhere, 1}, 2) == Refusal::unmapped);
  REQUIRE(shared.copy(1, 0, 64, 1) == Refusal::none);
  shared.clients[1]->submit();
  CHECK(shared.poll(1).size() == 1);
  CHECK(shared.poll(0).size() == 1);  // the other one's doorbell was for all
}

TEST_CASE("channel: nobody waits for a turn, and what was not done in it is done in a later one") {
  BusyEngine* device = nullptr;
  const auto channel = Channel::create(BusyEngine::make(device));
  const auto first = channel->join(), second = channel->join();
  uint8_t byte = 0;
  const Copy copy{&byte, &byte, 1};
  Completion done[4];
  device->meanwhile = [&] {  // while the first one's turn lasts
    CHECK(second->enqueue({&copy, 1}, 1) == Refusal::ring_full);
    CHECK(second->quiesce() == Step::pending);
    CHECK(second->reset() == Step::pending);
    CHECK(second->revoke() == Step::pending);
  };
  REQUIRE(first->enqueue({&copy, 1}, 1) == Refusal::none);
  device->meanwhile = {};
  REQUIRE(second->enqueue({&copy, 1}, 2) == Refusal::none);
  device->meanwhile = [&] {
    second->submit();
    CHECK(second->poll(done) == 0);
  };
  REQUIRE(first->enqueue({&copy, 1}, 3) == Refusal::none);
  device->meanwhile = {};
  CHECK(device->submitted == 0);
  CHECK(second->poll(done) == 1);
  CHECK(done[0].cookie == 2);
  CHECK(device->submitted == 3);
  CHECK(first->poll(done) == 2);
  CHECK(second->outstanding() == 0);
}

TEST_CASE("channel: a device that one client could reset is not taken from it by another one") {
  BusyEngine* device = nullptr;
  const auto channel = Channel::create(BusyEngine::make(device));
  const auto slow = channel->join(), fast = channel->join();
  CHECK(slow->quiesce() == Step::done);
  CHECK(fast->reset() == Step::done);
  CHECK(slow->revoke() == Step::done);  // its ladder had come that far
  CHECK(device->revoked == 0);
  CHECK_FALSE(fast->failed());
  CHECK(slow->failed());
  uint8_t byte = 0;
  const Copy copy{&byte, &byte, 1};
  CHECK(slow->enqueue({&copy, 1}, 1) == Refusal::disabled);
  CHECK(fast->enqueue({&copy, 1}, 1) == Refusal::none);
  CHECK(fast->poll(std::span<Completion>()) == 0);
  fast->submit();
  Completion done[1];
  CHECK(fast->poll(done) == 1);
}

TEST_CASE("channel: while one client's reset is under way, another one's ladder leaves it alone or goes on with it") {
  BusyEngine* device = nullptr;
  const auto channel = Channel::create(BusyEngine::make(device));
  const auto first = channel->join(), second = channel->join();
  device->resets_pending = 2;
  CHECK(first->reset() == Step::pending);
  CHECK(second->quiesce() == Step::pending);
  CHECK(device->quiesced == 0);
  CHECK(second->reset() == Step::pending);
  CHECK(second->reset() == Step::done);
  CHECK(first->quiesce() == Step::done);
  CHECK(first->reset() == Step::done);
  CHECK(device->quiesced == 0);
}

TEST_CASE("channel: a client that goes brings the reset it began to its end") {
  BusyEngine* device = nullptr;
  const auto channel = Channel::create(BusyEngine::make(device));
  auto leaver = channel->join();
  const auto stays = channel->join();
  uint8_t byte = 0;
  const Copy copy{&byte, &byte, 1};
  REQUIRE(leaver->enqueue({&copy, 1}, 1) == Refusal::none);
  device->sick = device->stuck = true;
  device->resets_pending = 3;
  CHECK(stays->quiesce() == Step::done);  // the channel notes that it is sick
  leaver.reset();
  CHECK(device->resets_pending == 0);
}

TEST_CASE("channel: no client fills the ring for the others") {
  Shared shared(2, Mode::stepped, 64);
  uint32_t taken = 0;
  while (shared.copy(0, 0, 64, taken) == Refusal::none) ++taken;
  CHECK(taken == 32);
  shared.clients[0]->submit();
  for (uint32_t i = 0; i < 31; ++i) CHECK(shared.copy(1, 0, 64, i) == Refusal::none);  // one descriptor stays empty
  shared.clients[1]->submit();
  shared.model->step(100);
  CHECK(shared.poll(0).size() == 32);
  CHECK(shared.poll(1).size() == 31);
  shared.clients[1].reset();
  taken = 0;
  while (shared.copy(0, 0, 64, taken) == Refusal::none) ++taken;
  CHECK(taken == 63);
  shared.clients[0]->submit();
  shared.model->step(100);
}

TEST_CASE("channel: a failed device is stopped once, and all go on") {
  for (const bool with_hint : {false, true}) {
    Shared shared(2);
    shared.model->inject(Fault::error, 1, spec::chanerr::read_data);
    REQUIRE(shared.copy(0, 0, 64, 0) == Refusal::none);
    REQUIRE(shared.copy(0, 64, 64, 1) == Refusal::none);  // fails
    shared.clients[0]->submit();
    if (with_hint) REQUIRE(shared.poll(0).size() == 1);
    CHECK(shared.copy(1, 0, 64, 5) == (with_hint ? Refusal::disabled : Refusal::none));
    shared.clients[1]->submit();
    shared.poll(1);
    CHECK(shared.clients[0]->failed());
    CHECK(shared.clients[1]->failed());
    CHECK(shared.clients[1]->why() == "sw0: the channel halted with CHANERR 0x100: read data (bit 8)");

    REQUIRE(shared.finish(1, &DmaEngine::quiesce) == Step::done);
    REQUIRE(shared.finish(1, &DmaEngine::reset) == Step::done);
    CHECK_FALSE(shared.clients[1]->failed());
    const auto other = shared.poll(1);
    CHECK(other.size() == (with_hint ? 0 : 1));
    for (const Completion& one : other) CHECK(one.status == CopyStatus::not_attempted);
    CHECK(shared.copy(1, 0, 64, 6) == Refusal::none);
    shared.clients[1]->submit();

    CHECK(shared.clients[0]->failed());  // until it has been through it, too
    CHECK(shared.clients[0]->why() == "sw0: the channel halted with CHANERR 0x100: read data (bit 8)");
    CHECK(shared.copy(0, 0, 64, 9) == Refusal::disabled);
    CHECK(shared.clients[0]->quiesce() == Step::done);
    CHECK(shared.clients[0]->reset() == Step::done);
    const auto own = shared.poll(0);
    REQUIRE(own.size() == (with_hint ? 1 : 2));
    CHECK(own.back().status == CopyStatus::error);
    CHECK(shared.clients[0]->stats().errors == 1);
    CHECK(shared.clients[1]->stats().errors == 0);
    CHECK(shared.clients[0]->stats().resets == 1);
    CHECK(shared.clients[1]->stats().resets == 1);
    CHECK(shared.copy(0, 0, 64, 9) == Refusal::none);
    shared.clients[0]->submit();
    REQUIRE(shared.poll(0).size() == 1);
    CHECK(shared.poll(1).size() == 1);
  }
}

TEST_CASE("channel: one that had to be revoked is lost to all, each in its own time") {
  Shared shared(2);
  shared.model->inject(Fault::stuck, 1);
  shared.model->inject(Fault::reset_hang);
  for (uint32_t i = 0; i < 3; ++i) REQUIRE(shared.copy(0, 0, 64, i) == Refusal::none);
  shared.clients[0]->submit();
  REQUIRE(shared.copy(1, 0, 64, 0) == Refusal::none);
  shared.clients[1]->submit();
  CHECK(shared.finish(0, &DmaEngine::quiesce) == Step::failed);
  CHECK(shared.finish(0, &DmaEngine::reset) == Step::failed);
  CHECK(shared.finish(0, &DmaEngine::revoke) == Step::done);
  CHECK(shared.poll(0).size() == 3);
  CHECK(shared.clients[0]->outstanding() == 0);
  for (size_t who = 0; who < 2; ++who) {
    CHECK(shared.clients[who]->failed());
    CHECK(shared.copy(who, 0, 64, 9) == Refusal::disabled);
  }
  CHECK(shared.clients[1]->quiesce() == Step::done);
  CHECK(shared.clients[1]->reset() == Step::failed);
  CHECK(shared.clients[1]->revoke() == Step::done);
  CHECK(shared.poll(1).size() == 1);
  CHECK(shared.clients[1]->failed());
  CHECK_THROWS_WITH_AS(shared.channel->join(),
                       "sw0 was given up, and serves nobody until its other queues have let go of it", DmaError);
}

TEST_CASE("channel: a stop that no failure led to is told as such") {
  Shared shared(2);
  REQUIRE(shared.finish(0, &DmaEngine::quiesce) == Step::done);
  REQUIRE(shared.finish(0, &DmaEngine::reset) == Step::done);
  CHECK(shared.clients[1]->failed());
  CHECK(shared.clients[1]->why() == "sw0: another queue had it stopped");
}

TEST_CASE("channel: the same memory is mapped once for all, and goes with the last") {
  Shared shared(2);
  std::vector<uint8_t> arena = random_bytes(8192);
  for (auto& client : shared.clients) client->map(arena.data(), arena.size());
  CHECK_THROWS_AS(shared.clients[0]->map(arena.data() + 1, 100), DmaError);
  shared.clients[0]->unmap(arena.data());
  const Copy from_arena{shared.dst[1].data(), arena.data(), 8192};
  CHECK(shared.clients[1]->enqueue({&from_arena, 1}, 3) == Refusal::none);
  shared.clients[1]->submit();
  CHECK(shared.poll(1).size() == 1);
  CHECK(shared.dst[1][8191] == arena[8191]);
  shared.clients[1].reset();
  const Copy again{shared.dst[0].data(), arena.data(), 10};
  CHECK(shared.clients[0]->enqueue({&again, 1}, 3) == Refusal::unmapped);
}

TEST_CASE("channel: a client that goes with copies in flight waits for them, and harms nobody") {
  Shared shared(2, Mode::threaded, 1024, 1 << 20);
  for (uint32_t i = 0; i < 100; ++i) REQUIRE(shared.copy(0, 0, 100'000, i) == Refusal::none);
  shared.clients[0].reset();
  std::fill(shared.dst[0].begin(), shared.dst[0].end(), uint8_t{0});  // AddressSanitizer and ThreadSanitizer watch
  CHECK_FALSE(shared.clients[1]->failed());
  REQUIRE(shared.copy(1, 0, 64, 1) == Refusal::none);
  shared.clients[1]->submit();
  REQUIRE(eventually([&] { return !shared.poll(1).empty(); }));
  shared.clients.push_back(shared.channel->join());  // at the place that became free
}

TEST_CASE("channel: a client that goes while the device is stuck stops it") {
  Shared shared(2);
  shared.model->inject(Fault::error, 0, spec::chanerr::read_data);
  REQUIRE(shared.copy(0, 0, 64, 1) == Refusal::none);
  REQUIRE(shared.copy(0, 0, 64, 2) == Refusal::none);
  shared.clients[0].reset();
  std::fill(shared.dst[0].begin(), shared.dst[0].end(), uint8_t{0});
  CHECK(shared.clients[1]->failed());
  CHECK(shared.clients[1]->quiesce() == Step::done);
  CHECK(shared.clients[1]->reset() == Step::done);
  REQUIRE(shared.copy(1, 0, 64, 1) == Refusal::none);
  shared.clients[1]->submit();
  CHECK(shared.poll(1).size() == 1);
}

TEST_CASE("channel: it has a limit of clients") {
  auto channel = Channel::create(std::move(make_soft_engine("sw0", {.mode = Mode::inline_}).engine));
  std::vector<std::unique_ptr<DmaEngine>> clients;
  for (uint32_t i = 0; i < Channel::max_clients; ++i) clients.push_back(channel->join());
  CHECK_THROWS_WITH_AS(channel->join(), "sw0 serves 64 queues already", ConfigError);
  clients.pop_back();
  clients.push_back(channel->join());
}

TEST_CASE("channel: a child of fork may drop what it inherited") {
  Shared shared(2, Mode::threaded);
  for (uint32_t i = 0; i < 100; ++i) REQUIRE(shared.copy(0, 0, 50'000, i) == Refusal::none);
  shared.clients[0]->submit();
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);
    shared.clients.clear();
    shared.channel.reset();
    ::_exit(0);
  }
  int status = -1;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  size_t done = 0;
  REQUIRE(eventually([&] { return (done += shared.poll(0).size()) == 100; }));
}

TEST_CASE("channel: threads that share it under faults: every cookie comes once, and what is ok is there") {
  constexpr size_t threads = 3;
  constexpr uint32_t jobs = 3000;
  Shared shared(threads, Mode::threaded, 64);
  for (const uint64_t nth : {1500u, 4000u, 6500u}) shared.model->inject(Fault::error, nth, spec::chanerr::read_data);
  const auto work = [&](size_t who) {
    DmaEngine& engine = *shared.clients[who];
    std::minstd_rand random(static_cast<uint32_t>(who) + 1);
    std::map<uint32_t, std::pair<size_t, uint32_t>> in_flight;  // by cookie: where, how much
    for (uint32_t next = 0; next < jobs || !in_flight.empty();) {
      for (uint32_t burst = 0; burst < 8 && next < jobs; ++burst) {
        const size_t at = size_t{next % 64} * 1024;
        const uint32_t len = 1 + static_cast<uint32_t>(random() % 1000);
        const bool used =
            std::any_of(in_flight.begin(), in_flight.end(), [&](auto& f) { return f.second.first == at; });
        if (used || shared.copy(who, at, len, next) != Refusal::none) break;
        in_flight[next++] = {at, len};
      }
      engine.submit();
      for (const Completion& done : shared.poll(who)) {
        const auto found = in_flight.find(done.cookie);
        REQUIRE(found != in_flight.end());
        const auto [at, len] = found->second;
        if (done.status == CopyStatus::ok) REQUIRE(std::memcmp(&shared.dst[who][at], &shared.src[who][at], len) == 0);
        std::memset(&shared.dst[who][at], 0, len);
        in_flight.erase(found);
      }
      if (engine.failed()) {
        while (engine.quiesce() == Step::pending) std::this_thread::yield();
        while (engine.reset() == Step::pending) std::this_thread::yield();
      }
      std::this_thread::yield();
    }
    CHECK(engine.outstanding() == 0);
    CHECK(engine.stats().resets <= 3);  // two may look like one, or come after its last copy
  };
  std::vector<std::thread> running;
  for (size_t who = 0; who < threads; ++who) running.emplace_back(work, who);
  for (std::thread& thread : running) thread.join();
}
