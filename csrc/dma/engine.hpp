// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace vhost_ioat::dma {

/// One copy between two host addresses. The engine translates to what its device sees.
struct Copy {
  void* dst;
  const void* src;
  uint32_t len;  // bytes, 1 or more
};

/// `not_attempted`: the engine stopped before this one. Nothing of it was written, or all of it may be written again.
enum class CopyStatus : uint8_t { ok, error, not_attempted };

struct Completion {
  uint32_t cookie;
  CopyStatus status;
  uint32_t descriptors = 0;  // of all its copies, as the engine split them
  uint64_t bytes = 0;
};

/// Why a set of copies was not taken (then nothing of it was).
enum class Refusal : uint8_t { none, ring_full, unmapped, address, disabled };

/// The answer of one step of stopping an engine. None of them waits.
enum class Step : uint8_t { done, pending, failed };

struct Capabilities {
  std::string name;         // "sw0" or "0000:00:04.0"
  std::string description;  // "software I/OAT 3.4" ...
  bool hardware = false;
  bool in_order = true;    // completions come in the order of enqueue (I/OAT yes, DSA no)
  uint32_t ring_size = 0;  // descriptors
  uint32_t max_copy = 0;   // bytes in one descriptor; longer copies are split by the engine
  uint8_t address_bits = 64;
};

struct EngineStats {
  uint64_t submitted = 0;  // descriptors
  uint64_t completed = 0;
  uint64_t bytes = 0;
  uint64_t errors = 0;
  uint64_t resets = 0;
};

/// What a queue needs of a copy engine: a device of its own (IoatEngine), or its share of one (Client in channel.hpp).
/// It knows nothing of rings, packets or sockets.
///
/// Thread rule: one caller at a time, whoever owns the queue (its caller or the control thread). No call waits, and
/// enqueue, submit and poll neither allocate nor throw.
class DmaEngine {
 public:
  virtual ~DmaEngine() = default;
  virtual const Capabilities& capabilities() const = 0;
  virtual EngineStats stats() const = 0;
  /// Grows as long as the device works, for whomever.
  virtual uint64_t progress() const noexcept { return stats().completed; }

  /// Makes [host, host + size) known to the device, as a whole. Page-aligned for hardware. Throws DmaError. This and
  /// unmap() may take long, and may be called while others use a device that is shared.
  virtual void map(void* host, size_t size) = 0;
  /// Forgets a mapping made by map(), with the same address. Only with no copy of it in flight.
  virtual void unmap(void* host) = 0;

  /// All the copies or none. One Completion with `cookie` comes when the last is done (or failed, or not attempted).
  virtual Refusal enqueue(std::span<const Copy> copies, uint32_t cookie) noexcept = 0;
  /// Rings the doorbell for what was enqueued since the last call.
  virtual void submit() noexcept = 0;
  /// Takes completions. After failed(), only those that were done before; the others come after a stop (below).
  virtual size_t poll(std::span<Completion> out) noexcept = 0;
  /// Cookies enqueued whose completion was not taken yet.
  virtual uint32_t outstanding() const noexcept = 0;
  /// The device halted, or is gone. `why()` says it in a sentence.
  virtual bool failed() const noexcept = 0;
  virtual std::string why() const = 0;

  /// The ladder of stopping, each a step that is called again while it answers `pending`.
  /// quiesce() and reset() turn to `failed` by themselves after 200 ms; a revoke() may be pending as long as a copy
  /// runs. Once one is `done`, no copy runs or can start, and poll() hands out every outstanding cookie: up to the last
  /// completed ok, the failed one error, the later ones not_attempted.
  virtual Step quiesce() noexcept = 0;  // suspend; running copies finish
  virtual Step reset() noexcept = 0;    // stop and make ready again: enqueue works after `done` and the last poll
  virtual Step revoke() noexcept = 0;   // take the memory away from the device; it is not usable any more
};

}  // namespace vhost_ioat::dma
