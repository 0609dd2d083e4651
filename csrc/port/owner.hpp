// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstdint>

namespace vhost_ioat::port {

/// Who is inside a queue: nobody, its caller, or the control thread. Nobody waits here.
///
/// A caller that meets another caller is a mistake of the program. A caller that meets the control thread, or finds
/// that it wants to come in, goes away with nothing: so the control thread gets in after at most one more burst.
class Owner {
 public:
  enum class Entry : uint8_t { entered, second_caller, control };

  Entry enter() noexcept {
    if (wanted_.load(std::memory_order_relaxed)) [[unlikely]] {
      return word_.load(std::memory_order_relaxed) == caller ? Entry::second_caller : Entry::control;
    }
    uint8_t expected = nobody;
    // Acquire pairs with the release in leave() and give_back(): the queue is as the last owner left it.
    if (word_.compare_exchange_strong(expected, caller, std::memory_order_acquire, std::memory_order_relaxed))
      return Entry::entered;
    return expected == caller ? Entry::second_caller : Entry::control;
  }
  void leave() noexcept { word_.store(nobody, std::memory_order_release); }  // pairs with enter() and try_take()

  /// Control thread only. After false, callers keep out until try_take() has succeeded and give_back() was called.
  bool try_take() noexcept {
    if (held()) return true;
    wanted_.store(true, std::memory_order_relaxed);
    return try_slip_in();
  }
  /// The same without keeping callers out: one who is inside is about to do the work itself.
  bool try_slip_in() noexcept {
    uint8_t expected = nobody;
    return word_.compare_exchange_strong(expected, control, std::memory_order_acquire, std::memory_order_relaxed);
  }
  void give_back() noexcept {
    wanted_.store(false, std::memory_order_relaxed);
    word_.store(nobody, std::memory_order_release);  // pairs with enter()
  }
  /// Does the control thread own it? Exact on that thread.
  bool held() const noexcept { return word_.load(std::memory_order_relaxed) == control; }

 private:
  enum : uint8_t { nobody, caller, control };
  std::atomic<uint8_t> word_{nobody};
  std::atomic<bool> wanted_{false};
};

}  // namespace vhost_ioat::port
