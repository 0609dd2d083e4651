// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include "bindings/bindings.hpp"
#include "port/config.hpp"

namespace vhost_ioat::bindings {

/// From what Devargs.core_options() of Python gives. Throws TypeError for an option that is missing or that there is
/// not.
port::PortConfig config_from(const py::kwargs& given);
/// What C++ programs get that do not say otherwise; a test compares it with the defaults of Devargs.
py::dict default_options();

}  // namespace vhost_ioat::bindings
