// SPDX-License-Identifier: BSD-3-Clause
#include <poll.h>
#include <pybind11/stl.h>

#include <chrono>
#include <thread>

#include "base/error.hpp"
#include "bindings/burst.hpp"
#include "bindings/port_options.hpp"
#include "bindings/port_records.hpp"
#include "port/eth_vhost.hpp"

namespace vhost_ioat::bindings {

namespace {

using port::EthVhost;

/// A burst of more bytes than this is worth handing the GIL to another thread for (benchmarks/ has the measurement).
constexpr uint64_t release_gil_above = 256 << 10;

/// The EthVhost of a Port or of a Python subclass of it; the cast of pybind11, without its lookups.
EthVhost& unwrap(PyObject* self) {
  auto* instance = reinterpret_cast<py::detail::instance*>(self);
  auto* port = static_cast<EthVhost*>(instance->simple_layout ? instance->simple_value_holder[0]
                                                              : py::cast<EthVhost*>(py::handle(self)));
  if (!port) refuse_empty_instance();
  return *port;
}

uint32_t checked_queue(const EthVhost& port, long long queue) {
  if (queue < 0 || queue >= static_cast<long long>(port.queues()))
    throw py::index_error(format("queue %lld is out of range: the port has %u", queue, port.queues()));
  return static_cast<uint32_t>(queue);
}

/// Positional and keyword arguments of the two burst methods: the second one and its name differ, no more.
struct BurstArguments {
  PyObject* queue = nullptr;
  PyObject* second = nullptr;

  BurstArguments(PyObject* const* args, Py_ssize_t n, PyObject* names, const char* method, const char* second_name) {
    if (n > 2) throw py::type_error(format("%s() takes at most 2 arguments, got %zd", method, n));
    if (n > 0) queue = args[0];
    if (n > 1) second = args[1];
    for (Py_ssize_t i = 0; names && i < PyTuple_GET_SIZE(names); ++i) {
      PyObject* name = PyTuple_GET_ITEM(names, i);
      PyObject*& slot = PyUnicode_CompareWithASCIIString(name, "queue_id") == 0 ? queue : second;
      if (&slot == &second && PyUnicode_CompareWithASCIIString(name, second_name) != 0)
        throw py::type_error(format("%s() has no argument '%s'", method, PyUnicode_AsUTF8(name)));
      if (slot) throw py::type_error(format("%s() got '%s' twice", method, PyUnicode_AsUTF8(name)));
      slot = args[n + i];
    }
    if (!queue) throw py::type_error(format("%s() needs a queue_id", method));
  }
};

PyObject* rx_burst(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) noexcept {
  return guarded([&] {
    const BurstArguments given(args, n, names, "rx_burst", "nb_pkts");
    EthVhost& port = unwrap(self);
    const uint32_t queue = checked_queue(port, clamped(given.queue));
    const long long nb_pkts = given.second ? clamped(given.second) : 32;
    if (nb_pkts < 1) throw py::value_error(format("nb_pkts is %lld; ask for at least 1 packet", nb_pkts));
    return new_burst(port.rx_burst(queue, static_cast<uint32_t>(std::min<long long>(nb_pkts, UINT32_MAX))));
  });
}

PyObject* tx_burst(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) noexcept {
  return guarded([&] {
    const BurstArguments given(args, n, names, "tx_burst", "pkts");
    if (!given.second) throw py::type_error("tx_burst() needs pkts: a Burst or a sequence of packets");
    EthVhost& port = unwrap(self);
    const uint32_t queue = checked_queue(port, clamped(given.queue));
    const PacketArgument packets(given.second, virtio::max_ring_size);
    const port::PacketView& view = packets.view();
    uint32_t sent;
    if (uint64_t{view.count} * view.stride > release_gil_above && packets.bytes() > release_gil_above) {
      const Unlocked unlocked;
      sent = port.tx_burst(queue, view);
    } else {
      sent = port.tx_burst(queue, view);
    }
    return PyLong_FromUnsignedLong(sent);
  });
}

PyMethodDef burst_methods[] = {
    {"rx_burst", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(rx_burst)), METH_FASTCALL | METH_KEYWORDS,
     "rx_burst($self, queue_id, nb_pkts=32)\n--\n\n"
     "Receive up to `nb_pkts` packets that the guest has sent on queue `queue_id`.\n\n"
     "Never waits, and may return fewer. Returns an empty, falsy Burst when there are no packets, the link is down,\n"
     "or the packet memory is exhausted (counted by rx_nombuf). The Burst owns its memory, up to 1 MiB, all of\n"
     "which lives as long as the Burst, a slice, a packet or an array of it. Use detach() to copy packets that are\n"
     "kept for long.\n\n"
     "When bursts that are held have cut up the packet memory (`mempool`), bursts get shorter. If the first packet\n"
     "does not fit into the largest free piece (info().mempools), it is dropped and counted (rx_nombuf and\n"
     "rx_qN_nombuf_dropped), so that those after it pass. While no memory is free at all, packets wait in the\n"
     "guest. An event reports each of the two, once each time it begins.\n\n"
     "Raises IndexError (no such queue), ValueError (nb_pkts < 1), or VhostIoatError (another thread is inside this\n"
     "queue, or the port is closed). One caller per queue; holds the GIL. (rte_eth_rx_burst; VIRTIO 1.2, 2.7.14)"},
    {"tx_burst", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(tx_burst)), METH_FASTCALL | METH_KEYWORDS,
     "tx_burst($self, queue_id, pkts)\n--\n\n"
     "Send packets, a Burst or a sequence of packets, to the guest; returns how many were taken, from the front.\n\n"
     "The others found no buffers; send pkts[n:] again. A packet is bytes, bytearray, a memoryview of bytes, or a\n"
     "1-D array of uint8 or int8 in C order; the sequence may be a 2-D array of such rows.\n\n"
     "Never waits. A packet that the queue can never take is counted as taken, dropped, and counted in oerrors. A\n"
     "Burst is not consumed and may be sent to several ports. If it is written to before tx_pending() is 0, either\n"
     "content is sent.\n\n"
     "Raises IndexError (no such queue), TypeError (an item is not a packet) or ValueError (a length is above the\n"
     "stride), in which cases nothing was sent; or VhostIoatError (another thread is inside this queue, or the port\n"
     "is closed). One caller per queue; holds the GIL except for bursts above 256 KiB. (rte_eth_tx_burst; VIRTIO\n"
     "1.2, 2.7.14)"},
    {nullptr, nullptr, 0, nullptr},
};

