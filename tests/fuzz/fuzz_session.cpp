// SPDX-License-Identifier: BSD-3-Clause
// Any messages, in any order, to a session whose device holds rings at once or later.
#include <sys/mman.h>

#include "input.hpp"
#include "vhost_user/session.hpp"
#include "virtio/ring_layout.hpp"

using namespace vhost_ioat;
using vhost_user::BackendSession;

namespace {

class FuzzDevice final : public vhost_user::Device {
 public:
  bool later = false, fails = false;
  vhost_user::RingSet held;

  void prepare(const vhost_user::RingSet&, const vhost_user::SessionState& next) override {
    if (!next.memory) __builtin_trap();
    if (fails) throw std::bad_alloc();
  }
  void prepare_halt() noexcept override {}
  bool hold(const vhost_user::RingSet& rings, vhost_user::Hold) noexcept override {
    if ((held & rings).any()) __builtin_trap();  // held twice without being let go of
    held |= rings;
    return !later;
  }
  std::optional<uint16_t> ring_base(uint32_t ring) noexcept override {
    if (!held[ring]) __builtin_trap();
    return static_cast<uint16_t>(ring * 1000);
  }
  void halt() noexcept override { held.reset(); }
  void commit(const vhost_user::RingSet& rings, const vhost_user::SessionState& state) noexcept override {
    if ((held & rings) != rings || !state.memory) __builtin_trap();
    held &= ~rings;
    for (const vhost_user::Vring& vring : state.vrings) {
      if (vring.size != 0 && ((vring.size & (vring.size - 1)) != 0 || vring.size > virtio::max_ring_size))
        __builtin_trap();
    }
  }
  void announce(const uint8_t (&)[6]) noexcept override {}
  void remark(const char*) noexcept override {}
};

UniqueFd make_fd(uint8_t kind) {
  if (kind % 2) return make_eventfd();
  UniqueFd fd(::memfd_create("fuzz", MFD_CLOEXEC));
  (void)!::ftruncate(fd.get(), 1 << 16);
  return fd;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  FuzzDevice device;
  vhost_user::SessionConfig config;
  config.queue_pairs = 2;
  config.max_guest_mem = 1 << 20;
  BackendSession session(config, device);
  auto next = BackendSession::Next::proceed;
  while (!input.empty() && next != BackendSession::Next::close) {
    std::optional<vhost_user::Message> reply;
    const auto device_does = input.take<uint8_t>();
    device.later = device_does & 1;
    device.fails = (device_does & 0x0e) == 0x0e;
    vhost_user::Message message;
    message.request = input.take<uint8_t>();
    message.flags = input.take<uint8_t>();
    const auto body = input.take_bytes(std::min<size_t>(input.take<uint16_t>(), vhost_user::max_payload));
    message.size = static_cast<uint32_t>(body.size());
    std::copy(body.begin(), body.end(), message.payload.begin());
    const auto fds = input.take<uint8_t>();
    for (int i = 0; i < (fds & 7); ++i) message.fds.push_back(make_fd(static_cast<uint8_t>(fds >> (3 + i % 5))));
    next = session.receive(std::move(message), reply);
    if (next == BackendSession::Next::suspended && session.work()) {
      if (device_does & 0x10) break;  // it leaves while its memory is mapped
      session.work()->run(nullptr);
      next = session.resume(reply);
    }
    if (next == BackendSession::Next::suspended) next = session.resume(reply);
    if (next == BackendSession::Next::suspended) __builtin_trap();
  }
  std::optional<vhost_user::Message> reply;
  device.later = false;
  if (session.stop() == BackendSession::Next::suspended) session.resume(reply);
  if (device.held.any()) __builtin_trap();
  return 0;
}
