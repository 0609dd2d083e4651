// SPDX-License-Identifier: BSD-3-Clause
// The software I/OAT at register level: descriptors, states, faults, and its configuration space.
#include <atomic>
#include <chrono>

#include "base/error.hpp"
#include "ioat_rig.hpp"
#include "watchdog.hpp"

using namespace ioat_rig;
using vhost_ioat::DmaError;

TEST_CASE("model: identity registers") {
  Device device({.device_id = 0x2021, .cbver = 0x33, .xfercap = 18});
  CHECK(device.model.read8(spec::CHANCNT) == 1);
  CHECK(device.model.read8(spec::XFERCAP) == 18);
  CHECK(device.model.read8(spec::CBVER) == 0x33);
  CHECK(device.model.read32(spec::DMACAPABILITY) == (spec::dmacap::page_break | spec::dmacap::fill));
  CHECK(device.model.config_read(0, 4) == 0x20218086);
  CHECK(device.status() == static_cast<uint64_t>(State::halted));
}

TEST_CASE("model: registers read the same at every access size, and nothing lies beyond the BAR") {
  Device device;
  device.model.write64(spec::CHANCMP, 0x1122334455667788);
  CHECK(device.model.read32(spec::CHANCMP) == 0x55667788);
  CHECK(device.model.read32(spec::CHANCMP + 4) == 0x11223344);
  CHECK(device.model.read16(spec::CHANCMP + 6) == 0x1122);
  CHECK(device.model.read8(spec::CHANCMP + 7) == 0x11);
  device.model.write8(spec::CHANCMP + 7, 0x99);
  CHECK(device.model.read64(spec::CHANCMP) == 0x9922334455667788);
  CHECK(device.model.read64(spec::bar_size) == 0);
  CHECK(device.model.read64(spec::bar_size - 4) == 0);
  device.model.write64(spec::bar_size - 4, ~uint64_t{0});
  CHECK(device.model.read32(spec::bar_size - 4) == 0);
}

TEST_CASE("model: writable registers that carry no behaviour keep what drivers store there") {
  Device device;
  for (uint32_t offset : {spec::LTR_SELECT, spec::LTR_ACTIVE, spec::LTR_IDLE, spec::PREFETCHLIMIT, spec::DCACTRL,
                          spec::CHANERRMSK, spec::msix_table, spec::msix_table + 4}) {
    device.model.write32(offset, 0xa5a50000 + offset);
    CHECK(device.model.read32(offset) == 0xa5a50000 + offset);
  }
  device.model.write8(spec::CBVER, 0x12);
  CHECK(device.model.read8(spec::CBVER) == 0x34);
}

TEST_CASE("model: reading CHANCTRL acquires the channel once") {
  Device device;
  CHECK((device.model.read16(spec::CHANCTRL) & spec::chanctrl::in_use) == 0);
  CHECK((device.model.read16(spec::CHANCTRL) & spec::chanctrl::in_use) != 0);
  device.model.write16(spec::CHANCTRL, 0);
  CHECK((device.model.read16(spec::CHANCTRL) & spec::chanctrl::in_use) == 0);
}

TEST_CASE("model: an 8-byte write and two 4-byte writes of CHAINADDR arm, a low half alone does not") {
  Device device;
  device.model.write64(spec::CHAINADDR, device.address(0));
  CHECK(device.state() == State::armed);
  device.model.write8(spec::CHANCMD, spec::chancmd::reset);
  CHECK(device.state() == State::halted);
  device.model.write32(spec::CHAINADDR, static_cast<uint32_t>(device.address(0)));
  CHECK(device.state() == State::halted);
  device.model.write32(spec::CHAINADDR + 4, 0);
  CHECK(device.state() == State::armed);
}

TEST_CASE("model: copies of every alignment and length, the write-back and CHANSTS name the last descriptor") {
  Device device;
  device.data = random_bytes(Device::data_size);
  const std::vector<uint8_t> before = device.data;
  device.model.memory().unmap(Device::data_at);
  device.model.memory().map(Device::data_at, device.data.data(), device.data.size());
  device.start();
  uint16_t count = 0;
  for (uint32_t len : {1u, 2u, 3u, 7u, 8u, 63u, 64u, 65u, 2000u, 4096u, 65536u}) {
    const uint64_t to = 0x80000 + len % 7, from = len % 5;
    device.put_copy(count, to, from, len);
    device.doorbell(++count);
    CHECK(device.writeback == (device.address(count - 1u) | static_cast<uint64_t>(State::idle)));
    CHECK(device.status() == device.writeback);
    CHECK(std::memcmp(&device.data[to], &before[from], len) == 0);
  }
}

