// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/event_loop.hpp"
#include "base/latch.hpp"
#include "base/mutex.hpp"
#include "dma/ioat_model.hpp"
#include "dma/registry.hpp"
#include "memory/packet_arena.hpp"
#include "port/config.hpp"
#include "port/control_ring.hpp"
#include "port/engine_slot.hpp"
#include "port/kick_watch.hpp"
#include "port/reports.hpp"
#include "port/rx_interrupt.hpp"
#include "port/rx_queue.hpp"
#include "port/statistics.hpp"
#include "port/tx_queue.hpp"
#include "vhost_user/endpoint.hpp"
#include "vhost_user/session.hpp"

namespace vhost_ioat::port {

/// A poll-mode port whose wire is the virtio-net card of a virtual machine.
///
/// rx_burst and tx_burst belong to the caller's threads, one per queue and direction; everything the front end says is
/// handled on the control thread. They meet in the owner word of each queue, and nowhere else.
class EthVhost final : private vhost_user::Device, private vhost_user::EndpointOwner {
 public:
  explicit EthVhost(PortConfig config);  // throws ConfigError, or DmaError for an engine without fallback
  EthVhost(const EthVhost&) = delete;
  EthVhost& operator=(const EthVhost&) = delete;
  ~EthVhost();

  // ---- life cycle: any thread but the control thread; may wait for it
  void start();
  void stop();
  void close();
  bool closed() const { return closed_.load(std::memory_order_relaxed); }
  bool forked() const { return loop_->forked(); }

  // ---- data path: one caller per queue and direction. Throw Error for a second caller or a closed port, before
  // anything happens; queue < queues().
  virtio::Burst rx_burst(uint32_t queue, uint32_t n);
  uint32_t tx_burst(uint32_t queue, const PacketView& packets);
  uint32_t tx_done_cleanup(uint32_t queue);
  /// Is it worth offering again what tx_burst did not take: does the ring run, enabled and unbroken? True as well while
  /// the control thread has the queue.
  bool tx_serves(uint32_t queue);
  /// Any thread.
  uint32_t tx_pending(uint32_t queue) const { return txqs_[queue]->pending_packets(); }
  /// The device behind a software engine, to inject faults or to step it; null for hardware or none.
  std::shared_ptr<dma::IoatModel> engine_model(uint32_t queue) const {
    return queue < engines_.size() && engines_[queue] ? engines_[queue]->model() : nullptr;
  }

  // ---- interrupt mode: the caller of the queue
  int rx_fileno(uint32_t queue) const { return interrupts_[queue]->fileno(); }
  /// From here on until rx_intr_disable(), whatever happens to the ring, rx_fileno() becomes readable when packets
  /// come. True: some wait already.
  bool rx_intr_enable(uint32_t queue);
  void rx_intr_disable(uint32_t queue);

  // ---- reports: any thread
  const char* state();  // "stopped", "listening", "connecting", "connected", "up", "closed"
  bool link_up() const { return link_up_.load(std::memory_order_acquire); }
  bool wait_link(bool up, std::chrono::steady_clock::time_point until);
  Reports& reports() { return reports_; }
  uint32_t queues() const { return config_.queues; }
  const PortConfig& config() const { return config_; }
  const std::shared_ptr<memory::PacketArena>& arena(uint32_t queue = 0) const { return arenas_[queue]; }

  using Stats = PortStats;
  using XStats = std::vector<std::pair<std::string, uint64_t>>;
  Stats stats() const;
  Stats raw_stats() const;  // whatever stats_reset() did
  void stats_reset();
  XStats xstats() const;
  void xstats_reset();

  struct RingInfo {
    uint32_t index = 0, size = 0;
    bool started = false, enabled = false, running = false;
    uint16_t last_avail = 0, used = 0;
    std::string broken;
  };
  struct RegionInfo {
    uint64_t gpa, uva, size;
  };
  struct EngineInfo {
    uint32_t queue;
    std::string name, description;
    bool hardware, active;
    std::string state;  // "ok", or why it is not in use, or for what it stands in
  };
  struct MempoolInfo {
    uint32_t queue;  // rx
    size_t size, in_use, largest_free;
  };
  struct Info {
    bool connected = false;
    uint64_t features = 0, protocol_features = 0;
    uint16_t mtu = 0;
    virtio::ControlState control;
    std::vector<RegionInfo> regions;
    std::vector<RingInfo> rings;
    std::vector<EngineInfo> engines;
    std::vector<MempoolInfo> mempools;
    std::string last_error;
  };
  Info info();

