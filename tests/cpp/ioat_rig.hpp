// SPDX-License-Identifier: BSD-3-Clause
// What the tests of the I/OAT share: a model with memory behind it, driven by hand or through a channel.
#pragma once
#include <cstdint>
#include <cstring>
#include <deque>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "dma/ioat_channel.hpp"
#include "dma/ioat_model.hpp"
#include "dma/soft_engine.hpp"
#include "doctest/doctest.h"

namespace ioat_rig {

using namespace vhost_ioat::dma;
namespace spec = vhost_ioat::dma::spec;
namespace control = vhost_ioat::dma::spec::control;
using Mode = IoatModel::Mode;
using Fault = IoatModel::Fault;
using spec::State;

inline std::vector<uint8_t> random_bytes(size_t n, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::vector<uint8_t> bytes(n);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

/// The model as a driver's author sees it: registers, and memory at known IOVAs. Descriptors lie at 0x100000, the
/// write-back at 0x200000, data at 0x1000000.
struct Device {
  static constexpr uint64_t descriptors_at = 0x100000, writeback_at = 0x200000, data_at = 0x1000000;
  static constexpr size_t data_size = 1 << 20;

  IoatModel model;
  // A ring of their own for each: std::vector of an over-aligned type is over-aligned as well.
  struct alignas(64) Slot {
    spec::Descriptor descriptor;
  };
  std::vector<Slot> slots{256};
  alignas(64) uint64_t writeback = 0;
  std::vector<uint8_t> data = std::vector<uint8_t>(data_size);
  int interrupts = 0;

  explicit Device(const IoatModel::Options& options = {}) : model(options) {
    model.memory().map(descriptors_at, slots.data(), slots.size() * sizeof(Slot));
    model.memory().map(writeback_at, &writeback, sizeof writeback);
    model.memory().map(data_at, data.data(), data.size());
    model.on_interrupt([this] { ++interrupts; });
    for (size_t i = 0; i < slots.size(); ++i) slots[i].descriptor.next = address(i + 1);
  }

  uint64_t address(size_t slot) const { return descriptors_at + slot % slots.size() * sizeof(Slot); }
  spec::Descriptor& at(size_t slot) { return slots[slot % slots.size()].descriptor; }
  void put(size_t slot, uint32_t word, uint64_t dst, uint64_t src, uint32_t size) {
    at(slot).size = size;
    at(slot).control = word;
    at(slot).src = src;
    at(slot).dst = dst;
  }
  void put_copy(size_t slot, uint64_t to, uint64_t from, uint32_t size, uint32_t word = control::completion_update) {
    put(slot, word, data_at + to, data_at + from, size);
  }

  uint64_t status() { return model.read64(spec::CHANSTS); }
  State state() { return spec::state_of(status()); }
  uint64_t completed() { return status() & spec::status_address_mask; }
  uint32_t chanerr() { return model.read32(spec::CHANERR); }
  void write_in_halves(uint32_t offset, uint64_t value) {
    model.write32(offset, static_cast<uint32_t>(value));
    model.write32(offset + 4, static_cast<uint32_t>(value >> 32));
  }
  void clear_errors() {
    model.write32(spec::CHANERR, chanerr());
    model.config_write(spec::cfg_chanerr_int, model.config_read(spec::cfg_chanerr_int, 4), 4);
  }
  /// From anything to ARMED at descriptor `slot`, errors halting and written back.
  void start(size_t slot = 0) {
    clear_errors();
    model.write8(spec::CHANCMD, spec::chancmd::reset);
    model.write64(spec::CHANCMP, writeback_at);
    model.write16(spec::CHANCTRL, spec::chanctrl::error_completion | spec::chanctrl::any_error_abort);
    model.write64(spec::CHAINADDR, address(slot));
  }
  void doorbell(uint16_t count) { model.write16(spec::DMACOUNT, count); }
  void wait_for(State wanted) {
    while (state() != wanted) std::this_thread::yield();
  }
};

/// The driver on a model, with ring memory and one data area mapped.
struct Driven {
  static constexpr uint64_t ring_at = 0x40000, data_at = 0x1000000;
  static constexpr size_t data_size = 4 << 20;

  IoatModel model;
  std::optional<RingPages> pages;
  std::vector<uint8_t> data;
  std::optional<IoatChannel> channel;

  explicit Driven(const IoatModel::Options& options = {}, ChannelOptions channel_options = {}, bool start = true)
      : model(options), data(some_data()) {
    pages.emplace(IoatChannel::memory_size(channel_options.ring_size));
    model.memory().map(ring_at, pages->data(), pages->size());
    model.memory().map(data_at, data.data(), data.size());
    channel_options.pause = pause_for(model);
    if (start) channel.emplace(model, DmaMemory{pages->data(), ring_at, pages->size()}, channel_options);
  }

  static const std::vector<uint8_t>& some_data() {
    static const std::vector<uint8_t> bytes = random_bytes(data_size);
    return bytes;
  }
  Refusal copy(uint64_t to, uint64_t from, uint64_t len, uint32_t cookie = 0) {
    return channel->copy(data_at + to, data_at + from, len, cookie);
  }
  /// What poll() has now.
  std::vector<Completion> poll() {
    Completion out[4096];
    return {out, out + channel->poll(out)};
  }
  /// Polls until nothing is outstanding or the channel has failed.
  std::vector<Completion> drain() {
    std::vector<Completion> all;
    while (channel->outstanding() > 0 && !channel->failed()) {
      if (model.mode() == Mode::stepped) model.step();
      for (const Completion& done : poll()) all.push_back(done);
      if (model.mode() == Mode::threaded) std::this_thread::yield();
    }
    return all;
  }
  Step finish(Step (IoatChannel::*step)() noexcept) {
    Step answer;
    while ((answer = ((*channel).*step)()) == Step::pending) std::this_thread::yield();
    return answer;
  }
  std::vector<CopyStatus> statuses_after_reset() {
    REQUIRE(finish(&IoatChannel::reset) == Step::done);
    std::vector<CopyStatus> statuses;
    for (const Completion& done : poll()) statuses.push_back(done.status);
    return statuses;
  }
};

}  // namespace ioat_rig
