// SPDX-License-Identifier: BSD-3-Clause
// What public I/OAT drivers do to the registers, replayed against the software I/OAT: if one of these breaks, that
// driver would not run on it.
#include "ioat_rig.hpp"

using namespace ioat_rig;

namespace {

constexpr uint16_t linux_run = 0x1d;  // re-arm, error interrupt, error completion, abort on any error

void all_versions(auto&& sequence) {
  for (IoatModel::Options options :
       {IoatModel::Options{.device_id = 0x6f20, .cbver = 0x32}, IoatModel::Options{.device_id = 0x2021, .cbver = 0x33},
        IoatModel::Options{.device_id = 0x0b00, .cbver = 0x34}}) {
    Device device(options);
    CAPTURE(int{options.cbver});
    sequence(device);
  }
}

uint64_t writeback_address(const Device& device) { return device.writeback & spec::status_address_mask; }

}  // namespace

TEST_CASE("Linux ioatdma: probe, null descriptor, 2000-byte self-test with interrupts, suspend and reset") {
  all_versions([](Device& device) {
    IoatModel& model = device.model;
    CHECK(model.read8(spec::CHANCNT) == 1);
    CHECK(model.read8(spec::XFERCAP) == 20);
    CHECK(device.state() == State::halted);
    model.write32(spec::CHANERR, model.read32(spec::CHANERR));
    if (model.read8(spec::CBVER) < 0x33) {
      model.config_write(spec::cfg_chanerr_int, model.config_read(spec::cfg_chanerr_int, 4), 4);
    }
    model.write8(spec::CHANCMD, spec::chancmd::reset);
    CHECK((model.read8(spec::CHANCMD) & spec::chancmd::reset) == 0);
    model.write8(spec::INTRCTRL, 9);
    CHECK(model.read8(spec::INTRCTRL) == 9);
    model.write16(spec::CHANCTRL, linux_run);
    device.write_in_halves(spec::CHANCMP, Device::writeback_at);
    for (uint32_t offset : {spec::LTR_ACTIVE, spec::LTR_IDLE, spec::LTR_SELECT}) model.write32(offset, 0x8c8c);

    device.put(0, control::null | control::interrupt | control::completion_update, 0, 0, 1);
    CHECK(device.at(0).control == 0x29);
    device.write_in_halves(spec::CHAINADDR, device.address(0));
    device.doorbell(1);
    CHECK((device.state() == State::active || device.state() == State::idle));
    CHECK(device.interrupts == 1);
    CHECK(writeback_address(device) == device.address(0));
    model.write16(spec::CHANCTRL, linux_run);

    for (size_t i = 0; i < 2000; ++i) device.data[i] = static_cast<uint8_t>(i);
    device.put_copy(1, 0x4000, 0, 2000, control::interrupt | control::completion_update);
    device.doorbell(2);
    CHECK(device.interrupts == 2);
    CHECK(writeback_address(device) == device.address(1));
    CHECK(std::memcmp(&device.data[0], &device.data[0x4000], 2000) == 0);
    CHECK(model.counters().descriptors == 2);
    CHECK(model.counters().bytes == 2000);
    model.write16(spec::CHANCTRL, linux_run);

    model.write8(spec::CHANCMD, spec::chancmd::suspend);
    CHECK(device.state() == State::suspended);
    model.write8(spec::CHANCMD, spec::chancmd::reset);
    CHECK(device.state() == State::halted);
  });
}

TEST_CASE("Linux ioatdma: after an error it aborts, resets and starts at the next descriptor") {
  all_versions([](Device& device) {
    device.start();
    device.put_copy(0, 0x4000, 0, 64);
    device.put(1, control::completion_update, Device::data_at, 0, 64);
    device.put_copy(2, 0x5000, 0, 64);
    device.model.write16(spec::CHANCTRL, linux_run);
    device.doorbell(3);
    CHECK(device.interrupts == 1);
    CHECK(device.writeback == (device.address(0) | static_cast<uint64_t>(State::halted)));
    // Not rewritten by it: CHANCMP and CHANCTRL. So a reset must keep them.
    device.clear_errors();
    device.model.write8(spec::CHANCMD, spec::chancmd::reset);
    device.model.write16(spec::CHANCTRL, linux_run);  // as every interrupt's end does
    device.write_in_halves(spec::CHAINADDR, device.address(2));
    device.doorbell(1);
    CHECK(writeback_address(device) == device.address(2));
    CHECK(device.state() == State::idle);
  });
}

