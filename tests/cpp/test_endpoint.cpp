// SPDX-License-Identifier: BSD-3-Clause
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/event_loop.hpp"
#include "doctest/doctest.h"
#include "memory/guest_mapping.hpp"
#include "open_fds.hpp"
#include "send_raw.hpp"
#include "vhost_user/endpoint.hpp"
#include "vhost_user/frontend.hpp"
#include "watchdog.hpp"

using namespace std::chrono_literals;
using namespace vhost_ioat;
using namespace vhost_ioat::vhost_user;
using testing::send_raw;
using virtio::Feature;
using virtio::FeatureSet;
namespace fs = std::filesystem;

namespace {

const FeatureSet modern = FeatureSet::of(Feature::VERSION_1, Feature::PROTOCOL_FEATURES);

/// A directory of its own, gone at the end.
struct Directory {
  Directory() {
    char name[] = "/tmp/vhost_ioat_XXXXXX";
    REQUIRE(::mkdtemp(name));
    path = name;
  }
  ~Directory() { fs::remove_all(path); }
  std::string operator/(const std::string& name) const { return path + "/" + name; }
  std::string path;
};

/// A port without queues: one endpoint, a device that holds at once or when told, and what both heard.
struct Port final : EndpointOwner, Device {
  explicit Port(EndpointConfig config) {
    loop = EventLoop::get();
    endpoint = std::make_unique<Endpoint>(loop, std::move(config), *this);
    loop->run([&] { endpoint->start(); });
  }
  ~Port() override {
    holds_at_once = true;
    loop->run([&] { endpoint->resume(); });
    stop();
    loop->run([&] { endpoint.reset(); });
  }
  void stop() {
    std::promise<void> stopped;
    loop->run([&] { endpoint->stop([&] { stopped.set_value(); }); });
    stopped.get_future().get();
  }

  std::unique_ptr<BackendSession> make_session() override {
    return std::make_unique<BackendSession>(SessionConfig{.queue_pairs = 2}, *this);
  }
  void after_message(const SessionState& state) override {
    note([&] { owned = state.owned; });
    if (state.mtu == 666) endpoint->drop_peer("the number of the beast");
  }
  void disconnected(const char* reason, bool broken) noexcept override {
    note([&] { gone.push_back(std::string(broken ? "broken: " : "left: ") + reason); });
  }
  void trouble(const char* what) noexcept override {
    note([&] { troubles.push_back(what); });
  }
  void remark(const char*) noexcept override {}
  void prepare(const RingSet&, const SessionState&) override {}
  void prepare_halt() noexcept override {}
  bool hold(const RingSet&, Hold) noexcept override {
    const bool at_once = holds_at_once;  // before the test is told, which may change it
    note([&] { ++holds; });
    return at_once;
  }
  std::optional<uint16_t> ring_base(uint32_t) noexcept override { return 42; }
  void commit(const RingSet&, const SessionState&) noexcept override {}
  void halt() noexcept override {}
  void announce(const uint8_t (&)[6]) noexcept override {}

  void note(const auto& change) {
    const std::lock_guard lock(mutex);
    change();
    changed.notify_all();
  }
  /// Lets the loop go on for so long.
  void pass_time(EventLoop::Clock::duration time) {
    std::promise<void> later;
    EventLoop::Timer timer(loop, [&] { later.set_value(); });
    loop->run([&] { timer.arm_after(time); });
    later.get_future().get();
  }
  /// Waits until what was noted is so.
  void wait_for(const auto& condition) {
    std::unique_lock lock(mutex);
    REQUIRE(changed.wait_for(lock, vhost_ioat::testing::watchdog, condition));
  }
  std::string wait_gone(size_t count = 1) {
    std::string reason;
    wait_for([&] { return gone.size() >= count && (reason = gone[count - 1], true); });
    return reason;
  }

