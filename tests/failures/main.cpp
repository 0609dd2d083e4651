// SPDX-License-Identifier: BSD-3-Clause
// Every n-th call that can run short fails in turn, through the life of a front end, and each time: the process lives,
// the neighbour loses nothing, nothing is left open, the port has said so, and it serves the next front end.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>

#include "base/error.hpp"
#include "peer.hpp"
#include "shortage.hpp"
#include "watchdog.hpp"

using namespace vhost_ioat;
using namespace vhost_ioat::testing;
using port::EthVhost;

namespace {

/// What the port is like, and whose calls fail.
struct Scenario {
  const char* name;
  const char* engine;  // of tx queue 0; nullptr: none
  const char* sw_mode;
  bool client;  // the port connects, and tries again after a pause: so its front end says little
  bool caller;  // the caller's own calls fail too: construction, start, stop, close
};
constexpr Scenario scenarios[] = {
    {"cpu", nullptr, "threaded", false, false},       {"engine", "sw0", "threaded", false, false},
    {"inline engine", "sw0", "inline", false, false}, {"caller", "sw0", "threaded", false, true},
    {"client", nullptr, "threaded", true, false},
};

/// Shared with the child that runs the lives, so that its end tells where it came.
struct Progress {
  uint64_t n = 0;  // the point that fails
  uint64_t lives = 0;
  uint64_t points = 0;  // calls seen in a life without failures
  uint64_t hit = 0;     // lives in which something failed
  uint64_t ended = 0;   // sessions ended by the port, each with an event or a counter
  bool done = false;
  Shortages::Hit shortage;
  char problem[512] = {};
};

struct Held {
  size_t fds = 0, mappings = 0;
  bool within(const Held& other) const { return fds <= other.fds && mappings <= other.mappings; }
};

/// Open files, and shared mappings: private memory comes and goes with the allocator.
Held held() {
  Held now;
  now.fds = static_cast<size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) now.mappings += line.find('s') == line.find(' ') + 4;
  return now;
}

std::string path_of(const char* who) { return format("/tmp/vhost_ioat_failures.%d.%s", ::getpid(), who); }

port::PortConfig config(const Scenario& scenario) {
  port::PortConfig made;
  made.name = "victim";
  made.iface = path_of("victim");
  made.mempool = 1 << 20;
  if (scenario.engine) made.ioats = {{0, scenario.engine}};
  made.sw_mode = scenario.sw_mode;
  made.client = scenario.client;
  return made;
}

/// What a user of the port can see of trouble: events that are more than news of link and queues, and counters.
class Ear {
 public:
  explicit Ear(EthVhost& port) : port_(port) {}
  /// How often so far.
  uint64_t heard() {
    for (const port::Event& event : port_.reports().take_events()) {
      events_ += event.kind != port::Subject::Kind::link && event.kind != port::Subject::Kind::queue;
    }
    uint64_t counted = 0;
    for (const auto& [name, value] : port_.xstats())
      if (name.ends_with("errors") || name.ends_with("lost") || name.ends_with("error")) counted += value;
    return events_ + counted;
  }

 private:
  EthVhost& port_;
  uint64_t events_ = 0;
};

enum class End { lived, dropped, gave_up };

/// One life of a front end beside the neighbour. With `may_fail` the port may end it, or say that something is wrong.
class Life {
 public:
  Life(EthVhost& port, Ear& ear, Neighbour& neighbour, bool may_fail)
      : port_(port), ear_(ear), neighbour_(neighbour), may_fail_(may_fail) {
    if (port.config().client) listener_.emplace(port.config().iface, mode_t{0600});
  }

  End live() {
    const vhost_user::SocketListener* listener = listener_ ? &*listener_ : nullptr;
    try {
      Peer peer(Peer::connect(port_.config().iface, listener, [this] {
        if (given_up(10)) throw GaveUp("no answer");
      }));
      if (listener ? step(peer) : live(peer)) return End::lived;
      return peer.alive() ? End::gave_up : End::dropped;
    } catch (const GaveUp&) {
      return End::gave_up;
    } catch (const Disconnected&) {   // by the port
    } catch (const ProtocolError&) {  // a refusal
    }
    return End::dropped;
  }

