// SPDX-License-Identifier: BSD-3-Clause
#include "dma/channel.hpp"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <exception>
#include <thread>
#include <utility>

#include "base/debug_assert.hpp"
#include "base/error.hpp"

namespace vhost_ioat::dma {
namespace {

constexpr uint32_t cookie_bits = 24, cookie_mask = (1u << cookie_bits) - 1;
constexpr auto look_again = std::chrono::microseconds(50);
constexpr int most_looks = 20'000;  // a second, and what sleeping so often costs

}  // namespace

// --- Channel

std::unique_ptr<DmaEngine> Channel::join() {
  const std::string& name = device_->capabilities().name;
  auto client = std::make_unique<Client>(shared_from_this());
  while (!turn_.try_take()) std::this_thread::sleep_for(look_again);  // of a burst, or of a step that does not wait
  std::shared_ptr<Box>* const place = std::ranges::find(boxes_, nullptr);
  const bool room = place != std::end(boxes_), dead = dead_.load(std::memory_order_relaxed);
  if (room && !dead) {
    *place = client->box_;
    client->joined(static_cast<uint32_t>(place - boxes_), epoch_.load(std::memory_order_relaxed));
    settle_shares();
  }
  turn_.give_back();
  if (dead) throw DmaError(name + " was given up, and serves nobody until its other queues have let go of it");
  if (!room) throw ConfigError(format("%s serves %u queues already", name.c_str(), max_clients));
  return client;
}

void Channel::distribute() noexcept {
  Completion done[64];
  for (size_t n = std::size(done); n == std::size(done);) {
    n = device_->poll(done);
    for (size_t i = 0; i < n; ++i) {
      Box* const box = boxes_[done[i].cookie >> cookie_bits].get();
      DEBUG_ASSERT(box != nullptr, ==, true);
      done[i].cookie &= cookie_mask;
      box->put(done[i]);
    }
  }
  note_state();
}

void Channel::settle_shares() noexcept {
  const auto clients = static_cast<uint32_t>(std::ranges::count_if(boxes_, [](auto& b) { return b != nullptr; }));
  share_.store(device_->capabilities().ring_size / std::max(clients, 1u), std::memory_order_relaxed);
}

void Channel::note_state() noexcept {
  const bool failed = device_->failed();
  if (failed && !sick_.load(std::memory_order_relaxed)) keep_why();
  sick_.store(failed, std::memory_order_relaxed);
  progress_.store(device_->progress(), std::memory_order_relaxed);
}

void Channel::new_epoch(bool dead) noexcept {
  distribute();
  if (dead) dead_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);  // pairs with left_behind()
}

void Channel::keep_why() noexcept {
  try {
    std::string text = device_->failed() ? device_->why() : std::string();
    const MutexLock lock(why_mutex_);
    last_why_ = std::move(text);
  } catch (const std::exception&) {
    // Who asks is told less.
  }
}

std::string Channel::why() const {
  const MutexLock lock(why_mutex_);
  return last_why_.empty() ? device_->capabilities().name + ": another queue had it stopped" : last_why_;
}

// --- Box

Channel::Box::Box(uint32_t size) : slots_(std::bit_ceil(size)) {}

void Channel::Box::put(const Completion& completion) noexcept {
  const uint32_t put = put_.load(std::memory_order_relaxed);
  DEBUG_ASSERT(put - taken_.load(std::memory_order_relaxed), <, slots_.size());
  slots_[put & (slots_.size() - 1)] = completion;
  put_.store(put + 1, std::memory_order_release);  // pairs with take()
}

bool Channel::Box::take(Completion& completion) noexcept {
  const uint32_t taken = taken_.load(std::memory_order_relaxed);
  if (taken == put_.load(std::memory_order_acquire)) return false;  // pairs with put()
  completion = slots_[taken & (slots_.size() - 1)];
  taken_.store(taken + 1, std::memory_order_release);  // the slot is free; put() needs no more, as there is room
  return true;
}

// --- Client: copies

Client::Client(std::shared_ptr<Channel> channel)
    : channel_(std::move(channel)),
      box_(std::make_shared<Channel::Box>(channel_->device_->capabilities().ring_size)),
      owner_(::getpid()) {}

void Client::map(void* host, size_t size) {
  mapped_.reserve(mapped_.size() + 1);
  channel_->device_->map(host, size);
  mapped_.push_back(host);
}

void Client::unmap(void* host) {
  const auto found = std::ranges::find(mapped_, host);
  if (found != mapped_.end()) mapped_.erase(found);
  channel_->device_->unmap(host);
}

Refusal Client::enqueue(std::span<const Copy> copies, uint32_t cookie) noexcept {
  DEBUG_ASSERT(cookie, <=, cookie_mask);
  if (outstanding_ >= channel_->share() || !channel_->turn_.try_take()) return Refusal::ring_full;
  if (left_behind()) [[unlikely]] {  // asked in a turn, where it stays as it is
    channel_->turn_.give_back();
    return Refusal::disabled;
  }
  const Refusal refusal = channel_->device_->enqueue(copies, cookie | number_ << cookie_bits);
  // Stopped by a ladder that may not go on: this client's will.
  if (refusal == Refusal::disabled) [[unlikely]]
    channel_->sick_.store(true, std::memory_order_relaxed);
  channel_->turn_.give_back();
  if (refusal != Refusal::none) return refusal;
  ++outstanding_;
  unsubmitted_ = true;
  return refusal;
}

