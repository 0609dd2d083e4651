// SPDX-License-Identifier: BSD-3-Clause
// What the I/OAT driver costs the CPU per descriptor: enqueue of one host-address copy with its cookie, doorbell, and
// taking the completion, on a BAR in plain memory whose write-back this program stores. No device, no copying.
//   bench_descriptors [PER_DOORBELL [RING [RUNS]]]      prints ns per descriptor; runs are short, to fit between other
//   work
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "dma/ioat_engine.hpp"

using namespace vhost_ioat::dma;

namespace {

/// As much of a device as the driver needs to start. IOVAs are host addresses less a constant.
class PaperDevice final : public PlainBar, public DmaSpace {
 public:
  PaperDevice() : PaperDevice(std::make_unique<std::vector<uint64_t>>(spec::bar_size / 8)) {}

  std::vector<IovaRange> usable() const override { return {{4096, ~uint64_t{0}}}; }
  void map(uint64_t iova, void* host, size_t) override {
    if (!ring_) ring_ = static_cast<uint8_t*>(host), ring_iova_ = iova;  // the engine maps its ring first
  }
  void unmap(uint64_t, size_t) override {}
  Step revoke() noexcept override { return Step::done; }

  /// What a device would do by now, while the driver starts.
  void live() {
    if (read8(spec::CHANCMD)) {
      write8(spec::CHANCMD, 0);
      write64(spec::CHANSTS, static_cast<uint64_t>(spec::State::halted));
    } else if (read16(spec::DMACOUNT)) {
      complete(0);
    } else if (read64(spec::CHAINADDR)) {
      write64(spec::CHANSTS, static_cast<uint64_t>(spec::State::armed));
    }
  }
  void complete(uint32_t slot) {
    const uint64_t iova = read64(spec::CHANCMP);
    *reinterpret_cast<volatile uint64_t*>(ring_ + (iova - ring_iova_)) = (ring_iova_ + uint64_t{slot} * 64) | 1;
  }

 private:
  explicit PaperDevice(std::unique_ptr<std::vector<uint64_t>> bar) : PlainBar(bar->data()), bar_(std::move(bar)) {
    write8(spec::CHANCNT, 1);
    write8(spec::XFERCAP, 20);
    write8(spec::CBVER, 0x34);
    write64(spec::CHANSTS, static_cast<uint64_t>(spec::State::halted));
  }
  std::unique_ptr<std::vector<uint64_t>> bar_;
  uint8_t* ring_ = nullptr;
  uint64_t ring_iova_ = 0;
};

/// ns per job of `batch`, over about a millisecond.
double time_per_job(auto&& batch, uint32_t per_batch) {
  constexpr uint32_t jobs = 128 << 10;
  static uint32_t job = 0;
  const auto start = std::chrono::steady_clock::now();
  for (uint32_t i = 0; i < jobs; i += per_batch, job += per_batch) batch(job);
  const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - start;
  return elapsed.count() / jobs;
}

void print(const char* what, std::vector<double>& runs) {
  std::sort(runs.begin(), runs.end());
  std::printf("  %-9s  %6.2f  %6.2f\n", what, runs.front(), runs[runs.size() / 2]);
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, uint32_t otherwise) {
    return argc > i ? static_cast<uint32_t>(std::strtoul(argv[i], nullptr, 0)) : otherwise;
  };
  const uint32_t per_doorbell = argument(1, 32), ring = argument(2, 1024), runs = argument(3, 400);
  auto device = std::make_shared<PaperDevice>();
  std::unique_ptr<DmaEngine> engine = std::make_unique<IoatEngine>(
      device, device, IoatEngine::Identity{"paper", "I/OAT", false}, ChannelOptions{ring, 0, [&] { device->live(); }});

  // Buffers spread over a guest's memory and an arena, as packets are.
  constexpr size_t area = 256 << 20, spread = 16 << 10;
  std::vector<uint8_t> guest(area), arena(area);
  engine->map(guest.data(), area);
  engine->map(arena.data(), area);

  std::vector<Completion> out(per_doorbell);
  uint32_t slot = 1;  // slot 0 was the null descriptor of the start
  const auto driver = [&, to = guest.data(), from = arena.data(), to_engine = engine.get()](uint32_t job) {
    for (uint32_t i = 0; i < per_doorbell; ++i) {
      const size_t at = (job + i) * spread & (area - 1);
      const Copy copy{to + at, from + at, 1518};
      if (to_engine->enqueue({&copy, 1}, job + i) != Refusal::none) std::abort();
    }
    engine->submit();
    slot += per_doorbell;
    device->complete((slot - 1) & (ring - 1));
    if (engine->poll(out) != per_doorbell || out[per_doorbell - 1].cookie != job + per_doorbell - 1) std::abort();
  };
  // The same stores to a ring of the same size, by a loop that checks, remembers and completes nothing.
  RingPages bare_ring(ring * sizeof(spec::Descriptor));
  const auto bare = [&](uint32_t job) {
    for (uint32_t i = 0; i < per_doorbell; ++i) {
      const size_t at = (job + i) * spread & (area - 1);
      volatile spec::Descriptor& to = static_cast<spec::Descriptor*>(bare_ring.data())[(job + i) & (ring - 1)];
      to.size = 1518;
      to.control = spec::control::completion_update;
      to.src = at;
      to.dst = at;
    }
    device->PlainBar::write(spec::GENCTRL, 0, 2);
  };

  std::vector<double> driver_runs, bare_runs;
  for (uint32_t run = 0; run < runs; ++run) {
    driver_runs.push_back(time_per_job(driver, per_doorbell));
    bare_runs.push_back(time_per_job(bare, per_doorbell));
  }
  std::printf("%u a doorbell, ring %u, ns per descriptor, best and median of %u runs\n", per_doorbell, ring, runs);
  print("driver", driver_runs);
  print("bare loop", bare_runs);
}
