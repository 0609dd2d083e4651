// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "guest/guest.hpp"
#include "guest/queue.hpp"
#include "memory/guest_mapping.hpp"
#include "memory/packet_arena.hpp"
#include "port/eth_vhost.hpp"
#include "vhost_user/frontend.hpp"

namespace vhost_ioat::testing {

/// The port has said that something is wrong, and the front end waits no longer.
struct GaveUp : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What must hold did not.
struct Broken : std::runtime_error {
  using std::runtime_error::runtime_error;
};
void must(bool holds, const char* what);

/// A front end that says much in few round trips: one queue pair, rings and buffers in one memfd, a second memfd that
/// comes and goes.
class Peer {
 public:
  explicit Peer(vhost_user::Frontend connected);
  /// Connects to the port, or waits for it when `listener` is given. `tick` is called now and then while it waits for
  /// anything, also later, and may throw.
  static vhost_user::Frontend connect(const std::string& path, const vhost_user::SocketListener* listener,
                                      std::function<void()> tick);

  void start_rings();
  /// A new memory table while the rings run: the second memfd joins the first, or leaves.
  void migrate();
  /// The second memfd by ADD_MEM_REG and REM_MEM_REG.
  void hot_plug();
  /// Other call and err fds for all rings.
  void replace_fds();
  void stop_rings();
  /// The back end has handled all that was said. False: it has left.
  bool answered();
  bool alive() const { return frontend_.alive(); }

  /// One packet each way. False: it did not come within this look.
  bool send(uint32_t number);
  std::optional<uint32_t> receive();

 private:
  vhost_user::FrontendRegion first() const;
  vhost_user::FrontendRegion second() const;
  void start_ring(uint32_t ring, guest::Queue& queue);

  vhost_user::Frontend frontend_;
  std::shared_ptr<memory::GuestMapping> memory_, more_;
  std::shared_ptr<memory::PacketArena> arena_;
  std::optional<guest::ReceiveQueue> receive_;
  std::optional<guest::SendQueue> send_;
  bool table_of_two_ = false;
};

/// Bytes of packet `number`: short ones and long ones, so that CPU and engine both copy.
std::vector<uint8_t> packet(uint32_t number);
/// The number of a packet; throws Broken when it is not as it was sent.
uint32_t number_of(const uint8_t* data, uint32_t length);
/// Moves what the guest sent back to it. How many packets went.
uint32_t echo(port::EthVhost& port);
/// Sends packet `number` from the port.
bool transmit(port::EthVhost& port, uint32_t number);
/// Takes one packet at the port.
std::optional<uint32_t> take(port::EthVhost& port);

/// A port with an honest guest, and verified traffic whenever asked for.
class Neighbour {
 public:
  explicit Neighbour(const std::string& path);
  /// Packets go both ways; throws Broken when one is lost or altered.
  void exchange();
  port::EthVhost& port() { return port_; }

 private:
  port::EthVhost port_;
  guest::Guest guest_;
  std::shared_ptr<memory::PacketArena> arena_;
  uint32_t next_ = 0;
};

}  // namespace vhost_ioat::testing
