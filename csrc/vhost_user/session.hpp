// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <bitset>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "memory/region_table.hpp"
#include "vhost_user/message.hpp"
#include "virtio/features.hpp"

namespace vhost_ioat::vhost_user {

constexpr uint32_t max_queue_pairs = 128;
constexpr uint32_t max_vrings = 2 * max_queue_pairs;
using RingSet = std::bitset<max_vrings>;

/// What the front end has said of one ring. Ring addresses stay the front end's until the ring runs.
struct Vring {
  uint32_t size = 0;  // entries, 0: not said yet
  uint64_t desc_uva = 0, avail_uva = 0, used_uva = 0;
  bool has_addresses = false;
  uint16_t base = 0;      // next avail index: from SET_VRING_BASE, then from the device each time it is held
  bool started = false;   // SET_VRING_KICK came; GET_VRING_BASE ends it
  bool enabled = false;   // SET_VRING_ENABLE, or all of them when F_PROTOCOL_FEATURES was not acked
  bool polled = false;    // started without a kick fd
  UniqueFd kick, call, err;  // call and err: non-blocking; -1: none (the front end polls)
};

struct SessionState {
  virtio::FeatureSet features;     // acked
  uint64_t protocol_features = 0;  // acked
  bool owned = false;
  std::shared_ptr<const memory::RegionTable> memory;  // never null
  std::vector<Vring> vrings;                          // 2 * queue pairs
  uint16_t mtu = 0;
  uint8_t status = 0;
};

/// The device above a session; the port implements it. All calls come from the control thread.
///
/// Each message that touches rings or memory first holds those rings, then changes the state, then releases them:
/// there is no other way in which the control path meets the data path.
class Device {
 public:
  virtual ~Device() = default;
  /// Takes these rings away from the data path and finishes what is in flight there. true: all are held.
  /// false: not yet; the session is suspended and the device calls its resume callback once they are held.
  virtual bool hold(const RingSet& rings) = 0;
  /// The next avail index of a held ring, free running.
  virtual uint16_t ring_base(uint32_t ring) = 0;
  /// The held rings may run again, as far as `state` says they should. Addresses are translated here.
  virtual void release(const RingSet& rings, const SessionState& state) = 0;
  /// SEND_RARP: the guest moved here with this MAC address; announce it. The port puts a RARP frame before the next rx.
  virtual void announce(const uint8_t (&mac)[6]) = 0;
};

struct SessionConfig {
  uint32_t queue_pairs = 1;
  virtio::FeatureSet features;  // offered
  uint64_t protocol_features = 0;
  uint64_t max_guest_mem = 0;   // bytes a memory table may span in all
};

/// The vhost-user protocol of one connection, without any I/O: messages in, replies out.
/// (vhost-user specification; a table in message.hpp gives each message its exact size and number of fds.)
class BackendSession {
 public:
  enum class Next { proceed, suspended, close };

  BackendSession(SessionConfig config, Device& device);

  /// Handles one message. `reply` is set when something is to be sent. `suspended`: deliver no further message until
  /// the device has held the rings; then call resume(). `close`: the connection must end; error() says why.
  Next receive(Message message, std::optional<Message>& reply);
  Next resume(std::optional<Message>& reply);

  const SessionState& state() const { return state_; }
  const std::string& error() const { return error_; }

 private:
  SessionConfig config_;
  Device& device_;
  SessionState state_;
  std::optional<Message> pending_;
  std::string error_;
};

}  // namespace vhost_ioat::vhost_user
