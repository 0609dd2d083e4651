// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/helper.hpp"
#include "dma/engine.hpp"
#include "dma/ioat_model.hpp"
#include "memory/guest_mapping.hpp"
#include "memory/packet_arena.hpp"
#include "memory/region_table.hpp"
#include "port/recovery.hpp"

namespace vhost_ioat::port {

/// The engine of one tx queue, as the control thread sees it: what memory it knows, how it is doing, and its end.
///
/// What may take long (pinning and unpinning gigabytes, a reset, the end of a worker) is done by a helper thread, one
/// job at a time, while the queue is held; busy() until the control thread has been told of its end. What a job uses is
/// shared with it, so that nobody has to wait for one that never ends.
class EngineSlot {
 public:
  using Mappings = std::vector<std::shared_ptr<memory::GuestMapping>>;
  /// What the last job left to be told.
  struct Outcome {
    Recovery::Outcome recovery = Recovery::Outcome::none;
    std::vector<std::string> refused;  // memory that the engine cannot reach, a sentence each
  };

  /// `ended` is called on the loop after each job, with what it threw.
  EngineSlot(const std::shared_ptr<EventLoop>& loop, std::function<void(std::exception_ptr)> ended);

  void set_engine(std::shared_ptr<dma::DmaEngine> engine, std::shared_ptr<dma::IoatModel> model);
  dma::DmaEngine* engine() const { return work_->engine.get(); }
  const std::shared_ptr<dma::DmaEngine>& shared_engine() const { return work_->engine; }
  /// On the caller's thread, before the queue runs. Memory that the engine cannot reach is left to the CPU.
  void map_arenas_now() { work_->map_arenas(); }
  const std::shared_ptr<dma::IoatModel>& model() const { return model_; }
  bool busy() const noexcept REQUIRES(control_thread) { return task_.running(); }
  /// Is there a job whose end is waited for? One that ends an engine that was given up may never be through: its thread
  /// may have no CPU, and it is let go of.
  bool waited_for() const noexcept REQUIRES(control_thread) { return busy() && !given_up_; }
  bool recovering() const noexcept REQUIRES(control_thread) {
    return work_->job == Job::recovery;
  }  // the job, when busy()
  Recovery::Time busy_since() const noexcept REQUIRES(control_thread) { return work_->now; }  // of a step of recovery
  Recovery& recovery() { return work_->recovery; }

  // ---- jobs; the queue is held, and not busy(). None of them can fail to start.
  /// The engine knows exactly this guest memory after it. False: it does already, there is nothing to wait for.
  bool map_guest(Mappings wanted) noexcept REQUIRES(control_thread);
  /// It knows the packet arenas of the process, as bursts of other ports may be sent here. False: as above.
  bool map_arenas() noexcept REQUIRES(control_thread);
  void step_recovery(Recovery::Time now) noexcept REQUIRES(control_thread);
  /// It ends. `queue` has let go of it.
  void end() noexcept REQUIRES(control_thread);

  /// It is stopped for good, and has handed everything back.
  void give_up() noexcept REQUIRES(control_thread);
  Outcome take_outcome() noexcept REQUIRES(control_thread) { return std::exchange(work_->outcome, {}); }
  /// The engine may still write: what it may write to is never used again.
  void leak() noexcept REQUIRES(control_thread);

  const std::string& state() const { return state_; }  // "ok", or why it is not in use, or for what it stands in
  void set_state(const char* state) noexcept;

 private:
  enum class Job : uint8_t { guest, arenas, recovery, end };
  /// Used by the helper while a job runs, and by the control thread else.
  struct Work {
    void run();
    void map_guest();
    void map_arenas();

    Job job = Job::guest;
    std::shared_ptr<dma::DmaEngine> engine;
    Recovery recovery;
    Recovery::Time now;
    Mappings guest, wanted;  // mapped, and to be mapped
    std::vector<std::shared_ptr<memory::PacketArena>> arenas;
    size_t arenas_seen = 0;
    /// What was asked for last, mapped or not: a mapping that failed is not tried again before there is another table.
    std::vector<std::weak_ptr<memory::GuestMapping>> guest_asked;
    std::vector<std::weak_ptr<memory::PacketArena>> arenas_refused;
    Outcome outcome;
    std::shared_ptr<Work> next_leaked;
  };
  void start(Job job) noexcept REQUIRES(control_thread);

  std::string state_ = "ok";
  bool given_up_ = false;
  std::shared_ptr<HelperLane> lane_;
  std::shared_ptr<Work> work_;
  std::shared_ptr<dma::IoatModel> model_;  // of a software engine
  HelperTask task_;
};

}  // namespace vhost_ioat::port
