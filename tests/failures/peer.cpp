// SPDX-License-Identifier: BSD-3-Clause
#include "peer.hpp"

#include <cstring>
#include <span>

#include "base/error.hpp"
#include "virtio/features.hpp"
#include "watchdog.hpp"

namespace vhost_ioat::testing {

using vhost_user::Frontend;
using vhost_user::Request;
using virtio::Feature;

namespace {

constexpr uint64_t first_gpa = 0x1'0000'0000, second_gpa = 0x2'0000'0000, more_bytes = 1 << 20;
constexpr uint32_t ring_size = 64;
constexpr auto features = virtio::FeatureSet::of(Feature::VERSION_1, Feature::MRG_RXBUF, Feature::PROTOCOL_FEATURES);

guest::QueueShape shape(uint32_t slot_bytes) { return {ring_size, features, slot_bytes, false, 0, RingIndex()}; }
constexpr uint32_t receive_slot = 2048, send_slot = 4096;

}  // namespace

void must(bool holds, const char* what) {
  if (!holds) throw Broken(what);
}

std::vector<uint8_t> packet(uint32_t number) {
  std::vector<uint8_t> bytes(number % 2 ? 3000 : 100, static_cast<uint8_t>(number * 7 + 1));
  std::memcpy(bytes.data(), &number, sizeof number);
  return bytes;
}

uint32_t number_of(const uint8_t* data, uint32_t length) {
  uint32_t number = 0;
  must(length >= sizeof number, "a packet was cut");
  std::memcpy(&number, data, sizeof number);
  const std::vector<uint8_t> sent = packet(number);
  must(length == sent.size() && std::memcmp(data, sent.data(), length) == 0, "a packet was altered");
  return number;
}

Frontend Peer::connect(const std::string& path, const vhost_user::SocketListener* listener,
                       std::function<void()> tick) {
  vhost_user::Patience patience{watchdog, std::move(tick)};
  return listener ? Frontend::accept(*listener, patience) : Frontend::connect(path, patience);
}

Peer::Peer(Frontend connected)
    : frontend_(std::move(connected)),
      memory_(memory::GuestMapping::memfd(shape(receive_slot).bytes() + shape(send_slot).bytes())),
      more_(memory::GuestMapping::memfd(more_bytes)),
      arena_(memory::PacketArena::create(1 << 20)) {
  frontend_.negotiate(features, vhost_user::protocol::configure_mem_slots);
}

vhost_user::FrontendRegion Peer::first() const {
  return {{first_gpa, memory_->size(), reinterpret_cast<uint64_t>(memory_->data()), 0}, memory_->fd()};
}
vhost_user::FrontendRegion Peer::second() const {
  return {{second_gpa, more_->size(), reinterpret_cast<uint64_t>(more_->data()), 0}, more_->fd()};
}

void Peer::start_rings() {
  const vhost_user::FrontendRegion region = first();
  frontend_.set_mem_table({&region, 1});
  const size_t receive_bytes = shape(receive_slot).bytes();
  receive_.emplace(shape(receive_slot), memory_->data(), first_gpa);
  send_.emplace(shape(send_slot), memory_->data() + receive_bytes, first_gpa + receive_bytes);
  start_ring(0, *receive_);
  start_ring(1, *send_);
}

void Peer::start_ring(uint32_t ring, guest::Queue& queue) {
  const virtio::RingAddresses& at = queue.addresses();
  frontend_.set_vring(Request::SET_VRING_NUM, ring, ring_size);
  frontend_.set_vring(Request::SET_VRING_BASE, ring, 0);
  frontend_.set_vring_addr({ring, 0, reinterpret_cast<uint64_t>(at.desc), reinterpret_cast<uint64_t>(at.used),
                            reinterpret_cast<uint64_t>(at.avail), 0});
  frontend_.set_vring_fd(Request::SET_VRING_CALL, ring, queue.call_fd());
  frontend_.set_vring_fd(Request::SET_VRING_ERR, ring, queue.err_fd());
  frontend_.set_vring_fd(Request::SET_VRING_KICK, ring, queue.kick_fd());
  frontend_.set_vring(Request::SET_VRING_ENABLE, ring, 1);
  queue.kick();
}

void Peer::migrate() {
  table_of_two_ = !table_of_two_;
  const vhost_user::FrontendRegion regions[] = {first(), second()};
  frontend_.set_mem_table(std::span(regions, table_of_two_ ? 2 : 1));
}

void Peer::hot_plug() {
  frontend_.add_mem_region(second());
  frontend_.remove_mem_region(second().region);
}

void Peer::replace_fds() {
  for (uint32_t ring : {0u, 1u}) {
    const guest::Queue& queue = ring == 0 ? static_cast<guest::Queue&>(*receive_) : *send_;
    frontend_.set_vring_fd(Request::SET_VRING_CALL, ring, queue.call_fd());
    frontend_.set_vring_fd(Request::SET_VRING_ERR, ring, queue.err_fd());
  }
}

void Peer::stop_rings() {
  for (uint32_t ring : {0u, 1u}) frontend_.get_vring_base(ring);
}

bool Peer::answered() {
  try {
    frontend_.get_u64(Request::GET_FEATURES);
    return true;
  } catch (const Error&) {
    must(!alive(), "a message was not answered and the connection stands");
    return false;
  }
}

bool Peer::send(uint32_t number) {
  const std::vector<uint8_t> bytes = packet(number);
  const guest::Packet one{bytes.data(), static_cast<uint32_t>(bytes.size()), {}};
  return send_->send({&one, 1}) == 1;
}

std::optional<uint32_t> Peer::receive() {
  const virtio::Burst burst = receive_->receive(*arena_, 1);
  if (burst.count == 0) return std::nullopt;
  return number_of(burst.row(0), burst.lengths[0]);
}

uint32_t echo(port::EthVhost& port) {
  const virtio::Burst burst = port.rx_burst(0, 32);
  if (burst.count == 0) return 0;
  must(eventually([&, view = port::PacketView::of(burst)]() mutable {
         const uint32_t sent = port.tx_burst(0, view);
         view.data += size_t{sent} * view.stride;
         view.lengths += sent;
         view.headers += sent;
         view.count -= sent;
         return view.count == 0;
       }),
       "the neighbour cannot send");
  return burst.count;
}

bool transmit(port::EthVhost& port, uint32_t number) {
  const std::vector<uint8_t> bytes = packet(number);
  virtio::Burst burst = virtio::Burst::allocate(*port.arena(0), 1, static_cast<uint32_t>(bytes.size()));
  must(burst.count == 1, "no packet memory is left");
  burst.lengths[0] = static_cast<uint32_t>(bytes.size());
  burst.headers[0] = {};
  std::memcpy(burst.row(0), bytes.data(), bytes.size());
  return port.tx_burst(0, port::PacketView::of(burst)) == 1;
}

std::optional<uint32_t> take(port::EthVhost& port) {
  const virtio::Burst burst = port.rx_burst(0, 1);
  if (burst.count == 0) return std::nullopt;
  return number_of(burst.row(0), burst.lengths[0]);
}

namespace {
port::PortConfig config(const std::string& path) {
  port::PortConfig made;
  made.name = "neighbour";
  made.iface = path;
  made.mempool = 1 << 20;
  return made;
}
}  // namespace

Neighbour::Neighbour(const std::string& path)
    : port_(config(path)), guest_(guest::GuestConfig{.path = path}), arena_(memory::PacketArena::create(1 << 20)) {
  port_.start();
  guest_.connect({.timeout = watchdog});
  must(port_.wait_link(true, watchdog_end()), "the neighbour has no link");
}

void Neighbour::exchange() {
  const uint32_t end = next_ + 4;
  for (uint32_t number = next_; number != end; ++number) {
    const std::vector<uint8_t> bytes = packet(number);
    const guest::Packet one{bytes.data(), static_cast<uint32_t>(bytes.size()), {}};
    must(guest_.send(0, {&one, 1}) == 1, "the neighbour's guest cannot send");
  }
  must(eventually([&] {
         echo(port_);
         const virtio::Burst burst = guest_.receive(0, 32, *arena_);
         for (uint32_t i = 0; i < burst.count; ++i)
           must(number_of(burst.row(i), burst.lengths[i]) == next_++, "the neighbour lost a packet");
         return next_ == end;
       }),
       "the neighbour's packets do not come back");
}

}  // namespace vhost_ioat::testing
