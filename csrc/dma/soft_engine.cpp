// SPDX-License-Identifier: BSD-3-Clause
#include "dma/soft_engine.hpp"

#include "base/error.hpp"
#include "dma/ioat_engine.hpp"

namespace vhost_ioat::dma {

IoatModel::Mode model_mode(std::string_view name) {
  if (name == "inline") return IoatModel::Mode::inline_;
  if (name == "stepped") return IoatModel::Mode::stepped;
  if (name == "threaded") return IoatModel::Mode::threaded;
  throw ConfigError(
      format("mode \"%.*s\": must be inline, stepped or threaded", static_cast<int>(name.size()), name.data()));
}

std::function<void()> pause_for(IoatModel& model) {
  if (model.mode() != IoatModel::Mode::stepped) return {};
  return [&model] { model.step(); };
}

SoftEngine make_soft_engine(const std::string& name, const IoatModel::Options& options, ChannelOptions channel) {
  auto model = std::make_shared<IoatModel>(options);
  channel.pause = pause_for(*model);
  const IoatEngine::Identity identity{.name = name, .description = "software I/OAT", .hardware = false};
  auto engine = std::make_unique<IoatEngine>(model, std::make_shared<ModelSpace>(model), identity, channel);
  return {model, std::move(engine)};
}

}  // namespace vhost_ioat::dma
