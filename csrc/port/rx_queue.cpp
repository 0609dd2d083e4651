// SPDX-License-Identifier: BSD-3-Clause
#include "port/rx_queue.hpp"

#include <utility>

#include "virtio/rings.hpp"

namespace vhost_ioat::port {

RxQueue::Prepared RxQueue::prepare(const RingSetup& setup) {
  return virtio::with_ring_of(setup.features, [&]<typename Ring>() -> std::unique_ptr<RxPath> {
    return std::make_unique<RxPathOf<Ring>>(setup.size, counters, notices_, injected_);
  });
}

void RxQueue::setup(RingSetup setup, Prepared path) noexcept {
  set_up(std::move(setup), path_, std::move(path));
  if (running()) return;
  notices_.reset();
  if (!injected_.empty()) counters.rarp_lost.add(1);
  injected_.clear();
}

void RxQueue::setup(RingSetup setup) {
  Prepared path = setup.running ? prepare(setup) : nullptr;
  this->setup(std::move(setup), std::move(path));
}

void RxQueue::inject(const uint8_t* frame, uint32_t len) noexcept {
  DEBUG_ASSERT(len, <=, injected_.capacity());
  if (!injected_.empty()) counters.rarp_lost.add(1);
  injected_.assign(frame, frame + len);
}

virtio::Burst RxQueue::dequeue(memory::PacketArena& arena, uint32_t n) noexcept {
  if (!running_) return {};
  RxPath::Dequeued done = path_->dequeue(arena, n, enabled_);
  if (done.published) notify(counters);
  return std::move(done.burst);
}

bool RxQueue::enable_kicks() noexcept {
  if (!running_) return false;
  ring_->set_kicks(true);
  return ring_->waiting();
}

void RxQueue::disable_kicks() noexcept {
  if (running_) ring_->set_kicks(false);
}

}  // namespace vhost_ioat::port
