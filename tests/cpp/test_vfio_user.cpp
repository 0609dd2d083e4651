// SPDX-License-Identifier: BSD-3-Clause
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <random>
#include <thread>

#include "base/budget.hpp"
#include "base/error.hpp"
#include "dma/vfio_user.hpp"
#include "doctest/doctest.h"
#include "open_fds.hpp"
#include "watchdog.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::dma;
using namespace vhost_ioat::dma::vfio_user;
using namespace std::chrono_literals;

namespace {

struct Reply {
  Header header{};
  std::vector<std::byte> payload;
  template <typename T>
  T as() const {
    REQUIRE(payload.size() >= sizeof(T));
    T value;
    std::memcpy(&value, payload.data(), sizeof value);
    return value;
  }
};

template <typename... Parts>
std::vector<std::byte> bytes(const Parts&... parts) {
  std::vector<std::byte> out((sizeof parts + ... + 0));
  size_t at = 0;
  ((std::memcpy(out.data() + at, &parts, sizeof parts), at += sizeof parts), ...);
  return out;
}

/// A VM's monitor, as badly behaved as a test wants, on the other end of a socket pair.
struct Monitor {
  IoatModel model;
  VfioUserServer server{model};
  UniqueFd socket;
  uint16_t next_id = 1;

  explicit Monitor(bool hello = true, const IoatModel::Options& options = {}) : model(options) {
    connect();
    if (hello) REQUIRE(ask(Command::version, bytes(Version{0, 1}, std::array<char, 64>{})).header.error == 0);
  }
  void connect() {
    int ends[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    socket = UniqueFd(ends[0]);
    REQUIRE(testing::eventually([this] { return server.has_room(); }));
    server.attach(UniqueFd(ends[1]));
  }
  void put(const std::vector<std::byte>& data, std::initializer_list<int> fds = {}) {
    std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
    iovec part{const_cast<std::byte*>(data.data()), data.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (fds.size() > 0) {
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      cmsghdr* head = CMSG_FIRSTHDR(&message);
      head->cmsg_level = SOL_SOCKET;
      head->cmsg_type = SCM_RIGHTS;
      head->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
      std::memcpy(CMSG_DATA(head), fds.begin(), fds.size() * sizeof(int));
    }
    REQUIRE(::sendmsg(socket.get(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(data.size()));
  }
  Header header(Command command, size_t payload) {
    return {next_id++, static_cast<uint16_t>(command), static_cast<uint32_t>(sizeof(Header) + payload), 0, 0};
  }
  void send(Command command, const std::vector<std::byte>& payload, std::initializer_list<int> fds = {},
            uint32_t flags = 0) {
    Header head = header(command, payload.size());
    head.flags = flags;
    std::vector<std::byte> all = bytes(head);
    all.insert(all.end(), payload.begin(), payload.end());
    put(all, fds);
  }
  Reply ask(Command command, const std::vector<std::byte>& payload = {}, std::initializer_list<int> fds = {}) {
    send(command, payload, fds);
    REQUIRE_MESSAGE(server.serve(0ms), server.why());
    return reply();
  }
  Reply reply() {
    Reply out;
    REQUIRE(::recv(socket.get(), &out.header, sizeof out.header, MSG_DONTWAIT) == sizeof out.header);
    out.payload.resize(out.header.size - sizeof out.header);
    if (!out.payload.empty()) {
      REQUIRE(::recv(socket.get(), out.payload.data(), out.payload.size(), MSG_DONTWAIT) ==
              static_cast<ssize_t>(out.payload.size()));
    }
    return out;
  }
  uint32_t error_of(Command command, const std::vector<std::byte>& payload, std::initializer_list<int> fds = {}) {
    const Reply got = ask(command, payload, fds);
    CHECK(((got.header.flags & flag_error) != 0) == (got.header.error != 0));
    return got.header.error;
  }
  uint32_t map(uint64_t address, uint64_t size, uint64_t offset, std::initializer_list<int> fds) {
    return error_of(Command::dma_map, bytes(DmaMap{sizeof(DmaMap), map_read | map_write, offset, address, size}), fds);
  }
  uint32_t unmap(uint64_t address, uint64_t size, uint32_t flags = 0) {
    return error_of(Command::dma_unmap, bytes(DmaUnmap{sizeof(DmaUnmap), flags, address, size}));
  }
  /// How many bytes the server says it has unmapped.
  uint64_t unmapped(uint64_t address, uint64_t size, uint32_t flags = 0) {
    return ask(Command::dma_unmap, bytes(DmaUnmap{sizeof(DmaUnmap), flags, address, size})).as<DmaUnmap>().size;
  }
  void set_bus_master(bool on) {
    write<uint16_t>(region_config, spec::cfg_command,
                    on ? spec::cfg_command_memory | spec::cfg_command_bus_master : spec::cfg_command_memory);
  }
  /// One descriptor at `ring`, and how the channel stands after it.
  uint64_t run(uint64_t ring) {
    write<uint64_t>(0, spec::CHAINADDR, ring);
    write<uint16_t>(0, spec::DMACOUNT, 1);
    return model.read64(spec::CHANSTS);
  }
  /// What the server says when it drops the connection.
  std::string dropped() {
    REQUIRE_FALSE(server.serve(1000ms));
    char byte;
    CHECK(::recv(socket.get(), &byte, 1, MSG_DONTWAIT) <= 0);
    return server.why();
  }
  template <typename T>
  void write(uint32_t region, uint64_t offset, T value) {
    CHECK(error_of(Command::region_write, bytes(RegionAccess{offset, region, sizeof value}, value)) == 0);
  }
};

struct Ram {
  UniqueFd fd{::memfd_create("ram", MFD_CLOEXEC)};
  uint8_t* data;
  explicit Ram(size_t bytes_) : size(bytes_) {
    REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
    data = static_cast<uint8_t*>(::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0));
  }
  ~Ram() { ::munmap(data, size); }
  size_t size;
};

bool says(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("the reply to VERSION is no longer than the request, and other major versions are turned away") {
  Monitor monitor(false);
  CHECK(monitor.ask(Command::version, bytes(Version{0, 3})).payload.size() == sizeof(Version));
  monitor.connect();
  const Reply full = monitor.ask(Command::version, bytes(Version{0, 3}, std::array<char, 100>{}));
  CHECK(full.payload.back() == std::byte{0});
  CHECK(full.payload[4] == std::byte{'{'});
  monitor.connect();
  monitor.send(Command::version, bytes(Version{1, 0}));
  CHECK(says(monitor.dropped(), "speaks vfio-user version 1"));
}

TEST_CASE("anything before VERSION, and a second VERSION, ends the connection") {
  Monitor monitor(false);
  monitor.send(Command::device_get_info, bytes(DeviceInfo{}));
  CHECK(says(monitor.dropped(), "VERSION must be the first message"));
  Monitor twice;
  twice.send(Command::version, bytes(Version{0, 1}));
  CHECK(says(twice.dropped(), "only once"));
}

TEST_CASE("the card is described: regions, interrupts, reset") {
  Monitor monitor;
  const auto info = monitor.ask(Command::device_get_info, bytes(DeviceInfo{})).as<DeviceInfo>();
  CHECK(info.flags == (device_can_reset | device_is_pci));
  CHECK(info.regions == 9);
  for (uint32_t index = 0; index < 9; ++index) {
    RegionInfo wanted{};
    wanted.index = index;
    const auto region = monitor.ask(Command::device_get_region_info, bytes(wanted)).as<RegionInfo>();
    CHECK(region.size == (index == 0 ? 0x4000u : index == 7 ? 4096u : 0u));
  }
  RegionInfo beyond{};
  beyond.index = 9;
  CHECK(monitor.error_of(Command::device_get_region_info, bytes(beyond)) == EINVAL);
  for (uint32_t index = 0; index < 5; ++index) {
    const auto irq = monitor.ask(Command::device_get_irq_info, bytes(IrqInfo{0, 0, index, 0})).as<IrqInfo>();
    CHECK(irq.count == (index == irq_msix ? 1u : 0u));
  }
  CHECK(monitor.error_of(Command::device_get_irq_info, bytes(IrqInfo{0, 0, 5, 0})) == EINVAL);
  CHECK(monitor.error_of(Command::device_get_region_io_fds, {}) == ENOTSUP);
  CHECK(monitor.error_of(static_cast<Command>(99), {}) == ENOTSUP);
}

TEST_CASE("configuration space is read in one piece and at any alignment") {
  Monitor monitor;
  const Reply all = monitor.ask(Command::region_read, bytes(RegionAccess{0, region_config, 4096}));
  REQUIRE(all.payload.size() == sizeof(RegionAccess) + 4096);
  const std::byte* config = all.payload.data() + sizeof(RegionAccess);
  CHECK(config[0] == std::byte{0x86});
  CHECK(config[3] == std::byte{0x0b});
  const Reply odd = monitor.ask(Command::region_read, bytes(RegionAccess{1, region_config, 7}));
  CHECK(std::memcmp(odd.payload.data() + sizeof(RegionAccess), config + 1, 7) == 0);
}

TEST_CASE("accesses past a region, empty ones, and data of another length are refused") {
  Monitor monitor;
  const auto read = [&](uint64_t offset, uint32_t region, uint32_t count) {
    return monitor.error_of(Command::region_read, bytes(RegionAccess{offset, region, count}));
  };
  CHECK(read(0x3ffc, 0, 4) == 0);
  CHECK(read(0x3ffd, 0, 4) == EINVAL);
  CHECK(read(0x4000, 0, 1) == EINVAL);
  CHECK(read(UINT64_MAX, 0, 4) == EINVAL);
  CHECK(read(0, 0, 0) == EINVAL);
  CHECK(read(0, 0, UINT32_MAX) == EINVAL);
  CHECK(read(0, 1, 4) == EINVAL);
  CHECK(read(0, UINT32_MAX, 4) == EINVAL);
  CHECK(monitor.error_of(Command::region_write, bytes(RegionAccess{0, 0, 8}, uint32_t{0})) == EINVAL);
  CHECK(monitor.error_of(Command::region_write, bytes(RegionAccess{0, 0, 4}, uint64_t{0})) == EINVAL);
  CHECK(monitor.error_of(Command::region_read, bytes(uint32_t{0})) == EINVAL);
}

TEST_CASE("maps that are empty, wrap, overlap or end behind their file are refused") {
  Monitor monitor;
  const Ram ram(1 << 20);
  const int fd = ram.fd.get();
  CHECK(monitor.map(0x100000, 0x10000, 0, {fd}) == 0);
  CHECK(monitor.map(0x10f000, 0x1000, 0, {fd}) == EEXIST);
  CHECK(monitor.map(0x0ff000, 0x2000, 0, {fd}) == EEXIST);
  CHECK(monitor.map(0x0f0000, 0x30000, 0, {fd}) == EEXIST);
  CHECK(monitor.map(0x200000, 0, 0, {fd}) == EINVAL);
  CHECK(monitor.map(UINT64_MAX - 0xfff, 0x2000, 0, {fd}) == EINVAL);
  CHECK(monitor.map(0x200000, 0x1000, 0x100000, {fd}) == EINVAL);
  CHECK(monitor.map(0x200000, 0x1000, UINT64_MAX, {fd}) == EINVAL);
  CHECK(monitor.map(0x200000, UINT64_MAX, 0, {fd}) == EINVAL);
  CHECK(monitor.map(0x200000, 0x1000, 0, {fd, fd}) == EINVAL);
  CHECK(monitor.map(0x110000, 0x1000, 0x10000, {fd}) == 0);
  CHECK(monitor.map(0xc0000, 0x1000, 0, {}) == 0);  // a ROM
  CHECK(monitor.server.maps() == 3);
}

TEST_CASE("an unmap drops what lies within it, and nothing else, however large it is, and says how much") {
  Monitor monitor;
  const Ram ram(1 << 20);
  for (uint64_t page = 0; page < 16; ++page) {
    REQUIRE(monitor.map(0x100000 + page * 4096, 4096, page * 4096, {ram.fd.get()}) == 0);
  }
  CHECK(monitor.unmapped(0x500000, 0x1000) == 0);  // never mapped
  CHECK(monitor.unmapped(0x101000, 0x2000) == 0x2000);
  CHECK(monitor.server.maps() == 14);
  CHECK(monitor.unmapped(0x103800, 0x1000) == 0x1000);  // cuts two pages
  CHECK(monitor.server.maps() == 14);
  CHECK(monitor.unmapped(0x105400, 0x400) == 0x400);  // out of the middle of one
  CHECK(monitor.server.maps() == 15);
  CHECK(monitor.map(0x105400, 0x400, 0, {ram.fd.get()}) == 0);
  CHECK(monitor.unmap(0, 0) == EINVAL);
  CHECK(monitor.unmap(UINT64_MAX, 2) == EINVAL);
  CHECK(monitor.unmap(0, 4096, 1) == EINVAL);  // get a bitmap: there is none
  CHECK(monitor.unmapped(0, UINT64_MAX) == 13 * 4096);
  CHECK(monitor.server.maps() == 0);
  CHECK(monitor.model.memory().size() == 0);
  REQUIRE(monitor.map(0x100000, 4096, 0, {ram.fd.get()}) == 0);
  CHECK(monitor.unmapped(0, 0, unmap_all) == 4096);
  CHECK(monitor.server.maps() == 0);
}

TEST_CASE("mappings may be cut up until there are as many as there may be, and no further") {
  Monitor monitor;
  const Ram ram(1 << 20);
  REQUIRE(monitor.map(0x100000, 1 << 20, 0, {ram.fd.get()}) == 0);
  IovaMap& memory = monitor.model.memory();
  for (uint64_t at = uint64_t{1} << 32; memory.size() < IovaMap::max_pieces; at += 2) memory.map(at, ram.data, 1);
  CHECK(monitor.unmap(0x101000, 0x1000) == ENOSPC);
  CHECK(monitor.map(0x300000, 0x1000, 0, {ram.fd.get()}) == ENOSPC);
  CHECK(monitor.unmapped(0x100000, 0x1000) == 0x1000);  // makes it no more
  CHECK(monitor.unmapped(0, 0, unmap_all) == (1 << 20) - 4096 + IovaMap::max_pieces - 1);
}

TEST_CASE("what a mapping is for is kept: a device that does something else finds nothing there") {
  Monitor monitor;
  const Ram ram(16 * 4096);
  const auto map = [&](uint64_t page, uint32_t flags) {
    return monitor.error_of(Command::dma_map, bytes(DmaMap{sizeof(DmaMap), flags, page * 4096, page * 4096, 4096}),
                            {ram.fd.get()});
  };
  constexpr uint64_t ring = 0x1000, read_only = 0x2000, write_only = 0x3000, open = 0x4000;
  REQUIRE(map(1, map_read | map_write) == 0);
  REQUIRE(map(2, map_read) == 0);
  REQUIRE(map(3, map_write) == 0);
  REQUIRE(map(4, map_read | map_write) == 0);
  CHECK(map(5, 0) == EINVAL);
  CHECK(map(5, 7) == EINVAL);
  monitor.set_bus_master(true);
  std::memset(ram.data + read_only, 1, 4096);
  std::memset(ram.data + write_only, 2, 4096);
  monitor.write<uint16_t>(0, spec::CHANCTRL, spec::chanctrl::any_error_abort);
  const auto chanerr_of = [&](uint64_t dst, uint64_t src, uint32_t op = spec::control::op_copy,
                              uint32_t control = 0) -> uint32_t {
    spec::Descriptor descriptor{};
    descriptor.size = 64;
    descriptor.control = spec::control::of_op(op) | control;
    descriptor.src = src;
    descriptor.dst = dst;
    std::memcpy(ram.data + ring, &descriptor, sizeof descriptor);
    monitor.run(ring);
    const uint32_t chanerr = monitor.model.read32(spec::CHANERR);
    monitor.write<uint32_t>(0, spec::CHANERR, chanerr);
    return chanerr;
  };
  CHECK(chanerr_of(open, read_only) == 0);
  CHECK(ram.data[open] == 1);
  CHECK(chanerr_of(write_only, open) == 0);
  CHECK(ram.data[write_only] == 1);
  CHECK(chanerr_of(read_only, open) == 1u << spec::chanerr::destination_address);
  CHECK(chanerr_of(read_only, 0xabab, spec::control::op_fill) == 1u << spec::chanerr::destination_address);
  CHECK(chanerr_of(open, write_only) == 1u << spec::chanerr::source_address);
  CHECK(chanerr_of(read_only, write_only) ==
        (1u << spec::chanerr::source_address | 1u << spec::chanerr::destination_address));
  CHECK(ram.data[read_only] == 1);
  monitor.write<uint64_t>(0, spec::CHANCMP, read_only);
  CHECK(chanerr_of(open, open, spec::control::op_copy, spec::control::completion_update) ==
        1u << spec::chanerr::completion_address);
  CHECK(ram.data[read_only] == 1);
  monitor.run(write_only);  // a descriptor there cannot be read
  CHECK(monitor.model.read32(spec::CHANERR) == 1u << spec::chanerr::chain_address);
}

TEST_CASE("memory that cannot be shared is known, and not reached") {
  Monitor monitor;
  const Ram ram(4096);
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", ram.fd.get());
  const UniqueFd read_only(::open(path, O_RDONLY | O_CLOEXEC));
  REQUIRE(read_only);
  CHECK(monitor.map(0x10000, 4096, 0, {read_only.get()}) == 0);
  CHECK(monitor.map(0x10000, 4096, 0, {ram.fd.get()}) == EEXIST);
  CHECK(monitor.unmapped(0x10000, 4096) == 4096);
}

TEST_CASE("a machine may share as much memory as there is, in so many files, and no more") {
  Monitor monitor;
  const auto file_of = [](uint64_t size) {
    UniqueFd fd(::memfd_create("large", MFD_CLOEXEC));
    REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
    return fd;
  };
  const size_t before = testing::open_fds();
  const uint64_t half = budget::physical_memory() / 2 & ~uint64_t{4095};
  const UniqueFd first = file_of(half), second = file_of(half + 8192), huge = file_of(uint64_t{1} << 46);
  CHECK(monitor.map(0x10000, 4096, 0, {first.get()}) == 0);
  CHECK(monitor.map(0x20000, 4096, 0, {second.get()}) == ENOSPC);
  CHECK(monitor.map(0x20000, 4096, 0, {huge.get()}) == ENOSPC);
  CHECK(monitor.unmap(0x10000, 4096) == 0);
  CHECK(monitor.map(0x20000, 4096, 0, {second.get()}) == 0);  // the other one is not mapped any more
  CHECK(monitor.unmap(0, 0, unmap_all) == 0);
  // A file that grows is mapped anew, and all its mappings count while they are used.
  const uint64_t quarter = budget::physical_memory() / 4 & ~uint64_t{4095};
  const UniqueFd grows = file_of(quarter);
  for (uint64_t i = 0; i < 4; ++i) {
    CHECK(monitor.map(0x10000 + i * 4096, 4096, quarter + i * 4096 - 4096, {grows.get()}) == (i < 3 ? 0 : ENOSPC));
    REQUIRE(::ftruncate(grows.get(), static_cast<off_t>(quarter + (i + 1) * 4096)) == 0);
  }
  CHECK(monitor.unmap(0, 0, unmap_all) == 0);
  for (size_t i = 0; i < budget::files_of_card; ++i) {
    const UniqueFd fd = file_of(4096);
    REQUIRE(testing::eventually([&] { return testing::open_fds() <= before + 32; }));  // see "whatever is sent"
    REQUIRE(monitor.map(0x10000 + i * 4096, 4096, 0, {fd.get()}) == 0);
  }
  CHECK(monitor.map(0x10000 + budget::files_of_card * 4096, 4096, 0, {first.get()}) == ENOSPC);
  CHECK(monitor.unmap(0x10000, 4096) == 0);
  CHECK(monitor.map(0x10000, 4096, 0, {first.get()}) == 0);
}

TEST_CASE("a function that is no bus master reads and writes nothing, and goes on when it is one again") {
  Monitor monitor;
  const Ram ram(16 * 4096);
  REQUIRE(monitor.map(0x10000, 16 * 4096, 0, {ram.fd.get()}) == 0);
  const UniqueFd eventfd = make_eventfd();
  REQUIRE(monitor.error_of(Command::device_set_irqs, bytes(IrqSet{24, set_trigger | set_eventfd, irq_msix, 0, 1}),
                           {eventfd.get()}) == 0);
  spec::Descriptor descriptor{};
  descriptor.size = 64;
  descriptor.control = spec::control::interrupt | spec::control::completion_update;
  descriptor.src = 0x11000;
  descriptor.dst = 0x12000;
  std::memcpy(ram.data, &descriptor, sizeof descriptor);
  std::memset(ram.data + 0x1000, 7, 64);
  monitor.write<uint64_t>(0, spec::CHANCMP, 0x13000);
  const auto nothing_written = [&] {
    return ram.data[0x2000] == 0 && ram.data[0x3000] == 0 && eventfd_clear(eventfd.get()) == 0;
  };
  const auto resumes = [&] {
    CHECK(nothing_written());
    CHECK(spec::state_of(monitor.model.read64(spec::CHANSTS)) == spec::State::active);
    monitor.set_bus_master(true);
    CHECK(ram.data[0x2000] == 7);
    CHECK(ram.data[0x3000] != 0);
    CHECK(eventfd_clear(eventfd.get()) == 1);
  };
  SUBCASE("as at power-on") {
    monitor.run(0x10000);
    resumes();
  }
  SUBCASE("after it was one") {
    monitor.set_bus_master(true);
    monitor.set_bus_master(false);
    monitor.run(0x10000);
    resumes();
  }
  SUBCASE("after a function-level reset, which takes it away") {
    monitor.set_bus_master(true);
    monitor.write<uint16_t>(region_config, 0x98, 0x8000);
    monitor.write<uint64_t>(0, spec::CHANCMP, 0x13000);
    monitor.run(0x10000);
    resumes();
  }
  SUBCASE("in D3") {
    monitor.set_bus_master(true);
    monitor.write<uint16_t>(region_config, 0xe4, 3);
    monitor.run(0x10000);
    CHECK(nothing_written());
    monitor.write<uint16_t>(region_config, 0xe4, 0);
    CHECK(ram.data[0x2000] == 7);
  }
  SUBCASE("an error that would be written back") {
    monitor.write<uint16_t>(0, spec::CHANCTRL, spec::chanctrl::error_completion | spec::chanctrl::error_interrupt);
    monitor.write<uint8_t>(0, spec::CHANCMD, 0x30);  // two commands at once
    CHECK(monitor.model.read32(spec::CHANERR) == 1u << spec::chanerr::command);
    CHECK(nothing_written());
    monitor.set_bus_master(true);
    CHECK(ram.data[0x3000] != 0);
    CHECK(eventfd_clear(eventfd.get()) == 1);
  }
}

TEST_CASE("bus mastering is off when the copy at work has ended, and nothing is written after that") {
  Monitor monitor(true, {.mode = IoatModel::Mode::threaded});
  const Ram ram(2 << 20);
  REQUIRE(monitor.map(0x100000, 2 << 20, 0, {ram.fd.get()}) == 0);
  monitor.set_bus_master(true);
  // Two descriptors that follow each other for ever, of a copy that takes a while.
  for (uint64_t i = 0; i < 2; ++i) {
    spec::Descriptor descriptor{};
    descriptor.size = 512 << 10;
    descriptor.src = 0x180000 + i * 0x1000;
    descriptor.dst = 0x200000;
    descriptor.next = 0x100000 + (1 - i) * 64;
    std::memcpy(ram.data + i * 64, &descriptor, sizeof descriptor);
  }
  std::memset(ram.data + 0x80000, 1, 0x80000);
  monitor.write<uint64_t>(0, spec::CHAINADDR, 0x100000);
  monitor.write<uint16_t>(0, spec::DMACOUNT, 0xffff);
  for (uint64_t i = 0; i < 50; ++i) {
    while (monitor.model.counters().descriptors < 10 * i) std::this_thread::yield();
    monitor.set_bus_master(false);
    const uint64_t done = monitor.model.counters().descriptors;
    std::memset(ram.data + 0x100000, 0, 512 << 10);
    CHECK(std::all_of(ram.data + 0x100000, ram.data + 0x180000, [](uint8_t byte) { return byte == 0; }));
    CHECK(monitor.model.counters().descriptors == done);
    monitor.set_bus_master(true);
  }
}

TEST_CASE("a machine that says nothing makes way for another after its time, and one that has said VERSION does not") {
  Monitor monitor(false);
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  monitor.socket = UniqueFd(ends[0]);
  const HalfOpen::Time start{std::chrono::hours(1)};
  monitor.server.attach(UniqueFd(ends[1]), start);
  CHECK_FALSE(monitor.server.makes_way(start + budget::half_open - 1ms));
  CHECK(monitor.server.makes_way(start + budget::half_open));
  monitor.put(bytes(uint32_t{1}));  // half a header says nothing
  REQUIRE(monitor.server.serve(0ms));
  CHECK(monitor.server.makes_way(start + budget::half_open));
  monitor.connect();
  monitor.ask(Command::version, bytes(Version{0, 1}, std::array<char, 64>{}));
  CHECK_FALSE(monitor.server.makes_way(HalfOpen::Time::max()));
  monitor.socket.reset();
  REQUIRE_FALSE(monitor.server.serve(1000ms));
  CHECK_FALSE(monitor.server.makes_way(HalfOpen::Time::max()));  // nobody is there
}

TEST_CASE("a device has one driver's seat") {
  IoatModel model;
  std::optional<VfioUserServer> server(model);
  CHECK_THROWS_WITH_AS(static_cast<void>(model.take_seat()), doctest::Contains("has a driver already"), DmaError);
  CHECK(model.config_read(spec::cfg_command, 2) == IoatModel::ready_to_use);
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  const UniqueFd socket(ends[0]);
  server->attach(UniqueFd(ends[1]));
  CHECK(model.config_read(spec::cfg_command, 2) == 0);
  server.reset();
  CHECK(model.config_read(spec::cfg_command, 2) == 0);
  auto seat = model.take_seat();
  CHECK_THROWS_AS(server.emplace(model), DmaError);
  seat.reset();
  CHECK_NOTHROW(server.emplace(model));
}

TEST_CASE("a descriptor copies guest memory over mappings of a page each and signals the eventfd") {
  Monitor monitor;
  const Ram ram(16 * 4096);
  // Scattered: consecutive IOVAs lie backwards in the file.
  for (uint64_t page = 0; page < 16; ++page) {
    REQUIRE(monitor.map(0x100000 + page * 4096, 4096, (15 - page) * 4096, {ram.fd.get()}) == 0);
  }
  const auto at = [&](uint64_t iova) { return ram.data + (15 - (iova - 0x100000) / 4096) * 4096 + iova % 4096; };
  const UniqueFd eventfd = make_eventfd();
  REQUIRE(monitor.error_of(Command::device_set_irqs, bytes(IrqSet{24, set_trigger | set_eventfd, irq_msix, 0, 1}),
                           {eventfd.get()}) == 0);
  const uint64_t src = 0x102003, dst = 0x106ffd, ring = 0x10f000;
  const uint32_t length = 9000;
  for (uint32_t i = 0; i < length; ++i) *at(src + i) = static_cast<uint8_t>(i * 7 + 1);
  spec::Descriptor descriptor{};
  descriptor.size = length;
  descriptor.control = spec::control::interrupt | spec::control::completion_update;
  descriptor.src = src;
  descriptor.dst = dst;
  std::memcpy(at(ring), &descriptor, sizeof descriptor);
  monitor.set_bus_master(true);
  monitor.write<uint32_t>(0, spec::CHANCMP, 0x10e000);
  monitor.write<uint32_t>(0, spec::CHANCMP + 4, 0);
  monitor.write<uint64_t>(0, spec::CHAINADDR, ring);
  monitor.write<uint16_t>(0, spec::DMACOUNT, 1);
  for (uint32_t i = 0; i < length; ++i) REQUIRE(*at(dst + i) == static_cast<uint8_t>(i * 7 + 1));
  uint64_t status;
  std::memcpy(&status, at(0x10e000), sizeof status);
  CHECK((status & spec::status_address_mask) == ring);
  CHECK(eventfd_clear(eventfd.get()) == 1);
}

TEST_CASE("an interrupt needs an eventfd, of the one vector there is") {
  Monitor monitor;
  const auto set = [&](uint32_t flags, uint32_t index, uint32_t start, uint32_t count,
                       std::initializer_list<int> fds = {}) {
    return monitor.error_of(Command::device_set_irqs, bytes(IrqSet{20, flags, index, start, count}), fds);
  };
  CHECK(set(set_trigger | set_none, irq_msix, 0, 0) == 0);
  CHECK(set(set_trigger | set_none, 0, 0, 0) == 0);
  CHECK(set(set_trigger | set_eventfd, irq_msix, 0, 1) == 0);  // takes the eventfd away
  CHECK(set(set_trigger | set_eventfd, irq_msix, 1, 1) == EINVAL);
  CHECK(set(set_trigger | set_eventfd, irq_msix, 0, 2) == EINVAL);
  CHECK(set(set_trigger | set_eventfd, 5, 0, 0) == EINVAL);
  CHECK(set(set_trigger | set_eventfd, 0, 0, 1) == EINVAL);
  CHECK(set(set_eventfd, irq_msix, 0, 1) == EINVAL);
  const UniqueFd one = make_eventfd(), other = make_eventfd();
  CHECK(set(set_trigger | set_eventfd, irq_msix, 0, 1, {one.get(), other.get()}) == EINVAL);
  const Ram not_an_eventfd(4096);
  monitor.send(Command::device_set_irqs, bytes(IrqSet{20, set_trigger | set_eventfd, irq_msix, 0, 1}),
               {not_an_eventfd.fd.get()});
  CHECK(says(monitor.dropped(), "not an eventfd"));
}

TEST_CASE("a posted write is carried out and not answered") {
  Monitor monitor;
  monitor.send(Command::region_write, bytes(RegionAccess{spec::LTR_IDLE, 0, 4}, uint32_t{77}), {}, flag_no_reply);
  REQUIRE(monitor.server.serve(0ms));
  CHECK(monitor.ask(Command::region_read, bytes(RegionAccess{spec::LTR_IDLE, 0, 4})).header.id == 3);
  CHECK(monitor.model.read32(spec::LTR_IDLE) == 77);
}

TEST_CASE("messages may arrive in pieces and many at once, each with its own fds") {
  Monitor monitor;
  const Ram ram(8192);
  const auto payload = bytes(DmaMap{sizeof(DmaMap), map_read | map_write, 0, 0x10000, 4096});
  auto whole = bytes(monitor.header(Command::dma_map, payload.size()));
  whole.insert(whole.end(), payload.begin(), payload.end());
  monitor.put({whole.begin(), whole.begin() + 1}, {ram.fd.get()});
  for (size_t i = 1; i + 1 < whole.size(); ++i) {
    monitor.put({whole.begin() + static_cast<long>(i), whole.begin() + static_cast<long>(i) + 1});
    REQUIRE(monitor.server.serve(0ms));
  }
  CHECK(monitor.server.maps() == 0);
  monitor.put({whole.end() - 1, whole.end()});
  for (uint64_t i = 1; i < 4; ++i) {
    monitor.send(Command::dma_map, bytes(DmaMap{32, 3, 0, 0x10000 + i * 4096, 4096}), {ram.fd.get()});
  }
  REQUIRE(monitor.server.serve(50ms));
  for (int i = 0; i < 4; ++i) CHECK(monitor.reply().header.error == 0);
  CHECK(monitor.server.maps() == 4);
  CHECK(monitor.model.memory().size() == 4);
}

TEST_CASE("sizes that cannot be, replies and too many fds end the connection") {
  Monitor monitor;
  SUBCASE("shorter than a header") {
    monitor.put(bytes(Header{1, 4, 15, 0, 0}));
    CHECK(says(monitor.dropped(), "a message has 15 bytes"));
  }
  SUBCASE("longer than anything of use") {
    monitor.put(bytes(Header{1, 10, UINT32_MAX, 0, 0}));
    CHECK(says(monitor.dropped(), "a message has 4294967295 bytes"));
  }
  SUBCASE("a reply") {
    monitor.put(bytes(Header{1, 4, 16, type_reply, 0}));
    CHECK(says(monitor.dropped(), "is a reply"));
  }
  SUBCASE("fds") {
    const size_t before = testing::open_fds();
    const int fd = monitor.socket.get();
    monitor.send(Command::device_get_info, bytes(DeviceInfo{}), {fd, fd, fd, fd, fd, fd, fd, fd, fd});
    CHECK(says(monitor.dropped(), "more than 8 fds"));
    CHECK(testing::eventually([&] { return testing::open_fds() <= before - 1; }));  // the connection
  }
}

TEST_CASE("fds that a message has no use for are closed") {
  Monitor monitor;
  const size_t before = testing::open_fds();
  for (int i = 0; i < 10; ++i) {
    monitor.ask(Command::device_get_info, bytes(DeviceInfo{}), {monitor.socket.get(), monitor.socket.get()});
  }
  CHECK(testing::eventually([&] { return testing::open_fds() <= before; }));
}

TEST_CASE("a peer that does not read its replies is dropped") {
  Monitor monitor;
  const int small = 4096;
  ::setsockopt(monitor.socket.get(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  std::vector<std::byte> burst;
  for (int i = 0; i < 200; ++i) {
    const auto head = bytes(monitor.header(Command::region_read, sizeof(RegionAccess)));
    const auto body = bytes(RegionAccess{0, region_config, 4096});
    burst.insert(burst.end(), head.begin(), head.end());
    burst.insert(burst.end(), body.begin(), body.end());
  }
  monitor.put(burst);
  REQUIRE_FALSE(monitor.server.serve(5000ms));
  CHECK(says(monitor.server.why(), "does not read its replies"));
}

TEST_CASE("a file truncated below its mappings ends the connection, not the process") {
  Monitor monitor;
  const Ram ram(1 << 20);
  REQUIRE(monitor.map(0x100000, 1 << 20, 0, {ram.fd.get()}) == 0);
  monitor.set_bus_master(true);
  REQUIRE(::ftruncate(ram.fd.get(), 0) == 0);
  monitor.write<uint64_t>(0, spec::CHAINADDR, 0x180000);
  monitor.send(Command::region_write, bytes(RegionAccess{spec::DMACOUNT, 0, 2}, uint16_t{1}));
  REQUIRE_FALSE(monitor.server.serve(1000ms));
  CHECK(says(monitor.server.why(), "truncated"));
}

TEST_CASE("whoever comes next finds the card as after power-on, and nothing of the last guest") {
  Monitor monitor;
  const size_t before = testing::open_fds();
  for (int i = 0; i < 50; ++i) {
    const Ram ram(1 << 20);
    const UniqueFd eventfd = make_eventfd();
    REQUIRE(monitor.map(0x100000, 1 << 20, 0, {ram.fd.get()}) == 0);
    REQUIRE(monitor.error_of(Command::device_set_irqs, bytes(IrqSet{24, set_trigger | set_eventfd, irq_msix, 0, 1}),
                             {eventfd.get()}) == 0);
    monitor.write<uint64_t>(0, spec::CHAINADDR, 0x100000);
    CHECK(spec::state_of(monitor.model.read64(spec::CHANSTS)) == spec::State::armed);
    monitor.socket.reset();
    REQUIRE_FALSE(monitor.server.serve(1000ms));
    CHECK(monitor.server.why() == "the peer closed the connection");
    CHECK(monitor.server.maps() == 0);
    CHECK(monitor.model.memory().size() == 0);
    CHECK(spec::state_of(monitor.model.read64(spec::CHANSTS)) == spec::State::halted);
    monitor.connect();
    REQUIRE(monitor.ask(Command::version, bytes(Version{0, 1})).header.error == 0);
  }
  CHECK(testing::eventually([&] { return testing::open_fds() <= before; }));
}

TEST_CASE("a machine may vanish while its card copies and interrupts: its memory is let go first") {
  Monitor monitor(true, {.mode = IoatModel::Mode::threaded});
  for (int i = 0; i < 50; ++i) {
    const Ram ram(1 << 20);
    const UniqueFd eventfd = make_eventfd();
    REQUIRE(monitor.map(0x100000, 1 << 20, 0, {ram.fd.get()}) == 0);
    REQUIRE(monitor.error_of(Command::device_set_irqs, bytes(IrqSet{24, set_trigger | set_eventfd, irq_msix, 0, 1}),
                             {eventfd.get()}) == 0);
    spec::Descriptor descriptor{};
    descriptor.size = 65536;
    descriptor.control = spec::control::interrupt;
    descriptor.src = 0x120000;
    descriptor.dst = 0x160000;
    descriptor.next = 0x100000;  // itself, as often as the doorbell says
    std::memcpy(ram.data, &descriptor, sizeof descriptor);
    while (monitor.model.read8(spec::CHANCMD) != 0) {  // as a driver does: the reset waits for the copy that ran
    }
    monitor.set_bus_master(true);
    monitor.write<uint64_t>(0, spec::CHAINADDR, 0x100000);
    monitor.write<uint16_t>(0, spec::DMACOUNT, 50'000);
    while (eventfd_clear(eventfd.get()) == 0) {
    }
    monitor.socket.reset();
    REQUIRE_FALSE(monitor.server.serve(1000ms));
    CHECK(monitor.model.memory().size() == 0);
    monitor.connect();
    REQUIRE(monitor.ask(Command::version, bytes(Version{0, 1})).header.error == 0);
  }
}

TEST_CASE("function-level reset and RESET stop the channel and keep the memory") {
  Monitor monitor;
  const Ram ram(1 << 16);
  REQUIRE(monitor.map(0x100000, 1 << 16, 0, {ram.fd.get()}) == 0);
  for (const bool through_config : {true, false}) {
    monitor.write<uint64_t>(0, spec::CHAINADDR, 0x100000);
    CHECK(spec::state_of(monitor.model.read64(spec::CHANSTS)) == spec::State::armed);
    if (through_config) {
      monitor.write<uint16_t>(region_config, 0x98, 0x8000);
    } else {
      CHECK(monitor.error_of(Command::device_reset, {}) == 0);
    }
    CHECK(spec::state_of(monitor.model.read64(spec::CHANSTS)) == spec::State::halted);
    CHECK(monitor.server.maps() == 1);
  }
}

TEST_CASE("whatever is sent, nothing breaks and nothing is left behind") {
  Monitor monitor;
  const size_t before = testing::open_fds();
  std::mt19937_64 random(1);
  const auto any = [&](uint64_t n) { return random() % n; };
  const auto number = [&]() -> uint64_t {
    static constexpr uint64_t edges[] = {0, 1, 4096, 0x4000, 0x100000, UINT32_MAX, uint64_t{1} << 47, UINT64_MAX};
    return any(3) == 0 ? random() >> any(64) : edges[any(std::size(edges))] + (any(4) == 0 ? any(8) - 4 : 0);
  };
  size_t drops = 0;
  {
    const Ram ram(1 << 20);
    const UniqueFd eventfd = make_eventfd();
    for (int i = 0; i < 20'000; ++i) {
      std::vector<std::byte> payload;
      const uint64_t words = any(6);
      for (uint64_t word = 0; word < words; ++word) {
        const uint64_t value = any(3) == 0 ? any(3) | number() << 32 : number();
        const auto part = bytes(value);
        payload.insert(payload.end(), part.begin(), part.end());
      }
      if (any(4) == 0) payload.resize(any(payload.size() + 1));
      const auto command = static_cast<Command>(any(20) == 0 ? any(65536) : 1 + any(13));
      Header head = monitor.header(command, payload.size());
      if (any(8) == 0) head.flags = flag_no_reply;
      if (any(200) == 0) head.flags = static_cast<uint32_t>(number());
      if (any(200) == 0) head.size = static_cast<uint32_t>(number());
      // The server reads nothing while too many fds are still to be closed.
      REQUIRE(testing::eventually([&] { return testing::open_fds() <= before + 32; }));
      std::vector<std::byte> message = bytes(head);
      message.insert(message.end(), payload.begin(), payload.end());
      switch (any(6)) {
        case 0:
          monitor.put(message, {eventfd.get()});
          break;
        case 1:
          monitor.put(message, {ram.fd.get(), eventfd.get()});
          break;
        case 2:
          monitor.put(message);
          break;
        default:
          monitor.put(message, {ram.fd.get()});
      }
      if (!monitor.server.serve(0ms)) {
        ++drops;
        monitor.connect();
        REQUIRE(monitor.ask(Command::version, bytes(Version{0, 1})).header.error == 0);
      }
      std::array<std::byte, 65536> replies;
      while (::recv(monitor.socket.get(), replies.data(), replies.size(), MSG_DONTWAIT) > 0) {
      }
    }
    monitor.connect();
  }
  CHECK(drops > 100);
  CHECK(monitor.server.maps() == 0);
  CHECK(testing::eventually([&] { return testing::open_fds() <= before; }));
}
