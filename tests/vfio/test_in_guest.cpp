// SPDX-License-Identifier: BSD-3-Clause
// Runs inside a VM, on a virtual I/OAT behind a virtual IOMMU: our driver against Linux's VFIO. The device's PCI
// address is in VHOST_IOAT_DEVICE.
#include <poll.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/unique_fd.hpp"
#include "dma/hardware_engine.hpp"
#include "dma/vfio.hpp"
#include "doctest/doctest.h"

using namespace vhost_ioat;
using namespace vhost_ioat::dma;

namespace {

constexpr size_t kPage = 4096;

std::string address() {
  const char* value = std::getenv("VHOST_IOAT_DEVICE");
  REQUIRE_MESSAGE(value != nullptr, "VHOST_IOAT_DEVICE names no device");
  return value;
}

/// Pages that the kernel placed as it liked, so they are scattered in physical memory.
struct Buffer {
  uint8_t* data;
  size_t size;
  explicit Buffer(size_t bytes) : size(bytes) {
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    data = static_cast<uint8_t*>(memory);
  }
  ~Buffer() { ::munmap(data, size); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void scribble(uint64_t seed) {
    std::mt19937_64 random(seed);
    for (size_t i = 0; i < size; i += 8) {
      const uint64_t word = random();
      std::memcpy(data + i, &word, 8);
    }
  }
};

ChannelOptions ring_of(uint32_t descriptors) {
  ChannelOptions options;
  options.ring_size = descriptors;
  return options;
}

/// Memory that VFIO has pinned for this process.
std::string locked_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmLck:")) return line;
  }
  return "";
}

/// Everything outstanding, by cookie.
std::vector<Completion> finish(DmaEngine& engine) {
  std::vector<Completion> done;
  Completion batch[32];
  while (engine.outstanding() > 0) {
    const size_t n = engine.poll(batch);
    done.insert(done.end(), batch, batch + n);
    REQUIRE_MESSAGE(!engine.failed(), engine.why());
  }
  return done;
}

}  // namespace

TEST_CASE("copies of 1 byte to 1 MiB over scattered pages equal memcpy") {
  const auto engine = make_hardware_engine(address());
  CHECK(engine->capabilities().hardware);
  Buffer from(4 << 20), to(4 << 20);
  std::vector<uint8_t> expected(to.size, 0);
  from.scribble(1);
  engine->map(from.data, from.size);
  engine->map(to.data, to.size);
  std::mt19937 random(2);
  std::vector<size_t> lengths = {1, 2, 63, 64, 65, 1500, 4095, 4096, 4097, 9000, 65536, 1 << 20};
  for (int i = 0; i < 200; ++i) lengths.push_back(1 + random() % (1u << (random() % 18)));
  uint32_t cookie = 0;
  for (const size_t length : lengths) {
    const size_t src = random() % (from.size - length + 1), dst = random() % (to.size - length + 1);
    const Copy copy{to.data + dst, from.data + src, static_cast<uint32_t>(length)};
    REQUIRE(engine->enqueue({&copy, 1}, cookie) == Refusal::none);
    engine->submit();
    const auto done = finish(*engine);
    REQUIRE(done.size() == 1);
    CHECK(done[0].cookie == cookie++);
    CHECK(done[0].status == CopyStatus::ok);
    std::memcpy(expected.data() + dst, from.data + src, length);
  }
  CHECK(std::memcmp(expected.data(), to.data, to.size) == 0);
  engine->unmap(from.data);
  engine->unmap(to.data);
}

TEST_CASE("a full ring of copies in one doorbell completes in order") {
  const auto engine = make_hardware_engine(address(), ring_of(256));
  Buffer from(1 << 20), to(1 << 20);
  from.scribble(3);
  engine->map(from.data, from.size);
  engine->map(to.data, to.size);
  for (int round = 0; round < 20; ++round) {
    uint32_t count = 0;
    while (true) {
      const Copy copy{to.data + count * kPage, from.data + count * kPage, kPage};
      if (engine->enqueue({&copy, 1}, count) != Refusal::none) break;
      ++count;
    }
    CHECK(count == 255);
    engine->submit();
    const auto done = finish(*engine);
    REQUIRE(done.size() == count);
    for (uint32_t i = 0; i < count; ++i) CHECK(done[i].cookie == i);
  }
  CHECK(std::memcmp(from.data, to.data, 255 * kPage) == 0);
  engine->unmap(from.data);
  engine->unmap(to.data);
}