TEST_CASE("model: a fill repeats its pattern from the first byte, over a break of mappings too") {
  Device device;
  std::vector<uint8_t> first(13), second(50);
  device.model.memory().map(0x8000000, first.data(), first.size());
  device.model.memory().map(0x8000000 + first.size(), second.data(), second.size());
  device.start();
  device.put(0, control::of_op(control::op_fill) | control::completion_update, 0x8000000 + 3, 0x0807060504030201, 43);
  device.doorbell(1);
  REQUIRE(device.state() == State::idle);
  for (size_t i = 0; i < 43; ++i) {
    const size_t at = i + 3;
    CHECK((at < first.size() ? first[at] : second[at - first.size()]) == i % 8 + 1);
  }
  CHECK(first[2] == 0);
  CHECK(second[33] == 0);
}

TEST_CASE("model: page breaks take the second page of a side from elsewhere") {
  Device device;
  for (size_t i = 0; i < 8192; ++i) device.data[i] = static_cast<uint8_t>(i / 16);
  device.start();
  device.put_copy(0, 0x10000, 0, 8192, control::completion_update | control::src_page_break | control::dst_page_break);
  device.at(0).next_src = Device::data_at + 4096;
  device.at(0).next_dst = Device::data_at + 0x40000;
  device.doorbell(1);
  REQUIRE(device.state() == State::idle);
  CHECK(std::memcmp(&device.data[0x10000], &device.data[0], 4096) == 0);
  CHECK(std::memcmp(&device.data[0x40000], &device.data[4096], 4096) == 0);
  CHECK(device.data[0x11000] == 0);

  device.put_copy(1, 0x10000, 0, 3 * 4096, control::src_page_break);
  device.doorbell(2);
  CHECK(device.chanerr() == 1u << spec::chanerr::length);
}

