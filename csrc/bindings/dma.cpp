// SPDX-License-Identifier: BSD-3-Clause
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "bindings/bindings.hpp"
#include "bindings/dma_pci.hpp"
#include "bindings/held_buffers.hpp"
#include "dma/ioat_channel.hpp"
#include "dma/ioat_model.hpp"
#include "dma/pci.hpp"
#include "dma/soft_engine.hpp"
#include "dma/vfio.hpp"

namespace vhost_ioat::bindings {

using namespace dma;

namespace {

using Fault = IoatModel::Fault;

constexpr std::pair<std::string_view, Fault> faults[] = {
    {"error", Fault::error},
    {"corrupt", Fault::corrupt},
    {"drop_writeback", Fault::drop_writeback},
    {"drop_interrupt", Fault::drop_interrupt},
    {"torn_status", Fault::torn_status},
    {"stuck", Fault::stuck},
    {"reset_hang", Fault::reset_hang},
    {"gone", Fault::gone},
    {"latency", Fault::latency},
    {"bandwidth", Fault::bandwidth},
};

Fault fault_named(std::string_view name) {
  std::string known;
  for (const auto& [text, fault] : faults) {
    if (text == name) return fault;
    known += (known.empty() ? "" : ", ") + std::string(text);
  }
  throw ConfigError(
      format("unknown fault \"%.*s\"; the faults are %s", static_cast<int>(name.size()), name.data(), known.c_str()));
}

const char* name_of(CopyStatus status) {
  switch (status) {
    case CopyStatus::ok:
      return "ok";
    case CopyStatus::error:
      return "error";
    case CopyStatus::not_attempted:
      break;
  }
  return "not_attempted";
}

/// A base before IoatModel, so that the buffers are given back only when the worker has ended.
struct ModelBuffers {
  HeldBuffers buffers;
};
class PyModel : private ModelBuffers, public IoatModel, public std::enable_shared_from_this<PyModel> {
 public:
  using IoatModel::IoatModel;
  void map(uint64_t iova, const py::object& object) { buffers.map(memory(), iova, object); }
  void unmap(uint64_t iova) {
    const auto buffer = buffers.take(iova);
    const Unlocked unlocked;
    memory().unmap(iova);
  }
};

uint32_t checked_size(uint32_t size, uint32_t longest) {
  if (size == 1 || size == 2 || size == 4 || size == longest) return size;
  throw ConfigError(format("size=%u: registers are accessed by 1, 2, 4 or %u bytes", size, longest));
}

/// The driver of a channel for Python: with addresses as the device sees them, and calls that may wait.
class PyChannel {
 public:
  PyChannel(std::shared_ptr<PyModel> model, const ChannelOptions& options)
      : registers_(model), space_(std::make_shared<ModelSpace>(model)) {
    model_ = std::move(model);
    start(options);
  }
  PyChannel(const std::string& bdf, const ChannelOptions& options) {
    auto device = std::make_shared<VfioDevice>(normalise_address(bdf));
    registers_ = std::shared_ptr<Mmio>(device, &device->registers());
    space_ = device;
    start(options);
  }
  PyChannel(const PyChannel&) = delete;
  PyChannel& operator=(const PyChannel&) = delete;
  ~PyChannel() {
    const Unlocked unlocked;
    channel_->shut_down();
    try {
      space_->unmap(ring_iova_, pages_->size());
    } catch (const Error&) {
      pages_->leak();  // the device may still write there
    }
  }

