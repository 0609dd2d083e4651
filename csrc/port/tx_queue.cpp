// SPDX-License-Identifier: BSD-3-Clause
#include "port/tx_queue.hpp"

#include <utility>

#include "virtio/rings.hpp"

namespace vhost_ioat::port {

TxQueue::Prepared TxQueue::prepare(const RingSetup& setup) {
  return {virtio::with_ring_of(setup.features,
                               [&]<typename Ring>() -> std::unique_ptr<TxPath> {
                                 return std::make_unique<TxPathOf<Ring>>(setup.size, counters, notices_, pipe_);
                               }),
          pipe_.prepare(setup.size)};
}

void TxQueue::setup(RingSetup setup, Prepared prepared) noexcept {
  if (set_up(std::move(setup), path_, std::move(prepared.path)))
    pipe_.start(std::move(prepared.scratch), path_->filled());
  if (!running()) notices_.reset();
}

void TxQueue::setup(RingSetup setup) {
  Prepared prepared = setup.running ? prepare(setup) : Prepared{};
  this->setup(std::move(setup), std::move(prepared));
}

void TxQueue::abandon() noexcept {
  pipe_.abandon();
  drop_ring();
  path_.reset();
}

uint32_t TxQueue::enqueue(const PacketView& packets) noexcept {
  if (!running_ || !enabled_) return 0;
  const TxPath::Enqueued done = path_->enqueue(packets);
  if (done.published) notify(counters);
  return done.packets;
}

uint32_t TxQueue::reap(uint32_t limit) noexcept { return path_ ? path_->reap(limit) : 0; }

}  // namespace vhost_ioat::port
