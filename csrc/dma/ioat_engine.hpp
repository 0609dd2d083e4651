// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dma/dma_space.hpp"
#include "dma/engine.hpp"
#include "dma/ioat_channel.hpp"
#include "dma/register_file.hpp"

namespace vhost_ioat::dma {

/// An I/OAT channel as a port uses it: host addresses in, cookies out. Hardware and software differ only in the two
/// objects given to the constructor.
class IoatEngine final : public DmaEngine {
 public:
  /// Resets in a row, with fewer than resets_forgotten_after descriptors completed between two, before reset() refuses.
  static constexpr uint32_t max_resets = 5, resets_forgotten_after = 4096;

  struct Identity {
    std::string name;         // "sw0", "0000:00:04.0"
    std::string description;  // the version is appended: "software I/OAT" -> "software I/OAT 3.4"
    bool hardware = false;
  };

  /// Starts the channel, which takes some milliseconds on hardware. Throws DmaError, ConfigError (ring size).
  IoatEngine(std::shared_ptr<Mmio> registers, std::shared_ptr<DmaSpace> space, const Identity& identity,
             const ChannelOptions& options = {});
  /// Stops the device, whatever it takes, for at most about a second. Ring memory of a device that could not be stopped
  /// is leaked on purpose.
  ~IoatEngine() override;

  const Capabilities& capabilities() const override { return capabilities_; }
  EngineStats stats() const override { return channel_->stats(); }

  void map(void* host, size_t size) override;
  void unmap(void* host) override;

  Refusal enqueue(std::span<const Copy> copies, uint32_t cookie) noexcept override;
  void submit() noexcept override { channel_->submit(); }
  size_t poll(std::span<Completion> out) noexcept override { return channel_->poll(out); }
  uint32_t outstanding() const noexcept override { return channel_->outstanding(); }
  bool failed() const noexcept override { return channel_->failed() || revoked_; }
  std::string why() const override;

  Step quiesce() noexcept override { return channel_->quiesce(); }
  Step reset() noexcept override;
  Step revoke() noexcept override;

 private:
  struct Mapping {
    uintptr_t host = 0;
    uintptr_t size = 0;
    uint64_t iova = 0;

    bool holds(uintptr_t address, uintptr_t len) const { return len <= size && address - host <= size - len; }
    uint64_t translate(uintptr_t address) const { return iova + (address - host); }
  };

  uint64_t pick_iova(uintptr_t host, size_t size) const;
  Mapping find(uintptr_t address) const noexcept;
  [[gnu::noinline]] Refusal enqueue_from(const Copy* copy, const Copy* last, uint32_t index, uint32_t cookie,
                                         uint64_t bytes) noexcept;

  std::optional<IoatChannel> channel_;
  Mapping dst_hint_, src_hint_;    // the mappings hit last: bursts mostly stay within one of each
  std::vector<Mapping> mappings_;  // by host address, the ring among them

  std::shared_ptr<Mmio> registers_;
  std::shared_ptr<DmaSpace> space_;
  std::unique_ptr<RingPages> ring_pages_;
  Capabilities capabilities_;
  uint8_t address_bits_;
  bool revoked_ = false;
  bool resetting_ = false;
  uint32_t failed_resets_ = 0;
  uint64_t completed_at_reset_ = 0;
};

}  // namespace vhost_ioat::dma