py::list take_events(EthVhost& port, const Seconds& timeout) {
  std::vector<port::Event> events = port.reports().take_events();
  if (events.empty() && (timeout.forever || timeout.value > 0)) {
    wait_in_slices(timeout, [&](double slice) {
      pollfd waiting{port.reports().fileno(), POLLIN, 0};
      ::poll(&waiting, 1, static_cast<int>(slice * 1000) + 1);
      events = port.reports().take_events();
      return !events.empty();
    });
  }
  return event_dicts(events);
}

bool tx_drain(EthVhost& port, Clamped queue_id, const Seconds& timeout) {
  const uint32_t queue = checked_queue(port, queue_id);
  // The control thread finishes what is in flight; calling in here as well would only meet a caller.
  return wait_in_slices(timeout, [&](double slice) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(slice);
    while (port.tx_pending(queue) != 0) {
      if (std::chrono::steady_clock::now() >= until) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    return true;
  });
}

bool wait_link(EthVhost& port, bool up, const Seconds& timeout) {
  bool reached = false;
  wait_in_slices(timeout, [&](double slice) {
    const auto duration =
        std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(slice));
    reached = port.wait_link(up, std::chrono::steady_clock::now() + duration);
    return reached || port.closed();
  });
  return reached;
}

}  // namespace

