// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.hpp"
#include "dma/engine.hpp"

namespace vhost_ioat::dma {

class Client;

/// A device that several queues of a port use: each through a Client, which is an engine to it.
///
/// Each call takes a turn at the device, for as long as it touches the descriptor ring and the registers. Guest memory
/// is not touched meanwhile (but by an inline model, whose doorbell copies), as a guest may make that take long. Nobody
/// on the data path waits for a turn. Who does not get it has its copies
/// made by the CPU, or rings the doorbell or takes its completions later. Any client may walk a failed device down the
/// ladder of stopping; to the others it has failed, too, and their ladder finds that it was done.
class Channel : public std::enable_shared_from_this<Channel> {
 public:
  static constexpr uint32_t max_clients = 64;

  /// As many clients as join() one at a time; the device goes with the last of them.
  /// `after`: goes after the device.
  static std::shared_ptr<Channel> create(std::unique_ptr<DmaEngine> device, std::shared_ptr<void> after = nullptr) {
    return std::shared_ptr<Channel>(new Channel(std::move(device), std::move(after)));
  }
  /// Throws ConfigError when it has max_clients already, or was given up.
  std::unique_ptr<DmaEngine> join();

 private:
  friend class Client;

  /// Completions for one client, put by whose turn it is and taken by the client's caller.
  class Box {
   public:
    explicit Box(uint32_t size);
    void put(const Completion& completion) noexcept;
    bool take(Completion& completion) noexcept;

   private:
    std::vector<Completion> slots_;
    // Each is stored with release by one side and loaded with acquire by the other.
    std::atomic<uint32_t> put_{0}, taken_{0};
  };

  /// Whose turn it is. Only ever tried: there is no way to wait.
  class CAPABILITY("turn") Turn {
   public:
    bool try_take() noexcept TRY_ACQUIRE(true) {
      // Acquire pairs with give_back(): the device is as the last one left it.
      return !taken_.load(std::memory_order_relaxed) && !taken_.exchange(true, std::memory_order_acquire);
    }
    void give_back() noexcept RELEASE() { taken_.store(false, std::memory_order_release); }

   private:
    std::atomic<bool> taken_{false};
  };

  Channel(std::unique_ptr<DmaEngine> device, std::shared_ptr<void> after)
      : after_(std::move(after)), device_(std::move(device)) {
    settle_shares();
  }

  /// Files what has completed to those whose it is.
  void distribute() noexcept REQUIRES(turn_);
  void note_state() noexcept REQUIRES(turn_);
  /// The device was stopped: everything enqueued before has been filed.
  void new_epoch(bool dead) noexcept REQUIRES(turn_);
  /// Jobs that a client may have outstanding, so that one with small jobs does not keep the others out.
  uint32_t share() const noexcept { return share_.load(std::memory_order_relaxed); }
  void settle_shares() noexcept REQUIRES(turn_);
  /// What the device says of a stop that begins.
  void keep_why() noexcept REQUIRES(turn_);
  std::string why() const;

  const std::shared_ptr<void> after_;
  /// What is fixed, and map() and unmap(), are for any thread; the rest for whose turn it is.
  const std::unique_ptr<DmaEngine> device_;
  Turn turn_;
  std::shared_ptr<Box> boxes_[max_clients] GUARDED_BY(turn_);  // of each client; of one that could not be stopped, too
  bool resetting_ GUARDED_BY(turn_) = false;                   // a reset has begun and not ended
  std::atomic<uint32_t> share_{0};
  // Written by whose turn it is, read by all; release and acquire, since who sees a new epoch finds its completions.
  std::atomic<uint32_t> epoch_{0};  // stops so far
  std::atomic<bool> dead_{false};   // its memory was taken away from it
  std::atomic<bool> sick_{false};   // the device has failed
  std::atomic<uint64_t> progress_{0};
  mutable Mutex why_mutex_;
  std::string last_why_ GUARDED_BY(why_mutex_);           // of the last stop
  std::shared_ptr<Channel> kept_ GUARDED_BY(why_mutex_);  // itself: its device may still write, so it never goes
};

/// A queue's share of a Channel. As with any engine, one caller at a time; its cookies have at most 24 bits. Of what is
/// in flight its statistics count jobs, not descriptors.
class Client final : public DmaEngine {
 public:
  explicit Client(std::shared_ptr<Channel> channel);
  /// Waits until none of its copies can run any more, at most some seconds. Those of a device that cannot be stopped
  /// keep the device and what it reaches, on purpose, for ever.
  ~Client() override;
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  const Capabilities& capabilities() const override { return channel_->device_->capabilities(); }
  EngineStats stats() const override;
  uint64_t progress() const noexcept override { return channel_->progress_.load(std::memory_order_relaxed); }
  void map(void* host, size_t size) override;
  void unmap(void* host) override;

  Refusal enqueue(std::span<const Copy> copies, uint32_t cookie) noexcept override;
  void submit() noexcept override;
  size_t poll(std::span<Completion> out) noexcept override;
  uint32_t outstanding() const noexcept override { return outstanding_; }
  bool failed() const noexcept override;
  std::string why() const override { return channel_->why(); }

  Step quiesce() noexcept override;
  Step reset() noexcept override;
  Step revoke() noexcept override;

 private:
  friend class Channel;

  void joined(uint32_t number, uint32_t epoch) noexcept {
    number_ = number;
    epoch_ = epoch;
    joined_ = true;
  }
  /// The device was stopped by another client, and this one has not been through its own ladder yet.
  bool left_behind() const noexcept { return epoch_ != channel_->epoch_.load(std::memory_order_acquire); }
  size_t take(std::span<Completion> out) noexcept;
  void ring_doorbell() noexcept REQUIRES(channel_->turn_);
  void stop() noexcept;

  std::shared_ptr<Channel> channel_;
  uint32_t number_ = 0;  // in the channel
  const std::shared_ptr<Channel::Box> box_;
  uint32_t epoch_ = 0;
  uint32_t outstanding_ = 0;
  bool unsubmitted_ = false;  // the doorbell is to be rung
  EngineStats stats_;
  std::vector<void*> mapped_;
  int owner_;  // process
  bool joined_ = false;
};

}  // namespace vhost_ioat::dma