  std::shared_ptr<EventLoop> loop;
  std::unique_ptr<Endpoint> endpoint;
  std::atomic<bool> holds_at_once{true};
  std::mutex mutex;  // guards what follows
  std::condition_variable changed;
  bool owned = false;
  int holds = 0;
  std::vector<std::string> gone, troubles;
};

/// Negotiated, and with all a front end may say gone through once.
void talk(Frontend& frontend) {
  frontend.negotiate(modern, protocol::supported);
  CHECK(frontend.get_u64(Request::GET_QUEUE_NUM) == 2);
  const auto memory = memory::GuestMapping::memfd(0x4000);
  const wire::MemRegion region{0, 0x2000, 0x70000, 0}, other{0x2000, 0x2000, 0x90000, 0x2000};
  frontend.set_mem_table(std::vector<FrontendRegion>{{region, memory->fd()}});
  frontend.add_mem_region({other, memory->fd()});
  const UniqueFd call = make_eventfd();
  frontend.set_vring(Request::SET_VRING_NUM, 1, 256);
  frontend.set_vring(Request::SET_VRING_BASE, 1, 7);
  frontend.set_vring_addr({1, 0, 0x70000, 0x71004, 0x71002, 0});
  frontend.set_vring_fd(Request::SET_VRING_CALL, 1, call.get());
  frontend.set_vring_fd(Request::SET_VRING_KICK, 1, -1);
  frontend.set_vring(Request::SET_VRING_ENABLE, 1, 1);
  CHECK(frontend.get_vring_base(1) == 42);
  frontend.remove_mem_region(other);
}

}  // namespace

TEST_CASE("endpoint: a server takes front ends one after another and leaves nothing behind") {
  const size_t fds = testing::open_fds_at_rest();
  {
    const Directory dir;
    Port port({dir / "sock"});
    for (size_t i = 1; i <= 20; ++i) {
      {
        Frontend frontend = Frontend::connect(dir / "sock");
        talk(frontend);
      }
      CHECK(port.wait_gone(i) == "left: the peer left");
    }
    CHECK(port.troubles.empty());
  }
  CHECK(testing::eventually([&] { return testing::open_fds() <= fds; }));
}

TEST_CASE("endpoint: a client waits for its server and comes back after it was lost") {
  const Directory dir;
  Port port({.path = dir / "sock", .client = true});
  for (size_t i = 1; i <= 3; ++i) {
    {
      const SocketListener listener(dir / "sock", 0600);
      Frontend frontend = Frontend::accept(listener);
      talk(frontend);
    }
    port.wait_gone(i);
  }
  CHECK(port.troubles.empty());  // nobody there is no trouble
}

TEST_CASE("endpoint: what a back end refuses reaches the front end, which may go on or not") {
  const Directory dir;
  Port port({dir / "sock"});
  Frontend patient = Frontend::connect(dir / "sock");
  patient.negotiate(modern, protocol::reply_ack);
  CHECK_THROWS_AS(patient.set_vring(Request::SET_VRING_NUM, 1, 0), ProtocolError);
  patient.set_vring(Request::SET_VRING_NUM, 1, 2);
  CHECK_THROWS_AS(patient.get_vring_base(5), Disconnected);
  CHECK(port.wait_gone() == "broken: GET_VRING_BASE: there is no ring 5; this port has 4 (two for each of its queues)");
}

TEST_CASE("endpoint: a broken frame ends the connection, the next front end is served") {
  const Directory dir;
  Port port({dir / "sock"});
  {
    Frontend rude = Frontend::connect(dir / "sock");
    const wire::Header header{5, 1, 0xffffffff};
    REQUIRE(::write(rude.fd(), &header, sizeof header) == sizeof header);
    CHECK_THROWS_AS(rude.receive(), Disconnected);
    CHECK_FALSE(rude.alive());
  }
  CHECK(port.wait_gone().substr(0, 31) == "broken: SET_MEM_TABLE announces");
  Frontend next = Frontend::connect(dir / "sock");
  talk(next);
  CHECK(next.alive());
}

TEST_CASE("endpoint: messages come through however slowly and however fast they are sent") {
  const Directory dir;
  Port port({dir / "sock"});
  Frontend frontend = Frontend::connect(dir / "sock");
  const wire::Header header{static_cast<uint32_t>(Request::GET_FEATURES), 1, 0};
  for (size_t i = 0; i < sizeof header; ++i) {
    REQUIRE(::write(frontend.fd(), reinterpret_cast<const char*>(&header) + i, 1) == 1);
    port.loop->run([] {});
  }
  CHECK(frontend.receive().body<uint64_t>() == virtio::supported_features.mask());
  // More requests than replies fit into the socket: the endpoint stops reading, and goes on when we read.
  size_t sent = 0;
  while (::send(frontend.fd(), &header, sizeof header, MSG_DONTWAIT) == sizeof header) ++sent;
  for (size_t i = 0; i < sent; ++i) REQUIRE(frontend.receive().is(Request::GET_FEATURES));
  CHECK(sent > 100);
}