void register_port(py::module_& m) {
  using release = py::call_guard<Unlocked>;
  m.def("_default_options", default_options, "Defaults of the core; Devargs has those of Python, which are the same.");
  py::class_<EthVhost, std::shared_ptr<EthVhost>> port(m, "Port", "The native part of EthVhost.");
  port.def(py::init([](const py::kwargs& options) {
        port::PortConfig config = config_from(options);
        const Unlocked unlocked;
        return std::shared_ptr<EthVhost>(new EthVhost(std::move(config)), [](EthVhost* ending) {
          const Unlocked waiting;
          delete ending;
        });
      }))
      .def("start", &EthVhost::start, release())
      .def("stop", &EthVhost::stop, release())
      .def("close",
           [](const py::object& self) {
             if (left_to_parent(self)) return;
             auto& ending = self.cast<EthVhost&>();
             const Unlocked unlocked;
             ending.close();
           })
      .def(
          "tx_done_cleanup",
          [](EthVhost& self, Clamped queue_id) { return self.tx_done_cleanup(checked_queue(self, queue_id)); },
          py::arg("queue_id"),
          "Publish what the engine has finished; returns the number of packets reaped by this call. One caller per\n"
          "queue. (rte_eth_tx_done_cleanup)")
      .def(
          "tx_pending", [](EthVhost& self, Clamped queue_id) { return self.tx_pending(checked_queue(self, queue_id)); },
          py::arg("queue_id"),
          "The number of packets taken by tx_burst and not yet shown to the guest. Any thread may call this.")
      .def("tx_drain", &tx_drain, py::arg("queue_id"), py::arg("timeout") = py::none(),
           "Wait until nothing is pending on the queue. Returns True, or False after `timeout` seconds; None waits\n"
           "for ever. Releases the GIL and honours Ctrl-C.")
      .def("wait_link", &wait_link, py::arg("up") = true, py::arg("timeout") = py::none())
      .def(
          "fileno", [](EthVhost& self) { return self.reports().fileno(); },
          "An fd that is readable while events() has something to return; it belongs to the port.")
      .def(
          "rx_fileno", [](EthVhost& self, Clamped q) { return self.rx_fileno(checked_queue(self, q)); },
          py::arg("queue_id"),
          R"(An fd that becomes readable when the guest kicks rx queue `queue_id` after rx_intr_enable().

It stays the same across reconnects and belongs to the port.)")
      .def(
          "rx_intr_enable", [](EthVhost& self, Clamped q) { return self.rx_intr_enable(checked_queue(self, q)); },
          py::arg("queue_id"),
          R"(Ask the guest to kick when it sends, and check once more: True means that packets wait already.

In that case receive them instead of waiting for the fd. (rte_eth_dev_rx_intr_enable; VIRTIO 1.2, 2.7.10))")
      .def(
          "rx_intr_disable", [](EthVhost& self, Clamped q) { self.rx_intr_disable(checked_queue(self, q)); },
          py::arg("queue_id"), "Ask the guest not to kick when it sends. (rte_eth_dev_rx_intr_disable)")
      .def("stats_reset", &EthVhost::stats_reset, "Reset the counters of stats() to 0.")
      .def("xstats_reset", &EthVhost::xstats_reset, "Reset the counters of xstats() to 0; gauges keep their values.")
      .def(
          "xstats",
          [](const EthVhost& self) {
            py::dict d;
            for (const auto& [name, value] : self.xstats()) d[py::str(name)] = value;
            return d;
          },
          "Extended statistics by name: those of net_vhost under its names, drop reasons, and those of the DMA engine.")
      .def(
          "engine_model", [](EthVhost& self, Clamped q) { return self.engine_model(checked_queue(self, q)); },
          py::arg("queue_id"),
          R"(The device of the software engine of tx queue `queue_id`, to inject faults or to step it.

Stepping needs sw_mode="stepped". None when the queue has a hardware engine or no engine.)")
      .def("_stats", &stats_dict, py::kw_only(), py::arg("raw") = false)
      .def("_link",
           [](const EthVhost& self) {
             using py::literals::operator""_a;
             return py::dict("up"_a = self.link_up(), "speed_mbps"_a = 10000, "full_duplex"_a = true);
           })
      .def("_info", &info_dict)
      .def("_events", &take_events, py::arg("timeout"))
      .def("_messages",
           [](EthVhost& self) {
             py::list out;
             for (const auto& line : self.reports().take_log())
               out.append(py::make_tuple(static_cast<int>(line.level), line.text));
             return out;
           })
      .def("_report",
           [](EthVhost& self, const std::string& text) {
             using port::Subject;
             self.reports().add({.kind = Subject::Kind::port, .level = Subject::Level::info}, text.c_str());
           })
      .def("_state", &EthVhost::state);
  for (PyMethodDef* method = burst_methods; method->ml_name; ++method) {
    PyObject* descriptor = PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(port.ptr()), method);
    if (!descriptor) throw py::error_already_set();
    py::setattr(port, method->ml_name, py::reinterpret_steal<py::object>(descriptor));
  }
}

}  // namespace vhost_ioat::bindings
