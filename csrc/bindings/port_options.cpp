// SPDX-License-Identifier: BSD-3-Clause
#include "bindings/port_options.hpp"

#include <pybind11/stl.h>

#include <map>
#include <string>
#include <type_traits>
#include <utility>

namespace vhost_ioat::bindings {

namespace {

/// An option of a port in Python and back; both throw pybind11's exceptions.
struct CoreOption {
  void (*set)(port::PortConfig&, const py::handle&);
  py::object (*get)(const port::PortConfig&);
};

template <auto member>
constexpr CoreOption plain_option() {
  using Field = std::remove_cvref_t<decltype(std::declval<port::PortConfig>().*member)>;
  return {[](port::PortConfig& config, const py::handle& value) { config.*member = value.cast<Field>(); },
          [](const port::PortConfig& config) { return py::cast(config.*member); }};
}

/// None stands for 0, which the option itself cannot be.
template <auto member>
constexpr CoreOption number_or_none() {
  using Field = std::remove_cvref_t<decltype(std::declval<port::PortConfig>().*member)>;
  return {[](port::PortConfig& config, const py::handle& value) {
            config.*member = value.is_none() ? Field{0} : value.cast<Field>();
          },
          [](const port::PortConfig& config) {
            return config.*member == 0 ? py::none() : py::object(py::int_(config.*member));
          }};
}

/// What Devargs.core_options() of Python has to give, no less and no more.
const std::map<std::string, CoreOption>& core_options() {
  using Config = port::PortConfig;
  static const auto& all = *new std::map<std::string, CoreOption>{
      {"name", plain_option<&Config::name>()},
      {"iface", plain_option<&Config::iface>()},
      {"queues", plain_option<&Config::queues>()},
      {"client", plain_option<&Config::client>()},
      {"features",
       {[](Config& config, const py::handle& value) {
          config.features = virtio::FeatureSet(value.cast<uint64_t>()) & virtio::supported_features;
        },
        [](const Config& config) { return py::cast(config.features.mask()); }}},
      {"ioats", plain_option<&Config::ioats>()},
      {"ioat_threshold", number_or_none<&Config::ioat_threshold>()},
      {"ioat_fallback", plain_option<&Config::ioat_fallback>()},
      {"publish",
       {[](Config& config, const py::handle& value) {
          config.publish = value.cast<std::string>() == "dma" ? port::Publish::dma : port::Publish::cpu;
        },
        [](const Config& config) { return py::cast(config.publish == port::Publish::dma ? "dma" : "cpu"); }}},
      {"sw_mode", plain_option<&Config::sw_mode>()},
      {"socket_mode", plain_option<&Config::socket_mode>()},
      {"mempool", plain_option<&Config::mempool>()},
      {"max_guest_mem", number_or_none<&Config::max_guest_mem>()},
  };
  return all;
}

}  // namespace

port::PortConfig config_from(const py::kwargs& given) {
  port::PortConfig config;
  for (const auto& [name, option] : core_options()) {
    if (!given.contains(name)) throw py::type_error("Port: the option " + name + " is missing");
    option.set(config, given[name.c_str()]);
  }
  for (const auto& item : given) {
    const auto name = item.first.cast<std::string>();
    if (!core_options().contains(name)) throw py::type_error("Port: there is no option " + name);
  }
  return config;
}

py::dict default_options() {
  py::dict defaults;
  for (const auto& [name, option] : core_options()) defaults[py::str(name)] = option.get({});
  return defaults;
}

}  // namespace vhost_ioat::bindings