TEST_CASE("endpoint: whatever a front end sends, it is answered or dropped, and nothing is left behind") {
  const Directory dir;
  Port port({dir / "sock"});
  const size_t fds_before = testing::open_fds();
  const UniqueFd event = make_eventfd();
  std::mt19937 random(1);
  size_t connections = 0, survived = 0;
  for (uint32_t id = 0; id <= 64; ++id) {
    const MessageType* type = find_message_type(id);
    const uint32_t exact = type ? type->size : 24;
    for (uint32_t size : {0u, 1u, exact - 1, exact, exact + 1, max_payload, 4096u}) {
      if (size == UINT32_MAX) continue;
      for (size_t fds : {0u, 1u, 8u, 9u, 33u}) {
        for (uint32_t flags : {1u, 9u, 5u, 0x80000001u}) {
          Frontend frontend = Frontend::connect(dir / "sock");
          ++connections;
          if (random() % 2) frontend.negotiate(modern, protocol::supported);
          struct {
            wire::Header header;
            uint8_t payload[4096];
          } message;
          message.header = {id, flags, size};
          // Small numbers hit what exists, any byte hits what does not.
          const bool small = random() % 2;
          for (uint8_t& byte : message.payload) byte = static_cast<uint8_t>(small ? random() % 64 == 0 : random());
          send_raw(frontend.fd(), &message, sizeof message.header + size, std::vector<int>(fds, event.get()));
          try {
            frontend.send(Message(Request::GET_FEATURES));
            while (!frontend.receive().is(Request::GET_FEATURES)) {
            }
            ++survived;
          } catch (const Disconnected&) {  // the port has ended it, as it may
          }
        }
      }
    }
  }
  CHECK(survived > 300);
  port.wait_gone(connections);
  CHECK(testing::eventually([&] { return testing::open_fds() <= fds_before + 1; }));  // the helper closes the last ones
  Frontend honest = Frontend::connect(dir / "sock");
  talk(honest);
}

TEST_CASE("endpoint: a second front end waits in the backlog until the first has left") {
  const Directory dir;
  Port port({dir / "sock"});
  auto first = std::make_unique<Frontend>(Frontend::connect(dir / "sock"));
  talk(*first);
  Frontend second = Frontend::connect(dir / "sock");
  second.send(Message(Request::GET_FEATURES));
  for (int turn = 0; turn < 100; ++turn) CHECK(first->get_u64(Request::GET_FEATURES) != 0);
  pollfd answer{second.fd(), POLLIN, 0};
  CHECK(::poll(&answer, 1, 0) == 0);
  first.reset();
  CHECK(second.receive().is(Request::GET_FEATURES));
}

TEST_CASE("endpoint: a front end that never takes ownership makes way when another waits") {
  const Directory dir;
  Port port({.path = dir / "sock", .patience = 100ms});
  Frontend silent = Frontend::connect(dir / "sock");
  CHECK(silent.get_u64(Request::GET_FEATURES) != 0);
  {
    Frontend other = Frontend::connect(dir / "sock");
    talk(other);
  }
  CHECK_FALSE(silent.alive());
  CHECK(port.wait_gone().find("SET_OWNER within 100 ms") != std::string::npos);

  Frontend owner = Frontend::connect(dir / "sock");
  owner.command(Request::SET_OWNER);
  CHECK(owner.get_u64(Request::GET_FEATURES) != 0);  // so the port knows
  const Frontend waiting = Frontend::connect(dir / "sock");
  port.pass_time(200ms);
  CHECK(owner.get_u64(Request::GET_FEATURES) != 0);
}

TEST_CASE("endpoint: a front end that is slow to take ownership keeps its place while there is patience") {
  const Directory dir;
  Port port({.path = dir / "sock", .patience = std::chrono::hours(1)});
  Frontend slow = Frontend::connect(dir / "sock");
  CHECK(slow.get_u64(Request::GET_FEATURES) != 0);
  const Frontend waiting = Frontend::connect(dir / "sock");
  for (int turn = 0; turn < 100; ++turn) CHECK(slow.get_u64(Request::GET_FEATURES) != 0);
}

TEST_CASE("endpoint: the port may drop its front end, also from within a message") {
  const Directory dir;
  Port port({dir / "sock"});
  Frontend first = Frontend::connect(dir / "sock");
  talk(first);
  port.loop->run([&] { port.endpoint->drop_peer("its memory was torn"); });
  CHECK(port.wait_gone(1) == "broken: its memory was torn");
  Frontend second = Frontend::connect(dir / "sock");
  talk(second);
  second.set_u64(Request::NET_SET_MTU, 666);
  CHECK(port.wait_gone(2) == "broken: the number of the beast");
}

