// SPDX-License-Identifier: BSD-3-Clause
#include "guest/guest.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "base/error.hpp"
#include "bindings/burst.hpp"
#include "bindings/net_header.hpp"
#include "port/arenas.hpp"

namespace vhost_ioat::bindings {

namespace {

using guest::Guest;

guest::GuestConfig config_from(Path path, Whole<uint32_t> queues, bool server, Whole<uint32_t> ring_size,
                               std::optional<Whole<uint64_t>> features, Whole<uint32_t> rx_buf, Whole<uint16_t> mtu,
                               Whole<uint32_t> segment) {
  guest::GuestConfig config{std::move(path.text),    queues, server, ring_size,
                            guest::default_features, rx_buf, mtu,    segment};
  if (features) config.features = virtio::FeatureSet(*features);
  return config;
}

uint32_t checked_queue(const Guest& guest, long long queue) {
  if (queue < 0 || queue >= static_cast<long long>(guest.queues()))
    throw py::index_error(format("queue %lld is out of range: the guest has %u", queue, guest.queues()));
  return static_cast<uint32_t>(queue);
}

/// A wait of this thread for a back end, without the GIL. The front end keeps its Patience, whose tick comes here, for
/// as long as it lives, and is waited with in more calls than the one that made it.
class Waiting {
 public:
  Waiting() { present_ = this; }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;
  ~Waiting() { present_ = nullptr; }

  /// Throws when Ctrl-C came.
  static void tick() {
    if (!present_) return;
    const Locked locked(present_->unlocked_);
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }

 private:
  static thread_local Waiting* present_;
  Unlocked unlocked_;
};
thread_local Waiting* Waiting::present_ = nullptr;

void close(const py::object& self) {
  if (left_to_parent(self)) return;
  auto& guest = self.cast<Guest&>();
  const Turn turn(guest);
  const Unlocked unlocked;  // what the back end has sent may take its time to close
  guest.close();
}

void disconnect(Guest& guest) {
  const Turn turn(guest);
  const Waiting waiting;
  guest.disconnect();
}

void connect(Guest& guest, const Seconds& timeout) {
  vhost_user::Patience patience;
  patience.timeout = std::chrono::ceil<std::chrono::milliseconds>(std::chrono::duration<double>(timeout.or_longest()));
  patience.tick = Waiting::tick;
  const Turn turn(guest);
  const Waiting waiting;
  guest.connect(patience);
}

/// The headers of a numpy array (n,) with the fields of Burst.net_hdr.
class Headers {
 public:
  Headers(const py::object& net_hdr, uint32_t packets) {
    if (net_hdr.is_none()) return;
    array_ = headers_by_name(net_hdr);
    if (array_.size() < packets)
      throw py::value_error(format("net_hdr has %zd entries for %u packets", array_.size(), packets));
  }
  bool given() const { return static_cast<bool>(array_); }
  virtio::NetHeader operator[](uint32_t i) const {
    virtio::NetHeader header;
    std::memcpy(&header, array_.data(i), sizeof header);
    return header;
  }

 private:
  py::array array_{py::reinterpret_steal<py::array>(py::handle())};
};

uint32_t send(Guest& guest, Clamped q, const py::object& pkts, const py::object& net_hdr) {
  const uint32_t queue = checked_queue(guest, q);
  const PacketArgument argument(pkts.ptr(), virtio::max_ring_size);
  const port::PacketView& view = argument.view();
  const Headers headers(net_hdr, view.count);
  std::vector<guest::Packet> packets(std::min(view.count, virtio::max_ring_size));
  for (uint32_t i = 0; i < packets.size(); ++i)
    packets[i] = {view.packet(i), view.length(i), headers.given() ? headers[i] : view.header(i)};
  const Turn turn(guest);
  return guest.send(queue, packets);
}

virtio::Burst receive(Guest& guest, Clamped q, Clamped n) {
  const uint32_t queue = checked_queue(guest, q);
  if (n < 1) throw py::value_error(format("n is %lld; ask for at least 1 packet", n.value));
  const Turn turn(guest);
  return guest.receive(queue, static_cast<uint32_t>(std::min<long long>(n, UINT32_MAX)), *port::common_arena());
}

py::list recv(Guest& guest, Clamped q, Clamped n) {
  const virtio::Burst burst = receive(guest, q, n);
  py::list packets(burst.count);
  for (uint32_t i = 0; i < burst.count; ++i)
    packets[i] = py::bytes(reinterpret_cast<const char*>(burst.row(i)), burst.lengths[i]);
  return packets;
}

py::object recv_burst(Guest& guest, Clamped q, Clamped n) {
  PyObject* burst = new_burst(receive(guest, q, n));
  if (!burst) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(burst);
}

py::array memory_view(const Guest& guest) {
  using Owner = std::shared_ptr<memory::GuestMapping>;
  auto owner = std::make_unique<Owner>(in_turn(&Guest::memory)(guest));
  memory::GuestMapping& mapping = **owner;
  const py::capsule base(owner.release(), [](void* p) { delete static_cast<Owner*>(p); });
  return py::array_t<uint8_t>(static_cast<py::ssize_t>(mapping.size()), mapping.data(), base);
}

py::list rings(const Guest& guest) {
  py::list out;
  for (const guest::RingState& r : in_turn (&Guest::rings)(guest)) {
    using py::literals::operator""_a;
    out.append(py::dict("size"_a = r.size, "free_descriptors"_a = r.free_descriptors, "in_flight"_a = r.in_flight,
                        "avail_index"_a = r.avail_index, "used_index"_a = r.used_index, "packets"_a = r.packets,
                        "bytes"_a = r.bytes, "kicks"_a = r.kicks, "broken"_a = r.broken));
  }
  return out;
}

constexpr const char* guest_doc =
    R"(A network device without the virtual machine: a vhost-user front end with rings in a memfd.

It is a peer for tests, demos and users without a VM, and is independent of EthVhost.

queues: pairs, 1 to 128. server: listen on `path` (from now on) instead of connecting to it. ring_size: a power of two,
2 to 32768. features: mask of the virtio feature bits to acknowledge if offered; None means all but the control queue.
rx_buf: bytes of a receive buffer, 64 to 1048576, virtio header included. mtu: told to the back end if it asks for it.
segment: if not 0, the virtio header gets a descriptor of its own, and packets are split into pieces of this many bytes.

Only connect() and disconnect() wait. One thread at a time; while connected, each queue and direction may have a thread
of its own. Raises ConfigError, or OSError when the socket cannot be created.)";

}  // namespace

