// SPDX-License-Identifier: BSD-3-Clause
// A kind of ring that the port has never seen: what a new one needs is a class such as this, and nothing in csrc/port.
#include <algorithm>
#include <vector>

#include "base/shared_field.hpp"
#include "doctest/doctest.h"
#include "queue_rig.hpp"

using namespace rig;
using port::PacketView;
using port::Publish;
using virtio::Descriptor;

namespace {

constexpr uint16_t AVAIL = 0x4000, USED = 0x8000;  // of Descriptor::flags; a slot with neither is nobody's

/// One array of slots that both sides go round: the driver marks one as available, the device as used, in its place.
/// So a chain is one descriptor, nothing is published but by the slots themselves, and positions are 32 bits wide.
class SlotRing final : public virtio::DeviceRing {
 public:
  static constexpr uint32_t first_position = 0xfffffff0;  // wraps soon

  void start(const virtio::RingAddresses& at, uint32_t size, virtio::FeatureSet, RingIndex) {
    slots_ = at.desc;
    size_ = size;
    taken_ = published_ = signalled_ = first_position;
    written_.assign(size, 0);
    fault_ = {};
  }

  uint16_t base() const noexcept override { return static_cast<uint16_t>(taken_); }
  uint16_t used_base() const noexcept override { return static_cast<uint16_t>(published_); }
  bool waiting() noexcept override { return cursor(1).more(); }
  bool should_notify() noexcept override { return std::exchange(signalled_, published_) != published_; }
  void set_kicks(bool) noexcept override {}

  struct Chain {
    uint16_t head;
  };
  class Cursor {
   public:
    bool more() const noexcept { return passed_ < limit_ && (load_acquire<uint16_t>(&slot()->flags) & AVAIL) != 0; }
    uint32_t passed() const noexcept { return passed_; }
    void prefetch(uint32_t) const noexcept {}
    Chain chain() const noexcept { return {static_cast<uint16_t>((start_ + passed_) & mask_)}; }
    Descriptor first(Chain) const noexcept {
      Descriptor d = *slot();
      d.flags &= virtio::DESC_F_WRITE;
      return d;
    }
    void next(Chain) noexcept { ++passed_; }

   private:
    friend SlotRing;
    Descriptor* slot() const noexcept { return slots_ + ((start_ + passed_) & mask_); }
    Descriptor* slots_ = nullptr;
    uint32_t mask_ = 0, start_ = 0, passed_ = 0, limit_ = 0;
  };
  Cursor cursor(uint32_t n) noexcept {
    Cursor at;
    at.slots_ = slots_;
    at.mask_ = size_ - 1;
    at.start_ = taken_;
    at.limit_ = std::min(n, size_);
    return at;
  }
  Cursor cursor() noexcept { return cursor(size_); }
  bool refresh(Cursor& at) noexcept {
    at.limit_ = size_;
    return at.more();
  }
  template <typename Sink>
  bool walk(const Cursor& at, Chain chain, memory::AddressSpace&, uint32_t& steps, Sink&& sink) noexcept {
    const Descriptor d = at.first(chain);
    --steps;
    sink(d.addr, d.len, (d.flags & virtio::DESC_F_WRITE) != 0);
    return true;
  }

  class Commits {
   public:
    void push(Chain chain, uint32_t written) noexcept {
      (*written_)[chain.head] = written;
      ++count_;
    }

   private:
    friend SlotRing;
    std::vector<uint32_t>* written_;
    uint32_t count_ = 0;
  };
  Commits commits() noexcept {
    Commits made;
    made.written_ = &written_;
    return made;
  }
  void committed(Commits& made) noexcept { taken_ += std::exchange(made.count_, 0); }
  void commit(Chain chain, uint32_t written) noexcept {
    Commits one = commits();
    one.push(chain, written);
    committed(one);
  }

  uint32_t room() const noexcept { return size_; }
  uint32_t filled() const noexcept { return taken_; }
  uint32_t published() const noexcept { return published_; }
  void publish(uint32_t position) noexcept {
    const virtio::Publication last = publication(published_, position);
    store_release<uint16_t>(last.where, last.value);
    published_ = position;
  }
  /// All but the first slot at once: the driver looks at none before that one.
  virtio::Publication publication(uint32_t from, uint32_t to) noexcept {
    for (uint32_t position = from; position != to; ++position) slot(position).len = written_[position & (size_ - 1)];
    for (uint32_t position = from + 1; position != to; ++position) store_release<uint16_t>(&slot(position).flags, USED);
    return {&slot(from).flags, USED};
  }
  void published_by_engine(uint32_t position) noexcept { published_ = position; }

