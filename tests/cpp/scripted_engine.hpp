// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <deque>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "dma/engine.hpp"

namespace vhost_ioat::testing {

/// An engine that answers each step as it is told, and pending when it is told nothing. It takes no copies.
class ScriptedEngine final : public dma::DmaEngine {
 public:
  using Step = dma::Step;
  std::deque<Step> quiesce_answers, reset_answers, revoke_answers;
  bool sick = true;
  std::set<const void*> out_of_reach;  // memory that it cannot map
  std::vector<const void*> asked;      // of map()

  const dma::Capabilities& capabilities() const override { return capabilities_; }
  dma::EngineStats stats() const override { return {}; }
  void map(void* host, size_t) override {
    asked.push_back(host);
    if (out_of_reach.contains(host)) throw DmaError("out of its reach");
  }
  void unmap(void*) override {}
  dma::Refusal enqueue(std::span<const dma::Copy>, uint32_t) noexcept override { return dma::Refusal::disabled; }
  void submit() noexcept override {}
  size_t poll(std::span<dma::Completion>) noexcept override { return 0; }
  uint32_t outstanding() const noexcept override { return 1; }
  bool failed() const noexcept override { return sick; }
  std::string why() const override { return "told to"; }
  Step quiesce() noexcept override { return next(quiesce_answers); }
  Step reset() noexcept override {
    const Step step = next(reset_answers);
    if (step == Step::done) sick = false;
    return step;
  }
  Step revoke() noexcept override { return next(revoke_answers); }

 private:
  static Step next(std::deque<Step>& answers) {
    if (answers.empty()) return Step::pending;
    const Step step = answers.front();
    answers.pop_front();
    return step;
  }
  dma::Capabilities capabilities_;
};

}  // namespace vhost_ioat::testing
