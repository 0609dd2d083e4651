// SPDX-License-Identifier: BSD-3-Clause
// The I/OAT driver on the software device: what DPDK's tests ask of a dmadev, the wraps, errors, and the ways to stop.
#include <deque>

#include "base/error.hpp"
#include "ioat_rig.hpp"

using namespace ioat_rig;
using vhost_ioat::ConfigError;
using vhost_ioat::DmaError;

namespace {

/// Registers in plain memory, which the test moves: for devices that the model never is.
struct PaperDevice {
  alignas(64) std::vector<uint8_t> bar = std::vector<uint8_t>(spec::bar_size);
  PlainBar mmio{bar.data()};
  RingPages pages{IoatChannel::memory_size(64)};

  PaperDevice() {
    mmio.write8(spec::CHANCNT, 1);
    mmio.write8(spec::XFERCAP, 20);
    mmio.write8(spec::CBVER, 0x34);
    mmio.write64(spec::CHANSTS, static_cast<uint64_t>(State::halted));
  }
  /// What a device would do by now.
  void live() {
    if (mmio.read8(spec::CHANCMD)) {
      mmio.write8(spec::CHANCMD, 0);
      mmio.write64(spec::CHANSTS, static_cast<uint64_t>(State::halted));
    } else if (mmio.read16(spec::DMACOUNT)) {
      *reinterpret_cast<uint64_t*>(static_cast<uint8_t*>(pages.data()) + 64 * 64) = 0x1001;
      mmio.write64(spec::CHANSTS, 0x1001);
    } else if (mmio.read64(spec::CHAINADDR)) {
      mmio.write64(spec::CHANSTS, static_cast<uint64_t>(State::armed));
    }
  }
  std::string refusal(uint64_t iova = 0x1000) {
    try {
      IoatChannel channel(mmio, DmaMemory{pages.data(), iova, pages.size()}, {.ring_size = 64, .pause = [] {}});
    } catch (const DmaError& error) {
      return error.what();
    }
    return "";
  }
};

bool says(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("channel: starts on every version, from every state the last user may have left") {
  for (uint8_t version : {uint8_t{0x32}, uint8_t{0x33}, uint8_t{0x34}}) {
    for (Mode mode : {Mode::inline_, Mode::stepped, Mode::threaded}) {
      for (int left = 0; left < 5; ++left) {
        Driven driven({.cbver = version, .mode = mode}, {}, false);
        driven.model.write64(spec::CHANCMP, 0x700000000);
        if (left >= 1) driven.model.write64(spec::CHAINADDR, Driven::ring_at);      // ARMED
        if (left >= 2) driven.model.write16(spec::DMACOUNT, 1000);                  // ACTIVE or an error
        if (left >= 3) driven.model.write8(spec::CHANCMD, spec::chancmd::suspend);  // SUSPENDED
        if (left >= 4) driven.model.write8(spec::CHANCMD, 0x3f);                    // HALTED, CHANERR set
        driven.channel.emplace(driven.model, DmaMemory{driven.pages->data(), Driven::ring_at, driven.pages->size()},
                               ChannelOptions{.pause = pause_for(driven.model)});
        CHECK(driven.channel->version() == version);
        CHECK(driven.copy(0x100000, 0, 5000) == Refusal::none);
        driven.channel->submit();
        CHECK(driven.drain().size() == 1);
        CHECK(std::memcmp(&driven.data[0], &driven.data[0x100000], 5000) == 0);
        CHECK(driven.channel->stats().submitted == 1);
        CHECK(driven.channel->stats().resets == 0);
      }
    }
  }
}

TEST_CASE("channel: refuses devices it cannot drive, and says why") {
  PaperDevice device;
  SUBCASE("gone") {
    std::fill(device.bar.begin(), device.bar.end(), uint8_t{0xff});
    CHECK(says(device.refusal(), "all ones"));
  }
  SUBCASE("version 2.0") {
    device.mmio.write8(spec::CBVER, 0x20);
    CHECK(says(device.refusal(), "version 2.0"));
  }
  SUBCASE("no channel") {
    device.mmio.write8(spec::CHANCNT, 0);
    CHECK(says(device.refusal(), "CHANCNT"));
  }
  SUBCASE("no usable transfer size") {
    device.mmio.write8(spec::XFERCAP, 0);
    CHECK(says(device.refusal(), "XFERCAP"));
  }
  SUBCASE("ring memory at 0, unaligned, or beyond the address bits") {
    CHECK(says(device.refusal(0), "ring memory"));
    CHECK(says(device.refusal(0x1008), "ring memory"));
    CHECK(says(device.refusal(uint64_t{1} << 48), "ring memory"));
    device.mmio.write8(spec::CBVER, 0x32);
    CHECK(says(device.refusal((uint64_t{1} << 46) - 4096), "ring memory"));
  }
  SUBCASE("a reset that never ends") { CHECK(says(device.refusal(), "cannot be started")); }
  SUBCASE("memory that it cannot reach") {
    Driven driven({}, {}, false);
    CHECK_THROWS_AS(IoatChannel(driven.model, DmaMemory{driven.pages->data(), 0x7000000, driven.pages->size()}),
                    DmaError);
  }
  SUBCASE("a ring of odd size") {
    for (uint32_t size : {0u, 32u, 100u, 8192u}) {
      CHECK_THROWS_AS(IoatChannel(device.mmio, DmaMemory{device.pages.data(), 0x1000, 4096}, {.ring_size = size}),
                      ConfigError);
    }
  }
}

TEST_CASE("channel: single copies of many lengths, one after the other") {
  Driven driven;
  uint32_t cookie = 0;
  for (uint64_t len : {1u, 2u, 3u, 64u, 1024u, 1518u, 9000u, 65536u, 1u << 20}) {
    REQUIRE(driven.copy(0x200000, 3, len, ++cookie) == Refusal::none);
    driven.channel->submit();
    const auto done = driven.poll();
    REQUIRE(done.size() == 1);
    CHECK(done[0].cookie == cookie);
    CHECK(done[0].status == CopyStatus::ok);
    CHECK(std::memcmp(&driven.data[0x200000], &driven.data[3], len) == 0);
  }
  CHECK(driven.channel->stats().completed == cookie);
}

TEST_CASE("channel: bursts of 32 with whole and split submits and polls, past the wrap of every index") {
  for (uint32_t ring : {64u, 512u, 4096u}) {
    for (uint32_t first : {0u, 65'530u, 0xfffffff0u}) {
      Driven driven({}, {.ring_size = ring, .first_index = first});
      uint32_t cookie = 0, seen = 0;
      for (int burst = 0; burst < 80; ++burst) {
        const uint32_t submit_every = burst % 2 ? 8 : 32;
        for (uint32_t i = 1; i <= 32; ++i) {
          REQUIRE(driven.copy(0x200000 + i * 128, i * 64, 64, cookie++) == Refusal::none);
          if (i % submit_every == 0) driven.channel->submit();
        }
        Completion out[20];
        while (const size_t n = driven.channel->poll(out)) {
          for (size_t i = 0; i < n; ++i) REQUIRE(out[i].cookie == seen++);
        }
        REQUIRE(seen == cookie);
        for (uint32_t i = 1; i <= 32; ++i) {
          REQUIRE(std::memcmp(&driven.data[0x200000 + i * 128], &driven.data[i * 64], 64) == 0);
        }
      }
    }
  }
}

TEST_CASE("channel: DMACOUNT wraps at 65536 descriptors") {
  for (uint32_t ring : {64u, 4096u}) {
    Driven driven({}, {.ring_size = ring});
    uint64_t done = 0;
    for (int round = 0; round < 4000; ++round) {
      for (uint32_t i = 0; i < 37; ++i) REQUIRE(driven.copy(0x200000, 0, 8) == Refusal::none);
      driven.channel->submit();
      done += driven.poll().size();
    }
    CHECK(done == 37u * 4000);
    CHECK(driven.model.counters().descriptors == done + 1);
  }
}

TEST_CASE("channel: the ring takes all but one descriptor, and capacity comes back") {
  Driven driven({.mode = Mode::stepped}, {.ring_size = 64});
  for (int round = 0; round < 3; ++round) {
    for (uint32_t i = 0; i < 63; ++i) REQUIRE(driven.copy(0x200000, 0, 64, i) == Refusal::none);
    CHECK(driven.channel->room() == 0);
    CHECK(driven.copy(0x200000, 0, 64) == Refusal::ring_full);
    driven.channel->submit();
    CHECK(driven.model.step(20) == 20);
    Completion out[8];
    CHECK(driven.channel->poll(out) == 8);
    CHECK(driven.channel->room() == 8);  // only what was taken is free again
    CHECK(driven.drain().size() == 55);
    CHECK(driven.channel->room() == 63);
  }
}

TEST_CASE("channel: a copy longer than a descriptor carries is split, and is one job") {
  Driven driven({.xfercap = 12});
  CHECK(driven.channel->max_copy() == 4096);
  for (uint64_t len : {4095u, 4096u, 4097u, 8192u, 100'001u}) {
    const uint64_t before = driven.channel->stats().submitted;
    REQUIRE(driven.copy(0x200000, 1, len) == Refusal::none);
    driven.channel->submit();
    CHECK(driven.poll().size() == 1);
    CHECK(driven.channel->stats().submitted - before == (len + 4095) / 4096);
    CHECK(std::memcmp(&driven.data[0x200000], &driven.data[1], len) == 0);
  }
  CHECK(driven.copy(0x200000, 0, 1023 * 4096 + 1) == Refusal::ring_full);
  CHECK(driven.copy(0x200000, 0, 1023 * 4096) == Refusal::none);
}

TEST_CASE("channel: lengths and addresses the device cannot express are refused") {
  for (uint8_t version : {uint8_t{0x32}, uint8_t{0x34}}) {
    Driven driven({.cbver = version});
    IoatChannel& channel = *driven.channel;
    const uint64_t end = uint64_t{1} << (version == 0x32 ? 46 : 48);
    CHECK(channel.copy(Driven::data_at, Driven::data_at, 0, 0) == Refusal::address);
    CHECK(channel.copy(end - 8, Driven::data_at, 9, 0) == Refusal::address);
    CHECK(channel.copy(Driven::data_at, end, 1, 0) == Refusal::address);
    CHECK(channel.copy(~uint64_t{0}, Driven::data_at, 2, 0) == Refusal::address);
    CHECK(channel.copy(Driven::data_at, Driven::data_at, ~uint64_t{0}, 0) == Refusal::address);
    CHECK(channel.outstanding() == 0);
  }
}

TEST_CASE("channel: fills of several lengths") {
  Driven driven({.xfercap = 12});
  for (uint64_t len : {8u, 64u, 1024u, 50u, 100u, 89u, 10'000u}) {
    std::fill(driven.data.begin(), driven.data.end(), uint8_t{0});
    REQUIRE(driven.channel->fill(Driven::data_at + 5, 0xfedcba9876543210, len, 1) == Refusal::none);
    driven.channel->submit();
    REQUIRE(driven.poll().size() == 1);
    for (uint64_t i = 0; i < len; ++i) {
      REQUIRE(driven.data[5 + i] == static_cast<uint8_t>(0xfedcba9876543210 >> 8 * (i % 8)));
    }
    CHECK(driven.data[5 + len] == 0);
  }
}

TEST_CASE("channel: after an error, copies before it are done, it is an error, later ones were not attempted") {
  for (Mode mode : {Mode::inline_, Mode::threaded}) {
    for (uint32_t bad : {0u, 7u, 14u, 15u}) {
      Driven driven({.mode = mode});
      for (uint32_t i = 0; i < 16; ++i) {
        const uint64_t src = i == bad ? 0 : Driven::data_at + i * 64;
        REQUIRE(driven.channel->copy(Driven::data_at + 0x200000, src, 64, i) == Refusal::none);
      }
      driven.channel->submit();
      CHECK(driven.drain().size() == bad);
      for (int again = 0; again < 10; ++again) CHECK(driven.poll().empty());
      CHECK(driven.channel->failed());
      CHECK(says(driven.channel->why(), "source address (bit 0)"));
      CHECK(driven.copy(0, 0, 64) == Refusal::disabled);
      CHECK(driven.channel->outstanding() == 16 - bad);

      REQUIRE(driven.finish(&IoatChannel::reset) == Step::done);
      Completion one[1];
      for (uint32_t i = bad; i < 16; ++i) {  // one by one
        CHECK(driven.copy(0, 0, 64) == Refusal::disabled);
        REQUIRE(driven.channel->poll(one) == 1);
        CHECK(one[0].cookie == i);
        CHECK(one[0].status == (i == bad ? CopyStatus::error : CopyStatus::not_attempted));
      }
      CHECK_FALSE(driven.channel->failed());
      CHECK(driven.channel->stats().errors == 1);
      CHECK(driven.channel->stats().completed == bad);
      CHECK(driven.channel->stats().resets == 1);

      REQUIRE(driven.copy(0x300000, 0, 3000, 99) == Refusal::none);
      driven.channel->submit();
      CHECK(driven.drain().size() == 1);
      CHECK(std::memcmp(&driven.data[0], &driven.data[0x300000], 3000) == 0);
    }
  }
}

TEST_CASE("channel: an error inside a job of several descriptors fails that job") {
  Driven driven({.xfercap = 12});
  driven.model.inject(Fault::error, 5, spec::chanerr::read_data);
  for (uint32_t i = 0; i < 4; ++i) REQUIRE(driven.copy(0x200000, 0, 3 * 4096, i) == Refusal::none);
  driven.channel->submit();
  CHECK(driven.drain().size() == 1);
  CHECK(driven.statuses_after_reset() ==
        std::vector<CopyStatus>{CopyStatus::error, CopyStatus::not_attempted, CopyStatus::not_attempted});
}

TEST_CASE("channel: recovery works hundreds of times on every version, whatever the error bit") {
  for (uint8_t version : {uint8_t{0x32}, uint8_t{0x33}, uint8_t{0x34}}) {
    Driven driven({.cbver = version}, {.ring_size = 64});
    for (unsigned round = 0; round < 300; ++round) {
      driven.model.inject(Fault::error, round % 5, round % 13);
      for (uint32_t i = 0; i < 6; ++i) REQUIRE(driven.copy(0x200000, 0, 64, i) == Refusal::none);
      driven.channel->submit();
      REQUIRE(driven.drain().size() == round % 5);
      REQUIRE(driven.statuses_after_reset().size() == 6 - round % 5);
    }
    CHECK(driven.channel->stats().resets == 300);
    CHECK(driven.channel->stats().errors == 300);
  }
}

TEST_CASE("channel: a lost write-back is found by the slow look, a later one makes up for it") {
  Driven driven;
  driven.model.inject(Fault::drop_writeback, 0, 1);
  REQUIRE(driven.copy(0x200000, 0, 64) == Refusal::none);
  driven.channel->submit();
  CHECK(driven.poll().empty());
  CHECK(driven.drain().size() == 1);

  driven.model.inject(Fault::drop_writeback, 0, 1);
  for (uint32_t i = 0; i < 2; ++i) {
    REQUIRE(driven.copy(0x200000, 0, 64) == Refusal::none);
    driven.channel->submit();
  }
  CHECK(driven.poll().size() == 2);
}

TEST_CASE("channel: a halt whose write-back is lost is noticed too") {
  Driven driven({.cbver = 0x32});
  driven.model.inject(Fault::error, 0, spec::chanerr::write_data);
  driven.model.inject(Fault::drop_writeback, 0, 1);
  driven.model.inject(Fault::torn_status, 0, 0x12345);  // the driver reads CHANSTS by halves, so this never shows
  REQUIRE(driven.copy(0x200000, 0, 64) == Refusal::none);
  driven.channel->submit();
  CHECK(driven.drain().empty());
  CHECK(driven.channel->failed());
  CHECK(driven.statuses_after_reset() == std::vector<CopyStatus>{CopyStatus::error});
}

TEST_CASE("channel: a write-back word that names no running descriptor is not believed") {
  Driven driven({.mode = Mode::stepped});
  auto* word = reinterpret_cast<uint64_t*>(static_cast<uint8_t*>(driven.pages->data()) + 1024 * 64);
  for (uint32_t i = 0; i < 4; ++i) REQUIRE(driven.copy(0x200000, 0, 64, i) == Refusal::none);
  driven.channel->submit();
  for (uint64_t odd : {uint64_t{0x1b041000}, Driven::ring_at + 900 * 64, Driven::ring_at + 1024 * 64, ~uint64_t{63}}) {
    *word = odd;
    CHECK(driven.poll().empty());
  }
  CHECK(driven.drain().size() == 4);
}

TEST_CASE("channel: a stuck channel cannot be suspended in time, but reset") {
  Driven driven;
  driven.model.inject(Fault::stuck, 2);
  for (uint32_t i = 0; i < 4; ++i) REQUIRE(driven.copy(0x200000, 0, 64, i) == Refusal::none);
  driven.channel->submit();
  CHECK(driven.poll().size() == 2);
  CHECK(driven.finish(&IoatChannel::quiesce) == Step::failed);
  CHECK(says(driven.channel->why(), "did not stop"));
  CHECK(driven.channel->outstanding() == 2);
  CHECK(driven.poll().empty());
  CHECK(driven.statuses_after_reset() == std::vector<CopyStatus>{CopyStatus::not_attempted, CopyStatus::not_attempted});
  REQUIRE(driven.copy(0x200000, 0, 64) == Refusal::none);
}

TEST_CASE("channel: a reset that hangs is reported, not waited for") {
  Driven driven;
  driven.model.inject(Fault::reset_hang);
  CHECK(driven.channel->reset() == Step::pending);
  CHECK(driven.finish(&IoatChannel::reset) == Step::failed);
  CHECK(driven.channel->failed());
  CHECK(driven.copy(0, 0, 1) == Refusal::disabled);
}

TEST_CASE("channel: a device that leaves the bus") {
  Driven driven;
  driven.model.inject(Fault::gone, 1);
  for (uint32_t i = 0; i < 3; ++i) REQUIRE(driven.copy(0x200000, 0, 64, i) == Refusal::none);
  driven.channel->submit();
  CHECK(driven.drain().size() == 1);
  CHECK(driven.channel->failed());
  CHECK(says(driven.channel->why(), "gone"));
  CHECK(driven.channel->quiesce() == Step::failed);
  CHECK(driven.channel->reset() == Step::failed);
  driven.channel->abandon();
  const auto rest = driven.poll();
  REQUIRE(rest.size() == 2);
  CHECK(rest[0].status == CopyStatus::not_attempted);
  CHECK(driven.channel->outstanding() == 0);
  CHECK(driven.copy(0, 0, 1) == Refusal::disabled);
}

TEST_CASE("channel: quiesce lets running copies end, a reset makes it run again") {
  for (Mode mode : {Mode::inline_, Mode::stepped, Mode::threaded}) {
    Driven driven({.mode = mode});
    for (int round = 0; round < 10; ++round) {
      for (uint32_t i = 0; i < 40; ++i) REQUIRE(driven.copy(0x200000, 0, 100'000, i) == Refusal::none);
      driven.channel->submit();
      if (mode == Mode::stepped) driven.model.step(10);
      REQUIRE(driven.copy(0x200000, 0, 64, 40) == Refusal::none);  // never submitted
      REQUIRE(driven.finish(&IoatChannel::quiesce) == Step::done);
      std::fill(driven.data.begin(), driven.data.end(), uint8_t{0});  // under ThreadSanitizer: nobody touches it now
      const auto done = driven.poll();
      REQUIRE(done.size() == 41);
      for (uint32_t i = 0; i <= 40; ++i) CHECK(done[i].cookie == i);
      CHECK(done[40].status == CopyStatus::not_attempted);
      if (mode == Mode::stepped) CHECK(done[9].status == CopyStatus::ok);
      if (mode == Mode::stepped) CHECK(done[10].status == CopyStatus::not_attempted);
      CHECK_FALSE(driven.channel->failed());
      CHECK(driven.copy(0x200000, 0, 64) == Refusal::disabled);
      REQUIRE(driven.finish(&IoatChannel::reset) == Step::done);
      REQUIRE(driven.copy(0x200000, 0, 64) == Refusal::none);
      driven.channel->submit();
      CHECK(driven.drain().size() == 1);
    }
  }
}

TEST_CASE("channel: IDLE right behind a doorbell is no rest") {
  PaperDevice device;
  IoatChannel channel(device.mmio, DmaMemory{device.pages.data(), 0x1000, device.pages.size()},
                      {.ring_size = 64, .pause = [&] { device.live(); }});
  REQUIRE(channel.copy(0x10000, 0x20000, 64, 7) == Refusal::none);
  channel.submit();
  CHECK(channel.quiesce() == Step::pending);  // the device still says IDLE and may start any moment
  CHECK(device.mmio.read8(spec::CHANCMD) == spec::chancmd::suspend);
  device.mmio.write64(spec::CHANSTS, 0x1000 | static_cast<uint64_t>(State::suspended));
  CHECK(channel.quiesce() == Step::done);
}

TEST_CASE("channel: stopped while ARMED, with nothing ever submitted") {
  Driven driven;
  REQUIRE(driven.finish(&IoatChannel::reset) == Step::done);
  CHECK(spec::state_of(driven.model.read64(spec::CHANSTS)) == State::armed);
  CHECK(driven.channel->quiesce() == Step::done);
  REQUIRE(driven.finish(&IoatChannel::reset) == Step::done);
  CHECK(driven.copy(0, 64, 64) == Refusal::none);
}

TEST_CASE("channel: a reset in the middle of threaded copies loses no cookie") {
  Driven driven({.mode = Mode::threaded});
  for (int round = 0; round < 100; ++round) {
    for (uint32_t i = 0; i < 20; ++i) REQUIRE(driven.copy(0x200000, 0, 50'000, i) == Refusal::none);
    driven.channel->submit();
    std::vector<Completion> all = driven.poll();
    REQUIRE(driven.finish(&IoatChannel::reset) == Step::done);
    for (const Completion& done : driven.poll()) all.push_back(done);
    REQUIRE(all.size() == 20);
    bool ok = true;
    for (uint32_t i = 0; i < 20; ++i) {
      CHECK(all[i].cookie == i);
      if (all[i].status != CopyStatus::ok) ok = false;
      CHECK(all[i].status == (ok ? CopyStatus::ok : CopyStatus::not_attempted));
    }
  }
}

TEST_CASE("CHANERR is told in words") {
  CHECK(spec::describe_chanerr(0) == "no error bit");
  CHECK(spec::describe_chanerr(0x801) == "source address (bit 0), descriptor length (bit 11)");
  CHECK(says(spec::describe_chanerr(1u << 31), "unknown (bit 31)"));
}