TEST_CASE("endpoint: after a front end that was too costly the next one waits") {
  const Directory dir;
  Port port({dir / "sock"});
  Frontend first = Frontend::connect(dir / "sock");
  talk(first);
  bool connected = true;
  std::promise<void> looked;
  EventLoop::Timer before(port.loop, [&] {
    connected = port.endpoint->connected();
    looked.set_value();
  });
  port.loop->run([&] {
    before.arm_after(budget::first_penalty);  // due before what is armed after it for the same time
    port.endpoint->drop_peer("costly", true);
  });
  Frontend second = Frontend::connect(dir / "sock");
  looked.get_future().get();
  CHECK_FALSE(connected);
  talk(second);
  CHECK(port.wait_gone() == "broken: costly");
}

TEST_CASE("endpoint: a request waits for the device without stopping the loop") {
  const Directory dir;
  Port port({dir / "sock"});
  Frontend frontend = Frontend::connect(dir / "sock");
  frontend.send(Message(Request::SET_VRING_KICK, wire::vring_fd_none));  // starts ring 0
  port.wait_for([&] { return port.holds == 1; });
  port.holds_at_once = false;
  frontend.send(Message(Request::GET_VRING_BASE, wire::VringState{0, 0}));
  frontend.send(Message(Request::GET_FEATURES));
  port.wait_for([&] { return port.holds == 2; });
  pollfd answer{frontend.fd(), POLLIN, 0};
  port.loop->run([] {});
  CHECK(::poll(&answer, 1, 0) == 0);
  port.loop->run([&] { port.endpoint->resume(); });
  CHECK(frontend.receive().is(Request::GET_VRING_BASE));
  CHECK(frontend.receive().is(Request::GET_FEATURES));
}

TEST_CASE("endpoint: a front end that leaves while the device drains is gone only after it") {
  const Directory dir;
  Port port({dir / "sock"});
  port.holds_at_once = false;
  {
    Frontend frontend = Frontend::connect(dir / "sock");
    frontend.send(Message(Request::SET_VRING_KICK, wire::vring_fd_none));  // starts ring 0
    port.wait_for([&] { return port.holds == 1; });
  }
  port.loop->run([] {});
  CHECK(port.gone.empty());
  port.loop->run([&] { port.endpoint->resume(); });  // ends the request; then all rings are held
  port.wait_for([&] { return port.holds == 2; });
  CHECK(port.gone.empty());
  port.loop->run([&] {
    port.holds_at_once = true;
    port.endpoint->resume();
  });
  CHECK(port.wait_gone() == "left: the peer left");
}

TEST_CASE("endpoint: stop waits for the device, and it may start again") {
  const Directory dir;
  Port port({dir / "sock"});
  {
    Frontend frontend = Frontend::connect(dir / "sock");
    talk(frontend);
    port.holds_at_once = false;
    std::promise<void> stopped;
    auto done = stopped.get_future();
    port.loop->run([&] { port.endpoint->stop([&] { stopped.set_value(); }); });
    CHECK(done.wait_for(0s) == std::future_status::timeout);
    CHECK_FALSE(fs::exists(dir / "sock"));
    CHECK(frontend.alive());  // its memory may still be written
    port.loop->run([&] {
      port.holds_at_once = true;
      port.endpoint->resume();
    });
    done.get();
    CHECK_FALSE(frontend.alive());
  }
  port.loop->run([&] { port.endpoint->start(); });
  Frontend again = Frontend::connect(dir / "sock");
  talk(again);
}

TEST_CASE("endpoint: a socket left behind is replaced, anything else is not touched") {
  const Directory dir;
  {
    const SocketListener killed(dir / "stale", 0600);
    fs::create_hard_link(dir / "stale", dir / "kept");
  }
  fs::rename(dir / "kept", dir / "stale");
  Port port({dir / "stale"});
  Frontend frontend = Frontend::connect(dir / "stale");
  talk(frontend);

  CHECK_THROWS_WITH_AS(Port({dir / "stale"}), doctest::Contains("another process serves it"), std::system_error);
  talk(frontend);  // undisturbed
  std::ofstream(dir / "file") << "precious";
  CHECK_THROWS_WITH_AS(Port({dir / "file"}), doctest::Contains("is not a socket"), std::system_error);
  fs::create_symlink(dir / "nowhere", dir / "link");
  CHECK_THROWS_AS(Port({dir / "link"}), std::system_error);
  CHECK(fs::file_size(dir / "file") == 8);
}

