// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <map>
#include <memory>
#include <string>

#include "dma/channel.hpp"
#include "dma/engine.hpp"
#include "dma/ioat_model.hpp"

namespace vhost_ioat::dma {

/// An engine, and the device of a software one, for tests to step and to inject faults; null for hardware.
struct NamedEngine {
  std::shared_ptr<DmaEngine> engine;
  std::shared_ptr<IoatModel> model;
};

/// Whether this names a software engine: "sw" and a number.
bool is_software(const std::string& name);

/// Opens the engines of a port by name. Queues that name the same device share it; other ports never do, so that what
/// one peer does to a device is not felt by another. A PCI address serves one port of the process.
class EngineOpener {
 public:
  /// `mode`: of software devices.
  explicit EngineOpener(std::string mode) : mode_(std::move(mode)) {}

  /// An engine for one queue. `alone`: no other queue of this port names it. Takes some milliseconds. Throws
  /// ConfigError (the name, the mode, an address that serves another port), DmaError (says what stands in the way).
  NamedEngine open(const std::string& name, bool alone);

 private:
  struct Device {
    std::shared_ptr<void> claim;
    std::unique_ptr<DmaEngine> engine;
    std::shared_ptr<IoatModel> model;
  };
  Device open_device(const std::string& name) const;

  struct Shared {
    std::shared_ptr<Channel> channel;
    std::shared_ptr<IoatModel> model;
  };
  std::string mode_;
  std::map<std::string, Shared> shared_;
};

}  // namespace vhost_ioat::dma
