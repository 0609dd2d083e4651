// SPDX-License-Identifier: BSD-3-Clause
#include "port/forward.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.hpp"
#include "port/arenas.hpp"
#include "virtio/net_header.hpp"

namespace vhost_ioat::port {

using virtio::Burst;

namespace {

constexpr std::array<const char*, 5> mode_names = {"io", "macswap", "icmpecho", "rxonly", "txonly"};
constexpr uint32_t eth_header = 14, ip_header = 20, arp_size = 28;

uint16_t big_endian(const uint8_t* p) { return static_cast<uint16_t>(p[0] << 8 | p[1]); }

void swap_bytes(uint8_t* a, uint8_t* b, size_t n) { std::swap_ranges(a, a + n, b); }

/// Turns an ARP request or an ICMP echo request into its answer; false for anything else. Every address is answered
/// for.
bool answer(uint8_t* p, uint32_t len) {
  if (len < eth_header + arp_size) return false;
  uint8_t* body = p + eth_header;
  if (big_endian(p + 12) == 0x0806 && big_endian(body + 6) == 1) {  // ARP request (RFC 826)
    const uint8_t own_mac[6] = {0x56, 0x48, 0x4f, 0x53, 0x54, 0x00};
    std::memcpy(p, p + 6, 6);
    std::memcpy(p + 6, own_mac, 6);
    body[7] = 2;
    std::memcpy(body + 18, body + 8, 6);
    std::memcpy(body + 8, own_mac, 6);
    swap_bytes(body + 14, body + 24, 4);
    return true;
  }
  if (big_endian(p + 12) != 0x0800 || len < eth_header + ip_header + 8) return false;
  const uint32_t ip_len = (body[0] & 15u) * 4;
  uint8_t* icmp = body + ip_len;
  if (body[0] >> 4 != 4 || ip_len < ip_header || body[9] != 1 || icmp + 8 > p + len || icmp[0] != 8) return false;
  swap_bytes(p, p + 6, 6);
  swap_bytes(body + 12, body + 16, 4);
  icmp[0] = 0;  // echo reply: one word falls by 0x0800, so the checksum rises by it (RFC 1624)
  const uint32_t sum = big_endian(icmp + 2) + 0x0800u;
  const uint32_t folded = (sum & 0xffff) + (sum >> 16);
  icmp[2] = static_cast<uint8_t>(folded >> 8);
  icmp[3] = static_cast<uint8_t>(folded);
  return true;
}

}  // namespace

ForwardMode forward_mode(const std::string& name) {
  for (size_t i = 0; i < mode_names.size(); ++i)
    if (name == mode_names[i]) return static_cast<ForwardMode>(i);
  throw ConfigError("mode=" + name + ": use io, macswap, icmpecho, rxonly or txonly");
}

OnFull on_full(const std::string& name) {
  if (name == "drop") return OnFull::drop;
  if (name == "retry") return OnFull::retry;
  throw ConfigError("on_full=" + name + ": use drop or retry");
}

Forwarder::Forwarder(EthVhost& a, EthVhost& b, ForwardMode mode, uint32_t burst, OnFull on_full)
    : a_(a), b_(b), mode_(mode), burst_(burst), on_full_(on_full) {
  if (burst < 1 || burst > max_burst) throw ConfigError(format("burst=%u: use 1 to %u", burst, max_burst));
  if (mode == ForwardMode::txonly) filler_ = generated();
  lanes_[0].resize(a.queues());
  lanes_[1].resize(b.queues());
  for (auto& lanes : lanes_)
    for (Lane& lane : lanes) lane.rows.resize(mode == ForwardMode::icmpecho ? burst : 0);
}

void Forwarder::run(std::chrono::steady_clock::time_point until) {
  const uint32_t queues = std::max(a_.queues(), b_.queues());
  do {
    // Looking at the clock costs as much as an empty poll, so not every time.
    for (uint32_t round = 0; round < 64; ++round) {
      for (uint32_t q = 0; q < queues; ++q) {
        if (q < a_.queues()) pass(a_, b_, q);
        if (&a_ != &b_ && q < b_.queues()) pass(b_, a_, q);
      }
    }
  } while (std::chrono::steady_clock::now() < until);
}

void Forwarder::finish() noexcept {
  for (auto& lanes : lanes_) {
    for (Lane& lane : lanes) {
      if (lane.view.count == 0) continue;
      bool serves = false;
      try {
        send(lane);
        serves = lane.target->tx_serves(lane.queue);
      } catch (...) {  // closed, or another thread sends there
      }
      drop(lane, serves);
    }
  }
}

void Forwarder::pass(EthVhost& from, EthVhost& to, uint32_t queue) {
  if (mode_ == ForwardMode::txonly) return generate(to, queue % to.queues());
  Lane& lane = lanes_[&from != &a_][queue];
  if (lane.view.count != 0) send(lane);
  if (lane.view.count == 0 && receive(lane, from, to, queue)) send(lane);
}

/// Nothing waits here: a packet comes into being when it is taken.
void Forwarder::generate(EthVhost& to, uint32_t queue) { side(to).sent += to.tx_burst(queue, PacketView::of(filler_)); }

/// True: there is something to send.
bool Forwarder::receive(Lane& lane, EthVhost& from, EthVhost& to, uint32_t queue) {
  lane.packets = from.rx_burst(queue, burst_);
  Burst& packets = lane.packets;
  if (packets.count == 0) return false;
  Side& source = side(from);
  source.received += packets.count;
  if (mode_ == ForwardMode::rxonly) {
    source.consumed += packets.count;
    packets = {};
    return false;
  }
  lane.view = PacketView::of(packets);
  lane.target = &to;
  if (mode_ == ForwardMode::macswap) {
    for (uint32_t i = 0; i < packets.count; ++i)
      if (packets.lengths[i] >= eth_header) swap_bytes(packets.row(i), packets.row(i) + 6, 6);
  } else if (mode_ == ForwardMode::icmpecho) {
    lane.view.count = answer_requests(lane);
    lane.view.rows = lane.rows.data();
    lane.target = &from;
    source.consumed += packets.count - lane.view.count;
  }
  lane.queue = queue % lane.target->queues();
  if (lane.view.count == 0) packets = {};
  return lane.view.count != 0;
}

/// Turns the requests among the packets into answers; how many, lane.rows says where they are.
uint32_t Forwarder::answer_requests(Lane& lane) const {
  Burst& packets = lane.packets;
  uint32_t n = 0;
  for (uint32_t i = 0; i < packets.count; ++i) {
    if (!answer(packets.row(i), packets.lengths[i])) continue;
    packets.lengths[n] = packets.lengths[i];
    packets.headers[n] = {};
    lane.rows[n++] = i;
  }
  return n;
}

void Forwarder::send(Lane& lane) {
  const uint32_t taken = lane.target->tx_burst(lane.queue, lane.view);
  side(*lane.target).sent += taken;
  lane.view = lane.view.from(taken);
  if (lane.view.count == 0) {
    lane.packets = {};
  } else if (const bool serves = lane.target->tx_serves(lane.queue); !serves || on_full_ == OnFull::drop) {
    drop(lane, serves);
  }
}

void Forwarder::drop(Lane& lane, bool serves) noexcept {
  Side& to = side(*lane.target);
  (serves ? to.dropped_full : to.dropped_down) += lane.view.count;
  lane.view = {};
  lane.packets = {};
}

Burst Forwarder::generated() const {
  // 64-byte UDP packets from 198.18.0.1 to 198.18.0.2 (RFC 2544 test addresses), discard port.
  Burst packets = Burst::allocate(*common_arena(), burst_, 64);
  if (!packets.block) throw std::bad_alloc();
  for (uint32_t i = 0; i < packets.count; ++i) {
    uint8_t* p = packets.row(i);
    std::memset(p, 0, 64);
    packets.lengths[i] = 64;
    packets.headers[i] = {};
    const uint8_t macs[] = {0x56, 0x48, 0x4f, 0x53, 0x54, 0x02, 0x56, 0x48, 0x4f, 0x53, 0x54, 0x01, 0x08, 0x00};
    const uint8_t ip[] = {0x45, 0, 0,   50, 0, 0, 0, 0, 64, 17, 0, 0,  198, 18,
                          0,    1, 198, 18, 0, 2, 0, 9, 0,  9,  0, 30, 0,   0};
    std::memcpy(p, macs, sizeof macs);
    std::memcpy(p + eth_header, ip, sizeof ip);
    const uint16_t sum = virtio::internet_checksum(p + eth_header, ip_header);
    std::memcpy(p + eth_header + 10, &sum, sizeof sum);
  }
  return packets;
}

}  // namespace vhost_ioat::port
