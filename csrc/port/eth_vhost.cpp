// SPDX-License-Identifier: BSD-3-Clause
#include "port/eth_vhost.hpp"

#include <sys/epoll.h>

#include <algorithm>
#include <cinttypes>
#include <utility>

#include "base/budget.hpp"
#include "base/error.hpp"
#include "base/port_loop.hpp"
#include "memory/sigbus.hpp"
#include "port/arenas.hpp"

namespace vhost_ioat::port {

EthVhost::EthVhost(PortConfig config)
    : config_(std::move(config)),
      loop_(std::make_shared<PortLoop>(EventLoop::get(),
                                       [this](const char* what) REQUIRES(control_thread) { failed(what); })),
      control_(loop_, config_.queues,
               {[this](const char* change) REQUIRES(control_thread) { control_changed(change); },
                [this](const char* fault) {
                  report({.kind = Kind::peer}, "the control queue is broken until the front end restarts it: %s",
                         fault);
                },
                [this]() REQUIRES(control_thread) {
                  costly_peer_ = true;
                  wake_control();
                }}),
      prepared_(rings()),
      ring_usable_(queue_rings()),
      hold_timer_(loop_, [this]() REQUIRES(control_thread) { closing_ ? close_step() : hold_later(); }),
      service_timer_(loop_, [this]() REQUIRES(control_thread) { service(); }),
      waiter_timer_(loop_, [this]() REQUIRES(control_thread) { service(); }),
      lost_engine_(loop_, [this]() REQUIRES(control_thread) {
        if (endpoint_) endpoint_->drop_peer("its DMA engine could not be stopped");
      }) {
  if (config_.mempool > budget::physical_memory()) {
    throw ConfigError(format("mempool=%zu: this machine has %" PRIu64 " bytes of memory", config_.mempool,
                             budget::physical_memory()));
  }
  for (uint32_t q = 0; q < config_.queues; ++q) {
    arenas_.push_back(memory::PacketArena::create(config_.mempool / config_.queues));
    register_arena(arenas_[q]);
    rxqs_.push_back(std::make_unique<RxQueue>());
    txqs_.push_back(std::make_unique<TxQueue>());
    interrupts_.push_back(std::make_unique<RxInterrupt>());
    engines_.push_back(config_.ioats.contains(q)
                           ? std::make_unique<EngineSlot>(loop_,
                                                          [this, q](const std::exception_ptr& problem)
                                                              REQUIRES(control_thread) {
                                                                engine_ended(q);
                                                                if (problem) std::rethrow_exception(problem);
                                                              })
                           : nullptr);
  }
  for (uint32_t ring = 0; ring < queue_rings(); ++ring)
    kick_watches_.push_back(std::make_unique<KickWatch>(
        loop_, [this, ring](auto advice) REQUIRES(control_thread) { advise(ring, advice); }));
  make_engines();
  loop_->run([this]() REQUIRES(control_thread) {
    loop_->add_fd(wake_fd_.get(), EPOLLIN, [this](uint32_t) REQUIRES(control_thread) {
      eventfd_clear(wake_fd_.get());
      service();
    });
  });
}

EthVhost::~EthVhost() {
  if (!loop_->forked()) close();
}

void EthVhost::start() {
  const MutexLock lock(life_);
  check_usable();
  if (started_) return;
  loop_->run([this]() REQUIRES(control_thread) {
    vhost_user::EndpointOwner& owner = *this;
    vhost_user::EndpointConfig endpoint{config_.iface, config_.client, config_.socket_mode};
    endpoint_ = std::make_unique<vhost_user::Endpoint>(loop_, std::move(endpoint), owner);
    try {
      endpoint_->start();
    } catch (...) {
      endpoint_.reset();
      throw;
    }
  });
  started_ = true;
}

void EthVhost::stop() {
  const MutexLock lock(life_);
  if (!started_ || loop_->forked()) return;
  Latch stopped;
  loop_->run([&]() REQUIRES(control_thread) { endpoint_->stop([&stopped] { stopped.open(); }); });
  stopped.wait();
  loop_->run([this]() REQUIRES(control_thread) { endpoint_.reset(); });
  started_ = false;
  wake_waiters();
}

/// Whoever waits for packets looks again, and finds out what has become of the port.
void EthVhost::wake_waiters() noexcept {
  for (auto& interrupt : interrupts_)
    if (interrupt->wanted()) interrupt->wake();
}

void EthVhost::close() {
  if (loop_->forked()) return;
  if (closed_.exchange(true)) {
    const MutexLock lock(life_);  // a second close() returns when the first is through
    return;
  }
  stop();
  const MutexLock lock(life_);
  Latch done;
  loop_->run([&]() REQUIRES(control_thread) {
    closing_ = &done;
    close_step();
  });
  done.wait();
  {
    const MutexLock between(link_mutex_);  // who has just found the port open is waiting by now
    link_changed_.notify_all();
  }
  wake_waiters();
}

/// Takes every queue for good; what a caller is doing right now it finishes. Then the engines end, and close() returns
/// when they have, or when that takes too long: the helper has all it needs to end them later.
void EthVhost::close_step() noexcept {
  const auto now = EventLoop::Clock::now();
  if (!engines_end_) {
    if (!close_queues()) return hold_timer_.arm_after(hold_retry);
    engines_end_ = now + budget::patience_at_stop;
    service_timer_.cancel();
    waiter_timer_.cancel();
    loop_->remove_fd(wake_fd_.get());
    for (uint32_t q = 0; q < config_.queues; ++q) release_engine(q);
  }
  const bool busy = std::ranges::any_of(
      engines_, [](const auto& slot) REQUIRES(control_thread) { return slot && slot->waited_for(); });
  if (busy && now < *engines_end_) return hold_timer_.arm_after(hold_retry);
  engines_.clear();  // who is told of a job's end is this port, and it may be gone soon
  std::exchange(closing_, nullptr)->open();
}

bool EthVhost::close_queues() noexcept {
  bool all = true;
  for (auto& rxq : rxqs_) all &= rxq->owner().try_take();
  for (uint32_t q = 0; q < config_.queues; ++q) all &= txqs_[q]->owner().try_take() && drain_step(q);
  return all;
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
    memory::let_sigbus_through();
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
  after_burst(rxq, rxq.something_to_report());
  return burst;
}

uint32_t EthVhost::tx_burst(uint32_t queue, const PacketView& packets) {
  if (closed_.load(std::memory_order_relaxed) || loop_->forked()) [[unlikely]]
    check_usable();
  TxQueue& txq = *txqs_[queue];
  Visit visit(txq.owner(), "tx", queue);
  if (!visit.inside()) return 0;
  const uint32_t taken = txq.enqueue(packets);
  after_burst(txq, txq.something_to_report() || txq.pipe().engine_failed() || txq.pipe().maps_wanted());
  return taken;
}

uint32_t EthVhost::tx_done_cleanup(uint32_t queue) {
  check_usable();
  TxQueue& txq = *txqs_[queue];
  Visit visit(txq.owner(), "tx", queue);
  if (!visit.inside()) return 0;
  const uint32_t reaped = txq.reap();
  if (txq.call_due()) txq.call_guest(txq.counters);
  after_burst(txq, txq.something_to_report() || txq.pipe().engine_failed());
  return reaped;
}

bool EthVhost::tx_serves(uint32_t queue) {
  check_usable();
  TxQueue& txq = *txqs_[queue];
  Visit visit(txq.owner(), "tx", queue);
  return !visit.inside() || (txq.running() && txq.enabled() && !txq.fault());
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
  RxInterrupt& interrupt = *interrupts_[queue];
  interrupt.want(true);
  Visit visit(rxq.owner(), "rx", queue);
  if (!visit.inside()) {  // the control thread is changing the ring, and may not have seen the wish: let it look again
    rxq.ask_for_attention();
    wake_control();
    return true;
  }
  if (!interrupt.clear()) [[unlikely]] {
    rxq.notices().add(Notice::Kind::costly_fd, 0, 0);
    rxq.ask_for_attention();
    wake_control();
  }
  const bool waiting = rxq.enable_kicks();
  if (rxq.running() && !interrupt.has_kick()) wake_control();  // it polls the ring on behalf of the waiter
  return waiting;
}

void EthVhost::rx_intr_disable(uint32_t queue) {
  check_usable();
  RxQueue& rxq = *rxqs_[queue];
  interrupts_[queue]->want(false);
  Visit visit(rxq.owner(), "rx", queue);
  if (visit.inside()) return rxq.disable_kicks();
  rxq.ask_for_attention();
  wake_control();
}

bool EthVhost::wait_link(bool up, std::chrono::steady_clock::time_point until) {
  const MutexLock lock(link_mutex_);
  while (link_up() != up && !closed()) {
    if (link_mutex_.wait_until(link_changed_, until) == std::cv_status::timeout) break;
  }
  return link_up() == up;
}

}  // namespace vhost_ioat::port
