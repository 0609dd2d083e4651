// SPDX-License-Identifier: BSD-3-Clause
#include "port/recovery.hpp"

#include <cstdio>
#include <exception>

namespace vhost_ioat::port {

void Recovery::keep_why(Time now, const dma::DmaEngine& engine) noexcept {
  try {
    const bool slow = draining_since_ && now - *draining_since_ >= budget::patience_at_stop;
    std::snprintf(why_, sizeof why_, "%s",
                  engine.failed() ? engine.why().c_str()
                  : slow          ? "its copies were waited for, and did not end within 2 s"
                                  : "no progress for 200 ms");
  } catch (const std::exception&) {  // no memory for a sentence
    std::snprintf(why_, sizeof why_, "it halted");
  }
}

Recovery::Outcome Recovery::step(dma::DmaEngine& engine, Time now) {
  using dma::Step;
  const auto spent = now - rung_since_;
  if (rung_ == Rung::suspend) {
    // Suspending lets running copies end, so that a reset that follows has nothing to wait for. It need not succeed.
    if (engine.quiesce() == Step::pending && spent < suspend_time) return Outcome::working;
    climb_to(Rung::reset, now);
  }
  if (rung_ == Rung::reset) {
    const Step step = engine.reset();
    if (step == Step::done && !engine.failed()) {
      rung_ = Rung::none;
      watching_ = false;
      return failures_ >= max_failures ? Outcome::given_up : Outcome::recovered;
    }
    if (step == Step::pending && now - rung_since_ < reset_time) return Outcome::working;
    climb_to(Rung::revoke, now);
  }
  const Step step = engine.revoke();
  if (step == Step::pending && now - rung_since_ < revoke_time) return Outcome::working;
  rung_ = Rung::none;
  watching_ = false;
  return step == Step::done ? Outcome::given_up : Outcome::lost;
}

}  // namespace vhost_ioat::port
