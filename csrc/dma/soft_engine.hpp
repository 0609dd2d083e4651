// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "dma/dma_space.hpp"
#include "dma/engine.hpp"
#include "dma/ioat_channel.hpp"
#include "dma/ioat_model.hpp"

namespace vhost_ioat::dma {

/// The memory of a software device, its IOVA map, for the one who drives it.
class ModelSpace final : public DmaSpace {
 public:
  /// Throws DmaError when the device has a driver already.
  explicit ModelSpace(std::shared_ptr<IoatModel> model) : model_(std::move(model)), seat_(model_->take_seat()) {}
  std::vector<IovaRange> usable() const override { return {{IovaMap::first_reachable, ~uint64_t{0}}}; }
  void map(uint64_t iova, void* host, size_t size) override { model_->memory().map(iova, host, size); }
  void unmap(uint64_t iova, size_t) override { model_->memory().unmap(iova); }
  Step revoke() noexcept override { return model_->memory().revoke(); }

 private:
  std::shared_ptr<IoatModel> model_;
  std::shared_ptr<void> seat_;
};

/// "inline", "stepped" or "threaded"; ConfigError for anything else.
IoatModel::Mode model_mode(std::string_view name);

/// An engine and the device it drives; the model is there for tests, to step it and to inject faults.
struct SoftEngine {
  std::shared_ptr<IoatModel> model;
  std::unique_ptr<DmaEngine> engine;  // holds the model too
};

/// The engine "swN": the same driver as for hardware over a software device. Throws ConfigError (ring size).
SoftEngine make_soft_engine(const std::string& name,
                            const IoatModel::Options& model = {.mode = IoatModel::Mode::threaded},
                            ChannelOptions channel = {});

/// For ChannelOptions: while a stepped model is brought up, it is stepped; the others need nothing.
std::function<void()> pause_for(IoatModel& model);

}  // namespace vhost_ioat::dma