TEST_CASE("FreeBSD ioat: reset, expects HALTED and no error, null descriptor to IDLE") {
  all_versions([](Device& device) {
    IoatModel& model = device.model;
    model.config_write(spec::cfg_chanerrmsk_int, 0x3e07, 4);
    CHECK(model.config_read(spec::cfg_chanerrmsk_int, 4) == 0x3e07);
    device.clear_errors();
    model.write8(spec::CHANCMD, spec::chancmd::reset);
    CHECK((model.read8(spec::CHANCMD) & spec::chancmd::reset) == 0);
    CHECK(device.state() == State::halted);
    CHECK(device.chanerr() == 0);
    model.write16(spec::CHANCTRL, linux_run);
    if (model.read8(spec::CBVER) < 0x33) {
      device.write_in_halves(spec::CHANCMP, Device::writeback_at);
      device.write_in_halves(spec::CHAINADDR, device.address(0));
    } else {
      model.write64(spec::CHANCMP, Device::writeback_at);
      model.write64(spec::CHAINADDR, device.address(0));
    }
    device.put(0, control::null | control::completion_update, 0, 0, 8);
    device.doorbell(1);
    CHECK(device.state() == State::idle);
    CHECK(writeback_address(device) == device.address(0));
  });
}

TEST_CASE("SPDK: CHANCTRL without error completion, null descriptor of 8 bytes, flush marks only the last descriptor") {
  all_versions([](Device& device) {
    IoatModel& model = device.model;
    device.clear_errors();
    model.write8(spec::CHANCMD, spec::chancmd::reset);
    model.write16(spec::CHANCTRL, spec::chanctrl::any_error_abort);
    model.write64(spec::CHANCMP, Device::writeback_at);
    model.write64(spec::CHAINADDR, device.address(0));
    device.put(0, control::null | control::completion_update, 0, 0, 8);
    device.doorbell(1);
    REQUIRE(device.state() == State::idle);
    for (size_t i = 1; i < 32; ++i) device.put_copy(i, 0x4000, 0, 64, i == 31 ? control::completion_update : 0);
    device.doorbell(32);
    CHECK(writeback_address(device) == device.address(31));
    device.put(32, control::completion_update, 0, 0, 64);
    device.doorbell(33);
    CHECK(device.state() == State::halted);
    CHECK(writeback_address(device) == device.address(31));  // it never learns of the halt from the write-back
  });
}

TEST_CASE("SPDK verify: random copies and fills equal memcpy and memset") {
  Device device;
  std::mt19937 random(7);
  device.data = random_bytes(Device::data_size, 3);
  device.model.memory().unmap(Device::data_at);
  device.model.memory().map(Device::data_at, device.data.data(), device.data.size());
  std::vector<uint8_t> expected = device.data;
  device.start();
  uint16_t count = 0;
  for (int round = 0; round < 400; ++round) {
    const auto len = static_cast<uint32_t>(1 + random() % 8000);
    const uint64_t from = random() % 400'000, to = 500'000 + random() % 400'000;
    if (random() % 4) {
      device.put_copy(count, to, from, len);
      std::memcpy(&expected[to], &expected[from], len);
    } else {
      const uint64_t byte = random() & 0xff;
      device.put(count, control::of_op(control::op_fill), Device::data_at + to, byte * 0x0101010101010101, len);
      std::memset(&expected[to], static_cast<int>(byte), len);
    }
    device.doorbell(++count);
  }
  CHECK(device.state() == State::idle);
  CHECK(device.data == expected);
}

TEST_CASE("DPDK: start without polling, then ARMED at address 0") {
  all_versions([](Device& device) {
    IoatModel& model = device.model;
    model.write32(spec::CHANERR, model.read32(spec::CHANERR));
    model.write8(spec::CHANCMD, spec::chancmd::suspend);
    model.write8(spec::CHANCMD, spec::chancmd::reset);
    while (model.read8(spec::CHANCMD) & spec::chancmd::reset) model.write64(spec::CHAINADDR, 0);
    model.write64(spec::CHAINADDR, device.address(0));
    model.write64(spec::CHANCMP, Device::writeback_at);
    model.write16(spec::CHANCTRL, 0xc);
    CHECK(device.status() == static_cast<uint64_t>(State::armed));
  });
}

