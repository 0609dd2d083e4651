// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/event_loop.hpp"
#include "dma/ioat_model.hpp"
#include "memory/packet_arena.hpp"
#include "port/config.hpp"
#include "port/recovery.hpp"
#include "port/reports.hpp"
#include "port/rx_queue.hpp"
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
  /// Any thread.
  uint32_t tx_pending(uint32_t queue) const { return txqs_[queue]->pending_packets(); }
  /// The device behind a software engine, to inject faults or to step it; null for hardware or none.
  std::shared_ptr<dma::IoatModel> engine_model(uint32_t queue) const { return engines_[queue].model; }

  // ---- interrupt mode
  int rx_fileno(uint32_t queue) const { return rx_fds_[queue].get(); }
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

  struct Stats {
    uint64_t ipackets = 0, opackets = 0, ibytes = 0, obytes = 0, imissed = 0, ierrors = 0, oerrors = 0, rx_nombuf = 0;
    struct Queue {
      uint64_t ipackets = 0, opackets = 0, ibytes = 0, obytes = 0, errors = 0;
    };
    std::vector<Queue> queues;
  };
  using XStats = std::vector<std::pair<std::string, uint64_t>>;
  Stats stats() const;
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
  struct Info {
    bool connected = false;
    uint64_t features = 0, protocol_features = 0;
    uint16_t mtu = 0;
    std::vector<RegionInfo> regions;
    std::vector<RingInfo> rings;
    std::vector<EngineInfo> engines;
    std::string last_error;
  };
  Info info();

 private:
  // ---- the session above us (control.cpp), on the control thread
  bool hold(const vhost_user::RingSet& rings) override;
  uint16_t ring_base(uint32_t ring) override;
  void release(const vhost_user::RingSet& rings, const vhost_user::SessionState& state) override;
  void announce(const uint8_t (&mac)[6]) override;
  std::unique_ptr<vhost_user::BackendSession> make_session() override;
  void after_message(const vhost_user::SessionState& state) override;
  void disconnected(const std::string& reason, bool broken) override;
  void trouble(const std::string& what) override;

  VringQueue& vring_queue(uint32_t ring);
  bool hold_step();
  void resume_when_held();
  RingSetup ring_setup(uint32_t ring, const vhost_user::SessionState& state, const vhost_user::Vring& vring);
  void watch_kick(uint32_t queue, int kick_fd);
  void set_link(bool up);

  // ---- service of the queues (service.cpp), on the control thread
  void wake_control() noexcept;
  void service();
  bool service_tx(uint32_t queue);
  bool service_rx(uint32_t queue);
  bool drain_step(uint32_t queue);
  bool recover(uint32_t queue, Recovery::Time now);
  void abandon(uint32_t queue);
  void report_fault(VringQueue& vring, uint32_t queue, bool rx);
  void check_memory();
  void say(const char* kind, int queue, bool rx, bool enabled, int level, std::string text);

  // ---- engines (engines.cpp)
  struct Engine {
    std::shared_ptr<dma::IoatModel> model;  // of a software engine
    Recovery recovery;
    std::string state = "ok";
    std::vector<std::shared_ptr<memory::GuestMapping>> guest;  // mapped in the engine
    std::vector<std::shared_ptr<memory::PacketArena>> arenas;  // likewise
    size_t arenas_seen = 0;
  };
  void make_engines();
  std::unique_ptr<dma::DmaEngine> make_engine(uint32_t queue, const std::string& name);
  void map_guest(uint32_t queue, const memory::RegionTable* memory);
  void map_arenas(uint32_t queue);
  void release_engines();

  void check_usable() const;
  template <typename Queue>
  void after_burst(Queue& queue, bool attention) noexcept;

  PortConfig config_;
  std::shared_ptr<EventLoop> loop_;
  std::vector<std::shared_ptr<memory::PacketArena>> arenas_;  // one for each rx queue: their threads share no lock
  std::vector<std::unique_ptr<RxQueue>> rxqs_;
  std::vector<std::unique_ptr<TxQueue>> txqs_;
  std::vector<Engine> engines_;
  std::vector<UniqueFd> rx_fds_;  // an epoll fd each, that holds the ring's kick fd: the same over reconnects
  std::vector<int> kick_fds_;     // the session's, -1: none
  Reports reports_;

  std::mutex life_;  // start, stop, close one after the other
  std::atomic<bool> started_{false};
  std::atomic<bool> closed_{false};
  std::unique_ptr<vhost_user::Endpoint> endpoint_;  // used on the control thread

  std::atomic<bool> link_up_{false};
  std::mutex link_mutex_;
  std::condition_variable link_changed_;

  // Control thread only:
  vhost_user::RingSet holding_;  // asked for by hold(), not released yet
  bool hold_pending_ = false;
  EventLoop::TimerId hold_timer_ = 0, service_timer_ = 0;
  std::vector<uint16_t> bases_;                        // next avail index of rings that do not run
  std::vector<bool> ring_usable_;                      // running and enabled, as last told in an event
  std::vector<uint8_t> rarp_;                          // frame to come first on rx queue 0
  std::shared_ptr<const memory::RegionTable> memory_;  // the session's

  UniqueFd wake_fd_ = make_eventfd();
  /// The control thread has been told, or has its timer running: no need to tell it again.
  std::atomic<bool> control_awake_{false};
  std::atomic<uint64_t> mended_seen_{0};  // truncated pages mended when memory was last checked

  mutable std::mutex snapshot_mutex_;  // guards snapshot_, baseline_
  Info snapshot_;
  Stats stats_baseline_;
  XStats xstats_baseline_;
  Stats raw_stats() const;
  XStats raw_xstats() const;
};

}  // namespace vhost_ioat::port
