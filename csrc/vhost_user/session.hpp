// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <bitset>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/helper.hpp"
#include "base/peer_fd.hpp"
#include "base/unique_fd.hpp"
#include "memory/region_table.hpp"
#include "vhost_user/message.hpp"
#include "virtio/features.hpp"

namespace vhost_ioat::vhost_user {

constexpr uint32_t max_queue_pairs = 128;
constexpr uint32_t max_vrings = 2 * max_queue_pairs + 1;  // and the control queue
using RingSet = std::bitset<max_vrings>;

/// A kick, call or err fd that is of use, and the rule for it (base/peer_fd.hpp). The session and the queue share it,
/// so changing rings needs no new one; whoever owns the queue uses `peer`.
struct RingFd {
  UniqueFd owned;
  PeerFd peer;
};
using SharedFd = std::shared_ptr<RingFd>;

/// The ring that is the control queue when CTRL_VQ was negotiated: after the queues there may be (VIRTIO 1.2, 5.1.2).
constexpr uint32_t control_ring_of(virtio::FeatureSet features, uint32_t queue_pairs) {
  return features.has(virtio::Feature::MQ) ? 2 * queue_pairs : 2;
}

/// What the front end has said of one ring. Ring addresses stay the front end's until the ring runs.
struct Vring {
  uint32_t size = 0;  // entries, 0: not said yet
  uint64_t desc_uva = 0, avail_uva = 0, used_uva = 0;
  bool has_addresses = false;
  uint16_t base = 0;         // next avail index: from SET_VRING_BASE, then from the device each time it is held
  bool started = false;      // SET_VRING_KICK came; GET_VRING_BASE ends it
  bool enabled = false;      // SET_VRING_ENABLE, or all of them when F_PROTOCOL_FEATURES was not acked
  bool polled = false;       // started without a kick fd, or with one that is of no use
  SharedFd kick, call, err;  // none: somebody polls

  bool same_addresses(const wire::VringAddr& at) const {
    return has_addresses && desc_uva == at.desc && avail_uva == at.avail && used_uva == at.used;
  }
};

struct SessionState {
  virtio::FeatureSet features;     // acked
  bool features_acked = false;     // SET_FEATURES came
  uint64_t protocol_features = 0;  // acked
  bool owned = false;
  std::shared_ptr<const memory::RegionTable> memory;  // never null
  std::vector<Vring> vrings;                          // 2 * queue pairs, and the control queue
  uint16_t mtu = 0;
  uint8_t status = 0;
};

/// How far rings are held: `owned` keeps the data path out, `drained` also has all copies in flight finished.
enum class Hold : uint8_t { owned, drained };

/// The device above a session; the port implements it. All calls come from the control thread.
///
/// A message that touches rings or memory makes ready what it needs (prepare, which may fail: then nothing has
/// changed), has those rings held, and lets them go on with what is new (commit, which cannot fail). There is no other
/// way in which the control path meets the data path. At most one hold is outstanding.
class Device {
 public:
  virtual ~Device() = default;
  /// Allocates and translates what these rings will need under `next`. May throw; nothing has changed then.
  virtual void prepare(const RingSet& rings, const SessionState& next) = 0;
  /// Takes these rings away from the data path. true: all are held. false: not yet; the session is suspended until its
  /// owner, told by the device, calls resume().
  virtual bool hold(const RingSet& rings, Hold how) noexcept = 0;
  /// The next avail index of a held ring, free running; nothing when the ring does not run.
  virtual std::optional<uint16_t> ring_base(uint32_t ring) noexcept = 0;
  /// The held rings go on as prepared, with the fds of `next`.
  virtual void commit(const RingSet& rings, const SessionState& next) noexcept = 0;
  /// Likewise for the end of a session: whatever was prepared is forgotten, and all rings are going to stop.
  virtual void prepare_halt() noexcept = 0;
  /// All rings are held; they stop, and let memory and fds go.
  virtual void halt() noexcept = 0;
  /// SEND_RARP: the guest moved here with this MAC address; announce it. The port puts a RARP frame before the next rx.
  virtual void announce(const uint8_t (&mac)[6]) noexcept = 0;
  /// Something the front end said is of no use, and the session goes on without it. Never more than one a message.
  virtual void remark(const char* text) noexcept = 0;
};

/// Mapping what a front end sent may take long, so it is made into work for another thread. It owns what it uses.
class MemoryWork {
 public:
  MemoryWork(std::vector<wire::MemRegion> wanted, std::vector<UniqueFd> fds,
             std::shared_ptr<const memory::RegionTable> known, bool adds);
  /// On any thread.
  void run(const std::shared_ptr<HelperLane>& lane) noexcept;