 private:
  // ---- the session above us (control.cpp), on the control thread
  void prepare(const vhost_user::RingSet& rings, const vhost_user::SessionState& next) override
      REQUIRES(control_thread);
  bool hold(const vhost_user::RingSet& rings, vhost_user::Hold how) noexcept override REQUIRES(control_thread);
  std::optional<uint16_t> ring_base(uint32_t ring) noexcept override REQUIRES(control_thread);
  void commit(const vhost_user::RingSet& rings, const vhost_user::SessionState& next) noexcept override
      REQUIRES(control_thread);
  void prepare_halt() noexcept override REQUIRES(control_thread);
  void halt() noexcept override REQUIRES(control_thread);
  void announce(const uint8_t (&mac)[6]) noexcept override REQUIRES(control_thread);
  void remark(const char* text) noexcept override REQUIRES(control_thread);
  std::unique_ptr<vhost_user::BackendSession> make_session() override REQUIRES(control_thread);
  void after_message(const vhost_user::SessionState& state) override REQUIRES(control_thread);
  void disconnected(const char* reason, bool broken) noexcept override REQUIRES(control_thread);
  void trouble(const char* what) noexcept override REQUIRES(control_thread);

  /// What a ring will be, made ready while it still is what it was.
  struct Prepared {
    RingSetup setup;
    vhost_user::SharedFd kick;     // of a ring that runs
    vhost_user::SharedFd watched;  // and of one that does not
    bool control = false;          // it is the control queue's
    RxQueue::Prepared rx;
    TxQueue::Prepared tx;
    EngineSlot::Mappings guest;  // for the engine, until it was asked
    bool guest_asked = false;
  };
  static constexpr auto hold_retry = std::chrono::microseconds(100);
  uint32_t queue_rings() const { return 2 * config_.queues; }
  uint32_t rings() const { return queue_rings() + 1; }  // and the control queue's
  VringQueue& vring_queue(QueueId id);
  bool holding(QueueId id) const REQUIRES(control_thread) { return holding_[id.ring()]; }
  bool hold_step() noexcept REQUIRES(control_thread);
  void hold_later() REQUIRES(control_thread);
  Prepared prepare_ring(uint32_t ring, const vhost_user::SessionState& next) REQUIRES(control_thread);
  void take_over(uint32_t ring, Prepared ready) noexcept REQUIRES(control_thread);
  void take_over_control(uint32_t ring, Prepared& ready) noexcept REQUIRES(control_thread);
  void give_back(VringQueue& queue) noexcept REQUIRES(control_thread);
  void take_over_rx(uint32_t queue, Prepared ready) noexcept REQUIRES(control_thread);
  void control_changed(const char* change) REQUIRES(control_thread);
  void advise(uint32_t ring, KickWatch::Advice advice) noexcept REQUIRES(control_thread);
  void set_link(bool up) noexcept REQUIRES(control_thread);

  // ---- service of the queues (service.cpp), on the control thread
  void wake_control() noexcept;  // any thread
  void service() noexcept REQUIRES(control_thread);
  bool service_tx(uint32_t queue) noexcept REQUIRES(control_thread);
  bool service_rx(uint32_t queue) noexcept REQUIRES(control_thread);
  bool watch_for_waiter(uint32_t queue) noexcept REQUIRES(control_thread);
  bool drain_step(uint32_t queue) noexcept REQUIRES(control_thread);
  bool recover(uint32_t queue, Recovery::Time now, bool draining) noexcept REQUIRES(control_thread);
  bool engine_busy(uint32_t queue) noexcept REQUIRES(control_thread);
  bool engine_recovers(uint32_t queue) noexcept REQUIRES(control_thread);
  void engine_ended(uint32_t queue) noexcept REQUIRES(control_thread);
  void give_up(uint32_t queue) noexcept REQUIRES(control_thread);
  void abandon(uint32_t queue) noexcept REQUIRES(control_thread);
  void report_fault(QueueId id) noexcept REQUIRES(control_thread);
  void check_memory() noexcept REQUIRES(control_thread);
  void failed(const char* what) noexcept REQUIRES(control_thread);
  using Kind = Subject::Kind;
  using Level = Subject::Level;
  /// Any thread. Of a queue, the text goes on after "tx queue 0".
  [[gnu::format(printf, 3, 4)]] void report(const Subject& subject, const char* text, ...) noexcept;

