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
  uint16_t base = 0;         // next avail index: from SET_VRING_BASE, then from the device each time it is held
  bool started = false;      // SET_VRING_KICK came; GET_VRING_BASE ends it
  bool enabled = false;      // SET_VRING_ENABLE, or all of them when F_PROTOCOL_FEATURES was not acked
  bool polled = false;       // started without a kick fd
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
/// there is no other way in which the control path meets the data path. At most one hold is outstanding.
class Device {
 public:
  virtual ~Device() = default;
  /// Takes these rings away from the data path and finishes what is in flight there. true: all are held.
  /// false: not yet; the session is suspended until its owner, told by the device, calls resume().
  virtual bool hold(const RingSet& rings) = 0;
  /// The next avail index of a held ring that is started, free running; if it never ran, the base it was released with.
  virtual uint16_t ring_base(uint32_t ring) = 0;
  /// The held rings may run again, as far as `state` says they should, each from its `base`. Addresses are translated
  /// here. Of `state` the memory table may be kept, and the fds of a ring used until this is called for it again: those
  /// it had before are still open during the call, so that they can be taken out of an epoll set.
  virtual void release(const RingSet& rings, const SessionState& state) = 0;
  /// SEND_RARP: the guest moved here with this MAC address; announce it. The port puts a RARP frame before the next rx.
  virtual void announce(const uint8_t (&mac)[6]) = 0;
};

struct SessionConfig {
  uint32_t queue_pairs = 1;
  virtio::FeatureSet features = virtio::supported_features;  // offered
  uint64_t protocol_features = protocol::supported;          // offered
  uint64_t max_guest_mem = UINT64_MAX;                       // bytes a memory table may hold in all
};

/// The vhost-user protocol of one connection, without any I/O: messages in, replies out.
/// (vhost-user specification; a table in message.hpp gives each message its exact size and number of fds.)
///
/// A request that is well formed but cannot be done changes nothing; it is answered with 1 if the front end asked for
/// an acknowledgement. Anything else that is wrong ends the connection.
class BackendSession {
 public:
  enum class Next { proceed, suspended, close };

  BackendSession(SessionConfig config, Device& device);

  /// Handles one message. `reply` is set when something is to be sent. `suspended`: deliver no further message until
  /// the device has held the rings; then call resume(). `close`: the connection must end; error() says why.
  Next receive(Message message, std::optional<Message>& reply);
  Next resume(std::optional<Message>& reply);
  /// The connection is gone: every ring is held, stopped and released, the memory let go. Always ends in `close`, at
  /// once or, when suspended, from resume().
  Next stop();

  const SessionState& state() const { return state_; }
  const std::string& error() const { return error_; }  // of the last request that was refused

 private:
  void dispatch(const MessageType& type);
  RingSet every_ring() const;
  /// For the handlers: what the request does once these rings are held. It must not fail.
  void when_held(const RingSet& rings, std::function<void()> change);
  void reply_with(const auto& body) { reply_.emplace(static_cast<Request>(request_->request), body); }
  Next finish(std::optional<Message>& reply);
  Next answer(std::optional<Message>& reply);
  Next refuse(const std::string& why, std::optional<Message>& reply);
  void forget_start(Vring& ring);
  void retire(UniqueFd& fd);

  void set_features();
  void set_protocol_features();
  void set_mtu();
  void set_status();
  void reset_owner();
  void reset_device();
  // session_rings.cpp
  uint32_t ring_of(uint64_t index) const;
  void set_vring_num();
  void set_vring_addr();
  void set_vring_base();
  void get_vring_base();
  void set_vring_enable();
  void set_vring_fd(UniqueFd Vring::* fd);
  // session_memory.cpp
  void set_mem_table();
  void add_mem_region();
  void remove_mem_region();
  void change_memory(memory::RegionTable table);

  SessionConfig config_;
  Device& device_;
  SessionState state_;
  UniqueFd backend_channel_;        // SET_BACKEND_REQ_FD: kept open for the front end, never used
  std::optional<Message> request_;  // the one being handled
  std::optional<Message> reply_;    // its own reply
  RingSet held_;                    // for the change
  std::function<void()> change_;
  std::vector<UniqueFd> retired_;  // replaced by the change, open until the device was told
  bool suspended_ = false;
  bool stopping_ = false;
  std::string error_;
};

}  // namespace vhost_ioat::vhost_user