 private:
  Descriptor& slot(uint32_t position) const noexcept { return slots_[position & (size_ - 1)]; }
  Descriptor* slots_ = nullptr;
  uint32_t taken_ = 0, published_ = 0, signalled_ = 0;
  std::vector<uint32_t> written_;  // by slot: what is committed and not published
};

/// The driver of such a ring, over the memory of a GuestRig.
struct SlotDriver {
  explicit SlotDriver(uint32_t ring_size) : size(ring_size), guest(ring_size) {
    std::fill_n(guest.at().desc, size, Descriptor{});
  }
  Descriptor& slot(uint32_t i) const { return guest.at().desc[(SlotRing::first_position + i) & (size - 1)]; }
  void post(uint64_t gpa, uint32_t len, uint16_t direction) {
    slot(posted) = {gpa, len, 0, 0};
    store_release<uint16_t>(&slot(posted++).flags, static_cast<uint16_t>(AVAIL | direction));
  }
  /// Bytes written to the next slot that comes back, if there is one.
  std::optional<uint32_t> take() {
    if (load_acquire<uint16_t>(&slot(taken).flags) != USED) return std::nullopt;
    return std::exchange(slot(taken++), {}).len;
  }
  uint8_t* packet(uint64_t gpa) const { return guest.host(gpa) + guest.header_size(); }

  uint32_t size;
  GuestRig guest;
  uint32_t posted = 0, taken = 0;
};

port::TxQueue::Prepared path_of(port::TxQueue& queue, port::CopyPipe::Scratch scratch, uint32_t size) {
  return {std::make_unique<port::TxPathOf<SlotRing>>(size, queue.counters, queue.notices(), queue.pipe()),
          std::move(scratch)};
}

}  // namespace

TEST_CASE("another kind of ring: packets reach the guest whole and in order, whoever copies and publishes") {
  for (const int how : {0, 1, 2}) {
    SlotDriver driver(16);
    port::TxQueue queue;
    std::shared_ptr<dma::IoatModel> model;
    if (how != 0) {
      model = attach_engine(queue, driver.guest, dma::IoatModel::Mode::stepped, how == 1 ? Publish::cpu : Publish::dma);
    }
    queue.setup(driver.guest.setup(), path_of(queue, queue.pipe().prepare(16), 16));
    for (uint32_t round = 0; round < 20; ++round) {
      for (uint64_t i = 0; i < 4; ++i)
        driver.post(GuestRig::buffers + 4096 * ((round * 4 + i) % 16), 2048, virtio::DESC_F_WRITE);
      const std::vector<Bytes> packets = {pattern(60, static_cast<uint8_t>(round)), pattern(1500, 1), pattern(2500, 2)};
      REQUIRE(queue.enqueue(PacketView::of(driver.guest.burst(packets))) == 3);  // the last one takes two slots
      if (model) {
        const auto first = driver.take();
        CHECK(first.has_value());  // 60 bytes, by the CPU
        CHECK_FALSE(driver.take().has_value());
        while (!queue.idle()) {
          model->step();
          queue.reap();
        }
        if (first) --driver.taken;
        if (first) driver.slot(driver.taken) = {0, *first, USED, 0};
      }
      const uint64_t at = GuestRig::buffers;
      const auto buffer = [&](uint64_t i) { return at + 4096 * ((round * 4 + i) % 16); };
      CHECK(driver.take() == 12 + 60);
      CHECK(driver.take() == 12 + 1500);
      CHECK(driver.take() == 2048);
      CHECK(driver.take() == 2500 - 2036);
      CHECK(std::equal(packets[0].begin(), packets[0].end(), driver.packet(buffer(0))));
      CHECK(std::equal(packets[1].begin(), packets[1].end(), driver.packet(buffer(1))));
      CHECK(std::equal(packets[2].begin(), packets[2].begin() + 2036, driver.packet(buffer(2))));
      CHECK(std::equal(packets[2].begin() + 2036, packets[2].end(), driver.guest.host(buffer(3))));
    }
    CHECK(queue.counters.packets.get() == 60);
    if (how == 2) CHECK(queue.counters.dma_publish_batches.get() != 0);
  }
}

TEST_CASE("another kind of ring: packets come out whole, in order, and their slots go back") {
  SlotDriver driver(8);
  port::RxQueue queue;
  std::vector<uint8_t> nothing_injected;
  queue.setup(driver.guest.setup(),
              std::make_unique<port::RxPathOf<SlotRing>>(8u, queue.counters, queue.notices(), nothing_injected));
  for (uint32_t round = 0; round < 20; ++round) {
    for (uint32_t i = 0; i < 3; ++i) {
      const virtio::Segment sent = driver.guest.place(GuestRig::buffers + 4096 * uint64_t{i},
                                                      pattern(60 + 500 * i, static_cast<uint8_t>(round)));
      driver.post(sent.addr, sent.len, 0);
    }
    const virtio::Burst burst = queue.dequeue(*driver.guest.arena(), 32);
    REQUIRE(burst.count == 3);
    for (uint32_t i = 0; i < 3; ++i) {
      const Bytes packet = pattern(60 + 500 * i, static_cast<uint8_t>(round));
      CHECK(std::equal(packet.begin(), packet.end(), burst.row(i), burst.row(i) + burst.lengths[i]));
      CHECK(driver.take() == 0);
    }
    CHECK_FALSE(driver.take().has_value());
  }
}
