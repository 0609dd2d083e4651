// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/half_open.hpp"
#include "base/helper.hpp"
#include "base/mutex.hpp"
#include "base/peer_fd.hpp"
#include "base/unique_fd.hpp"
#include "dma/ioat_model.hpp"
#include "dma/vfio_user_socket.hpp"
#include "memory/guest_mapping.hpp"

namespace vhost_ioat::dma {

/// Serves an IoatModel as a PCI function to the monitors of VMs over vfio-user, one after the other.
///
/// The peer is not trusted: what it sends is checked, and answered with an error or ends the connection; nothing of it
/// stays behind (memory, fds, the state of the model), so the next VM finds a model as after power-on: bus mastering is
/// off, and nothing is mapped, whoever mapped it.
/// One thread; the model's interrupts may come from another one.
class VfioUserServer {
 public:
  /// The model, which outlives the server, has no other driver meanwhile: throws DmaError when it has one.
  explicit VfioUserServer(IoatModel& model);
  ~VfioUserServer() { detach(); }
  VfioUserServer(const VfioUserServer&) = delete;
  VfioUserServer& operator=(const VfioUserServer&) = delete;

  /// May another connection come? Not while too much of what former ones sent is still to be closed, which they can
  /// make take long.
  bool has_room();
  /// Serves this connection from now on, and no other.
  void attach(UniqueFd connection, HalfOpen::Time now = HalfOpen::Clock::now());
  /// Has the machine that is served been silent (it has not sent VERSION) for so long that it makes way for another?
  bool makes_way(HalfOpen::Time now = HalfOpen::Clock::now()) const { return socket_ && half_open_.makes_way(now); }
  /// Answers messages for as long as `timeout`. False when the connection has ended and all of it is undone; why() says
  /// how it ended.
  bool serve(std::chrono::milliseconds timeout);
  const std::string& why() const { return why_; }

  size_t maps() const { return model_.memory().size(); }

 private:
  /// Shared with the model, whose worker may still raise an interrupt when the server goes.
  struct Interrupt {
    Mutex mutex;
    UniqueFd fd GUARDED_BY(mutex);
    PeerFd peer GUARDED_BY(mutex);  // of fd
    void raise();
  };
  using Payload = std::vector<std::byte>;

  void detach();
  void answer(vfio_user::Message& request);
  Payload execute(vfio_user::Message& request);
  Payload negotiate(std::span<const std::byte> payload);
  void dma_map(vfio_user::Message& request);
  Payload dma_unmap(vfio_user::DmaUnmap request);
  void set_irqs(vfio_user::Message& request);
  Payload region_read(const vfio_user::RegionAccess& access);
  Payload region_write(std::span<const std::byte> payload);
  std::shared_ptr<memory::GuestMapping> file_of(int fd);
  void check_files() const;

  IoatModel& model_;
  const std::shared_ptr<void> seat_;
  std::shared_ptr<Interrupt> interrupt_ = std::make_shared<Interrupt>();
  std::vector<std::shared_ptr<HelperLane>> lanes_;  // of former connections, and of the present one
  std::shared_ptr<HelperLane> next_lane_;
  std::optional<vfio_user::Socket> socket_;
  HalfOpen half_open_;
  std::string why_;
  /// Guest memory is few files but, behind an IOMMU of the guest, thousands of mappings of a page each: so each file is
  /// mapped once, whole, by device and inode, and the mappings point into it. One that has grown since is mapped again,
  /// and both count while both are used.
  std::multimap<std::pair<uint64_t, uint64_t>, std::weak_ptr<memory::GuestMapping>> files_;
};

}  // namespace vhost_ioat::dma
