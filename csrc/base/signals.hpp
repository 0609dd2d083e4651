// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <pthread.h>
#include <signal.h>

namespace vhost_ioat {

/// While it lives, this thread has all signals blocked, and so have for ever the threads it starts: signals are for the
/// program's own threads. But a fault must reach its handler on the thread that caused it.
class BlockSignals {
 public:
  BlockSignals() {
    sigset_t blocked;
    sigfillset(&blocked);
    for (int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGSYS}) sigdelset(&blocked, fault);
    pthread_sigmask(SIG_SETMASK, &blocked, &before_);
  }
  BlockSignals(const BlockSignals&) = delete;
  BlockSignals& operator=(const BlockSignals&) = delete;
  ~BlockSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

}  // namespace vhost_ioat
