// SPDX-License-Identifier: BSD-3-Clause
#include "guest/guest.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <utility>

#include "base/error.hpp"
#include "virtio/net_header.hpp"

namespace vhost_ioat::guest {

using vhost_user::Frontend;
using vhost_user::Request;
using virtio::Feature;
using virtio::FeatureSet;

namespace {

constexpr uint64_t memory_gpa = 0x1'0000'0000;  // unlike any address of ours, so that a mix-up shows
constexpr uint64_t wanted_protocol = vhost_user::protocol::mq | vhost_user::protocol::reply_ack |
                                     vhost_user::protocol::net_mtu | vhost_user::protocol::status;

// Device status, VIRTIO 1.2, 2.1.
constexpr uint64_t acknowledge = 1, driver = 2, driver_ok = 4, features_ok = 8;

// A forked child has neither guest memory nor a say in what the parent agreed on. Cheaper to ask than getpid().
std::atomic<uint32_t> fork_generation{0};
[[maybe_unused]] const int counts_forks = pthread_atfork(nullptr, nullptr, [] { ++fork_generation; });

void check(const GuestConfig& config) {
  vhost_user::check_socket_path(config.path);
  if (config.queues < 1 || config.queues > 128)
    throw ConfigError(format("queues=%u: a guest must have 1 to 128 queue pairs", config.queues));
  if (config.ring_size < 2 || config.ring_size > virtio::max_ring_size || (config.ring_size & (config.ring_size - 1)))
    throw ConfigError(
        format("ring_size=%u: must be a power of two, here from 2 to 32768 (VIRTIO 1.2, 2.7)", config.ring_size));
  if (config.rx_buf < 64 || config.rx_buf > 1 << 20)
    throw ConfigError(format("rx_buf=%u: a receive buffer must have 64 to 1048576 bytes", config.rx_buf));
  if (config.mtu < 68) throw ConfigError(format("mtu=%u: must be at least 68 (VIRTIO 1.2, 5.1.4.1)", config.mtu));
  if (!config.features.within(virtio::supported_features))
    throw ConfigError(format("features=0x%llx: only the bits 0x%llx are supported",
                             static_cast<unsigned long long>(config.features.mask()),
                             static_cast<unsigned long long>(virtio::supported_features.mask())));
}

/// A legacy driver without ANY_LAYOUT keeps the header apart, but for mergeable buffers (VIRTIO 1.2, 5.1.6.6).
bool header_apart(const GuestConfig& config, FeatureSet features, bool receive) {
  if (config.segment != 0) return true;
  if (features.has(Feature::VERSION_1) || features.has(Feature::ANY_LAYOUT)) return false;
  return !(receive && features.has(Feature::MRG_RXBUF));
}

QueueShape shape_of(const GuestConfig& config, FeatureSet features, bool receive, RingIndex start) {
  return {config.ring_size,
          features,
          receive ? config.rx_buf : features.net_header_size() + virtio::max_packet,
          header_apart(config, features, receive),
          config.segment,
          start};
}

}  // namespace

/// All that lives and ends with one connection.
struct Guest::Session {
  Session(const GuestConfig& config, const std::vector<RingIndex>& starts, Frontend connected);
  Queue& ring(uint32_t n) { return n % 2 == 0 ? static_cast<Queue&>(receive[n / 2]) : send[n / 2]; }

  Frontend frontend;
  std::shared_ptr<memory::GuestMapping> memory;
  std::deque<ReceiveQueue> receive;
  std::deque<SendQueue> send;

