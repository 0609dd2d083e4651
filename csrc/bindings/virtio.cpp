// SPDX-License-Identifier: BSD-3-Clause
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "base/error.hpp"
#include "base/mutex.hpp"
#include "bindings/bindings.hpp"
#include "memory/guest_mapping.hpp"
#include "memory/region_table.hpp"
#include "virtio/driver_ring.hpp"
#include "virtio/split_ring.hpp"

namespace vhost_ioat::bindings {

namespace {

using Segments = std::vector<std::pair<uint64_t, uint32_t>>;
using GivenSegments = std::vector<std::pair<Whole<uint64_t>, Whole<uint32_t>>>;
using Extents = std::vector<std::pair<Whole<uint64_t>, Whole<uint64_t>>>;

/// Guest memory of our own, for rings without a virtual machine.
class GuestMemory : public std::enable_shared_from_this<GuestMemory> {
 public:
  static constexpr uint32_t longest_table = 256;  // entries of an indirect table
  explicit GuestMemory(const Extents& extents) {
    std::vector<memory::Region> regions;
    for (const auto& [gpa, size] : extents) {
      if (size == 0)
        throw ConfigError(
            format("region at 0x%llx is empty; its size must be at least 1", static_cast<unsigned long long>(gpa)));
      auto mapping = memory::GuestMapping::anonymous(size);
      regions.push_back({gpa, size, gpa, mapping->data(), mapping});
    }
    try {
      table_ = std::make_shared<memory::RegionTable>(std::move(regions));
    } catch (const Error& error) {
      throw ConfigError(error.what());
    }
  }
  std::shared_ptr<const memory::RegionTable> table() const {
    const MutexLock lock(mutex_);
    return table_;
  }

  uint8_t* at(uint64_t gpa, uint64_t n, const char* what) const {
    const memory::Region* hint = nullptr;
    uint8_t* host = n != 0 ? table()->translate(gpa, n, hint) : nullptr;
    if (!host)
      throw GuestError(format("%s: %llu bytes at guest address 0x%llx are not within one region", what,
                              static_cast<unsigned long long>(n), static_cast<unsigned long long>(gpa)));
    return host;
  }
  /// Memory for the indirect tables of a driver's ring, in a region of its own behind all others.
  virtio::IndirectTables indirect_tables(uint32_t ring_size) {
    const uint32_t entries = std::min(ring_size, longest_table);
    const uint64_t bytes = uint64_t{ring_size} * entries * sizeof(virtio::Descriptor);
    const MutexLock lock(mutex_);
    const memory::Region& last = table_->regions().back();
    constexpr uint64_t gap = 1 << 20;
    const uint64_t gpa = (last.gpa + last.size + gap) & ~(gap - 1);
    if (gpa < last.gpa || gpa > UINT64_MAX - bytes - gap) return {};  // no room: the ring does without
    auto mapping = memory::GuestMapping::anonymous(bytes);
    table_ = std::make_shared<memory::RegionTable>(table_->with({gpa, bytes, gpa, mapping->data(), mapping}));
    return {reinterpret_cast<virtio::Descriptor*>(mapping->data()), gpa, entries};
  }
  py::array view(const py::object& self, uint64_t gpa, uint64_t n, bool writable) const {
    // The base is the GuestMemory: the mapping lives as long as any view.
    py::array array(py::dtype::of<uint8_t>(), {static_cast<py::ssize_t>(n)}, {py::ssize_t{1}}, at(gpa, n, "view"),
                    self);
    if (!writable) array.attr("setflags")(py::arg("write") = false);
    return array;
  }

