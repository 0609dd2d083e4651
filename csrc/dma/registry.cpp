// SPDX-License-Identifier: BSD-3-Clause
#include "dma/registry.hpp"

#include <condition_variable>
#include <map>
#include <utility>

#include "base/mutex.hpp"
#include "dma/channel.hpp"
#include "dma/hardware_engine.hpp"
#include "dma/pci.hpp"
#include "dma/soft_engine.hpp"

namespace vhost_ioat::dma {
namespace {

/// A device of this process, from its first opening on.
struct Device {
  Mutex mutex;
  std::condition_variable changed;
  bool open GUARDED_BY(mutex) = false;  // or being opened or closed
  std::weak_ptr<Channel> channel GUARDED_BY(mutex);
};

std::shared_ptr<Device> device_at(const std::string& address) {
  static Mutex& mutex = *new Mutex;
  static auto& devices = *new std::map<std::string, std::shared_ptr<Device>>;
  const MutexLock lock(mutex);
  std::shared_ptr<Device>& found = devices[address];
  if (!found) found = std::make_shared<Device>();
  return found;
}

/// Marks the device closed when the engine before it in memory has ended.
class Closing {
 public:
  explicit Closing(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  Closing(const Closing&) = delete;
  Closing& operator=(const Closing&) = delete;
  ~Closing() {
    const MutexLock lock(device_->mutex);
    device_->open = false;
    device_->channel.reset();
    device_->changed.notify_all();
  }

 private:
  std::shared_ptr<Device> device_;
};

std::unique_ptr<DmaEngine> join(const std::string& address) {
  const std::shared_ptr<Device> device = device_at(address);
  std::unique_ptr<Closing> closing;
  std::shared_ptr<Channel> channel;  // never let go of while the mutex is held, as its end takes it
  {
    const MutexLock lock(device->mutex);
    while (device->open) {
      channel = device->channel.lock();
      if (channel) return channel->join();
      device->mutex.wait(device->changed);
    }
    closing = std::make_unique<Closing>(device);
    device->open = true;
  }
  channel = Channel::create(make_hardware_engine(address), std::shared_ptr<void>(std::move(closing)));
  auto client = channel->join();
  const MutexLock lock(device->mutex);
  device->channel = channel;
  device->changed.notify_all();
  return client;
}

}  // namespace

bool is_software(const std::string& name) { return name.rfind("sw", 0) == 0; }

NamedEngine EngineOpener::open(const std::string& name, bool alone) {
  if (!is_software(name)) return {join(normalise_address(name)), nullptr};
  const auto make = [&] { return make_soft_engine(name, {.mode = model_mode(mode_)}); };
  if (alone) {
    SoftEngine made = make();
    return {std::move(made.engine), std::move(made.model)};
  }
  SharedSoft& shared = shared_[name];
  if (!shared.channel) {
    SoftEngine made = make();
    shared = {Channel::create(std::move(made.engine)), std::move(made.model)};
  }
  return {shared.channel->join(), shared.model};
}

}  // namespace vhost_ioat::dma