 private:
  friend class BackendSession;
  void map(const std::shared_ptr<HelperLane>& lane);

  const std::vector<wire::MemRegion> wanted_;
  std::vector<UniqueFd> fds_;
  const std::shared_ptr<const memory::RegionTable> known_;  // mappings in it are used again
  const bool adds_;                                         // to the known ones, or else in their place
  std::shared_ptr<const memory::RegionTable> table_;        // the result
  std::string remark_;                                      // what is not as it should be in it
  std::exception_ptr problem_;                              // or why there is none
};

struct SessionConfig {
  uint32_t queue_pairs = 1;
  virtio::FeatureSet features = virtio::supported_features;  // offered
  uint64_t protocol_features = protocol::supported;          // offered
  uint64_t max_guest_mem = UINT64_MAX;                       // bytes a memory table may hold in all
};

/// The vhost-user protocol of one connection, without any I/O: messages in, replies out.
/// (vhost-user specification; a table in message.hpp gives each message its least size and number of fds.)
///
/// A request that is well formed but cannot be done changes nothing; it is answered with 1 if the front end asked for
/// an acknowledgement. Anything else that is wrong ends the connection. What a message does not change is not touched:
/// rings it does not concern go on.
class BackendSession {
 public:
  enum class Next { proceed, suspended, close };

  BackendSession(SessionConfig config, Device& device);

  /// Handles one message. `reply` is set when something is to be sent. `suspended`: deliver no further message until
  /// resume() was called: when work(), if there is any, has run, or else when the device has held the rings. `close`:
  /// the connection must end; error() says why. What it throws (out of memory) left everything as it was, and the
  /// connection is to end.
  Next receive(Message message, std::optional<Message>& reply);
  const std::shared_ptr<MemoryWork>& work() const { return work_; }
  Next resume(std::optional<Message>& reply);
  /// The connection is gone: every ring is held and stopped, the memory let go. Always ends in `close`, at once or,
  /// when suspended, from resume(). Work that runs is not waited for.
  Next stop() noexcept;

  const SessionState& state() const { return state_; }
  const std::string& error() const { return error_; }  // of the last request that was refused

 private:
  void dispatch(const MessageType& type);
  RingSet every_ring() const;
  RingSet started_rings() const;
  /// For the handlers: the state as it will be, to be changed.
  SessionState& next();
  /// For the handlers: these rings are concerned by it.
  void touch(const RingSet& rings, Hold how);
  void reply_with(const auto& body) { reply_.emplace(static_cast<Request>(request_->request), body); }
  Next change(std::optional<Message>& reply);
  void take_over() noexcept;
  Next answer(std::optional<Message>& reply);
  Next refuse(const std::string& why, std::optional<Message>& reply);
  bool concerns_device() const noexcept;
  void forget_change() noexcept;
  Next halt_when_held() noexcept;
  Next halt() noexcept;

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
  void set_vring_fd(SharedFd Vring::* fd);
  SharedFd adopt(uint32_t ring, SharedFd Vring::* which, UniqueFd fd);
  // session_memory.cpp
  void set_mem_table();
  void add_mem_region();
  void remove_mem_region();
  void change_memory(std::shared_ptr<const memory::RegionTable> table);

  SessionConfig config_;
  Device& device_;
  const std::shared_ptr<const memory::RegionTable> no_memory_;
  SessionState state_;
  UniqueFd backend_channel_;          // SET_BACKEND_REQ_FD: kept open for the front end, never used
  std::optional<Message> request_;    // the one being handled
  std::optional<Message> reply_;      // its own reply
  std::optional<SessionState> next_;  // what it makes of the state
  RingSet touched_;                   // the rings it concerns
  Hold how_ = Hold::owned;
  std::optional<uint32_t> base_asked_;  // GET_VRING_BASE of this ring
  std::shared_ptr<MemoryWork> work_;    // it waits for this
  bool holding_ = false;                // it waits for the device
  bool stopping_ = false;
  bool halting_ = false;  // what it waits for are all rings, to stop
  std::string error_;
};

}  // namespace vhost_ioat::vhost_user