void Client::ring_doorbell() noexcept {
  if (!std::exchange(unsubmitted_, false)) return;
  channel_->device_->submit();  // what others have put there, too
}

/// Without a turn, the next poll() rings. What is outstanding is polled for, if by nobody else by the control thread.
void Client::submit() noexcept {
  if (!unsubmitted_ || !channel_->turn_.try_take()) return;
  ring_doorbell();
  channel_->turn_.give_back();
}

size_t Client::poll(std::span<Completion> out) noexcept {
  const size_t from_box = take(out);
  if (from_box == out.size() || outstanding_ == 0 || !channel_->turn_.try_take()) return from_box;
  ring_doorbell();
  channel_->distribute();
  channel_->turn_.give_back();
  return from_box + take(out.subspan(from_box));
}

size_t Client::take(std::span<Completion> out) noexcept {
  size_t n = 0;
  while (n < out.size() && box_->take(out[n])) {
    const bool done = out[n].status == CopyStatus::ok;
    stats_.submitted += out[n].descriptors;
    stats_.completed += done ? out[n].descriptors : 0;
    stats_.bytes += done ? out[n].bytes : 0;
    stats_.errors += out[n].status == CopyStatus::error;
    ++n;
  }
  outstanding_ -= static_cast<uint32_t>(n);
  return n;
}

EngineStats Client::stats() const {
  EngineStats all = stats_;
  all.submitted += outstanding_;
  return all;
}

// --- Client: stopping. The device is stopped once, by whoever is first; the epoch tells the others.

bool Client::failed() const noexcept {
  return channel_->sick_.load(std::memory_order_relaxed) || channel_->dead_.load(std::memory_order_relaxed) ||
         left_behind();
}

Step Client::quiesce() noexcept {
  Channel& channel = *channel_;
  if (!channel.turn_.try_take()) return Step::pending;
  Step answer = Step::done;
  if (channel.resetting_) {
    answer =
        Step::pending;  // suspending it now could lose what it has done; both ladders' resets bring that to its end
  } else if (!left_behind()) {
    channel.keep_why();  // what an earlier stop left is not the reason of this one
    answer = channel.device_->quiesce();
    channel.note_state();
  }
  channel.turn_.give_back();
  return answer;
}

Step Client::reset() noexcept {
  Channel& channel = *channel_;
  if (!channel.turn_.try_take()) return Step::pending;
  Step answer = Step::failed;
  if (!channel.dead_.load(std::memory_order_relaxed)) {
    answer = Step::done;
    if (!left_behind()) {
      answer = channel.device_->reset();
      channel.resetting_ = answer == Step::pending;
      if (answer == Step::done) channel.new_epoch(false);
      channel.note_state();
    }
    if (answer == Step::done) {
      epoch_ = channel.epoch_.load(std::memory_order_relaxed);
      ++stats_.resets;
    }
  }
  channel.turn_.give_back();
  return answer;
}

/// Of a device that another one has reset meanwhile, nothing is taken away: it obeys. This client stays behind, and so
/// copies nothing any more.
Step Client::revoke() noexcept {
  Channel& channel = *channel_;
  if (!channel.turn_.try_take()) return Step::pending;
  Step answer = Step::done;
  if (!left_behind() && !channel.dead_.load(std::memory_order_relaxed)) {
    answer = channel.device_->revoke();
    channel.resetting_ = false;
    if (answer == Step::done) {
      channel.new_epoch(true);
      epoch_ = channel.epoch_.load(std::memory_order_relaxed);
    }
    channel.note_state();
  }
  channel.turn_.give_back();
  return answer;
}

// --- Client: its end

Client::~Client() {
  if (!joined_ || owner_ != ::getpid()) return;  // in a child of fork() the device is the parent's
  stop();
  if (outstanding_ != 0) {
    const MutexLock lock(channel_->why_mutex_);
    channel_->kept_ = channel_;
    return;
  }
  for (void* host : mapped_) {
    try {
      channel_->device_->unmap(host);
    } catch (const std::exception&) {  // goes with the device
    }
  }
  while (!channel_->turn_.try_take()) std::this_thread::sleep_for(look_again);
  channel_->boxes_[number_] = nullptr;
  channel_->settle_shares();
  channel_->turn_.give_back();
}

/// Its copies end by themselves, or the device is stopped, to the harm of others who use it.
void Client::stop() noexcept {
  Completion unwanted[64];
  const auto until_idle = [&](auto&& step) {
    for (int looks = 0; looks < most_looks; ++looks) {
      while (poll(unwanted) != 0) {
      }
      if (outstanding_ == 0 || step()) return;
      std::this_thread::sleep_for(look_again);
    }
  };
  until_idle([&] { return failed(); });
  if (outstanding_ == 0) return;
  // A reset that has begun is brought to its end, or the others would have a device that does nothing.
  Step last = Step::pending;
  for (int looks = 0; looks < most_looks && last == Step::pending; ++looks) {
    last = reset();
    std::this_thread::sleep_for(look_again);
  }
  until_idle([&] { return last != Step::done; });
  if (outstanding_ != 0) until_idle([&] { return revoke() == Step::failed; });
}

}  // namespace vhost_ioat::dma