TEST_CASE("model: copies cross the borders of thousands of one-page mappings, and a hole is an error") {
  Device device;
  constexpr uint64_t base = 0x80000000;
  constexpr size_t pages = 2000;
  std::vector<uint8_t> memory = random_bytes(pages * 4096);
  for (size_t i = 0; i < pages; ++i) {  // every second page backwards, so that neighbours in IOVA are not so in memory
    device.model.memory().map(base + i * 4096, &memory[(i % 2 ? pages - i : i) * 4096], 4096);
  }
  const auto byte_at = [&](uint64_t offset) {
    const uint64_t page = offset / 4096;
    return memory[(page % 2 ? pages - page : page) * 4096 + offset % 4096];
  };
  device.start();
  device.put(0, control::completion_update, Device::data_at, base + 4090, 100'000);
  device.doorbell(1);
  REQUIRE(device.state() == State::idle);
  for (uint64_t i = 0; i < 100'000; ++i) REQUIRE(device.data[i] == byte_at(4090 + i));

  CHECK(device.model.memory().unmap(base + 10 * 4096));
  device.put(1, control::completion_update, Device::data_at, base + 4090, 100'000);
  device.doorbell(2);
  CHECK(device.state() == State::halted);
  CHECK(device.chanerr() == 1u << spec::chanerr::source_address);
  CHECK(device.model.memory().unmap_range(base, ~uint64_t{0}) == (pages - 1) * 4096);
}

TEST_CASE("model: the first page is unreachable even when it is mapped") {
  Device device;
  std::vector<uint8_t> low(8192);
  device.model.memory().map(0, low.data(), low.size());
  device.start();
  device.put(0, control::completion_update, Device::data_at, 4096, 64);
  device.put(1, control::completion_update, Device::data_at, 0, 64);
  device.doorbell(2);
  CHECK(device.chanerr() == 1u << spec::chanerr::source_address);
  CHECK(device.completed() == device.address(0));
}

TEST_CASE("model: overlapping, empty and wrapping mappings are refused") {
  IovaMap map;
  uint8_t bytes[8192];
  map.map(0x10000, bytes, sizeof bytes);
  CHECK_THROWS_AS(map.map(0x10000, bytes, 1), DmaError);
  CHECK_THROWS_AS(map.map(0x11fff, bytes, 1), DmaError);
  CHECK_THROWS_AS(map.map(0xffff, bytes, 2), DmaError);
  CHECK_THROWS_AS(map.map(0x20000, bytes, 0), DmaError);
  CHECK_THROWS_AS(map.map(~uint64_t{0}, bytes, 2), DmaError);
  map.map(0x12000, bytes, 1);
  map.map(~uint64_t{0} - 1, bytes, 2);
  CHECK_FALSE(map.unmap(0x10001));
  CHECK(map.unmap(0x10000));
  CHECK(map.size() == 2);
}

TEST_CASE("model: every mistake in a descriptor halts with its CHANERR bit and leaves the last good one") {
  struct Mistake {
    unsigned bit;
    spec::Descriptor descriptor;
  };
  const uint64_t good = Device::data_at, bad = 0x7000000000;
  const Mistake mistakes[] = {
      {spec::chanerr::source_address, {64, 0, bad, good, 0, 0, 0, {}}},
      {spec::chanerr::destination_address, {64, 0, good, bad, 0, 0, 0, {}}},
      {spec::chanerr::source_address, {64, 0, Device::data_at + Device::data_size - 63, good, 0, 0, 0, {}}},
      {spec::chanerr::length, {0, 0, good, good, 0, 0, 0, {}}},
      {spec::chanerr::length, {0, control::null, 0, 0, 0, 0, 0, {}}},
      {spec::chanerr::length, {(1 << 20) + 1, 0, good, good, 0, 0, 0, {}}},
      {spec::chanerr::control, {64, control::of_op(0x87), good, good, 0, 0, 0, {}}},
      {spec::chanerr::control, {64, 1u << 20, good, good, 0, 0, 0, {}}},
      {spec::chanerr::destination_address, {64, control::of_op(control::op_fill), 0, bad, 0, 0, 0, {}}},
  };
  for (const Mistake& mistake : mistakes) {
    Device device;
    device.start();
    device.put_copy(0, 0, 64, 64);
    const uint64_t next = device.at(1).next;
    device.at(1) = mistake.descriptor;
    device.at(1).next = next;
    device.put_copy(2, 0, 64, 64);
    device.doorbell(3);
    CHECK(device.chanerr() == 1u << mistake.bit);
    CHECK(device.status() == (device.address(0) | static_cast<uint64_t>(State::halted)));
    CHECK(device.writeback == device.status());
    CHECK(device.model.counters().descriptors == 1);
  }
}

TEST_CASE("model: a source and a destination beyond the address bits set both bits") {
  // How a driver makes real hardware fail on purpose.
  Device device;
  device.start();
  device.put(0, control::completion_update, 0xffff000000000000, 0xffff000000000000, 1);
  device.doorbell(1);
  CHECK(device.chanerr() == 0x3);
  CHECK(device.status() == static_cast<uint64_t>(State::halted));
}

TEST_CASE("model: a bad first descriptor address is bit 4, a bad later one bit 2") {
  Device device;
  device.start();
  device.model.write64(spec::CHAINADDR, 0x6000000000);
  device.doorbell(1);
  CHECK(device.chanerr() == 1u << spec::chanerr::chain_address);
  device.start();
  device.put_copy(0, 0, 64, 64);
  device.at(0).next = device.address(1) + 8;
  device.doorbell(2);
  CHECK(device.chanerr() == 1u << spec::chanerr::next_descriptor);
  CHECK(device.completed() == device.address(0));
  device.start();
  device.model.write64(spec::CHAINADDR, device.address(0) + 1);
  CHECK(device.chanerr() == 1u << spec::chanerr::chain_address);
  CHECK(device.state() == State::halted);
}

TEST_CASE("model: a write-back that cannot be stored is bit 12, and only when one is due") {
  for (uint64_t where : {uint64_t{0}, Device::writeback_at + 4, uint64_t{0x7000000000}}) {
    Device device;
    device.start();
    device.model.write64(spec::CHANCMP, where);
    device.put_copy(0, 0, 64, 64, 0);
    device.put_copy(1, 0, 64, 64);
    device.doorbell(1);
    CHECK(device.state() == State::idle);
    device.doorbell(2);
    CHECK(device.chanerr() == 1u << spec::chanerr::completion_address);
    CHECK(device.state() == State::halted);
  }
}

TEST_CASE("model: without ANY_ERR_ABORT_EN a failed descriptor is skipped") {
  Device device;
  device.start();
  device.model.write16(spec::CHANCTRL, 0);
  device.put_copy(0, 0, 64, 64);
  device.put(1, 0, Device::data_at, 0, 64);
  device.put_copy(2, 0, 64, 64);
  device.doorbell(3);
  CHECK(device.state() == State::idle);
  CHECK(device.completed() == device.address(2));
  CHECK(device.chanerr() == 1);
}

TEST_CASE("model: commands and states") {
  Device device({.mode = Mode::stepped});
  device.start();
  SUBCASE("SUSPEND does nothing to an ARMED channel") {
    device.model.write8(spec::CHANCMD, spec::chancmd::suspend);
    CHECK(device.state() == State::armed);
  }
  SUBCASE("a doorbell makes ACTIVE, the last descriptor IDLE, SUSPEND and RESUME go between") {
    for (size_t i = 0; i < 4; ++i) device.put_copy(i, 0, 64, 64);
    device.doorbell(4);
    CHECK(device.state() == State::active);
    CHECK(device.model.step() == 1);
    device.model.write8(spec::CHANCMD, spec::chancmd::suspend);
    CHECK(device.state() == State::suspended);
    CHECK(device.model.step(10) == 0);
    device.model.write8(spec::CHANCMD, spec::chancmd::resume);
    CHECK(device.state() == State::active);
    CHECK(device.model.step(10) == 3);
    CHECK(device.state() == State::idle);
    device.model.write8(spec::CHANCMD, spec::chancmd::suspend);
    CHECK(device.state() == State::suspended);
    // A new chain may start from here; the completed address stays.
    device.model.write64(spec::CHAINADDR, device.address(0));
    CHECK(device.status() == (device.address(3) | static_cast<uint64_t>(State::armed)));
  }
  SUBCASE("RESET halts, forgets the completed address and the counts, and clears itself") {
    device.put_copy(0, 0, 64, 64);
    device.doorbell(1);
    device.model.step();
    device.model.write8(spec::CHANCMD, spec::chancmd::reset);
    CHECK(device.model.read8(spec::CHANCMD) == 0);
    CHECK(device.status() == static_cast<uint64_t>(State::halted));
    CHECK(device.model.read16(spec::DMACOUNT) == 0);
    CHECK(device.model.read64(spec::CHAINADDR) == 0);
    CHECK(device.model.read64(spec::CHANCMP) == Device::writeback_at);
    device.doorbell(1);
    CHECK(device.model.step() == 0);
    CHECK(device.state() == State::halted);
  }
  SUBCASE("two commands in one write are an error") {
    device.model.write8(spec::CHANCMD, spec::chancmd::suspend | spec::chancmd::reset);
    CHECK(device.chanerr() == 1u << spec::chanerr::command);
    CHECK(device.state() == State::halted);
  }
  SUBCASE("CHAINADDR while ACTIVE is an error") {
    device.put_copy(0, 0, 64, 64);
    device.doorbell(1);
    device.model.write64(spec::CHAINADDR, device.address(0));
    CHECK(device.chanerr() == 1u << spec::chanerr::chain_address);
    CHECK(device.state() == State::halted);
  }
  SUBCASE("CHANERR is cleared by writing ones, bit by bit, and holds the channel HALTED until then") {
    device.put(0, 0, 0, 0, 64);
    device.doorbell(1);
    device.model.step();
    REQUIRE(device.chanerr() == 3);
    device.model.write8(spec::CHANCMD, spec::chancmd::reset);
    device.model.write32(spec::CHANERR, 1);
    CHECK(device.chanerr() == 2);
    device.model.write64(spec::CHAINADDR, device.address(0));
    CHECK(device.state() == State::halted);
    device.model.write32(spec::CHANERR, 2);
    device.model.write64(spec::CHAINADDR, device.address(0));
    CHECK(device.state() == State::armed);
  }
}

TEST_CASE("model: below 3.3 CHANERR_INT holds the channel HALTED as well") {
  for (uint8_t version : {uint8_t{0x32}, uint8_t{0x33}}) {
    Device device({.device_id = 0x2021, .cbver = version});
    device.start();
    device.put(0, 0, 0, 0, 64);
    device.doorbell(1);
    device.model.write8(spec::CHANCMD, spec::chancmd::reset);
    device.model.write32(spec::CHANERR, device.chanerr());
    device.model.write64(spec::CHAINADDR, device.address(0));
    CHECK(device.state() == (version < 0x33 ? State::halted : State::armed));
    device.clear_errors();
    device.model.write64(spec::CHAINADDR, device.address(0));
    CHECK(device.state() == State::armed);
  }
}

TEST_CASE("model: DMACOUNT wraps at 65536 and needs not divide the ring") {
  Device device;
  device.start();
  for (size_t i = 0; i < device.slots.size(); ++i) device.put(i, control::null | control::completion_update, 0, 0, 8);
  device.at(99).next = device.address(0);  // a ring of 100
  uint32_t rung = 0;
  for (int i = 0; i < 900; ++i) {
    rung += 97;
    device.doorbell(static_cast<uint16_t>(rung));
    REQUIRE(device.status() == (device.address((rung - 1) % 100) | static_cast<uint64_t>(State::idle)));
  }
  CHECK(device.model.counters().descriptors == rung);
}

TEST_CASE("model: an interrupt that comes before the driver re-arms is latched") {
  Device device({.mode = Mode::stepped});
  device.start();
  for (size_t i = 0; i < 3; ++i) device.put(i, control::null | control::interrupt, 0, 0, 8);
  device.doorbell(3);
  device.model.step(3);
  CHECK(device.interrupts == 1);
  CHECK(device.model.read8(spec::INTRCTRL) == (spec::intrctrl::status | spec::intrctrl::asserted));
  CHECK(device.model.read32(spec::ATTNSTATUS) == 1);
  CHECK(device.model.read32(spec::ATTNSTATUS) == 0);
  device.model.write16(spec::CHANCTRL, 0x1d);
  CHECK(device.interrupts == 2);
  device.model.write16(spec::CHANCTRL, 0x1d);
  CHECK(device.interrupts == 2);
  CHECK(device.model.counters().interrupts == 2);
}

TEST_CASE("model: an error raises an interrupt when ERR_INT_EN says so") {
  Device device;
  device.start();
  device.model.write16(spec::CHANCTRL, 0x1d);
  device.put(0, 0, 0, 0, 64);
  device.doorbell(1);
  CHECK(device.interrupts == 1);
}

TEST_CASE("model: configuration space has what a kernel driver looks for") {
  Device device;
  IoatModel& model = device.model;
  CHECK((model.config_read(0x08, 4) >> 16) == 0x0880);
  CHECK((model.config_read(0x06, 2) & 0x10) != 0);
  SUBCASE("BAR0 is sized as 16 KiB of 64-bit memory") {
    model.config_write(0x10, 0xffffffff, 4);
    model.config_write(0x14, 0xffffffff, 4);
    CHECK(model.config_read(0x10, 4) == 0xffffc004);
    CHECK(model.config_read(0x14, 4) == 0xffffffff);
  }
  SUBCASE("the capability list: MSI-X, PCI Express, power management") {
    std::vector<uint32_t> ids;
    for (uint32_t at = model.config_read(0x34, 1); at != 0; at = model.config_read(at + 1, 1)) {
      ids.push_back(model.config_read(at, 1));
    }
    CHECK(ids == std::vector<uint32_t>{0x11, 0x10, 0x01});
    CHECK((model.config_read(0x82, 2) & 0x7ff) == 0);
    CHECK(model.config_read(0x84, 4) == spec::msix_table);
    CHECK(model.config_read(0x88, 4) == spec::msix_pba);
  }
  SUBCASE("bits that are not writable stay") {
    model.config_write(0, 0, 4);
    model.config_write(spec::cfg_command, 0xffff, 2);
    CHECK(model.config_read(0, 4) == 0x0b008086);
    CHECK(model.config_read(spec::cfg_command, 2) == 0x0546);
    CHECK(model.config_read(PciConfigModel::size - 2, 4) == 0);
  }
  SUBCASE("a function-level reset makes it as new") {
    device.start();
    model.config_write(spec::cfg_command, 0x6, 2);
    model.config_write(0x98, 0x8000, 2);
    CHECK(device.state() == State::halted);
    CHECK(model.config_read(spec::cfg_command, 2) == 0);
    CHECK(model.read64(spec::CHANCMP) == 0);
  }
}

TEST_CASE("model: configuration space: what each byte is at first, and which bits of it can be written") {
  struct Field {
    uint32_t at, bytes, first, writable = 0;
  };
  // PCI 3.0, 6.1; the capabilities of MSI-X, PCI Express and power management; then the device's own.
  const std::vector<Field> fields = {
      {0x00, 4, 0x0b008086},
      {0x04, 2, 0, 0x546},
      {0x06, 2, 0x10},
      {0x08, 4, 0x08800000},
      {0x0c, 1, 0, 0xff},
      {0x10, 4, 4, 0xffffc000},
      {0x14, 4, 0, ~0u},
      {0x2c, 4, 0x8086},
      {0x34, 1, 0x80},
      {0x3c, 1, 0, 0xff},
      {0x48, 4, 0, ~0u},
      {0x60, 4, 0, ~0u},
      {0x80, 2, 0x9011},
      {0x82, 2, 0, 0xc000},
      {0x84, 4, spec::msix_table},
      {0x88, 4, spec::msix_pba},
      {0x90, 2, 0xe010},
      {0x92, 2, 0x92},
      {0x94, 4, 0x10008000},
      {0x98, 2, 0x10, 0x7fff},
      {0xb8, 2, 0, 0xffff},
      {0xe0, 2, 1},
      {0xe2, 2, 3},
      {0xe4, 2, 8, 3},
      {0x14c, 4, 0, ~0u},
      {0x150, 4, 0, ~0u},
      {0x184, 4, 0x60000, ~0u},
      {0x188, 4, 0x10000, ~0u},
  };
  std::vector<uint8_t> first(PciConfigModel::size), writable(PciConfigModel::size);
  for (const Field& field : fields) {
    for (uint32_t i = 0; i < field.bytes; ++i) {
      first[field.at + i] = static_cast<uint8_t>(field.first >> 8 * i);
      writable[field.at + i] = static_cast<uint8_t>(field.writable >> 8 * i);
    }
  }
  PciConfigModel config(0x0b00);
  for (uint32_t at = 0; at < PciConfigModel::size; ++at) {
    CAPTURE(at);
    CHECK(config.read(at, 1) == first[at]);
    config.write(at, 0xff, 1);
    CHECK(config.read(at, 1) == (first[at] | writable[at]));
    config.write(at, 0, 1);
    CHECK(config.read(at, 1) == (first[at] & ~writable[at]));
  }
  config = PciConfigModel(0x0b00);
  config.raise_chanerr_int(0xffffffff);
  CHECK(config.chanerr_int() == 0xffffffff);
  config.write(spec::cfg_chanerr_int, 0x01020304, 4);
  CHECK(config.chanerr_int() == ~0x01020304u);
}

// --- Faults on demand
// -------------------------------------------------------------------------------------------------

TEST_CASE("model: any CHANERR bit on the nth descriptor") {
  for (unsigned bit = 0; bit < 19; ++bit) {
    Device device;
    device.start();
    for (size_t i = 0; i < 8; ++i) device.put_copy(i, i * 64, 4096, 64);
    device.model.inject(Fault::error, 5, bit);
    device.doorbell(8);
    CHECK(device.chanerr() == 1u << bit);
    CHECK(device.completed() == device.address(4));
  }
  Device device;
  CHECK_THROWS_AS(device.model.inject(Fault::error, 0, 32), DmaError);
}

TEST_CASE("model: a dropped write-back leaves the word, CHANSTS tells") {
  Device device;
  device.start();
  device.model.inject(Fault::drop_writeback, 1, 2);
  for (size_t i = 0; i < 4; ++i) device.put_copy(i, 0, 64, 64);
  for (uint16_t i = 1; i <= 3; ++i) {
    device.doorbell(i);
    CHECK((device.writeback & spec::status_address_mask) == device.address(0));
    CHECK(device.completed() == device.address(i - 1u));
  }
  device.doorbell(4);
  CHECK((device.writeback & spec::status_address_mask) == device.address(3));
}

TEST_CASE("model: a torn CHANSTS read has the right state and a wrong address, below 3.3 only") {
  Device device({.device_id = 0x6f20, .cbver = 0x32});
  device.start();
  device.put_copy(0, 0, 64, 64);
  device.doorbell(1);
  device.model.inject(Fault::torn_status, 0, 0xdead);
  CHECK(device.model.read32(spec::CHANSTS + 4) == 0);
  CHECK(device.status() == (uint64_t{0xdead} << 32 | device.address(0) | static_cast<uint64_t>(State::idle)));
  CHECK(device.status() == (device.address(0) | static_cast<uint64_t>(State::idle)));
  Device newer;
  CHECK_THROWS_AS(newer.model.inject(Fault::torn_status), DmaError);
}

TEST_CASE("model: a stuck channel stays ACTIVE whatever is asked, until RESET") {
  Device device;
  device.start();
  for (size_t i = 0; i < 4; ++i) device.put_copy(i, 0, 64, 64);
  device.model.inject(Fault::stuck, 2);
  device.doorbell(4);
  CHECK(device.status() == (device.address(1) | static_cast<uint64_t>(State::active)));
  device.model.write8(spec::CHANCMD, spec::chancmd::suspend);
  CHECK(device.state() == State::active);
  device.start(2);
  device.doorbell(2);
  CHECK(device.status() == (device.address(3) | static_cast<uint64_t>(State::idle)));
}

TEST_CASE("model: a reset that hangs") {
  Device device;
  device.start();
  device.model.inject(Fault::reset_hang, 1);
  device.model.write8(spec::CHANCMD, spec::chancmd::reset);
  CHECK(device.model.read8(spec::CHANCMD) == 0);
  device.model.write8(spec::CHANCMD, spec::chancmd::reset);
  CHECK(device.model.read8(spec::CHANCMD) == spec::chancmd::reset);
  device.model.write64(spec::CHAINADDR, device.address(0));
  device.doorbell(1);
  CHECK(device.state() != State::armed);
  CHECK(device.model.counters().descriptors == 0);
}

TEST_CASE("model: a device that is gone reads as all ones and does nothing") {
  Device device;
  device.start();
  for (size_t i = 0; i < 4; ++i) device.put_copy(i, 0, 64, 64);
  device.model.inject(Fault::gone, 2);
  device.doorbell(4);
  CHECK(device.status() == ~uint64_t{0});
  CHECK(device.model.read8(spec::CBVER) == 0xff);
  CHECK(device.model.config_read(0, 4) == 0xffffffff);
  CHECK(device.model.counters().descriptors == 2);
  Device other;
  other.model.inject(Fault::gone);
  CHECK(other.status() == ~uint64_t{0});
}

TEST_CASE("model: latency and bandwidth are of the threaded mode") {
  Device plain;
  CHECK_THROWS_AS(plain.model.inject(Fault::latency, 0, 1000), DmaError);
  Device device({.mode = Mode::threaded});
  device.model.inject(Fault::latency, 0, 3'000'000);
  device.model.inject(Fault::bandwidth, 0, 100'000'000);
  device.start();
  for (size_t i = 0; i < 4; ++i) device.put_copy(i, 0, 100'000, 100'000);
  const auto start = std::chrono::steady_clock::now();
  device.doorbell(4);
  device.wait_for(State::idle);
  CHECK(std::chrono::steady_clock::now() - start >= std::chrono::milliseconds(3 + 4));
}

TEST_CASE("model: a threaded model that waits ten minutes ends at once") {
  const vhost_ioat::testing::Watchdog dog;
  {
    Device device({.mode = Mode::threaded});
    device.model.inject(Fault::latency, 0, 600'000'000'000);
    device.start();
    device.put_copy(0, 0, 64, 64);
    device.doorbell(1);
    device.model.write8(spec::CHANCMD, spec::chancmd::suspend);
    device.wait_for(State::suspended);
    device.start();
    device.doorbell(1);
  }
  CHECK(dog.watches());
}

// --- The worker
// -------------------------------------------------------------------------------------------------------

TEST_CASE("model: a threaded model ends whenever that is asked") {
  for (int round = 0; round < 8000; ++round) {  // from before its thread runs to when that is about to park
    const Device device({.mode = Mode::threaded});
    for (std::atomic<int> spin{0}; spin < round % 60 * 100; ++spin) {
    }
  }
}

TEST_CASE("model: threaded copies are seen behind the write-back, from a parked and from a spinning worker") {
  Device device({.mode = Mode::threaded});
  device.start();
  std::atomic_ref writeback(device.writeback);
  for (uint32_t round = 0; round < 600; ++round) {
    const auto value = static_cast<uint8_t>(round + 1);
    std::memset(&device.data[0x1000], value, 500);
    device.put_copy(round, 0x8000, 0x1000, 500);
    device.doorbell(static_cast<uint16_t>(round + 1));
    while ((writeback.load(std::memory_order_acquire) & spec::status_address_mask) != device.address(round)) {
      std::this_thread::yield();
    }
    REQUIRE(device.data[0x8000] == value);
    REQUIRE(device.data[0x8000 + 499] == value);
    // A pause in which the worker may park, now and then; nothing depends on whether it did.
    for (int spin = 0; round % 100 == 0 && spin < 50; ++spin) std::this_thread::yield();
  }
}

TEST_CASE("model: an aligned 2-byte copy is one store, behind the data before it") {
  // What publish="dma" rests on: an index that the engine writes, and a reader that knows nothing of write-backs.
  Device device({.mode = Mode::threaded});
  device.start();
  auto* index = reinterpret_cast<uint16_t*>(&device.data[0x9000]);
  for (uint16_t round = 1; round <= 500; ++round) {
    std::memset(&device.data[0x1000], round & 0xff, 300);
    std::memcpy(&device.data[0x2000], &round, 2);
    device.put_copy(2u * round, 0x8000, 0x1000, 300, 0);
    device.put_copy(2u * round + 1, 0x9000, 0x2000, 2, 0);
    if (round == 1) device.model.write64(spec::CHAINADDR, device.address(2));
    device.doorbell(static_cast<uint16_t>(2 * round));
    while (std::atomic_ref(*index).load(std::memory_order_acquire) != round) std::this_thread::yield();
    REQUIRE(device.data[0x8000] == (round & 0xff));
    REQUIRE(device.data[0x8000 + 299] == (round & 0xff));
  }
}

TEST_CASE("model: memory is taken away between two descriptors, never during one") {
  Device device({.mode = Mode::threaded});
  auto pool = std::make_unique<std::vector<uint8_t>>(1 << 20);
  constexpr uint64_t pool_at = 0x50000000;
  for (int round = 0; round < 20; ++round) {
    device.model.memory().map(pool_at, pool->data(), pool->size());
    device.start();
    for (size_t i = 0; i < 32; ++i) device.put(i, control::completion_update, pool_at, Device::data_at, 1 << 20);
    device.doorbell(32);
    CHECK(device.model.memory().unmap(pool_at));
    pool = std::make_unique<std::vector<uint8_t>>(1 << 20);  // under AddressSanitizer a late write would show
    while (device.state() == State::active) std::this_thread::yield();
    if (device.state() == State::halted) CHECK(device.chanerr() == 1u << spec::chanerr::destination_address);
  }
}

TEST_CASE("model: revoking never waits, and nothing is touched after it") {
  Device device({.mode = Mode::threaded});
  device.start();
  for (size_t i = 0; i < 64; ++i) device.put_copy(i, 0, 0x80000, 0x80000);
  device.doorbell(64);
  while (device.model.memory().revoke() == Step::pending) std::this_thread::yield();
  std::memset(device.data.data(), 1, device.data.size());  // under ThreadSanitizer a late access would show
  CHECK_THROWS_AS(device.model.memory().map(0x90000000, device.data.data(), 1), DmaError);
}

TEST_CASE("model: registers may be hammered from other threads while it works") {
  Device device({.mode = Mode::threaded});
  device.start();
  for (size_t i = 0; i < device.slots.size(); ++i) device.put_copy(i, 0, 0x1000, 64);
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) {
      device.model.read64(spec::CHANSTS);
      device.model.read32(spec::CHANERR);
      device.model.config_read(spec::cfg_chanerr_int, 4);
    }
  });
  for (uint16_t count = 1; count <= 2000; ++count) device.doorbell(count);
  while (device.model.counters().descriptors < 2000) std::this_thread::yield();
  stop = true;
  other.join();
  CHECK(device.state() == State::idle);
}
