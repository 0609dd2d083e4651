// SPDX-License-Identifier: BSD-3-Clause
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "base/error.hpp"
#include "bindings/bindings.hpp"
#include "memory/guest_mapping.hpp"
#include "memory/region_table.hpp"
#include "virtio/driver_ring.hpp"
#include "virtio/split_ring.hpp"

namespace vhost_ioat::bindings {

namespace {

using Segments = std::vector<std::pair<uint64_t, uint32_t>>;
using Extents = std::vector<std::pair<uint64_t, uint64_t>>;

/// Guest memory of our own, for rings without a virtual machine.
class GuestMemory {
 public:
  explicit GuestMemory(const Extents& extents) {
    std::vector<memory::Region> regions;
    for (const auto& [gpa, size] : extents) {
      if (size == 0) throw ConfigError(format("region at 0x%llx is empty", static_cast<unsigned long long>(gpa)));
      auto mapping = memory::GuestMapping::anonymous(size);
      regions.push_back({gpa, size, gpa, mapping->data(), mapping});
    }
    try {
      table_ = memory::RegionTable(std::move(regions));
    } catch (const Error& error) {
      throw ConfigError(error.what());
    }
  }
  const memory::RegionTable& table() const { return table_; }

  uint8_t* at(uint64_t gpa, uint64_t n, const char* what) const {
    const memory::Region* hint = nullptr;
    uint8_t* host = n != 0 ? table_.translate(gpa, n, hint) : nullptr;
    if (!host)
      throw GuestError(format("%s: %llu bytes at guest address 0x%llx do not lie in one region", what,
                              static_cast<unsigned long long>(n), static_cast<unsigned long long>(gpa)));
    return host;
  }
  py::array view(const py::object& self, uint64_t gpa, uint64_t n, bool writable) const {
    // The base is the GuestMemory: the mapping lives as long as any view.
    py::array array(py::dtype::of<uint8_t>(), {static_cast<py::ssize_t>(n)}, {py::ssize_t{1}}, at(gpa, n, "view"), self);
    if (!writable) array.attr("setflags")(py::arg("write") = false);
    return array;
  }

 private:
  memory::RegionTable table_;
};

virtio::RingAddresses ring_at(const GuestMemory& memory, uint32_t size, uint64_t desc, uint64_t avail, uint64_t used,
                              virtio::FeatureSet features) {
  if (size == 0 || size > virtio::max_ring_size || (size & (size - 1)) != 0)
    throw ConfigError(format("size=%u: a ring has a power of two entries, 1 to 32768 (VIRTIO 1.2, 2.7)", size));
  if (desc % virtio::desc_align || avail % virtio::avail_align || used % virtio::used_align)
    throw ConfigError("ring addresses are aligned to 16 (desc), 2 (avail) and 4 (used) bytes (VIRTIO 1.2, 2.7)");
  const bool event_idx = features.has(virtio::Feature::EVENT_IDX);
  virtio::RingAddresses at;
  at.desc = reinterpret_cast<virtio::Descriptor*>(memory.at(desc, virtio::desc_bytes(size), "descriptor table"));
  at.avail = memory.at(avail, virtio::avail_bytes(size, event_idx), "avail ring");
  at.used = memory.at(used, virtio::used_bytes(size, event_idx), "used ring");
  return at;
}

struct Chain {
  uint16_t head;
  Segments readable, writable;
};

/// The device's side, one chain at a time: what the port does for bursts.
class DeviceRing {
 public:
  DeviceRing(std::shared_ptr<GuestMemory> memory, uint32_t size, uint64_t desc, uint64_t avail, uint64_t used,
             uint64_t features, uint16_t last_avail)
      : memory_(std::move(memory)) {
    const virtio::FeatureSet set(features);
    ring_.start(ring_at(*memory_, size, desc, avail, used, set), size, set, RingIndex(last_avail));
  }

  std::optional<Chain> pop() {
    check();
    const uint16_t waiting = ring_.available();
    check();
    if (waiting == 0) return std::nullopt;
    Chain chain{ring_.head(0), {}, {}};
    const memory::RegionTable& table = memory_->table();
    const bool walked = ring_.walk(chain.head, table, hint_, [&](uint64_t addr, uint32_t len, bool writable) {
      memory::Piece pieces[memory::RegionTable::max_regions];
      if (table.pieces(addr, len, pieces) == 0) {
        ring_.set_fault({virtio::Fault::Kind::unmapped, addr, len});
        return false;
      }
      (writable ? chain.writable : chain.readable).emplace_back(addr, len);
      return true;
    });
    if (!walked) check();
    check();
    ring_.consume(1);
    return chain;
  }
  void push_used(uint16_t head, uint32_t n) {
    check();
    if (head >= ring_.size()) throw ConfigError(format("head %u, but the ring has %u entries", head, ring_.size()));
    ring_.push_used(head, n);
  }
  uint32_t publish() {
    check();
    const uint16_t n = ring_.published().distance_to(ring_.used_next());
    if (n != 0) ring_.publish(ring_.used_next());
    return n;
  }
  bool should_notify() { return ring_.should_notify(); }
  std::optional<std::string> broken() const {
    return ring_.fault() ? std::optional(ring_.fault().text()) : std::nullopt;
  }

 private:
  void check() const {
    if (ring_.fault()) throw GuestError(ring_.fault().text());
  }
  std::shared_ptr<GuestMemory> memory_;
  virtio::SplitRing ring_;
  const memory::Region* hint_ = nullptr;
};

