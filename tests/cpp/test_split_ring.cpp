// SPDX-License-Identifier: BSD-3-Clause
// The rules of a split ring that back ends have got wrong, one by one, at the device's side of the ring.
#include <algorithm>
#include <cstring>
#include <vector>

#include "base/shared_field.hpp"
#include "doctest/doctest.h"
#include "memory/guest_mapping.hpp"
#include "virtio/split_ring.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::virtio;

namespace {

using Kind = Fault::Kind;

/// A ring whose driver is the test: it writes whatever it likes.
struct Raw {
  static constexpr uint64_t gpa = 0x10000, tables = gpa + 0x80000, buffers = gpa + 0xc0000;

  explicit Raw(uint32_t ring_size = 16, FeatureSet features = supported_features, uint16_t index = 0)
      : size(ring_size), mapping(memory::GuestMapping::anonymous(2 << 20)) {
    space = memory::AddressSpace(std::make_shared<memory::RegionTable>(
        std::vector<memory::Region>{{gpa, mapping->size(), gpa, mapping->data(), mapping}}));
    at.desc = reinterpret_cast<Descriptor*>(mapping->data());
    at.avail = mapping->data() + 0x80000 - 0x20000;
    at.used = mapping->data() + 0x80000 - 0x10000;
    store_relaxed<uint16_t>(at.used + 2, index);
    store_relaxed<uint16_t>(at.avail + 2, index);
    ring.start(at, size, features, RingIndex(index));
  }
  Descriptor* entries(uint64_t address) { return reinterpret_cast<Descriptor*>(mapping->data() + (address - gpa)); }
  void offer(uint16_t idx) { store_release<uint16_t>(at.avail + 2, idx); }
  void ask_signal_at(uint16_t event) { store_relaxed<uint16_t>(at.avail + 4 + 2 * size_t{size}, event); }

  struct Buffer {
    uint64_t addr;
    uint32_t len;
    bool writable;
    bool operator==(const Buffer&) const = default;
  };
  std::vector<Buffer> walk(uint16_t head) {
    std::vector<Buffer> out;
    ring.walk(head, space, [&](uint64_t addr, uint32_t len, bool writable) {
      out.push_back({addr, len, writable});
      return true;
    });
    return out;
  }
  Kind fault_of(std::initializer_list<Descriptor> descriptors, uint16_t head = 0) {
    std::copy(descriptors.begin(), descriptors.end(), at.desc);
    walk(head);
    return ring.fault().kind;
  }

  uint32_t size;
  std::shared_ptr<memory::GuestMapping> mapping;
  memory::AddressSpace space;
  RingAddresses at;
  SplitRing ring;
};

constexpr Descriptor buffer(uint16_t flags = 0, uint16_t next = 0, uint32_t len = 64) {
  return {Raw::buffers, len, flags, next};
}
constexpr uint16_t chained = DESC_F_NEXT, writable = DESC_F_WRITE;

}  // namespace

TEST_CASE("ring rule 1: head and next are below the size, a chain of exactly the size is legal, a longer one is not") {
  CHECK(Raw(16).fault_of({}, 15) == Kind::none);
  CHECK(Raw(16).fault_of({}, 16) == Kind::head);
  CHECK(Raw(16).fault_of({buffer(chained, 15)}) == Kind::none);
  CHECK(Raw(16).fault_of({buffer(chained, 16)}) == Kind::next);
  for (const uint32_t size : {1u, 2u, 16u, 32768u}) {
    Raw raw(size);
    for (uint32_t i = 0; i < size; ++i)
      raw.at.desc[i] = buffer(i + 1 < size ? chained : uint16_t{0}, static_cast<uint16_t>(i + 1), 1);
    CHECK(raw.walk(0).size() == size);
    CHECK_FALSE(raw.ring.fault());
    raw.at.desc[size - 1] = buffer(chained, static_cast<uint16_t>(size - 1), 0);  // loops, and has no byte
    raw.walk(0);
    CHECK(raw.ring.fault().kind == Kind::chain_length);
  }
}

