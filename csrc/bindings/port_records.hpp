// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <vector>

#include "bindings/bindings.hpp"
#include "port/eth_vhost.hpp"

namespace vhost_ioat::bindings {

// Reports of a port as dicts, whose keys are the fields of the classes in records.py.

/// `raw`: whatever stats_reset() did.
py::dict stats_dict(const port::EthVhost& port, bool raw);
py::dict info_dict(port::EthVhost& port);
py::list event_dicts(const std::vector<port::Event>& events);

}  // namespace vhost_ioat::bindings
