// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdint>

namespace vhost_ioat::testing {

/// A page of this process that stops whoever touches it, as a thread stops that gets no CPU, until release(). One at a
/// time; it must not be touched by the thread that releases it.
class BlockedPage {
 public:
  static constexpr size_t size = 4096;

  /// The whole page that begins at `page`.
  explicit BlockedPage(uint8_t* page) : page_(page) {
    present_ = this;
    ::sem_init(&released_, 0, 0);
    struct sigaction action{};
    action.sa_sigaction = [](int, siginfo_t* info, void*) { present_->on_fault(info->si_addr); };
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGSEGV, &action, &before_);
    ::mprotect(page_, size, PROT_NONE);
  }
  BlockedPage(const BlockedPage&) = delete;
  BlockedPage& operator=(const BlockedPage&) = delete;
  ~BlockedPage() {
    release();
    ::sigaction(SIGSEGV, &before_, nullptr);
  }

  bool touched() const { return touched_.load(std::memory_order_acquire); }
  void release() {
    ::mprotect(page_, size, PROT_READ | PROT_WRITE);
    ::sem_post(&released_);
  }

 private:
  void on_fault(void* address) {
    const auto* at = static_cast<uint8_t*>(address);
    if (at < page_ || at >= page_ + size) {  // a fault of somebody else's: it comes again, to whom it belongs
      ::sigaction(SIGSEGV, &before_, nullptr);
      return;
    }
    touched_.store(true, std::memory_order_release);
    while (::sem_wait(&released_) != 0) {
    }
    ::sem_post(&released_);
  }

  static inline BlockedPage* present_ = nullptr;
  uint8_t* page_;
  std::atomic<bool> touched_{false};
  sem_t released_;
  struct sigaction before_{};
};

}  // namespace vhost_ioat::testing
