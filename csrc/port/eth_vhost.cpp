// SPDX-License-Identifier: BSD-3-Clause
#include "port/eth_vhost.hpp"

#include <sys/epoll.h>

#include <future>
#include <system_error>
#include <thread>

#include "base/error.hpp"
#include "memory/sigbus.hpp"
#include "port/arenas.hpp"

namespace vhost_ioat::port {

namespace {
UniqueFd make_epoll() {
  int fd = ::epoll_create1(EPOLL_CLOEXEC);
  if (fd < 0) throw std::system_error(errno, std::generic_category(), "epoll_create1");
  return UniqueFd(fd);
}
}  // namespace

EthVhost::EthVhost(PortConfig config)
    : config_(std::move(config)),
      loop_(EventLoop::get()),
      engines_(config_.queues),
      kick_fds_(config_.queues, -1),
      bases_(2 * config_.queues),
      ring_usable_(2 * config_.queues) {
  for (uint32_t q = 0; q < config_.queues; ++q) {
    arenas_.push_back(memory::PacketArena::create(config_.mempool / config_.queues));
    register_arena(arenas_[q]);
    rxqs_.push_back(std::make_unique<RxQueue>());
    txqs_.push_back(std::make_unique<TxQueue>());
    rx_fds_.push_back(make_epoll());
  }
  make_engines();
  loop_->run([this] {
    loop_->add_fd(wake_fd_.get(), EPOLLIN, [this](uint32_t) {
      eventfd_clear(wake_fd_.get());
      service();
    });
  });
}

EthVhost::~EthVhost() {
  if (!loop_->forked()) close();
}

void EthVhost::start() {
  std::lock_guard lock(life_);
  check_usable();
  if (started_) return;
  loop_->run([this] {
    vhost_user::EndpointOwner& owner = *this;
    auto endpoint = std::make_unique<vhost_user::Endpoint>(
        loop_, vhost_user::EndpointConfig{config_.iface, config_.client, config_.socket_mode}, owner);
    endpoint->start();
    endpoint_ = std::move(endpoint);
  });
  started_ = true;
}

void EthVhost::stop() {
  std::lock_guard lock(life_);
  if (!started_ || loop_->forked()) return;
  std::promise<void> stopped;
  loop_->run([&] { endpoint_->stop([&stopped] { stopped.set_value(); }); });
  stopped.get_future().wait();
  loop_->run([this] { endpoint_.reset(); });
  started_ = false;
}

void EthVhost::close() {
  if (loop_->forked()) return;
  if (closed_.exchange(true)) {
    std::lock_guard lock(life_);  // a second close() returns when the first is through
    return;
  }
  stop();
  std::lock_guard lock(life_);
  // Take every queue for good; what a caller is doing right now it finishes.
  for (bool all = false; !all;) {
    loop_->run([&] {
      all = true;
      for (auto& rxq : rxqs_) all &= rxq->owner().try_take();
      for (uint32_t q = 0; q < config_.queues; ++q) all &= txqs_[q]->owner().try_take() && drain_step(q);
      if (!all) return;
      loop_->cancel(service_timer_);
      loop_->cancel(hold_timer_);
      loop_->remove_fd(wake_fd_.get());
      release_engines();
    });
    if (!all) std::this_thread::yield();
  }
  link_changed_.notify_all();
}

void EthVhost::check_usable() const {
  if (loop_->forked()) throw Error("this port belongs to the parent process; open one of your own after fork()");
  if (closed()) throw Error("the port is closed");
}

namespace {
/// One visit of a caller to a queue.
class Visit {
 public:
  Visit(Owner& owner, const char* direction, uint32_t queue) : owner_(owner), entry_(owner.enter()) {
    if (entry_ == Owner::Entry::second_caller) [[unlikely]]
      throw Error(format("another thread is inside %s queue %u: one caller per queue and direction", direction, queue));
  }
  ~Visit() {
    if (inside()) owner_.leave();
  }
  bool inside() const { return entry_ == Owner::Entry::entered; }

 private:
  Owner& owner_;
  Owner::Entry entry_;
};
}  // namespace

virtio::Burst EthVhost::rx_burst(uint32_t queue, uint32_t n) {
  if (closed_.load(std::memory_order_relaxed) || loop_->forked()) [[unlikely]]
    check_usable();
  RxQueue& rxq = *rxqs_[queue];
  Visit visit(rxq.owner(), "rx", queue);
  if (!visit.inside()) return {};
  virtio::Burst burst = rxq.dequeue(*arenas_[queue], n);
  after_burst(rxq, rxq.fault_to_report());
  return burst;
}

uint32_t EthVhost::tx_burst(uint32_t queue, const PacketView& packets) {
  if (closed_.load(std::memory_order_relaxed) || loop_->forked()) [[unlikely]]
    check_usable();
  TxQueue& txq = *txqs_[queue];
  Visit visit(txq.owner(), "tx", queue);
  if (!visit.inside()) return 0;
  const uint32_t taken = txq.enqueue(packets);
  after_burst(txq, txq.fault_to_report() || txq.engine_failed() || txq.maps_wanted());
  return taken;
}

uint32_t EthVhost::tx_done_cleanup(uint32_t queue) {
  check_usable();
  TxQueue& txq = *txqs_[queue];
  Visit visit(txq.owner(), "tx", queue);
  if (!visit.inside()) return 0;
  const uint32_t reaped = txq.reap();
  if (txq.running() && txq.kick_due()) txq.kick(txq.counters);
  after_burst(txq, txq.fault_to_report() || txq.engine_failed());
  return reaped;
}

/// Tells the control thread when there is something for it to finish, report or mend.
template <typename Queue>
inline void EthVhost::after_burst(Queue& queue, bool attention) noexcept {
  if (attention) [[unlikely]]
    queue.ask_for_attention();
  if (attention || !queue.idle() || memory::times_mended() != mended_seen_.load(std::memory_order_relaxed))
    wake_control();
}

void EthVhost::wake_control() noexcept {
  // The fence stands between what this burst left behind (pending packets, attention) and the look at control_awake_;
  // its pair in service() stands between clearing control_awake_ and looking for what was left. Without either, both
  // could miss each other, and packets in flight would wait for the next burst.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!control_awake_.load(std::memory_order_relaxed) && !control_awake_.exchange(true, std::memory_order_relaxed))
    eventfd_signal(wake_fd_.get());
}

bool EthVhost::rx_intr_enable(uint32_t queue) {
  check_usable();
  RxQueue& rxq = *rxqs_[queue];
  Visit visit(rxq.owner(), "rx", queue);
  if (!visit.inside()) return true;  // the control thread is changing the ring: look again
  if (kick_fds_[queue] >= 0) eventfd_clear(kick_fds_[queue]);
  return rxq.enable_kicks();
}

void EthVhost::rx_intr_disable(uint32_t queue) {
  check_usable();
  RxQueue& rxq = *rxqs_[queue];
  Visit visit(rxq.owner(), "rx", queue);
  if (visit.inside()) rxq.disable_kicks();
}

bool EthVhost::wait_link(bool up, std::chrono::steady_clock::time_point until) {
  std::unique_lock lock(link_mutex_);
  return link_changed_.wait_until(lock, until, [&] { return link_up() == up || closed(); }) && link_up() == up;
}

}  // namespace vhost_ioat::port
