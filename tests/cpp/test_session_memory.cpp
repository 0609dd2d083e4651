// SPDX-License-Identifier: BSD-3-Clause
#include <fcntl.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "open_fds.hpp"
#include "session_bench.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::testing;
using Next = BackendSession::Next;

namespace {

constexpr uint64_t page = 0x1000;

size_t memfd_mappings() {
  std::ifstream maps("/proc/self/maps");
  size_t found = 0;
  for (std::string line; std::getline(maps, line);) found += line.find("/memfd:") != std::string::npos;
  return found;
}

}  // namespace

TEST_CASE("session memory: a table maps what it says and replaces the one before") {
  SessionBench bench;
  GuestFile file(4 * page);
  file.mapping->data()[page] = 0x5a;
  REQUIRE(bench.send(file.table({{0, page, 0x70000, 0}, {0x100000, 2 * page, 0x90000, page}})) == Next::proceed);
  CHECK(bench.device.released == std::vector<RingSet>(1));  // told, with no ring to hold
  const memory::Region* hint = nullptr;
  const uint8_t* byte = bench.session.state().memory->translate(0x100000, 2 * page, hint);
  REQUIRE(byte);
  CHECK(*byte == 0x5a);
  CHECK(bench.session.state().memory->translate_uva(0x90000, 1) == byte);

  REQUIRE(bench.send(file.table({{0, page, 0x70000, 0}})) == Next::proceed);
  CHECK(bench.session.state().memory->regions().size() == 1);
  CHECK(bench.device.memory == bench.session.state().memory);
  REQUIRE(bench.send(file.table({})) == Next::proceed);
  CHECK(bench.session.state().memory->regions().empty());
}

TEST_CASE("session memory: a table that cannot be had leaves the old one, no mapping and no fd behind") {
  SessionBench bench({.queue_pairs = 1, .max_guest_mem = 16 * page});
  bench.negotiate();
  GuestFile file(16 * page);
  REQUIRE(bench.send(file.table({{0, page, 0x70000, 0}})) == Next::proceed);
  const size_t fds = open_fds_at_rest(), maps = memfd_mappings();
  const auto refused = [&](const std::vector<wire::MemRegion>& regions, const char* why) {
    bench.refused(file.table(regions), why);
    CHECK(bench.session.state().memory->regions().size() == 1);
  };
  refused({{0, 0, 0x70000, 0}}, "");
  refused({{0, page, 0x70000, 0}, {page - 1, page, 0x90000, 0}}, "overlap in GPA");
  refused({{0, page, 0x70000, 0}, {page, page, 0x70000, 0}}, "overlap in front-end addresses");
  refused({{UINT64_MAX - page + 2, page, 0, 0}}, "wraps");
  refused({{0, page, UINT64_MAX - page + 2, 0}}, "wraps");
  refused({{0, 2 * page, 0, 15 * page}}, "ends beyond its file");
  refused({{0, page, 0, UINT64_MAX - page + 1}}, "ends beyond its file");
  refused({{0, uint64_t{1} << 40, 0, 0}}, "max_guest_mem");
  refused({{0, UINT64_MAX, 0, 0}, {1, UINT64_MAX, 0, 0}}, "max_guest_mem");
  refused({{0, 8 * page, 0, 0}, {8 * page, 9 * page, 0x90000, 0}}, "max_guest_mem");
  Message pipes(Request::SET_MEM_TABLE, wire::MemTable{1, 0, {{0, page, 0, 0}}});
  pipes.size = wire::mem_table_size(1);
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  pipes.fds.emplace_back(ends[0]);
  ::close(ends[1]);
  bench.refused(std::move(pipes), "not a regular file");
  CHECK(open_fds() == fds);
  CHECK(memfd_mappings() == maps);
}

TEST_CASE("session memory: a region that cannot be shared costs no other, and is told") {
  SessionBench bench;
  bench.negotiate();
  GuestFile file(4 * page);
  const auto read_only = [&](Message table, size_t which) {
    table.fds[which].reset(::open(format("/proc/self/fd/%d", file.mapping->fd()).c_str(), O_RDONLY | O_CLOEXEC));
    return table;
  };
  const std::vector<wire::MemRegion> regions{{0, page, 0x70000, 0}, {page, page, 0x90000, page}};
  REQUIRE(bench.send(read_only(file.table(regions), 1)) == Next::proceed);
  REQUIRE(bench.device.remarks.size() == 1);
  CHECK(bench.device.remarks[0].find("GPA 0x1000") != std::string::npos);
  CHECK(bench.device.remarks[0].find("reading only") != std::string::npos);
  const auto memory = bench.session.state().memory;
  const memory::Region* hint = nullptr;
  CHECK(memory->regions().size() == 2);
  CHECK(memory->translate(0, page, hint));
  CHECK_FALSE(memory->translate(page, 1, hint));
  CHECK_FALSE(memory->translate_uva(0x90000, 1));

  // One by one, in whichever order; and it goes again as any other.
  SessionBench slots;
  slots.negotiate();
  REQUIRE(slots.send(read_only(file.add(regions[1]), 0)) == Next::proceed);
  REQUIRE(slots.send(file.add(regions[0])) == Next::proceed);
  CHECK(slots.session.state().memory->shares_memory());
  CHECK(slots.device.remarks.size() == 1);
  REQUIRE(slots.send(Request::REM_MEM_REG, wire::SingleMemRegion{0, regions[1]}) == Next::proceed);
  CHECK(slots.session.state().memory->regions().size() == 1);

  bench.refused(read_only(file.table({{0, page, 0x70000, 2 * page}}), 0),
                "reading only");  // nothing else is left to work with
  REQUIRE(bench.send(file.table({})) == Next::proceed);
  CHECK(bench.device.remarks.back().find("share=on") != std::string::npos);
}

