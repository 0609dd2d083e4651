// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <concepts>
#include <cstdint>

#include "virtio/fault.hpp"
#include "virtio/ring_layout.hpp"

namespace vhost_ioat::virtio {

/// Where the next store goes that shows the driver what was done: by the CPU, or by an engine after the data.
struct Publication {
  uint16_t* where;
  uint16_t value;
};

/// The device's side of a virtqueue, whatever its layout: what is asked of it outside the data path.
///
/// A fault is sticky: the ring is broken until it is started again. One thread at a time.
///
/// The data path is a template over the kind of ring (port/tx_path.hpp, port/rx_path.hpp): see DataPathRing below.
class DeviceRing {
 public:
  DeviceRing() = default;
  DeviceRing(const DeviceRing&) = delete;
  DeviceRing& operator=(const DeviceRing&) = delete;

  uint32_t size() const { return size_; }
  const Fault& fault() const { return fault_; }
  void set_fault(Fault fault) {
    if (!fault_) fault_ = fault;
  }

  /// Where the device goes on (GET_VRING_BASE).
  virtual uint16_t base() const noexcept = 0;
  /// As far as the driver knows.
  virtual uint16_t used_base() const noexcept = 0;
  /// Has the driver made something available that was not taken yet?
  virtual bool waiting() noexcept = 0;
  /// Has the driver asked to be told of what was published since the last question?
  virtual bool should_notify() noexcept = 0;
  /// Asks the driver to kick (or not to) when it makes buffers available. After enabling, waiting() tells whether some
  /// came in between.
  virtual void set_kicks(bool wanted) noexcept = 0;

 protected:
  ~DeviceRing() = default;

  uint32_t size_ = 0;
  Fault fault_;
};

/// What the data path needs of a kind of ring, which is a class derived from DeviceRing.
///
/// Chains are given back in the order in which they were taken. A position counts what was committed, in a unit of the
/// ring's own; only the ring that gave it reads it.
template <typename Ring>
concept DataPathRing =
    std::derived_from<Ring, DeviceRing> && requires(Ring ring, typename Ring::Cursor at, typename Ring::Chain chain,
                                                    typename Ring::Commits commits, uint32_t n) {
      // A chain: the value by which it is given back. `head` is for messages.
      { chain.head } -> std::convertible_to<uint16_t>;

      // A cursor, by value, over chains that wait, from the first one on. more(): is there one here? prefetch(n): the
      // descriptor of the n-th chain from here, if there is one. chain(), first(): the chain here, and its first
      // descriptor, each field read once. next(): to the chain after it. passed(): how much of size() was passed.
      { at.more() } -> std::same_as<bool>;
      at.prefetch(n);
      { at.chain() } -> std::same_as<typename Ring::Chain>;
      { at.first(chain) } -> std::same_as<Descriptor>;
      at.next(chain);
      { at.passed() } -> std::same_as<uint32_t>;
      // Over at most n chains, for which it looks at the ring; over those that it knows of without looking.
      { ring.cursor(n) } -> std::same_as<typename Ring::Cursor>;
      { ring.cursor() } -> std::same_as<typename Ring::Cursor>;
      // Looks again: is there a chain at the cursor now?
      { ring.refresh(at) } -> std::same_as<bool>;
      // And walk(cursor, chain, memory, steps, sink), every buffer of the chain at the cursor (SplitRing::walk).

      // Commits, by value: push(chain, written) takes a chain and writes that it is used, committed() takes them over.
      // The driver sees none of it yet. room(): chains that may be committed before some of them are published.
      { ring.commits() } -> std::same_as<typename Ring::Commits>;
      commits.push(chain, n);
      ring.committed(commits);
      ring.commit(chain, n);
      { ring.room() } -> std::same_as<uint32_t>;

      // Positions: after the last chain committed, and after the last one published. publish(): shows the driver what
      // is before that position.
      { ring.filled() } -> std::same_as<uint32_t>;
      { ring.published() } -> std::same_as<uint32_t>;
      ring.publish(n);
      // The last store that shows what is between two positions, for an engine to make, and that it was made.
      { ring.publication(n, n) } -> std::same_as<Publication>;
      ring.published_by_engine(n);
    };

}  // namespace vhost_ioat::virtio