void register_guest(py::module_& parent) {
  py::module_ m = parent.def_submodule("guest", "The embedded guest.");
  py::class_<Guest>(m, "Guest", guest_doc)
      .def(py::init([](Path path, Whole<uint32_t> queues, bool server, Whole<uint32_t> ring_size,
                       std::optional<Whole<uint64_t>> features, Whole<uint32_t> rx_buf, Whole<uint16_t> mtu,
                       Whole<uint32_t> segment) {
             return std::make_unique<Guest>(
                 config_from(std::move(path), queues, server, ring_size, features, rx_buf, mtu, segment));
           }),
           py::arg("path"), py::kw_only(), py::arg("queues") = 1, py::arg("server") = false, py::arg("ring_size") = 256,
           py::arg("features") = py::none(), py::arg("rx_buf") = 2048, py::arg("mtu") = 1500, py::arg("segment") = 0)
      .def("connect", &connect, py::arg("timeout") = py::none(),
           R"(Find a back end, negotiate features and start all rings, in new memory.

May be called again after disconnect() or close(), or when the back end has left. timeout: seconds for each step; None
waits for ever. Releases the GIL and honours Ctrl-C. Raises Disconnected (no back end in time), ProtocolError (the back
end refused a request), ConfigError (the back end has fewer queues) or VhostIoatError (already connected).)")
      .def("disconnect", &disconnect,
           R"(Stop each ring (GET_VRING_BASE), so that the next connect() continues at its index, and disconnect.

Releases the GIL. Raises Disconnected or ProtocolError when the back end does not answer properly; the connection is
closed in any case.)")
      .def("close", &close,
           "Disconnect without any message, as a killed virtual machine does, and stop listening. Idempotent.")
      .def("send", &send, py::arg("q"), py::arg("pkts"), py::arg("net_hdr") = py::none(),
           R"(Send packets on queue `q`; returns how many were taken, from the front.

pkts: as for EthVhost.tx_burst(). net_hdr: array (n,) with the fields of Burst.net_hdr, in any order; None uses the
Burst's headers, or zeros. Packets are copied. Raises IndexError (no such queue), TypeError (before anything is sent),
ValueError (a packet above 65553 bytes), Disconnected (nothing was sent and the back end has left) or ProtocolError (the
back end broke the ring).)")
      .def("recv", &recv, py::arg("q"), py::arg("n") = 32,
           "Receive up to `n` packets of queue `q` as bytes, without headers. Raises the same errors as recv_burst().")
      .def("recv_burst", &recv_burst, py::arg("q"), py::arg("n") = 32,
           R"(Receive up to `n` packets of queue `q` as a Burst with its own memory; empty when there are none.

Raises IndexError (no such queue), ValueError (n < 1), Disconnected (no packets and the back end has left) or
ProtocolError (the back end broke the ring).)")
      .def(
          "rx_fileno", [](Guest& self, Clamped q) { return in_turn(&Guest::receive_fd)(self, checked_queue(self, q)); },
          py::arg("q"), "The call eventfd of queue `q` in this connection; it belongs to the guest.")
      .def(
          "rx_intr_enable",
          [](Guest& self, Clamped q) { return in_turn(&Guest::enable_interrupt)(self, checked_queue(self, q)); },
          py::arg("q"),
          "Clear rx_fileno(), ask the back end to signal it, and check again: True means packets wait already.")
      .def(
          "rx_intr_disable",
          [](Guest& self, Clamped q) { in_turn (&Guest::disable_interrupt)(self, checked_queue(self, q)); },
          py::arg("q"), "Ask the back end not to signal rx_fileno(), which is the state after connect().")
      .def("rings", &rings,
           R"(The state of each ring as a dict, in the order receive, send, receive, ...

The keys are size, free_descriptors, in_flight, avail_index, used_index, packets, bytes, kicks, and broken (whether the
back end has signalled the err eventfd).)")
      .def_property_readonly("connected", in_turn(&Guest::connected), "Whether a back end is connected.")
      .def_property_readonly(
          "features", [](Guest& self) { return in_turn(&Guest::features)(self).mask(); },
          "The negotiated virtio feature bits, as a mask.")
      .def_property_readonly("queues", &Guest::queues, "The number of queue pairs.")
      .def_property_readonly("memory", &memory_view,
                             "Guest memory of this connection: a writable uint8 array, zero copy, which keeps the\n"
                             "mapping alive. A child of fork() shares it with the parent and the back end, so its\n"
                             "writes reach them.")
      .def_property_readonly(
          "memory_fd", [](Guest& self) { return in_turn(&Guest::memory)(self)->fd(); },
          "The memfd that holds guest memory; it belongs to the guest.")
      .def("__enter__",
           [](const py::object& self) {
             self.cast<Guest&>();
             return self;
           })
      .def("__exit__", [](const py::object& self, const py::args&) { close(self); });
}

}  // namespace vhost_ioat::bindings