TEST_CASE("session memory: 509 regions are added one by one, the next is refused, and each can go") {
  SessionBench bench({.queue_pairs = 1});
  bench.negotiate();
  GuestFile file(page);
  const size_t fds = open_fds_at_rest();
  const auto region = [](uint64_t i) { return wire::MemRegion{i * page, page, 0x40000000 + i * page, 0}; };
  for (uint64_t i = 0; i < 509; ++i) REQUIRE(bench.send(file.add(region(i))) == Next::proceed);
  bench.refused(file.add(region(509)), "all 509 memory slots are in use");
  CHECK(open_fds() == fds);

  wire::MemRegion wrong = region(5);
  wrong.uva += page;
  bench.refused(Message(Request::REM_MEM_REG, wire::SingleMemRegion{0, wrong}), "no memory region");
  wrong = region(5);
  wrong.size -= 1;
  bench.refused(Message(Request::REM_MEM_REG, wire::SingleMemRegion{0, wrong}), "no memory region");
  for (uint64_t i = 0; i < 509; ++i) {
    wire::MemRegion gone = region(508 - i);
    gone.mmap_offset = 0xdeadbeef;  // says nothing here
    Message message(Request::REM_MEM_REG, wire::SingleMemRegion{0, gone});
    if (i % 2) message.fds.push_back(file.fd());  // may come, is closed
    REQUIRE(bench.send(std::move(message)) == Next::proceed);
  }
  CHECK(bench.session.state().memory->regions().empty());
  CHECK(open_fds() == fds);
}

TEST_CASE("session memory: the limit counts what is there already") {
  SessionBench bench({.queue_pairs = 1, .max_guest_mem = 3 * page});
  bench.negotiate();
  GuestFile file(2 * page);
  REQUIRE(bench.send(file.add({0, 2 * page, 0, 0})) == Next::proceed);
  bench.refused(file.add({2 * page, 2 * page, 2 * page, 0}), "max_guest_mem");
  bench.refused(file.add({page, page, 0x90000, 0}), "overlap");
  REQUIRE(bench.send(file.add({2 * page, page, 2 * page, 0})) == Next::proceed);
}

TEST_CASE("session memory: each queue pair may say additions and removals again, as QEMU 7.2 does") {
  GuestFile file(2 * page);
  const wire::MemRegion region{page, page, 0x40000000, 0};
  const auto removal_of = [](wire::MemRegion gone) {
    return Message(Request::REM_MEM_REG, wire::SingleMemRegion{0, gone});
  };
  SessionBench two_pairs;
  two_pairs.negotiate();
  REQUIRE(two_pairs.send(file.add(region)) == Next::proceed);
  const auto table = two_pairs.session.state().memory;
  REQUIRE(two_pairs.send(file.add(region)) == Next::proceed);
  CHECK(two_pairs.session.state().memory == table);
  two_pairs.refused(file.add({page, page, 0x50000000, 0}), "overlap in GPA");
  two_pairs.refused(removal_of({page, page, 0x50000000, 0}), "no memory region");
  two_pairs.refused(removal_of({0, page + 1, 0x40000000, 0}), "no memory region");
  REQUIRE(two_pairs.send(removal_of(region)) == Next::proceed);
  CHECK(two_pairs.session.state().memory->regions().empty());
  REQUIRE(two_pairs.send(removal_of(region)) == Next::proceed);

  SessionBench one_pair({.queue_pairs = 1});
  one_pair.negotiate();
  REQUIRE(one_pair.send(file.add(region)) == Next::proceed);
  one_pair.refused(file.add(region), "overlap");
  REQUIRE(one_pair.send(removal_of(region)) == Next::proceed);
  one_pair.refused(removal_of(region), "no memory region");
}

TEST_CASE("session memory: memory in use outlives the table") {
  SessionBench bench;
  GuestFile file(page);
  file.mapping->data()[3] = 7;
  REQUIRE(bench.send(file.table({{0, page, 0, 0}})) == Next::proceed);
  const memory::Region kept = bench.session.state().memory->regions()[0];
  REQUIRE(bench.send(file.table({})) == Next::proceed);
  CHECK(kept.host[3] == 7);
}

TEST_CASE("session memory: sizes that wrap when they are summed are over the limit, and said to be") {
  SessionBench bench({.queue_pairs = 1, .max_guest_mem = 16 << 20});
  bench.negotiate();
  const GuestFile file(2 << 20);
  for (const uint64_t size : {uint64_t{0} - 4096, uint64_t{0} - (1 << 20), uint64_t{1} << 63}) {
    bench.refused(file.table({{0, 1 << 20, 0x10000000, 0}, {1 << 20, size, 0x20000000, 0}}), "max_guest_mem");
  }
  REQUIRE(bench.send(file.table({{0, 1 << 20, 0x10000000, 0}})) == SessionBench::Next::proceed);
  bench.refused(file.add({1 << 20, uint64_t{0} - 4096, 0x20000000, 0}), "max_guest_mem");
}
