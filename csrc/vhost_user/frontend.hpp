// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <functional>
#include <span>
#include <string>

#include "base/unique_fd.hpp"
#include "vhost_user/connection.hpp"
#include "vhost_user/message.hpp"
#include "vhost_user/unix_socket.hpp"
#include "virtio/features.hpp"

namespace vhost_ioat::vhost_user {

/// How a front end waits.
struct Patience {
  std::chrono::milliseconds timeout{10000};  // of each call
  std::function<void()> tick = [] {};        // called every 50 ms while waiting; may throw (Ctrl-C)
};

/// One region of a front end's memory, and the file it lies in.
struct FrontendRegion {
  wire::MemRegion region;
  int fd;  // stays the caller's
};

/// The driver's end of a vhost-user connection. Each call sends one message and waits for what answers it: the reply,
/// or the acknowledgement when REPLY_ACK was negotiated. One thread at a time.
///
/// Throws Disconnected when the back end is gone or does not answer in time, ProtocolError when it refuses or answers
/// nonsense.
class Frontend {
 public:
  explicit Frontend(UniqueFd socket, Patience patience = {});
  /// Tries until a back end listens on `path`.
  static Frontend connect(const std::string& path, Patience patience = {});
  /// Waits for a back end to connect.
  static Frontend accept(const SocketListener& listener, Patience patience = {});

  /// GET_FEATURES, protocol features if both know of them, SET_OWNER, SET_FEATURES with what both want.
  /// After it features() and protocol_features() say what was agreed.
  void negotiate(virtio::FeatureSet wanted, uint64_t wanted_protocol);
  virtio::FeatureSet features() const { return features_; }
  uint64_t protocol_features() const { return protocol_features_; }

  uint64_t get_u64(Request request);              // GET_FEATURES, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, ...
  void set_u64(Request request, uint64_t value);  // SET_FEATURES, SET_PROTOCOL_FEATURES, NET_SET_MTU, SET_STATUS, ...
  void command(Request request);                  // SET_OWNER, RESET_DEVICE, ...

  void set_mem_table(std::span<const FrontendRegion> regions);  // at most 8
  void add_mem_region(const FrontendRegion& region);
  void remove_mem_region(const wire::MemRegion& region);

  void set_vring(Request request, uint32_t ring, uint32_t num);  // SET_VRING_NUM, _BASE, _ENABLE
  void set_vring_addr(const wire::VringAddr& address);
  void set_vring_fd(Request request, uint32_t ring, int fd);  // SET_VRING_KICK, _CALL, _ERR; -1: none
  uint16_t get_vring_base(uint32_t ring);                     // stops the ring

  /// One message as it is, and the next one from the back end.
  void send(Message message);
  Message receive();

  int fd() const { return connection_.fd(); }
  /// False once the back end has closed. Does not wait.
  bool alive() const;

 private:
  void perform(Message message);
  Message ask(Message message);

  Connection connection_;
  Patience patience_;
  virtio::FeatureSet features_;
  uint64_t protocol_features_ = 0;
};

}  // namespace vhost_ioat::vhost_user
