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

/// Opens the engines of a port by name. The channel at a PCI address is one for the whole process, shared by the queues
/// that name it until the last has let go of it; "swN" is the port's own.
class EngineOpener {
 public:
  /// `mode`: of software devices.
  explicit EngineOpener(std::string mode) : mode_(std::move(mode)) {}

  /// An engine for one queue. `alone`: no other queue of this port names it. Takes some milliseconds, and waits for an
  /// earlier end of the same device. Throws ConfigError (the name, the mode), DmaError (says what stands in the way).
  NamedEngine open(const std::string& name, bool alone);

 private:
  struct SharedSoft {
    std::shared_ptr<Channel> channel;
    std::shared_ptr<IoatModel> model;
  };
  std::string mode_;
  std::map<std::string, SharedSoft> shared_;
};

}  // namespace vhost_ioat::dma