TEST_CASE("ring rule 2: the driver's index is at most the size ahead, over the wrap too") {
  for (const uint16_t start : {uint16_t{0}, uint16_t{65530}}) {
    Raw raw(16, supported_features, start);
    raw.offer(static_cast<uint16_t>(start + 16));
    CHECK(raw.ring.look_again() == 16);
    raw.offer(static_cast<uint16_t>(start + 17));
    CHECK(raw.ring.look_again() == 0);
    CHECK(raw.ring.fault().kind == Kind::avail_index);
    raw.offer(static_cast<uint16_t>(start + 16));
    CHECK(raw.ring.available() == 0);  // it stays broken
  }
  Raw back(16, supported_features, 5);
  back.offer(4);
  CHECK(back.ring.look_again() == 0);
  CHECK(back.ring.fault().kind == Kind::avail_index);
}

TEST_CASE("ring rule 2: the driver's index never goes back, not even to where it would be legal") {
  for (const uint16_t start : {uint16_t{0}, uint16_t{65534}}) {
    Raw raw(16, supported_features, start);
    raw.offer(static_cast<uint16_t>(start + 5));
    CHECK(raw.ring.look_again() == 5);
    raw.ring.consume(2);
    raw.offer(static_cast<uint16_t>(start + 4));
    CHECK(raw.ring.available() == 3);  // what was seen holds
    CHECK(raw.ring.look_again() == 0);
    CHECK(raw.ring.fault().kind == Kind::avail_index_back);
  }
}

TEST_CASE("ring rule 3: an indirect table was negotiated, is alone, whole, not nested, and no longer than the ring") {
  const auto indirect = [](uint32_t len, uint16_t flags = 0) {
    return Descriptor{Raw::tables, len, static_cast<uint16_t>(flags | DESC_F_INDIRECT), 1};
  };
  CHECK(Raw(16, supported_features.without(Feature::INDIRECT_DESC)).fault_of({indirect(16)}) == Kind::indirect_feature);
  CHECK(Raw(16).fault_of({indirect(16)}) == Kind::none);
  CHECK(Raw(16).fault_of({indirect(16, DESC_F_WRITE)}) == Kind::none);  // WRITE is ignored there
  CHECK(Raw(16).fault_of({indirect(16, DESC_F_NEXT)}) == Kind::indirect_flags);
  for (const uint32_t bad : {0u, 1u, 15u, 24u, 17u * 16, 0xfffffff0u})
    CHECK(Raw(16).fault_of({indirect(bad)}) == Kind::indirect_length);
  CHECK(Raw(16).fault_of({indirect(16 * 16)}) == Kind::none);
  // Behind descriptors of the ring, the chain as a whole is what may not be longer.
  CHECK(Raw(16).fault_of({buffer(chained, 1), indirect(15 * 16)}) == Kind::none);
  CHECK(Raw(16).fault_of({buffer(chained, 1), indirect(16 * 16)}) == Kind::indirect_length);

  Raw nested;
  nested.entries(Raw::tables)[0] = {Raw::tables, 16, DESC_F_INDIRECT, 0};
  CHECK(nested.fault_of({indirect(16)}) == Kind::nested_indirect);
  Raw links_out;
  links_out.entries(Raw::tables)[0] = buffer(chained, 2);
  CHECK(links_out.fault_of({indirect(32)}) == Kind::next);  // within the ring, but not within the table
  Raw loop;
  loop.entries(Raw::tables)[0] = buffer(chained, 1, 0);
  loop.entries(Raw::tables)[1] = buffer(chained, 0, 0);
  CHECK(loop.fault_of({indirect(32)}) == Kind::chain_length);
  Raw unaligned;  // any alignment will do
  const Descriptor entry = buffer(writable, 0, 99);
  std::memcpy(unaligned.mapping->data() + (Raw::tables + 3 - Raw::gpa), &entry, sizeof entry);
  unaligned.at.desc[0] = {Raw::tables + 3, 16, DESC_F_INDIRECT, 0};
  CHECK(unaligned.walk(0) == std::vector<Raw::Buffer>{{Raw::buffers, 99, true}});
}

TEST_CASE(
    "ring rules 6 and 7: buffers without bytes are passed over, and nothing readable follows something writable") {
  Raw raw;
  std::copy_n(std::begin({buffer(chained, 1, 10), Descriptor{UINT64_MAX, 0, chained, 2},
                          buffer(chained | writable, 3, 20), buffer(writable, 0, 30)}),
              4, raw.at.desc);
  CHECK(raw.walk(0) ==
        std::vector<Raw::Buffer>{{Raw::buffers, 10, false}, {Raw::buffers, 20, true}, {Raw::buffers, 30, true}});
  CHECK(Raw().fault_of({buffer(chained | writable, 1), buffer()}) == Kind::order);
  CHECK(Raw().fault_of({buffer(chained | writable, 1, 0), buffer()}) == Kind::order);
}