TEST_CASE("endpoint: bad paths have clear errors") {
  const Directory dir;
  CHECK_THROWS_WITH_AS(Port({""}), doctest::Contains("empty"), ConfigError);
  CHECK_THROWS_WITH_AS(Port({std::string(108, 'x')}),
                       doctest::Contains("108 bytes, but a socket address holds at most 107"), ConfigError);
  CHECK_THROWS_AS(Port({.path = std::string(108, 'x'), .client = true}), ConfigError);
  CHECK_THROWS_AS(Port({std::string("a\0b", 3)}), ConfigError);
  try {
    const Port port({dir / "missing/sock"});
    CHECK(false);
  } catch (const std::system_error& error) {
    CHECK(error.code() == std::errc::no_such_file_or_directory);
    CHECK(std::string(error.what()).find("its directory does not exist") != std::string::npos);
  }
  const std::string longest = dir / std::string(107 - dir.path.size() - 1, 'x');
  REQUIRE(longest.size() == 107);
  Port port({longest});
  Frontend frontend = Frontend::connect(longest);
  talk(frontend);
}

TEST_CASE("endpoint: the socket has the mode asked for, and goes only if it is still ours") {
  const Directory dir;
  {
    Port port({.path = dir / "sock", .socket_mode = 0640});
    struct stat made;
    REQUIRE(::stat((dir / "sock").c_str(), &made) == 0);
    CHECK((made.st_mode & 07777) == 0640);
    fs::remove(dir / "sock");
    std::ofstream(dir / "sock") << "somebody else's";
  }
  CHECK(fs::exists(dir / "sock"));
}

TEST_CASE("endpoint: a client's trouble is told once") {
  const Directory dir;
  std::ofstream(dir / "file") << "not a directory";
  Port port({.path = dir / "file/sock", .client = true});
  port.wait_for([&] { return !port.troubles.empty(); });
  port.pass_time(800ms);  // three more tries take 700 ms
  port.stop();
  CHECK(port.troubles.size() == 1);
  CHECK(port.troubles[0].find("Not a directory") != std::string::npos);
}

#ifndef __SANITIZE_THREAD__
TEST_CASE("endpoint: a forked child leaves the socket alone") {
  const Directory dir;
  Port port({dir / "sock"});
  Frontend frontend = Frontend::connect(dir / "sock");
  talk(frontend);
  const pid_t child = ::fork();
  if (child == 0) {
    port.endpoint.reset();
    ::_exit(fs::exists(dir / "sock") ? 0 : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  talk(frontend);
}
#endif

TEST_CASE("front end: waits as long as told, with a tick that may end it") {
  const Directory dir;
  CHECK_THROWS_AS(Frontend::connect(dir / "nobody", {.timeout = 30ms}), Disconnected);
  const SocketListener listener(dir / "sock", 0600);
  Frontend frontend = Frontend::connect(dir / "sock", {.tick = [] { throw std::runtime_error("Ctrl-C"); }});
  CHECK_THROWS_WITH(frontend.get_u64(Request::GET_FEATURES), "Ctrl-C");
}

TEST_CASE("front end: answers that are none are told apart") {
  const Directory dir;
  const SocketListener listener(dir / "sock", 0600);
  Frontend frontend = Frontend::connect(dir / "sock");
  Frontend backend = Frontend::accept(listener);  // the other end, for what it can send
  const auto answer_with = [&](Message message, uint32_t flags) {
    message.flags = flags;
    backend.send(std::move(message));
  };
  answer_with(Message(Request::GET_FEATURES, uint64_t{1}), 1);
  CHECK_THROWS_AS(frontend.get_u64(Request::GET_FEATURES), ProtocolError);  // not a reply
  answer_with(Message(Request::GET_STATUS, uint64_t{1}), 5);
  CHECK_THROWS_AS(frontend.get_u64(Request::GET_FEATURES), ProtocolError);  // not this one's
  answer_with(Message(Request::GET_FEATURES, uint32_t{1}), 5);
  CHECK_THROWS_AS(frontend.get_u64(Request::GET_FEATURES), ProtocolError);  // too short
  answer_with(Message(Request::GET_VRING_BASE, wire::VringState{2, 0}), 5);
  CHECK_THROWS_AS(frontend.get_vring_base(1), ProtocolError);
}