 private:
  mutable Mutex mutex_;
  std::shared_ptr<const memory::RegionTable> table_ GUARDED_BY(mutex_);  // grows by a new one
};

virtio::RingAddresses ring_at(const GuestMemory& memory, uint32_t size, uint64_t desc, uint64_t avail, uint64_t used,
                              virtio::FeatureSet features) {
  if (size == 0 || size > virtio::max_ring_size || (size & (size - 1)) != 0)
    throw ConfigError(
        format("size=%u: the size of a ring must be a power of two from 1 to 32768 (VIRTIO 1.2, 2.7)", size));
  if (desc % virtio::desc_align || avail % virtio::avail_align || used % virtio::used_align)
    throw ConfigError("ring addresses must be aligned to 16 (desc), 2 (avail) and 4 (used) bytes (VIRTIO 1.2, 2.7)");
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
    memory::AddressSpace memory(memory_->table());  // it may have grown since the last call
    const bool walked = ring_.walk(chain.head, memory, [&](uint64_t addr, uint32_t len, bool writable) {
      memory::Piece pieces[memory::RegionTable::max_regions];
      if (memory.resolve(addr, len, pieces).answer != memory::Answer::here) {
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
    if (head >= ring_.size())
      throw ConfigError(format("head %u is out of range: the ring has %u entries", head, ring_.size()));
    ring_.push_used(head, n);
  }
  uint32_t publish() {
    check();
    const uint32_t n = RingIndex(ring_.used_base()).distance_to(ring_.used_next());
    if (n != 0) ring_.publish(ring_.filled());
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
};

/// The driver's side over the same memory, for whoever needs a guest.
class PyDriverRing {
 public:
  PyDriverRing(std::shared_ptr<GuestMemory> memory, uint32_t size, uint64_t desc, uint64_t avail, uint64_t used,
               uint64_t features, uint16_t start)
      : memory_(std::move(memory)) {
    const virtio::FeatureSet set(features);
    const virtio::RingAddresses at = ring_at(*memory_, size, desc, avail, used, set);
    ring_.start(at, size, set, RingIndex(start), memory_->indirect_tables(size));
  }
  std::optional<uint16_t> add(const GivenSegments& readable, const GivenSegments& writable, bool indirect) {
    auto segments = [](const GivenSegments& from) {
      std::vector<virtio::Segment> out;
      for (const auto& [addr, len] : from) out.push_back({addr, len});
      return out;
    };
    const auto r = segments(readable), w = segments(writable);
    if (r.empty() && w.empty()) throw ConfigError("a chain must have at least one buffer");
    return indirect ? ring_.add_indirect(r, w) : ring_.add(r, w);
  }
  bool publish() { return ring_.publish(); }
  std::optional<std::pair<uint16_t, uint32_t>> take_used() {
    const auto used = ring_.take_used();
    if (ring_.fault()) throw GuestError(ring_.fault().text());
    if (!used) return std::nullopt;
    return std::pair(used->head, used->len);
  }

 private:
  std::shared_ptr<GuestMemory> memory_;
  virtio::DriverRing ring_;
};

template <typename Ring>
std::unique_ptr<Ring> ring_in(GuestMemory& memory, Whole<uint32_t> size, Whole<uint64_t> desc, Whole<uint64_t> avail,
                              Whole<uint64_t> used, Whole<uint64_t> features, Whole<uint16_t> start) {
  return std::make_unique<Ring>(memory.shared_from_this(), size, desc, avail, used, features, start);
}

}  // namespace

void register_virtio(py::module_& parent) {
  py::module_ m = parent.def_submodule("virtio", "The split virtqueue by itself (VIRTIO 1.2, 2.7).");

  py::class_<GuestMemory, std::shared_ptr<GuestMemory>>(
      m, "GuestMemory",
      R"(Guest memory with the regions [(gpa, size in bytes), ...], zeroed.

Raises ConfigError when a region is empty or wraps, when regions overlap, or when there are more than 509. The memory
lives as long as this object, a ring in it, or a view of it.)")
      .def(py::init<const Extents&>(), py::arg("regions"))
      .def(
          "view",
          [](const py::object& self, Whole<uint64_t> gpa, Whole<uint64_t> n, bool writable) {
            return self.cast<GuestMemory&>().view(self, gpa, n, writable);
          },
          py::arg("gpa"), py::arg("n"), py::arg("writable") = false,
          R"(uint8 array (n,) of guest memory at `gpa`, zero copy, read-only unless `writable`.

Raises GuestError when the bytes are not within one region. The array keeps the memory alive. In a child of fork() it is
a private copy.)");

  py::class_<Chain> chain(
      m, "Chain", "A descriptor chain that the driver made available: lists of (guest-physical address, bytes).");
  keep_over_fork(chain);
  chain.def_readonly("head", &Chain::head)
      .def_readonly("readable", &Chain::readable)
      .def_readonly("writable", &Chain::writable)
      .def("__repr__", [](const Chain& c) {
        return format("<Chain head %u, %zu readable, %zu writable>", c.head, c.readable.size(), c.writable.size());
      });

  py::class_<DeviceRing>(m, "SplitRing",
                         R"(Device side of a split virtqueue in `mem`; ring addresses are guest-physical.

size must be a power of two, 1 to 32768. features is a mask of virtio feature bits (INDIRECT_DESC and EVENT_IDX matter).
last_avail is the avail index to start at; the used index continues from what the ring holds. One thread at a time.
Raises ConfigError, or GuestError when the ring is not within guest memory.)")
      .def(py::init(&ring_in<DeviceRing>), py::arg("mem"), py::arg("size"), py::arg("desc"), py::arg("avail"),
           py::arg("used"), py::kw_only(), py::arg("features") = 0, py::arg("last_avail") = 0)
      .def("pop", in_turn(&DeviceRing::pop),
           R"(Take the next available chain, or return None.

Every rule of VIRTIO 1.2, 2.7 is checked. Raises GuestError when one is broken, and from then on at every call; `broken`
says which.)")
      .def("push_used", in_turn(&DeviceRing::push_used), py::arg("head"), py::arg("n"),
           "Write a used element for chain `head` with `n` bytes written; publish() shows it to the driver. (2.7.8)")
      .def("publish", in_turn(&DeviceRing::publish),
           "Show the driver the pushed elements with a release store; returns how many there were.")
      .def("should_notify", in_turn(&DeviceRing::should_notify),
           "Whether the driver wants to be notified of what was published since the last call. (2.7.7.2)")
      .def_property_readonly("broken", in_turn(&DeviceRing::broken),
                             "Why the ring is broken, in a sentence; None when it is not.");

  py::class_<PyDriverRing>(m, "DriverRing",
                           R"(Driver side of a split virtqueue in `mem`; ring addresses are guest-physical.

Both indices begin at `start`. Indirect tables are in a region of their own, which is added to `mem`. One thread at a
time. Raises the same errors as SplitRing.)")
      .def(py::init(&ring_in<PyDriverRing>), py::arg("mem"), py::arg("size"), py::arg("desc"), py::arg("avail"),
           py::arg("used"), py::kw_only(), py::arg("features") = 0, py::arg("start") = 0)
      .def("add", in_turn(&PyDriverRing::add), py::arg("readable"), py::arg("writable"), py::kw_only(),
           py::arg("indirect") = false,
           R"(Put a chain of buffers [(gpa, bytes), ...] into the ring; returns its head, or None when there is no room.

publish() shows it to the device. Raises ConfigError when there is no buffer.)")
      .def("publish", in_turn(&PyDriverRing::publish),
           "Show the device the added chains; returns True when it wants a kick. (2.7.13)")
      .def("take_used", in_turn(&PyDriverRing::take_used),
           R"(Take back the next used chain: (head, bytes written), or None.

Raises GuestError when the device has returned a chain that it did not have.)");
}

}  // namespace vhost_ioat::bindings
