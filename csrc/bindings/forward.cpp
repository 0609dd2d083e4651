// SPDX-License-Identifier: BSD-3-Clause
#include "port/forward.hpp"

#include <chrono>

#include "bindings/bindings.hpp"

namespace vhost_ioat::bindings {

namespace {

using port::EthVhost;
using port::Forwarder;

void run(Forwarder& forwarder, const Seconds& seconds) {
  wait_in_slices(seconds, [&](double slice) {
    forwarder.run(std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                                         std::chrono::duration<double>(slice)));
    return false;
  });
}

py::dict side_dict(const Forwarder::Side& side) {
  py::dict d;
  d["received"] = side.received;
  d["consumed"] = side.consumed;
  d["sent"] = side.sent;
  d["dropped_full"] = side.dropped_full;
  d["dropped_down"] = side.dropped_down;
  return d;
}

}  // namespace

void register_forward(py::module_& m) {
  py::class_<Forwarder>(m, "Forwarder",
                        "The native part of forward(). One thread at a time may use it; it keeps its ports alive.")
      .def(py::init([](EthVhost& a, EthVhost& b, const std::string& mode, Whole<uint32_t> burst,
                       const std::string& on_full) {
             return std::make_unique<Forwarder>(a, b, port::forward_mode(mode), burst, port::on_full(on_full));
           }),
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), py::arg("a"), py::arg("b"), py::arg("mode"),
           py::arg("burst"), py::arg("on_full"))
      .def("run", &run, py::arg("seconds"), "Forward for `seconds`, or until Ctrl-C if None. Releases the GIL.")
      .def("finish", &Forwarder::finish, py::call_guard<Unlocked>(),
           "Offer waiting packets once more and drop the rest.")
      .def(
          "sides",
          [](const Forwarder& self) { return py::make_tuple(side_dict(self.sides()[0]), side_dict(self.sides()[1])); },
          "Counts of packets received from, sent to and not taken by a and b; all are with a when both are the same "
          "port.");
}

}  // namespace vhost_ioat::bindings