 private:
  void agree(const GuestConfig& config);
  void lay_out(const GuestConfig& config, const std::vector<RingIndex>& starts);
  void share_memory();
  void start_ring(uint32_t n, uint32_t size, RingIndex start);
};

Guest::Session::Session(const GuestConfig& config, const std::vector<RingIndex>& starts, Frontend connected)
    : frontend(std::move(connected)) {
  agree(config);
  const bool with_status = frontend.protocol_features() & vhost_user::protocol::status;
  if (with_status) frontend.set_u64(Request::SET_STATUS, acknowledge | driver | features_ok);
  lay_out(config, starts);
  share_memory();
  const uint32_t rings = 2 * config.queues;
  for (uint32_t n = 0; n < rings; ++n) start_ring(n, config.ring_size, starts[n]);
  if (frontend.features().has(Feature::PROTOCOL_FEATURES)) {
    for (uint32_t n = 0; n < rings; ++n) frontend.set_vring(Request::SET_VRING_ENABLE, n, 1);
  }
  if (with_status) frontend.set_u64(Request::SET_STATUS, acknowledge | driver | features_ok | driver_ok);
  frontend.get_u64(Request::GET_FEATURES);  // its answer says that all before it was taken, REPLY_ACK or not
}

void Guest::Session::agree(const GuestConfig& config) {
  frontend.negotiate(config.features, wanted_protocol);
  if (frontend.protocol_features() & vhost_user::protocol::mq) {
    const uint64_t most = frontend.get_u64(Request::GET_QUEUE_NUM);
    if (config.queues > most)
      throw ConfigError(format("queues=%u, but the back end has %llu queue pairs", config.queues,
                               static_cast<unsigned long long>(most)));
  }
  if (frontend.protocol_features() & vhost_user::protocol::net_mtu && frontend.features().has(Feature::MTU))
    frontend.set_u64(Request::NET_SET_MTU, config.mtu);
}

void Guest::Session::lay_out(const GuestConfig& config, const std::vector<RingIndex>& starts) {
  std::vector<QueueShape> shapes;
  size_t bytes = 0;
  for (uint32_t n = 0; n < 2 * config.queues; ++n) {
    shapes.push_back(shape_of(config, frontend.features(), n % 2 == 0, starts[n]));
    bytes += shapes.back().bytes();
  }
  memory = memory::GuestMapping::memfd(bytes);
  size_t offset = 0;
  for (uint32_t n = 0; n < 2 * config.queues; ++n) {
    if (n % 2 == 0) {
      receive.emplace_back(shapes[n], memory->data() + offset, memory_gpa + offset);
    } else {
      send.emplace_back(shapes[n], memory->data() + offset, memory_gpa + offset);
    }
    offset += shapes[n].bytes();
  }
}

void Guest::Session::share_memory() {
  const auto uva = reinterpret_cast<uint64_t>(memory->data());
  const vhost_user::FrontendRegion region{{memory_gpa, memory->size(), uva, 0}, memory->fd()};
  frontend.set_mem_table({&region, 1});
}

void Guest::Session::start_ring(uint32_t n, uint32_t size, RingIndex start) {
  Queue& queue = ring(n);
  const virtio::RingAddresses& at = queue.addresses();
  frontend.set_vring(Request::SET_VRING_NUM, n, size);
  frontend.set_vring(Request::SET_VRING_BASE, n, start.value());
  frontend.set_vring_addr({n, 0, reinterpret_cast<uint64_t>(at.desc), reinterpret_cast<uint64_t>(at.used),
                           reinterpret_cast<uint64_t>(at.avail), 0});
  frontend.set_vring_fd(Request::SET_VRING_CALL, n, queue.call_fd());
  frontend.set_vring_fd(Request::SET_VRING_ERR, n, queue.err_fd());
  frontend.set_vring_fd(Request::SET_VRING_KICK, n, queue.kick_fd());
  queue.kick();  // back ends of the older specification start a ring at its first kick
}

Guest::Guest(GuestConfig config) : config_(std::move(config)), generation_(fork_generation) {
  check(config_);
  starts_.resize(size_t{2} * config_.queues);
  if (config_.server) listener_.emplace(config_.path, mode_t{0600});
}

Guest::~Guest() = default;

/// Throws in a forked child.
void Guest::check_process() const {
  if (generation_ != fork_generation.load(std::memory_order_relaxed))
    throw Error(
        "the guest belongs to the process that made it, and this is a fork of that process; make a new one here");
}

void Guest::connect(const vhost_user::Patience& patience) {
  check_process();
  if (session_ && session_->frontend.alive())
    throw Error("the guest is connected already; call disconnect() or close() before connecting again");
  session_.reset();
  if (config_.server && !listener_) listener_.emplace(config_.path, mode_t{0600});
  Frontend frontend = listener_ ? Frontend::accept(*listener_, patience) : Frontend::connect(config_.path, patience);
  session_ = std::make_unique<Session>(config_, starts_, std::move(frontend));
  std::ranges::fill(starts_, RingIndex());
}

void Guest::disconnect() {
  check_process();
  const auto leaving = std::move(session_);
  if (!leaving) return;
  for (uint32_t n = 0; n < starts_.size(); ++n) starts_[n] = RingIndex(leaving->frontend.get_vring_base(n));
}

void Guest::close() noexcept {
  session_.reset();
  listener_.reset();
}

bool Guest::connected() const { return session_ && session_->frontend.alive(); }

Guest::Session& Guest::session() const {
  check_process();
  if (!session_) throw Disconnected("the guest is not connected; call connect()");
  return *session_;
}

FeatureSet Guest::features() const { return session().frontend.features(); }

uint32_t Guest::send(uint32_t queue, std::span<const Packet> packets) {
  Session& now = session();
  const uint32_t sent = now.send[queue].send(packets);
  if (sent == 0 && !now.frontend.alive()) throw Disconnected("the back end has left; call connect() to continue");
  return sent;
}

virtio::Burst Guest::receive(uint32_t queue, uint32_t limit, memory::PacketArena& arena) {
  Session& now = session();
  virtio::Burst burst = now.receive[queue].receive(arena, limit);
  if (burst.count == 0 && !now.frontend.alive())
    throw Disconnected("the back end has left; call connect() to continue");
  return burst;
}

int Guest::receive_fd(uint32_t queue) const { return session().receive[queue].call_fd(); }
bool Guest::enable_interrupt(uint32_t queue) { return session().receive[queue].enable_interrupt(); }
void Guest::disable_interrupt(uint32_t queue) { session().receive[queue].disable_interrupt(); }

std::vector<RingState> Guest::rings() const {
  Session& now = session();
  std::vector<RingState> states;
  states.reserve(starts_.size());
  for (uint32_t n = 0; n < starts_.size(); ++n) states.push_back(now.ring(n).state());
  return states;
}

std::shared_ptr<memory::GuestMapping> Guest::memory() const { return session().memory; }

}  // namespace vhost_ioat::guest