TEST_CASE("DPDK: recovery goes on behind the failed descriptor with an offset doorbell") {
  for (size_t bad : {0u, 7u, 14u, 15u}) {
    for (bool fence : {false, true}) {
      Device device;
      CAPTURE(bad);
      device.start();
      for (size_t i = 0; i < 16; ++i) device.put_copy(i, 0x8000 + i * 64, i * 64, 64);
      if (fence) device.at(7).control |= control::fence;
      device.at(bad).src = 0;
      device.doorbell(16);
      const uint64_t last_good = bad == 0 ? 0 : device.address(bad - 1);
      CHECK(device.writeback == (last_good | static_cast<uint64_t>(State::halted)));
      for (int looks = 0; looks < 10; ++looks) CHECK(device.state() == State::halted);

      device.model.write32(spec::CHANERR, device.chanerr());
      device.model.write8(spec::CHANCMD, spec::chancmd::reset);
      device.model.write64(spec::CHAINADDR, device.address(bad + 1));
      device.model.write16(spec::CHANCTRL, 0xc);
      device.model.write64(spec::CHANCMP, Device::writeback_at);
      REQUIRE(device.status() == static_cast<uint64_t>(State::armed));
      device.doorbell(static_cast<uint16_t>(16 - (bad + 1)));
      CHECK(device.state() == (bad == 15 ? State::armed : State::idle));
      if (bad < 15) CHECK(writeback_address(device) == device.address(15));
    }
  }
}

TEST_CASE("DPDK: a reset, and the chain address written at once, while a copy runs") {
  Device device({.mode = Mode::threaded});
  for (int round = 0; round < 50; ++round) {
    device.start();
    for (size_t i = 0; i < 16; ++i) device.put_copy(i, 0, 0x80000, 0x80000);
    device.doorbell(16);
    while (device.completed() == 0) std::this_thread::yield();  // so the worker is most likely within the next copy
    device.start();
    device.wait_for(State::armed);
    CHECK(device.completed() == 0);
    CHECK(device.model.read16(spec::DMACOUNT) == 0);
    device.put(0, control::null | control::completion_update, 0, 0, 8);
    device.doorbell(1);
    device.wait_for(State::idle);
    CHECK(device.completed() == device.address(0));
  }
}

TEST_CASE("Linux VFIO self-test: one descriptor whose next is itself, run up to 65535 times, completion by CHANSTS") {
  for (Mode mode : {Mode::inline_, Mode::threaded}) {
    Device device({.device_id = 0x2021, .cbver = 0x33, .mode = mode});
    IoatModel& model = device.model;
    const auto init = [&] {
      model.config_write(spec::cfg_command, 0x406, 2);
      device.clear_errors();
      model.write8(spec::CHANCMD, spec::chancmd::reset);
      while (model.read8(spec::CHANCMD) & spec::chancmd::reset) {
      }
      REQUIRE(device.state() == State::halted);
    };
    const auto run = [&](uint64_t to, uint64_t from, uint32_t size, uint16_t times) {
      device.put(0, 0, to, from, size);
      device.at(0).next = device.address(0);
      model.write64(spec::CHAINADDR, device.address(0));
      model.write16(spec::CHANCTRL, 0x9);  // and no CHANCMP: no write-back is ever due
      device.doorbell(times);
      while (device.state() == State::active) std::this_thread::yield();
      const bool ok = device.state() != State::halted;
      if (ok) {
        model.write8(spec::CHANCMD, spec::chancmd::suspend);
        while (device.state() != State::suspended) std::this_thread::yield();
      } else {
        init();
      }
      return ok;
    };
    for (int again = 0; again < 10; ++again) init();
    device.data[0] = 0x5a;
    CHECK(run(Device::data_at + 64, Device::data_at, 64, 1));
    CHECK(device.data[64] == 0x5a);
    CHECK(run(Device::data_at + 128, Device::data_at, 64, 65535));
    CHECK(device.data[128] == 0x5a);
    CHECK(model.counters().descriptors == 65536);
    // From and to an address that is not mapped: fails, and works again afterwards.
    CHECK_FALSE(run(Device::data_at, 0x700000000, 64, 100));
    CHECK_FALSE(run(0x700000000, Device::data_at, 64, 100));
    CHECK(run(Device::data_at + 256, Device::data_at, 64, 100));
    CHECK(device.data[256] == 0x5a);
    // A storm of large copies.
    for (int storm = 0; storm < 4; ++storm) CHECK(run(Device::data_at + 0x80000, Device::data_at, 0x80000, 50));
    CHECK(std::memcmp(&device.data[0], &device.data[0x80000], 0x80000) == 0);
    // An interrupt.
    device.put(0, control::null | control::interrupt, 0, 0, 8);
    const int before = device.interrupts;
    model.write64(spec::CHAINADDR, device.address(0));
    model.write16(spec::CHANCTRL, 0x9);
    device.doorbell(1);
    device.wait_for(State::idle);
    while (model.counters().interrupts == 0) std::this_thread::yield();
    CHECK(device.model.counters().interrupts == static_cast<uint64_t>(before) + 1);
  }
}