TEST_CASE("ring rule 8: a chain has at most 2^32 bytes") {
  CHECK(Raw().fault_of({buffer(chained, 1, UINT32_MAX), buffer(0, 0, 1)}) == Kind::none);
  CHECK(Raw().fault_of({buffer(chained, 1, UINT32_MAX), buffer(0, 0, 2)}) == Kind::chain_bytes);
  CHECK(Raw().fault_of({buffer(chained, 1, UINT32_MAX), buffer(chained, 2, UINT32_MAX), buffer()}) ==
        Kind::chain_bytes);
}

TEST_CASE("ring rule 15: indices run freely and slots are masked, at every start and at the wrap") {
  for (const uint16_t start : {uint16_t{0}, uint16_t{15}, uint16_t{65535}}) {
    Raw raw(16, supported_features, start);
    for (uint16_t n = 0; n < 40; ++n) {
      const auto index = static_cast<uint16_t>(start + n);
      store_relaxed<uint16_t>(raw.at.avail + 4 + 2 * (index % 16), static_cast<uint16_t>(n % 16));
      raw.offer(static_cast<uint16_t>(index + 1));
      REQUIRE(raw.ring.look_again() == 1);
      REQUIRE(raw.ring.head(0) == n % 16);
      raw.ring.consume(1);
      raw.ring.push_used(static_cast<uint16_t>(n % 16), n);
      raw.ring.publish(raw.ring.filled());
      const auto* used = reinterpret_cast<const UsedElement*>(raw.at.used + 4) + index % 16;
      REQUIRE(used->id == n % 16);
      REQUIRE(used->len == n);
      REQUIRE(load_relaxed<uint16_t>(raw.at.used + 2) == static_cast<uint16_t>(index + 1));
    }
  }
}

TEST_CASE("ring rule 20: the event index is passed or not, whatever the three indices are") {
  // By the words of VIRTIO 1.2, 2.7.7.2: event is one of the indices before ... now - 1.
  const uint16_t interesting[] = {0, 1, 2, 5, 100, 32767, 32768, 32769, 65533, 65534, 65535};
  for (const uint16_t before : interesting) {
    for (const uint16_t steps : {uint16_t{0}, uint16_t{1}, uint16_t{2}, uint16_t{100}, uint16_t{32768}}) {
      for (const uint16_t event : interesting) {
        bool passed = false;
        for (uint32_t k = 0; k < steps && !passed; ++k) passed = static_cast<uint16_t>(before + k) == event;
        REQUIRE(need_event(RingIndex(event), RingIndex(before), RingIndex(before) + steps) == passed);
      }
    }
  }
}

TEST_CASE("ring rule 20: the driver is told once of what it asked for, and of the first in any case") {
  for (const uint16_t start : {uint16_t{0}, uint16_t{65534}}) {
    Raw raw(16, supported_features, start);
    const auto publish = [&](uint16_t n) {
      for (; n != 0; --n) raw.ring.push_used(0, 0);
      raw.ring.publish(raw.ring.filled());
      return raw.ring.should_notify();
    };
    const auto at = [&](uint16_t n) { return static_cast<uint16_t>(start + n); };
    raw.ask_signal_at(at(100));
    CHECK(publish(1));
    CHECK_FALSE(publish(1));
    raw.ask_signal_at(at(2));
    CHECK(publish(1));
    CHECK_FALSE(raw.ring.should_notify());  // nothing new since
    CHECK_FALSE(publish(5));
    raw.ask_signal_at(at(10));
    CHECK_FALSE(publish(2));  // shows the tenth, index 9
    CHECK(publish(4));
  }
  Raw flags(16, supported_features.without(Feature::EVENT_IDX));
  for (const bool wanted : {true, false, true}) {
    store_relaxed<uint16_t>(flags.at.avail, wanted ? uint16_t{0} : AVAIL_F_NO_INTERRUPT);
    flags.ring.push_used(0, 0);
    flags.ring.publish(flags.ring.filled());
    CHECK(flags.ring.should_notify() == wanted);
  }
}