  void map(uint64_t iova, const py::object& object) {
    if (model_) return model_->map(iova, object);
    buffers_.map(*space_, iova, object);
  }
  void unmap(uint64_t iova) {
    if (model_) return model_->unmap(iova);
    const auto buffer = buffers_.take(iova);
    const Unlocked unlocked;
    space_->unmap(iova, buffer->size());
  }
  uint32_t copy(uint64_t dst, uint64_t src, uint64_t n) { return taken(channel_->copy(dst, src, n, next_)); }
  uint32_t fill(uint64_t dst, uint64_t pattern, uint64_t n) { return taken(channel_->fill(dst, pattern, n, next_)); }
  void submit() {
    const Unlocked unlocked;  // an inline model makes the copies now
    channel_->submit();
  }
  py::list poll() {
    // A halted channel is stopped here, which does not wait: so every copy's status comes from the same call.
    Completion out[256];
    py::list list;
    for (;;) {
      const size_t count = channel_->poll(out);
      for (size_t i = 0; i < count; ++i) list.append(py::make_tuple(out[i].cookie, name_of(out[i].status)));
      if (count > 0) continue;
      if (!channel_->failed() || channel_->outstanding() == 0) return list;
      if (channel_->quiesce() == Step::done) continue;
      if (!channel_->gone()) return list;  // it may still run
      channel_->abandon();
    }
  }
  void reset() {
    Step step;
    {
      const Unlocked unlocked;
      while ((step = channel_->reset()) == Step::pending) std::this_thread::yield();
    }
    if (step == Step::failed) throw DmaError("reset failed: " + channel_->why());
  }
  py::dict stats() const {
    const EngineStats& stats = channel_->stats();
    py::dict dict;
    dict["submitted"] = stats.submitted;
    dict["completed"] = stats.completed;
    dict["bytes"] = stats.bytes;
    dict["errors"] = stats.errors;
    dict["resets"] = stats.resets;
    return dict;
  }
  uint32_t outstanding() const { return channel_->outstanding(); }
  bool failed() const { return channel_->failed(); }
  std::string why() const { return channel_->why(); }

 private:
  void start(ChannelOptions options) {
    const Unlocked unlocked;
    if (model_) options.pause = pause_for(*model_);
    pages_.emplace(IoatChannel::memory_size(options.ring_size));
    place_ring();
    try {
      channel_.emplace(*registers_, DmaMemory{pages_->data(), ring_iova_, pages_->size()}, options);
    } catch (...) {
      space_->unmap(ring_iova_, pages_->size());
      throw;
    }
  }

  /// At the top of what the device can address, where nobody puts buffers by hand.
  void place_ring() {
    const uint64_t end = uint64_t{1} << spec::address_bits(registers_->read8(spec::CBVER));
    const IovaRange range = space_->usable().back();
    const uint64_t top = range.last < end ? range.last + 1 : end;
    for (uint64_t down = 1;; ++down) {
      ring_iova_ = (top & ~uint64_t{4095}) - down * pages_->size();
      try {
        return space_->map(ring_iova_, pages_->data(), pages_->size());
      } catch (const DmaError&) {
        if (down == 16) throw;
      }
    }
  }

  uint32_t taken(Refusal refusal) {
    switch (refusal) {
      case Refusal::none:
        return next_++;
      case Refusal::ring_full:
        throw DmaError(format("the ring is full: %u of %u descriptors are free; submit() and poll()", channel_->room(),
                              channel_->ring_size() - 1));
      case Refusal::address:
        throw DmaError(format("the length is 0, or an address is beyond the device's %u bits",
                              unsigned{channel_->address_bits()}));
      default:
        break;
    }
    if (!channel_->can_fill() && channel_->running())
      throw DmaError("the device does not support fills (DMACAPABILITY bit 6); copy from a filled buffer instead");
    const std::string why = channel_->why();
    throw DmaError((why.empty() ? "the channel is stopped" : why) +
                   "; call reset(), and poll() for what is outstanding");
  }

