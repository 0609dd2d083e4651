// SPDX-License-Identifier: BSD-3-Clause
#include "dma/registry.hpp"

#include <set>
#include <utility>

#include "base/error.hpp"
#include "base/mutex.hpp"
#include "dma/hardware_engine.hpp"
#include "dma/pci.hpp"
#include "dma/soft_engine.hpp"

namespace vhost_ioat::dma {
namespace {

/// A PCI function that this process uses, until the device is closed.
class Claim {
 public:
  explicit Claim(std::string address) : address_(std::move(address)) {
    const MutexLock lock(all().mutex);
    if (!all().taken.insert(address_).second)
      throw ConfigError(format("ioats: %s already serves another port of this process", address_.c_str()));
  }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;
  ~Claim() {
    const MutexLock lock(all().mutex);
    all().taken.erase(address_);
  }

 private:
  struct All {
    Mutex mutex;
    std::set<std::string> taken GUARDED_BY(mutex);
  };
  static All& all() {
    static auto* instance = new All;
    return *instance;
  }

  std::string address_;
};

}  // namespace

bool is_software(const std::string& name) { return name.rfind("sw", 0) == 0; }

EngineOpener::Device EngineOpener::open_device(const std::string& name) const {
  if (is_software(name)) {
    SoftEngine made = make_soft_engine(name, {.mode = model_mode(mode_)});
    return {nullptr, std::move(made.engine), std::move(made.model)};
  }
  const std::string address = normalise_address(name);
  auto claim = std::make_shared<Claim>(address);
  return {std::move(claim), make_hardware_engine(address), nullptr};
}

NamedEngine EngineOpener::open(const std::string& name, bool alone) {
  if (alone) {
    Device device = open_device(name);
    // The claim goes after the device.
    return {std::shared_ptr<DmaEngine>(device.engine.release(),
                                       [claim = std::move(device.claim)](DmaEngine* engine) { delete engine; }),
            std::move(device.model)};
  }
  Shared& shared = shared_[name];
  if (!shared.channel) {
    Device device = open_device(name);
    shared = {Channel::create(std::move(device.engine), std::move(device.claim)), std::move(device.model)};
  }
  return {shared.channel->join(), shared.model};
}

}  // namespace vhost_ioat::dma