TEST_CASE("an unmapped address stops the channel with a reason, and the copy after the reset is right") {
  VfioDevice device(address());
  Buffer ring(IoatChannel::memory_size(64)), data(2 * kPage);
  std::memset(ring.data, 0, ring.size);
  device.map(0x100000, ring.data, ring.size);
  device.map(0x200000, data.data, data.size);
  IoatChannel channel(device.registers(), {ring.data, 0x100000, ring.size}, ring_of(64));
  for (int round = 0; round < 3; ++round) {
    data.scribble(static_cast<uint64_t>(round));
    REQUIRE(channel.copy(0x201000, 0x200000, 100, 1) == Refusal::none);
    REQUIRE(channel.copy(0x201000, 0x80000000, 100, 2) == Refusal::none);
    REQUIRE(channel.copy(0x201000, 0x200100, 100, 3) == Refusal::none);
    channel.submit();
    std::vector<Completion> done;
    Completion batch[8];
    const auto take = [&] {
      const size_t n = channel.poll(batch);
      done.insert(done.end(), batch, batch + n);
    };
    while (!channel.failed()) take();
    CHECK(channel.why().find("source address") != std::string::npos);
    while (channel.reset() == Step::pending) {
    }
    while (channel.outstanding() > 0) take();
    REQUIRE(done.size() == 3);
    CHECK(done[0].status == CopyStatus::ok);
    CHECK(done[1].status == CopyStatus::error);
    CHECK(done[2].status == CopyStatus::not_attempted);

    REQUIRE(channel.copy(0x201000, 0x200000, 4096, 4) == Refusal::none);
    channel.submit();
    while (channel.outstanding() > 0) {
      take();
      REQUIRE_MESSAGE(!channel.failed(), channel.why());
    }
    CHECK(std::memcmp(data.data, data.data + kPage, kPage) == 0);
  }
}

TEST_CASE("the device's interrupt arrives on the eventfd") {
  VfioDevice device(address());
  Buffer page(kPage);
  std::memset(page.data, 0, page.size);
  device.map(0x100000, page.data, page.size);
  const UniqueFd eventfd = make_eventfd();
  device.set_interrupt(eventfd.get());
  Mmio& registers = device.registers();
  registers.write8(spec::CHANCMD, spec::chancmd::reset);
  while (registers.read8(spec::CHANCMD) & spec::chancmd::reset) {
  }
  spec::Descriptor descriptor{};
  descriptor.size = 8;
  descriptor.control = spec::control::null | spec::control::interrupt | spec::control::completion_update;
  descriptor.next = 0x100000;
  std::memcpy(page.data, &descriptor, sizeof descriptor);
  registers.write8(spec::INTRCTRL, spec::intrctrl::master_enable | spec::intrctrl::msix_vector_control);
  registers.write32(spec::CHANCMP, 0x100800);
  registers.write32(spec::CHANCMP + 4, 0);
  registers.write32(spec::CHAINADDR, 0x100000);
  registers.write32(spec::CHAINADDR + 4, 0);
  for (uint16_t round = 1; round <= 20; ++round) {
    registers.write16(spec::CHANCTRL, spec::chanctrl::int_rearm | spec::chanctrl::any_error_abort);
    registers.write16(spec::DMACOUNT, round);
    pollfd waiting{eventfd.get(), POLLIN, 0};
    REQUIRE(::poll(&waiting, 1, 10'000) == 1);
    CHECK(eventfd_clear(eventfd.get()) == 1);
  }
  device.set_interrupt(-1);
}

TEST_CASE("a revoked device reaches no memory, and the next owner of the group finds it working") {
  {
    const auto engine = make_hardware_engine(address());
    Buffer from(1 << 20), to(1 << 20);
    engine->map(from.data, from.size);
    engine->map(to.data, to.size);
    for (uint32_t i = 0; i < 200; ++i) {
      const Copy copy{to.data, from.data, 1 << 20};
      REQUIRE(engine->enqueue({&copy, 1}, i) == Refusal::none);
    }
    engine->submit();
    Step step;
    while ((step = engine->revoke()) == Step::pending) {
    }
    CHECK(step == Step::done);
    size_t taken = 0;
    Completion batch[32];
    while (engine->outstanding() > 0) taken += engine->poll(batch);
    CHECK(taken == 200);
    const Copy copy{to.data, from.data, 1};
    CHECK(engine->enqueue({&copy, 1}, 0) == Refusal::disabled);
    std::memset(to.data, 0xee, to.size);
    for (size_t i = 0; i < to.size; ++i) REQUIRE(to.data[i] == 0xee);
  }
  CHECK_NOTHROW(make_hardware_engine(address()));
}

TEST_CASE("a second opening of the group says that it is open already") {
  VfioDevice first(address());
  try {
    VfioDevice second(address());
    FAIL("opened twice");
  } catch (const DmaError& error) {
    CHECK(std::string(error.what()).find("is open already") != std::string::npos);
  }
}

TEST_CASE("a channel that is closed leaves no memory pinned") {
  const std::string before = locked_memory();
  for (int i = 0; i < 20; ++i) {
    const auto engine = make_hardware_engine(address());
    Buffer from(1 << 20);
    engine->map(from.data, from.size);
    CHECK(locked_memory() != before);
    if (i % 2 == 0) engine->unmap(from.data);  // or it goes with the engine
  }
  CHECK(locked_memory() == before);
}
