// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/peer_fd.hpp"
#include "base/unique_fd.hpp"
#include "dma/ioat_model.hpp"
#include "dma/vfio_user_socket.hpp"
#include "memory/guest_mapping.hpp"

namespace vhost_ioat::dma {

/// Serves an IoatModel as a PCI function to the monitors of VMs over vfio-user, one after the other.
///
/// The peer is not trusted: what it sends is checked, and answered with an error or ends the connection; nothing of it
/// stays behind (memory, fds, the state of the model), so the next VM finds a model as after power-on.
/// One thread; the model's interrupts may come from another one.
class VfioUserServer {
 public:
  static constexpr size_t max_maps = 65535;  // as VFIO's own limit

  /// Before the model runs; it outlives the server.
  explicit VfioUserServer(IoatModel& model);
  ~VfioUserServer() { detach(); }
  VfioUserServer(const VfioUserServer&) = delete;
  VfioUserServer& operator=(const VfioUserServer&) = delete;

  /// Serves this connection from now on, and no other.
  void attach(UniqueFd connection);
  /// Answers messages for as long as `timeout`. False when the connection has ended and all of it is undone; why() says
  /// how it ended.
  bool serve(std::chrono::milliseconds timeout);
  const std::string& why() const { return why_; }

  size_t maps() const { return maps_.size(); }

 private:
  struct Map {
    uint64_t size;
    std::shared_ptr<memory::GuestMapping> file;  // none: a ROM, which comes without an fd and is not reachable
  };
  /// Shared with the model, whose worker may still raise an interrupt when the server goes.
  struct Interrupt {
    std::mutex mutex;
    UniqueFd fd;
    PeerFd peer;  // of fd
    void raise();
  };
  using Payload = std::vector<std::byte>;

  void detach();
  void answer(vfio_user::Message& request);
  Payload execute(vfio_user::Message& request);
  Payload negotiate(std::span<const std::byte> payload);
  void dma_map(vfio_user::Message& request);
  void dma_unmap(const vfio_user::DmaUnmap& request);
  void set_irqs(vfio_user::Message& request);
  Payload region_read(const vfio_user::RegionAccess& access);
  Payload region_write(std::span<const std::byte> payload);
  std::shared_ptr<memory::GuestMapping> file_of(int fd);
  void forget(uint64_t iova, const Map& map);
  void check_files() const;

  IoatModel& model_;
  std::shared_ptr<Interrupt> interrupt_ = std::make_shared<Interrupt>();
  std::optional<vfio_user::Socket> socket_;
  bool negotiated_ = false;
  std::string why_;
  std::map<uint64_t, Map> maps_;  // by IOVA
  /// Guest memory is few files but, behind an IOMMU of the guest, thousands of mappings of a page each: so each file is
  /// mapped once, whole, by device and inode, and the mappings point into it.
  std::map<std::pair<uint64_t, uint64_t>, std::weak_ptr<memory::GuestMapping>> files_;
};

}  // namespace vhost_ioat::dma
