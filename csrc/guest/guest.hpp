// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "guest/queue.hpp"
#include "memory/guest_mapping.hpp"
#include "memory/packet_arena.hpp"
#include "vhost_user/frontend.hpp"
#include "vhost_user/unix_socket.hpp"
#include "virtio/features.hpp"

namespace vhost_ioat::guest {

/// What a guest acknowledges of what it is offered, unless told otherwise: all but the control queue and announcements.
constexpr virtio::FeatureSet default_features = virtio::supported_features.without(virtio::Feature::CTRL_VQ)
                                                    .without(virtio::Feature::CTRL_RX)
                                                    .without(virtio::Feature::GUEST_ANNOUNCE);

struct GuestConfig {
  std::string path = {};
  uint32_t queues = 1;  // pairs
  bool server = false;  // listens on `path`, the back end connects
  uint32_t ring_size = 256;
  virtio::FeatureSet features = default_features;
  uint32_t rx_buf = 2048;  // bytes of a receive buffer, virtio header included
  uint16_t mtu = 1500;
  uint32_t segment = 0;  // bytes per descriptor behind a header that has its own; 0: as few descriptors as may be
};

/// A virtual machine's network card without the machine: driver-side rings in a memfd, and a vhost-user front end.
///
/// Knows nothing of the port, so it is a peer for any back end. connect(), disconnect() and close() are not for two
/// threads at once, nor beside the others; each queue and direction may have a thread of its own. The data path neither
/// allocates nor waits.
///
/// Errors: Disconnected (not connected, or the back end left), ProtocolError (it broke the protocol or a ring),
/// ConfigError, Error (in a forked child, where only close() and the destructor do something).
class Guest {
 public:
  /// Throws ConfigError. With `server` it listens from here on.
  explicit Guest(GuestConfig config);
  ~Guest();

  /// Finds a back end, agrees on features and starts all rings, in new memory.
  void connect(const vhost_user::Patience& patience);
  /// Stops each ring, so that the next connect() goes on at its index, and leaves.
  void disconnect();
  /// Leaves without a word, as a killed virtual machine does. Listens no more.
  void close() noexcept;
  /// The back end is there. A system call.
  bool connected() const;

  uint32_t queues() const { return config_.queues; }
  virtio::FeatureSet features() const;  // agreed on

  /// How many packets were taken, from the front. Throws Disconnected when none was and the back end has left.
  uint32_t send(uint32_t queue, std::span<const Packet> packets);
  /// An empty burst when there is nothing; Disconnected when the back end has left besides.
  virtio::Burst receive(uint32_t queue, uint32_t limit, memory::PacketArena& arena);

  /// Readable once a packet came on this queue after enable_interrupt(). Belongs to the connection.
  int receive_fd(uint32_t queue) const;
  bool enable_interrupt(uint32_t queue);
  void disable_interrupt(uint32_t queue);

  std::vector<RingState> rings() const;  // in the order of vhost-user: receive, send, receive, ...
  std::shared_ptr<memory::GuestMapping> memory() const;

 private:
  struct Session;
  Session& session() const;
  void check_process() const;

  GuestConfig config_;
  uint32_t generation_;  // of forks, when it was made
  std::optional<vhost_user::SocketListener> listener_;
  std::vector<RingIndex> starts_;  // of each ring, for the next connection
  std::unique_ptr<Session> session_;
};

}  // namespace vhost_ioat::guest