 private:
  bool live(Peer& peer) {
    peer.start_rings();
    if (!step(peer) || !traffic(peer)) return false;
    peer.migrate();
    peer.replace_fds();
    if (!step(peer) || !traffic(peer)) return false;
    peer.migrate();
    peer.hot_plug();
    if (!step(peer) || !traffic(peer)) return false;
    peer.stop_rings();
    return step(peer);
  }
  bool step(Peer& peer) {
    neighbour_.exchange();
    return peer.answered();
  }
  /// Two packets each way.
  bool traffic(Peer& peer) {
    for (uint32_t end = number_ + 2; number_ < end; ++number_) {
      if (!arrives(peer, [&] { return peer.send(number_); }) || !arrives(peer, [&] { return got(take(port_)); }) ||
          !arrives(peer, [&] { return transmit(port_, number_); }) ||
          !arrives(peer, [&] { return got(peer.receive()); }))
        return false;
    }
    return true;
  }
  bool got(const std::optional<uint32_t>& number) const {
    must(!number || *number == number_, "a packet was lost or came twice");
    return number.has_value();
  }
  /// Until it does; false when the front end was dropped, or when the port has said that something is wrong.
  template <typename Turn>
  bool arrives(Peer& peer, Turn&& turn) {
    bool there = false;
    must(eventually([&] {
           there = turn();
           return there || !peer.alive() || given_up(1000);
         }),
         "traffic stands still, and the port has not said why");
    return there;
  }
  bool given_up(uint32_t looks) { return may_fail_ && ear_.heard() != 0 && ++looks_ > looks; }

  EthVhost& port_;
  Ear& ear_;
  Neighbour& neighbour_;
  bool may_fail_;
  std::optional<vhost_user::SocketListener> listener_;
  uint32_t number_ = 0;
  uint32_t looks_ = 0;  // in vain, since the port said that something is wrong
};

/// A life with calls [n, n + calls) failing, and what must hold after it.
class Trial {
 public:
  Trial(const Scenario& scenario, Neighbour& neighbour, Progress& progress)
      : scenario_(scenario), neighbour_(neighbour), progress_(progress) {}

  void run(uint64_t n, uint64_t calls) {
    progress_.n = n;
    progress_.shortage = {};
    ++progress_.lives;
    settle();
    const Held before = held();
    try {
      scenario_.caller ? as_caller(n, calls) : as_peer(n, calls);
    } catch (...) {
      Shortages::disarm();
      throw;
    }
    progress_.hit += progress_.shortage.calls != 0;
    neighbour_.exchange();
    // Not the same: what the helper had yet to close or unmap when these were counted has gone meanwhile.
    must(eventually([&] { return held().within(before); }), "fds or mappings are left after close()");
    must(Ear(neighbour_.port()).heard() == 0, "the neighbour was disturbed");
  }
  uint64_t seen() const { return seen_; }

