// SPDX-License-Identifier: BSD-3-Clause
#include "bindings/port_records.hpp"

#include <string>

namespace vhost_ioat::bindings {

using py::literals::operator""_a;

namespace {

py::object text_or_none(const std::string& text) { return text.empty() ? py::none() : py::object(py::str(text)); }

py::dict control_dict(const virtio::ControlState& state) {
  const auto texts = [](const std::vector<virtio::MacAddress>& addresses) {
    py::tuple out(addresses.size());
    for (size_t i = 0; i < addresses.size(); ++i) out[i] = virtio::text_of(addresses[i]);
    return out;
  };
  py::list vlans;
  for (size_t id = 0; id < state.vlans.size(); ++id)
    if (state.vlans[id]) vlans.append(id);
  return py::dict("promiscuous"_a = state.promiscuous, "all_multicast"_a = state.all_multicast,
                  "all_unicast"_a = state.all_unicast, "no_multicast"_a = state.no_multicast,
                  "no_unicast"_a = state.no_unicast, "no_broadcast"_a = state.no_broadcast,
                  "mac"_a = text_or_none(state.mac ? virtio::text_of(*state.mac) : std::string()),
                  "unicast"_a = texts(state.unicast), "multicast"_a = texts(state.multicast),
                  "vlans"_a = py::tuple(vlans), "queue_pairs"_a = state.queue_pairs);
}

}  // namespace

py::dict stats_dict(const port::EthVhost& port, bool raw) {
  const port::PortStats s = raw ? port.raw_stats() : port.stats();
  py::dict d;
  for (const auto& [name, field] : port::PortStats::fields) d[name] = s.*field;
  for (const auto& [name, field] : port::PortStats::queue_fields) {
    py::tuple values(s.queues.size());
    for (size_t q = 0; q < s.queues.size(); ++q) values[q] = s.queues[q].*field;
    d[name] = values;
  }
  return d;
}

py::dict info_dict(port::EthVhost& port) {
  port::EthVhost::Info info;
  {
    const Unlocked unlocked;
    info = port.info();
  }
  py::list regions, rings, engines, mempools;
  for (const auto& r : info.regions) regions.append(py::dict("gpa"_a = r.gpa, "size"_a = r.size));
  for (const auto& r : info.rings) {
    rings.append(py::dict("index"_a = r.index, "size"_a = r.size, "started"_a = r.started, "enabled"_a = r.enabled,
                          "broken"_a = text_or_none(r.broken)));
  }
  for (const auto& e : info.engines) {
    engines.append(py::dict("queue"_a = e.queue, "name"_a = e.name, "description"_a = e.description,
                            "hardware"_a = e.hardware, "active"_a = e.active, "state"_a = e.state));
  }
  for (const auto& m : info.mempools) {
    mempools.append(
        py::dict("queue"_a = m.queue, "size"_a = m.size, "in_use"_a = m.in_use, "largest_free"_a = m.largest_free));
  }
  return py::dict("driver"_a = "eth_vhost_ioat", "features"_a = info.features,
                  "protocol_features"_a = info.protocol_features, "mtu"_a = info.mtu, "regions"_a = regions,
                  "rings"_a = rings, "engines"_a = engines, "mempools"_a = mempools,
                  "control"_a = control_dict(info.control), "last_error"_a = text_or_none(info.last_error));
}

py::list event_dicts(const std::vector<port::Event>& events) {
  py::list out;
  for (const auto& e : events) {
    const py::object queue = e.queue ? py::object(py::int_(e.queue->number)) : py::none();
    out.append(py::dict("kind"_a = port::name_of(e.kind), "queue"_a = queue, "rx"_a = e.queue && e.queue->rx(),
                        "enabled"_a = e.enabled, "text"_a = e.text));
  }
  return out;
}

}  // namespace vhost_ioat::bindings
