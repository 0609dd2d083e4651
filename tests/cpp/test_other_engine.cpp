// SPDX-License-Identifier: BSD-3-Clause
// A kind of engine that the port has never seen: what a new one needs is a class such as this, and nothing in
// csrc/port.
#include <algorithm>
#include <deque>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "queue_rig.hpp"

using namespace rig;
using port::PacketView;
using port::Publish;

namespace {

/// Completes copies in an order of its own, as Intel's DSA may, and makes a copy only when it completes it.
class ShufflingEngine final : public dma::DmaEngine {
 public:
  explicit ShufflingEngine(uint32_t seed) : random_(seed) {
    can_.name = "shuffle";
    can_.in_order = false;
    can_.ring_size = 64;
  }
  const dma::Capabilities& capabilities() const override { return can_; }
  dma::EngineStats stats() const override { return stats_; }
  void map(void*, size_t) override {}
  void unmap(void*) override {}
  dma::Refusal enqueue(std::span<const dma::Copy> copies, uint32_t cookie) noexcept override {
    if (jobs_.size() == can_.ring_size) return dma::Refusal::ring_full;
    jobs_.push_back({cookie, {copies.begin(), copies.end()}});
    stats_.submitted += copies.size();
    return dma::Refusal::none;
  }
  void submit() noexcept override {}
  size_t poll(std::span<dma::Completion> out) noexcept override {
    size_t n = std::min<size_t>(out.size(), jobs_.empty() ? 0 : 1 + random_() % 2);
    n = std::min(n, jobs_.size());
    for (size_t i = 0; i < n; ++i) {
      const size_t which = random_() % jobs_.size();
      for (const dma::Copy& copy : jobs_[which].copies) std::memcpy(copy.dst, copy.src, copy.len);
      stats_.completed += jobs_[which].copies.size();
      out[i] = {jobs_[which].cookie, dma::CopyStatus::ok};
      jobs_.erase(jobs_.begin() + static_cast<ptrdiff_t>(which));
    }
    return n;
  }
  uint32_t outstanding() const noexcept override { return static_cast<uint32_t>(jobs_.size()); }
  bool failed() const noexcept override { return false; }
  std::string why() const override { return {}; }
  dma::Step quiesce() noexcept override { return dma::Step::done; }
  dma::Step reset() noexcept override { return dma::Step::done; }
  dma::Step revoke() noexcept override { return dma::Step::done; }

 private:
  struct Job {
    uint32_t cookie;
    std::vector<dma::Copy> copies;
  };
  std::minstd_rand random_;
  dma::Capabilities can_;
  dma::EngineStats stats_;
  std::vector<Job> jobs_;
};

}  // namespace

TEST_CASE("another kind of engine: packets are shown in order, whatever is completed first") {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    GuestRig guest(64);
    port::TxQueue queue;
    queue.pipe().set_engine(std::make_shared<ShufflingEngine>(seed), 256, Publish::cpu, {});
    queue.setup(guest.setup());
    for (uint64_t i = 0; i < 64; ++i) guest.post(GuestRig::buffers + 4096 * i, 4096);
    uint64_t received = 0;
    const auto packet = [](uint64_t i) {
      return pattern(60 + static_cast<uint32_t>(i * 97 % 1400), static_cast<uint8_t>(i));
    };
    const auto take_what_is_shown = [&] {
      for (; const auto used = guest.driver().take_used(); ++received) {
        const Bytes sent = packet(received);
        CHECK(used->len == guest.header_size() + sent.size());
        CHECK(std::equal(sent.begin(), sent.end(), guest.host(GuestRig::buffers + 4096 * received) + 12));
      }
    };
    for (uint64_t i = 0; i < 64; i += 8) {
      std::vector<Bytes> packets;
      for (uint64_t k = i; k < i + 8; ++k) packets.push_back(packet(k));
      REQUIRE(queue.enqueue(PacketView::of(guest.burst(packets))) == 8);
      take_what_is_shown();
    }
    while (!queue.idle()) {
      queue.reap();
      take_what_is_shown();
    }
    CHECK(received == 64);
    CHECK(queue.counters.dma_completed.get() == queue.counters.dma_submitted.get());
    CHECK(queue.counters.dma_completed.get() != 0);
  }
}