 private:
  void as_peer(uint64_t n, uint64_t calls) {
    EthVhost port(config(scenario_));
    Ear ear(port);
    port.start();
    Shortages::arm(n, calls, &progress_.shortage);
    bool both = live(port, ear);
    // One that comes while nothing can be had waits for the port's next try: not at every point, for the sake of time.
    if (both || calls == 1 || n % 16 == 0) both &= live(port, ear);
    seen_ = Shortages::disarm();
    must(both || progress_.shortage.calls != 0, "a front end was dropped without a shortage");
    serve_next(port, ear);
  }
  void as_caller(uint64_t n, uint64_t calls) {
    std::unique_ptr<EthVhost> port;
    Shortages::arm(n, calls, &progress_.shortage);
    bool started =
        attempt([&] { port = std::make_unique<EthVhost>(config(scenario_)); }) && attempt([&] { port->start(); });
    if (started) {
      Ear ear(*port);
      live(*port, ear);
      started = attempt([&] { port->stop(); }) && attempt([&] { port->start(); });
    }
    seen_ = Shortages::disarm();
    must(started || progress_.shortage.calls != 0, "start() failed without a shortage");
    if (!port) port = std::make_unique<EthVhost>(config(scenario_));
    Ear ear(*port);
    port->start();
    serve_next(*port, ear);
    Shortages::arm(n, calls, &progress_.shortage);
    attempt([&] { port->close(); });
    Shortages::disarm();
    port->close();
  }
  /// The caller may be told by an exception.
  template <typename Call>
  static bool attempt(Call&& call) {
    const Shortages::Counted counted;
    try {
      call();
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }
  /// A life during the shortage. Whoever is dropped, it is not in silence.
  bool live(EthVhost& port, Ear& ear) {
    const uint64_t before = ear.heard();
    const End end = Life(port, ear, neighbour_, true).live();
    if (end == End::dropped) {
      ++progress_.ended;
      must(eventually([&] { return ear.heard() > before; }), "a front end was dropped in silence");
    }
    return end != End::dropped;
  }
  /// The shortage is over: the next front end has everything.
  void serve_next(EthVhost& port, Ear& ear) {
    must(Life(port, ear, neighbour_, false).live() == End::lived, "the next front end is not served");
  }
  /// What earlier trials left to be done elsewhere is done.
  void settle() { neighbour_.exchange(); }

  const Scenario& scenario_;
  Neighbour& neighbour_;
  Progress& progress_;
  uint64_t seen_ = 0;
};

struct Options {
  uint64_t every = 1, seed = 1;
  uint64_t begin = 0, end = UINT64_MAX;
  std::string only;
  bool all = false;
  bool trace = false;
};
/// Of a lasting shortage only one point in so many is tried, unless all are asked for: each waits for the port's next
/// try to accept, a tenth of a second.
constexpr uint64_t some = 5;

/// Runs lives from point `begin` on, until nothing fails any more. In a child of its own.
void run_lives(const Scenario& scenario, uint64_t calls, const Options& options, uint64_t begin, Progress& progress) {
  const Shortages::Own own;
  try {
    Neighbour neighbour(path_of("neighbour"));
    Trial trial(scenario, neighbour, progress);
    for (int warm = 0; warm < 3; ++warm) trial.run(0, 0);  // what the first use allocates stays
    if (progress.points == 0) progress.points = trial.seen();
    const uint64_t every = calls == 1 || options.all ? options.every : std::max(options.every, some);
    std::mt19937_64 dice(options.seed);
    // Points move a little from life to life, with the turns of threads: the end is where nothing fails three times.
    int beyond = 0;
    for (uint64_t n = begin; beyond < 3 && n < options.end; ++n) {
      if (every > 1 && dice() % every != 0) continue;
      trial.run(n, calls);
      beyond = progress.shortage.calls == 0 ? beyond + 1 : 0;
    }
    progress.done = true;
  } catch (const std::exception& error) {
    std::snprintf(progress.problem, sizeof progress.problem, "%s", error.what());
    std::fflush(nullptr);
    ::_exit(1);  // threads of a broken life may still run
  }
}

void print_frames(const Progress& progress) {
  std::string command = "addr2line -Cfsipe /proc/" + std::to_string(::getpid()) + "/exe";
  std::ifstream maps("/proc/self/maps");
  std::string line;
  std::getline(maps, line);
  const uint64_t base = std::strtoull(line.c_str(), nullptr, 16);
  for (int i = 2; i < progress.shortage.depth; ++i)
    command += format(" 0x%" PRIx64, reinterpret_cast<uint64_t>(progress.shortage.frames[i]) - base - 1);
  std::fflush(stdout);
  command +=
      " 2>/dev/null | grep -v '^?' | grep -Ev '^( .inlined by. )?(void |bool )?(std::|operator "
      "new|vhost_ioat::testing)' | cut -c1-170 | head -6";
  if (std::system(command.c_str()) != 0) return;  // NOLINT(bugprone-command-processor): nobody else wrote any of it
}

/// Every n-th point in turn; a child that died goes on at the next one. How many failed.
int run(const Scenario& scenario, uint64_t calls, const char* mode, const Options& options) {
  void* shared = ::mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  Progress& progress = *new (shared) Progress;
  int failed = 0;
  const auto begun = std::chrono::steady_clock::now();
  for (uint64_t begin = options.begin; !progress.done && begin < options.end && failed < 1000; begin = progress.n + 1) {
    std::fflush(nullptr);
    const pid_t child = ::fork();
    if (child == 0) {
      run_lives(scenario, calls, options, begin, progress);
      std::exit(0);  // NOLINT(concurrency-mt-unsafe): no other thread ends this process
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    if (status == 0 && progress.done) break;
    ++failed;
    std::printf("FAILED %s, %s, point %" PRIu64 ", %s: %s\n", scenario.name, mode, progress.n,
                name_of(progress.shortage.kind),
                progress.problem[0]   ? progress.problem
                : WIFSIGNALED(status) ? format("signal %d", WTERMSIG(status)).c_str()
                                      : "exit status 1");
    if (options.trace) print_frames(progress);
    progress.problem[0] = 0;
    if (progress.done) break;       // a sanitizer's word at the end
    if (progress.lives < 4) break;  // not even without a shortage
  }
  const auto took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  std::printf("%-14s %-11s %5" PRIu64 " points, %5" PRIu64 " lives, %5" PRIu64 " with a shortage, %4" PRIu64
              " front ends dropped and told, %d failed (%.1f s)\n",
              scenario.name, mode, progress.points, progress.lives, progress.hit, progress.ended, failed, took);
  ::munmap(shared, sizeof(Progress));
  return failed;
}

}  // namespace

int main(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    auto value = [&] { return i + 1 < count ? std::strtoull(arguments[++i], nullptr, 10) : 0; };
    if (argument == "--every")
      options.every = std::max<uint64_t>(1, value());
    else if (argument == "--seed")
      options.seed = value();
    else if (argument == "--begin")
      options.begin = value();
    else if (argument == "--end")
      options.end = value();
    else if (argument == "--all")
      options.all = true;
    else if (argument == "--trace")
      options.trace = true;
    else if (argument == "--only" && i + 1 < count)
      options.only = arguments[++i];
    else {
      std::fprintf(stderr, "%s [--every K] [--seed N] [--begin N] [--end N] [--only SCENARIO] [--all] [--trace]\n",
                   arguments[0]);
      return 2;
    }
  }
  int failed = 0;
  for (const Scenario& scenario : scenarios) {
    if (!options.only.empty() && options.only != scenario.name) continue;
    failed += run(scenario, 1, "once", options);
    failed += run(scenario, UINT64_MAX, "persistent", options);
  }
  return failed != 0;
}
