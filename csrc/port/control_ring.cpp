// SPDX-License-Identifier: BSD-3-Clause
#include "port/control_ring.hpp"

#include <sys/epoll.h>

#include <array>
#include <utility>

#include "base/budget.hpp"

namespace vhost_ioat::port {

namespace {

/// Up to a budget of pieces, filled along a chain.
class Buffer {
 public:
  /// False: the memory is not the guest's.
  bool add(memory::AddressSpace& memory, uint64_t address, uint32_t length) noexcept {
    std::array<memory::Piece, budget::pieces_of_control_buffer> found;
    const memory::AddressSpace::Resolved here = memory.resolve(address, length, found);
    if (here.answer != memory::Answer::here) return false;
    for (uint32_t i = 0; i < here.pieces; ++i) {
      if (used_ == pieces_.size()) {
        whole_ = false;
        break;
      }
      pieces_[used_++] = found[i];
    }
    return true;
  }
  /// Nothing of what did not fit: half a command is none.
  std::span<const memory::Piece> pieces() const noexcept { return std::span(pieces_).first(whole_ ? used_ : 0); }
  std::span<const memory::Piece> start() const noexcept { return std::span(pieces_).first(used_); }

 private:
  std::array<memory::Piece, budget::pieces_of_control_buffer> pieces_;
  size_t used_ = 0;
  bool whole_ = true;
};

}  // namespace

ControlRing::ControlRing(std::shared_ptr<EventLoop> loop, uint32_t queue_pairs, Listener listener)
    : loop_(std::move(loop)),
      queue_pairs_(queue_pairs),
      listener_(std::move(listener)),
      again_(loop_, [this]() REQUIRES(control_thread) { serve(); }) {}

void ControlRing::setup(RingSetup setup, vhost_user::SharedFd kick) noexcept {
  stop_watching();
  const bool anew = !running_ || !setup.running || setup.drained;
  running_ = setup.running;
  memory_ = memory::AddressSpace(std::move(setup.memory));
  call_ = std::move(setup.call);
  err_ = std::move(setup.err);
  if (!running_) return queue_.reset({}, queue_pairs_);
  if (anew) {
    queue_.reset(setup.features, queue_pairs_);
    ring_.start(setup.at, setup.size, setup.features, setup.last_avail);
  }
  try {
    if (kick) {
      loop_->add_fd(kick->owned.get(), EPOLLIN | EPOLLET, [this](uint32_t) REQUIRES(control_thread) { serve(); });
    }
    kick_ = std::move(kick);
  } catch (const std::exception&) {  // without a watch it is polled, as without a kick fd
  }
  again_.arm(EventLoop::Clock::now());  // a kick may have come before
}

void ControlRing::stop_watching() noexcept {
  again_.cancel();
  if (kick_) loop_->remove_fd(kick_->owned.get());
  kick_.reset();
}

void ControlRing::serve() {
  if (!running_ || ring_.fault()) return;
  uint32_t served = 0;
  while (served < budget::commands_a_turn) {
    ring_.set_kicks(kick_ != nullptr);
    if (!ring_.waiting() || !serve_one()) break;
    ++served;
  }
  if (ring_.fault()) {
    if (err_) {
      err_->peer.signal();
      if (err_->peer.costly()) listener_.costly();
    }
    return listener_.broken(ring_.fault().text().c_str());
  }
  if (served == budget::commands_a_turn) {
    again_.arm(EventLoop::Clock::now());
  } else if (!kick_) {
    again_.arm_after(budget::kick_poll_interval);
  }
}

/// The chain at the front. False: the ring is broken.
bool ControlRing::serve_one() {
  const virtio::SplitRing::Cursor at = ring_.cursor();
  const virtio::SplitRing::Chain chain = at.chain();
  Buffer command, reply;
  bool mapped = true;
  uint32_t steps = budget::steps_of_call(ring_.size());
  const bool walked = ring_.walk(at, chain, memory_, steps, [&](uint64_t address, uint32_t length, bool writable) {
    mapped = (writable ? reply : command).add(memory_, address, length);
    if (!mapped) ring_.set_fault({virtio::Fault::Kind::unmapped, address, length});
    return mapped;
  });
  if (!walked || !mapped) return false;
  const virtio::ControlQueue::Answer answer = queue_.handle(command.pieces(), reply.start());
  ring_.commit(chain, answer.acknowledged ? 1 : 0);
  ring_.publish(ring_.filled());
  if (ring_.should_notify() && call_) {
    call_->peer.signal();
    if (call_->peer.costly()) listener_.costly();
  }
  if (!answer.change.empty()) listener_.changed(answer.change.c_str());
  return true;
}

}  // namespace vhost_ioat::port