  // ---- engines (engines.cpp), by the constructor: the control thread does not know this port yet
  void make_engines();
  void make_engine(uint32_t queue, const std::string& name, dma::EngineOpener& opener);
  void calibrate_engine(uint32_t queue) NO_THREAD_SAFETY_ANALYSIS;
  void release_engine(uint32_t queue) noexcept REQUIRES(control_thread);

  void check_usable() const;
  void wake_waiters() noexcept;
  void close_step() noexcept REQUIRES(control_thread);
  bool close_queues() noexcept REQUIRES(control_thread);
  template <typename Queue>
  void after_burst(Queue& queue, bool attention) noexcept;

  PortConfig config_;
  std::shared_ptr<EventLoop> loop_;  // with this port's barrier
  Reports reports_;
  std::vector<std::shared_ptr<memory::PacketArena>> arenas_;  // one for each rx queue: their threads share no lock
  std::vector<std::unique_ptr<RxQueue>> rxqs_;
  std::vector<std::unique_ptr<TxQueue>> txqs_;
  std::vector<std::unique_ptr<RxInterrupt>> interrupts_;
  std::vector<std::unique_ptr<EngineSlot>> engines_;
  ControlRing control_ GUARDED_BY(control_thread);
  std::vector<std::unique_ptr<KickWatch>> kick_watches_ GUARDED_BY(control_thread);  // by ring

  Mutex life_;  // start, stop, close one after the other
  std::atomic<bool> started_{false};
  std::atomic<bool> closed_{false};
  std::unique_ptr<vhost_user::Endpoint> endpoint_ GUARDED_BY(control_thread);

  std::atomic<bool> link_up_{false};
  Mutex link_mutex_;
  std::condition_variable link_changed_;

  vhost_user::RingSet holding_ GUARDED_BY(control_thread);  // asked for by hold(), not let go of yet
  vhost_user::Hold how_ GUARDED_BY(control_thread) = vhost_user::Hold::owned;
  bool hold_pending_ GUARDED_BY(control_thread) = false;
  std::vector<Prepared> prepared_ GUARDED_BY(control_thread);  // by ring; used between prepare() and commit()
  std::vector<bool> ring_usable_ GUARDED_BY(control_thread);   // running and enabled, as last told in an event
  uint32_t control_at_ GUARDED_BY(control_thread) = 0;         // the ring that control_ serves, while it runs
  uint32_t next_serviced_ GUARDED_BY(control_thread) = 0;      // queue, should a turn end early
  std::array<uint8_t, 60> rarp_ GUARDED_BY(control_thread){};  // frame to come first on rx queue 0
  bool rarp_waits_ GUARDED_BY(control_thread) = false;
  bool costly_peer_ GUARDED_BY(control_thread) = false;  // to be dropped at the end of this turn
  Counter rarp_lost_;                                    // those that never got as far as the queue
  std::shared_ptr<const memory::RegionTable> memory_ GUARDED_BY(control_thread);  // the session's
  Latch* closing_ GUARDED_BY(control_thread) = nullptr;                           // close() waits there
  std::optional<EventLoop::Clock::time_point> engines_end_
      GUARDED_BY(control_thread);  // then close() waits for the engines no longer

  UniqueFd wake_fd_ = make_eventfd();
  /// The control thread has been told, or has its timer running: no need to tell it again.
  std::atomic<bool> control_awake_{false};
  std::atomic<uint64_t> mended_seen_{0};     // truncated pages mended when memory was last checked
  std::atomic<uint64_t> control_errors_{0};  // what the barrier kept in
  EventLoop::Timer hold_timer_, service_timer_, waiter_timer_;
  EventLoop::Posted lost_engine_;

  mutable Mutex snapshot_mutex_;
  Info snapshot_ GUARDED_BY(snapshot_mutex_);
  Stats stats_baseline_ GUARDED_BY(snapshot_mutex_);
  XStats xstats_baseline_ GUARDED_BY(snapshot_mutex_);
  XStats raw_xstats() const;
};

}  // namespace vhost_ioat::port