  std::shared_ptr<PyModel> model_;  // empty: hardware
  HeldBuffers buffers_;             // of hardware; destroyed after the device is closed
  std::shared_ptr<Mmio> registers_;
  std::shared_ptr<DmaSpace> space_;
  std::optional<RingPages> pages_;
  uint64_t ring_iova_ = 0;
  std::optional<IoatChannel> channel_;
  uint32_t next_ = 0;
};

void register_model(py::module_& m) {
  py::class_<IoatModel, std::shared_ptr<IoatModel>>(
      m, "_Model",
      "The device of a port's software engine (EthVhost.engine_model()), or an IoatModel. Any thread may use it.")
      .def(
          "read",
          [](IoatModel& model, Whole<uint32_t> off, Whole<uint32_t> size) {
            return model.read(off, checked_size(size, 8));
          },
          py::arg("off"), py::arg("size"), py::call_guard<Unlocked>(),
          "Read `size` bytes (1, 2, 4 or 8) of BAR0 at `off`. Returns 0 beyond the 16 KiB, and all ones when the\n"
          "device is gone from the bus.")
      .def(
          "write",
          [](IoatModel& model, Whole<uint32_t> off, Whole<uint64_t> value, Whole<uint32_t> size) {
            model.write(off, value, checked_size(size, 8));
          },
          py::arg("off"), py::arg("value"), py::arg("size"), py::call_guard<Unlocked>(),
          "Write `size` bytes (1, 2, 4 or 8) of BAR0 at `off`. In mode \"inline\", a write of DMACOUNT (0x86)\n"
          "returns when the descriptors have run.")
      .def(
          "config_read",
          [](IoatModel& model, Whole<uint32_t> off, Whole<uint32_t> size) {
            return model.config_read(off, checked_size(size, 4));
          },
          py::arg("off"), py::arg("size"), py::call_guard<Unlocked>(),
          "Read `size` bytes (1, 2 or 4) of the PCI configuration space at `off`.")
      .def(
          "config_write",
          [](IoatModel& model, Whole<uint32_t> off, Whole<uint32_t> value, Whole<uint32_t> size) {
            model.config_write(off, value, checked_size(size, 4));
          },
          py::arg("off"), py::arg("value"), py::arg("size"), py::call_guard<Unlocked>(),
          "Write `size` bytes (1, 2 or 4) of the PCI configuration space at `off`; read-only bits keep their value.")
      .def(
          "step", [](IoatModel& model, Whole<uint32_t> n) { return model.step(n); }, py::arg("n") = 1,
          py::call_guard<Unlocked>(),
          "Carry out up to `n` descriptors; returns how many. Raises DmaError unless the mode is \"stepped\".")
      .def(
          "inject",
          [](IoatModel& model, const std::string& fault, Whole<uint64_t> nth, Whole<uint64_t> value) {
            model.inject(fault_named(fault), nth, value);
          },
          py::arg("fault"), py::kw_only(), py::arg("nth") = 0, py::arg("value") = 0,
          R"(Arm a fault; `nth` counts from 0, starting now.

"error": the nth descriptor fails with CHANERR bit `value`. "corrupt": it writes a wrong byte. "stuck": it never ends.
"drop_writeback", "drop_interrupt": the nth one is lost, and `value` - 1 more. "torn_status": the nth 8-byte read of
CHANSTS tears (below 3.3). "reset_hang": the nth RESET never clears. "gone": the device leaves the bus before the nth
descriptor; for 0, at once. "latency": `value` ns before the first fetch. "bandwidth": `value` bytes per second. The
last two need mode "threaded". Raises ConfigError (no such fault) or DmaError (this model cannot show it).)")
      .def(
          "counters",
          [](const IoatModel& model) {
            const IoatModel::Counters counters = model.counters();
            py::dict dict;
            dict["descriptors"] = counters.descriptors;
            dict["bytes"] = counters.bytes;
            dict["interrupts"] = counters.interrupts;
            dict["errors"] = counters.errors;
            return dict;
          },
          "What the device has done since it was made, as a dict: descriptors (including null ones), bytes, "
          "interrupts,\n"
          "errors.");

  py::class_<PyModel, IoatModel, std::shared_ptr<PyModel>>(
      m, "IoatModel",
      R"(A software I/OAT channel: registers, configuration space, memory map and engine.

device_id and cbver choose the identity: 0x0b00 with 0x34 (Ice Lake), 0x2021 with 0x33 (Skylake), 0x6f20 with 0x32
(Broadwell). xfercap is log2 of the most bytes of one descriptor. mode: "inline" (copies happen inside the write of
DMACOUNT), "stepped" (inside step()) or "threaded" (a worker thread makes them). Any thread may use it. Raises
ConfigError.)")
      .def(py::init(
               [](Whole<uint16_t> device_id, Whole<uint8_t> cbver, const std::string& mode, Whole<uint8_t> xfercap) {
                 return std::make_shared<PyModel>(IoatModel::Options{device_id, cbver, model_mode(mode), xfercap});
               }),
           py::arg("device_id") = 0x0b00, py::arg("cbver") = 0x34, py::kw_only(), py::arg("mode") = "inline",
           py::arg("xfercap") = 20)
      .def(
          "map", [](PyModel& self, Whole<uint64_t> iova, const py::object& buffer) { self.map(iova, buffer); },
          py::arg("iova"), py::arg("buffer"),
          R"(Map `buffer`, which must be writable and contiguous, at `iova`. The model keeps the buffer alive.

The first page of IOVAs is never reachable. Raises DmaError when the range overlaps another one, and BufferError when
the buffer is read-only or not contiguous.)")
      .def(
          "unmap", [](PyModel& self, Whole<uint64_t> iova) { self.unmap(iova); }, py::arg("iova"),
          "Unmap the buffer mapped at exactly `iova`; waits for a descriptor that is being carried out. Raises\n"
          "DmaError when none is mapped there.");
}

void register_channel(py::module_& m) {
  py::class_<PyChannel>(
      m, "IoatChannel",
      R"(The driver of one channel: of an IoatModel, or of the hardware at a PCI address ("00:04.0", VFIO).

Addresses are the device's (IOVAs); see map(). Construction resets the channel and tests it with a null descriptor.
ring_size: descriptors, a power of two from 64 to 4096. first_index: where their index starts, to test its wrap.
One thread at a time. Raises DmaError (the channel cannot be used; the message says what to do) or ConfigError (a bad
argument).)")
      .def(py::init([](PyModel& model, Whole<uint32_t> ring_size, Whole<uint32_t> first_index) {
             return std::make_unique<PyChannel>(model.shared_from_this(), ChannelOptions{ring_size, first_index});
           }),
           py::arg("model_or_bdf"), py::kw_only(), py::arg("ring_size") = 1024, py::arg("first_index") = 0)
      .def(py::init([](const std::string& bdf, Whole<uint32_t> ring_size, Whole<uint32_t> first_index) {
             return std::make_unique<PyChannel>(bdf, ChannelOptions{ring_size, first_index});
           }),
           py::arg("model_or_bdf"), py::kw_only(), py::arg("ring_size") = 1024, py::arg("first_index") = 0)
      .def("map", in_turn(&PyChannel::map), py::arg("iova"), py::arg("buffer"),
           R"(Map `buffer`, which must be writable and contiguous, at `iova`. For a model this is IoatModel.map().

Hardware needs whole pages (such as an mmap object). The channel, or the model, keeps the buffer alive. Raises DmaError
or BufferError.)")
      .def("unmap", in_turn(&PyChannel::unmap), py::arg("iova"),
           "Unmap the buffer mapped at exactly `iova`. Raises DmaError when none is mapped there.")
      .def("copy", in_turn(&PyChannel::copy), py::arg("dst"), py::arg("src"), py::arg("n"),
           R"(Put a copy of `n` bytes into the ring, in as many descriptors as it needs; returns its number.

Numbers count from 0. Nothing starts before submit(). Raises DmaError when the ring is full, the length is 0, an address
has too many bits, or the channel has failed or is stopped.)")
      .def("fill", in_turn(&PyChannel::fill), py::arg("dst"), py::arg("pattern"), py::arg("n"),
           "Put a fill of `n` bytes with the 64-bit `pattern`, least significant byte first, into the ring;\n"
           "otherwise like copy().")
      .def("submit", in_turn(&PyChannel::submit),
           "Ring the doorbell (DMACOUNT) for everything put into the ring since the last call.")
      .def("poll", in_turn(&PyChannel::poll),
           R"(Return [(number, status), ...] of the operations that ended since the last call, in order. Never waits.

status: "ok"; "error" (the device failed at it); "not_attempted" (it came after that one, or the channel was reset).
After a failure all are returned at once, and reset() makes the channel work again.)")
      .def("reset", in_turn(&PyChannel::reset),
           "Stop the channel and restart it. It takes operations again once poll() has returned what was outstanding.\n"
           "Raises DmaError when that fails.")
      .def("stats", in_turn(&PyChannel::stats),
           "Counters as a dict: descriptors submitted and completed, bytes, errors, resets.")
      .def_property_readonly("outstanding", in_turn(&PyChannel::outstanding),
                             "Copies and fills whose status poll() has not returned yet.")
      .def_property_readonly("failed", in_turn(&PyChannel::failed),
                             "Whether the channel has halted or the device is gone.")
      .def_property_readonly("why", in_turn(&PyChannel::why), "What failed, in a sentence; \"\" when nothing did.");
}

}  // namespace

void register_dma(py::module_& parent) {
  py::module_ m = parent.def_submodule("dma", "I/OAT: the software device, and the driver of a channel.");
  register_model(m);
  register_channel(m);
  register_dma_pci(m);
}

}  // namespace vhost_ioat::bindings
