// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "dma/domain.hpp"
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

  void map(void* host, size_t size) override { domain_.map(host, size); }
  void unmap(void* host) override { domain_.unmap(host); }

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
  [[gnu::noinline]] Refusal enqueue_from(const Copy* copy, const Copy* last, uint32_t index, uint32_t cookie,
                                         uint64_t bytes) noexcept;

  std::optional<IoatChannel> channel_;
  Mapping dst_hint_, src_hint_;   // the mappings hit last: bursts mostly stay within one of each
  uint32_t unmappings_seen_ = 0;  // Domain::unmappings(): the hints are of that time

  std::shared_ptr<Mmio> registers_;
  std::unique_ptr<RingPages> ring_pages_;
  Domain domain_;  // the ring is in it, too
  Capabilities capabilities_;
  bool revoked_ = false;
  bool resetting_ = false;
  uint32_t failed_resets_ = 0;
  uint64_t completed_at_reset_ = 0;
};

}  // namespace vhost_ioat::dma
