// SPDX-License-Identifier: BSD-3-Clause
#include "dma/vfio_user.hpp"

#include <poll.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <exception>
#include <string_view>

#include "base/budget.hpp"
#include "base/error.hpp"
#include "base/peer_fd.hpp"

namespace vhost_ioat::dma {

using namespace vfio_user;

namespace {

/// A request that is answered with an errno; the connection goes on.
struct Refused final : std::exception {
  explicit Refused(int error_of) : error(error_of) {}
  int error;
};

void require(bool holds, int error = EINVAL) {
  if (!holds) throw Refused{error};
}

template <typename T>
T body(std::span<const std::byte> payload) {
  require(payload.size() >= sizeof(T));
  T value;
  std::memcpy(&value, payload.data(), sizeof value);
  return value;
}

template <typename T>
std::vector<std::byte> bytes_of(const T& value) {
  const auto* start = reinterpret_cast<const std::byte*>(&value);
  return {start, start + sizeof value};
}

uint64_t region_size(uint32_t index) {
  if (index == region_bar0) return spec::bar_size;
  if (index == region_config) return PciConfigModel::size;
  return 0;
}

void check_access(const RegionAccess& access) {
  const uint64_t size = region_size(access.region);
  require(access.count > 0 && access.offset < size && access.count <= size - access.offset);
}

/// Cuts an access into naturally aligned pieces of at most `largest` bytes, as a bus would.
template <typename Piece>
void for_each_piece(const RegionAccess& access, uint32_t largest, Piece&& piece) {
  uint32_t offset = static_cast<uint32_t>(access.offset);
  for (uint32_t done = 0; done < access.count;) {
    uint32_t size = largest;
    while (offset % size != 0 || size > access.count - done) size /= 2;
    piece(offset, size, done);
    offset += size;
    done += size;
  }
}

static_assert(static_cast<uint32_t>(Rights::read) == map_read && static_cast<uint32_t>(Rights::write) == map_write);

}  // namespace

VfioUserServer::VfioUserServer(IoatModel& model) : model_(model), seat_(model.take_seat()) {
  model_.on_interrupt([interrupt = interrupt_] { interrupt->raise(); });
}

void VfioUserServer::Interrupt::raise() {
  const MutexLock lock(mutex);
  peer.signal();
}

bool VfioUserServer::has_room() {
  std::erase_if(lanes_, [](const auto& lane) { return lane->pending() == 0; });
  if (lanes_.size() >= budget::former_sessions) return false;
  try {  // here, since a connection without a lane would be closed by the server, and that may take long
    lanes_.reserve(budget::former_sessions);
    if (!next_lane_) next_lane_ = HelperLane::create(budget::fds_of_card);
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

void VfioUserServer::attach(UniqueFd connection, HalfOpen::Time now) {
  detach();
  lanes_.push_back(next_lane_ ? std::exchange(next_lane_, nullptr) : HelperLane::create(budget::fds_of_card));
  socket_.emplace(lanes_.back()->adopt(connection.release()), lanes_.back());
  half_open_.connected(now);
}

void VfioUserServer::detach() {
  socket_.reset();
  model_.function_reset();
  model_.memory().unmap_range(0, UINT64_MAX);
  files_.clear();
  const MutexLock lock(interrupt_->mutex);
  interrupt_->peer = {};
  interrupt_->fd.reset();
}

bool VfioUserServer::serve(std::chrono::milliseconds timeout) {
  if (!socket_) return false;
  const auto end = std::chrono::steady_clock::now() + timeout;
  try {
    Message request;
    while (true) {
      const Socket::Answer answered = socket_->receive(request);
      if (answered == Socket::Answer::closed) throw Error("the peer closed the connection");
      if (answered == Socket::Answer::message) answer(request);
      check_files();
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
      if (left.count() <= 0) return true;
      if (answered == Socket::Answer::message) continue;
      const bool pause = answered == Socket::Answer::pause;
      pollfd readable{socket_->fd(), static_cast<short>(pause ? 0 : POLLIN), 0};
      // A signal ends the turn, so that the caller can look at it.
      if (::poll(&readable, 1, pause ? 1 : static_cast<int>(left.count())) < 0) return true;
      if (pause && readable.revents != 0) throw Error("the peer closed the connection");
    }
  } catch (const std::exception& error) {
    why_ = error.what();
    detach();
    return false;
  }
}

void VfioUserServer::answer(Message& request) {
  Header header = request.header;
  if ((header.flags & flag_type) != type_command) {
    throw Error(format("message %u is a reply (flags %#x), but there was no request", header.id, header.flags));
  }
  const bool wanted = (header.flags & flag_no_reply) == 0;
  header.flags = type_reply;
  header.error = 0;
  Payload payload;
  try {
    payload = execute(request);
  } catch (const Refused& refused) {
    header.flags |= flag_error;
    header.error = static_cast<uint32_t>(refused.error);
  }
  request.fds.clear();
  if (!wanted) return;
  header.size = static_cast<uint32_t>(sizeof header + payload.size());
  socket_->send(header, payload);
}

VfioUserServer::Payload VfioUserServer::execute(Message& request) {
  const auto command = static_cast<Command>(request.header.command);
  const std::span<const std::byte> payload = request.payload;
  if (half_open_.has_greeted() == (command == Command::version))
    throw Error("VERSION must be the first message, and sent only once");
  switch (command) {
    case Command::version:
      return negotiate(payload);
    case Command::dma_map:
      dma_map(request);
      return {};
    case Command::dma_unmap:
      return dma_unmap(body<DmaUnmap>(payload));
    case Command::device_get_info:
      return bytes_of(DeviceInfo{sizeof(DeviceInfo), device_can_reset | device_is_pci, regions, irqs});
    case Command::device_get_region_info: {
      const uint32_t index = body<RegionInfo>(payload).index;
      require(index < regions);
      const uint64_t size = region_size(index);
      return bytes_of(RegionInfo{sizeof(RegionInfo), size > 0 ? region_read_write : 0, index, 0, size, 0});
    }
    case Command::device_get_irq_info: {
      const uint32_t index = body<IrqInfo>(payload).index;
      require(index < irqs);
      return bytes_of(IrqInfo{sizeof(IrqInfo), irq_eventfd, index, index == irq_msix ? 1u : 0u});
    }
    case Command::device_set_irqs:
      set_irqs(request);
      return {};
    case Command::region_read:
      return region_read(body<RegionAccess>(payload));
    case Command::region_write:
      return region_write(payload);
    case Command::device_reset:
      model_.function_reset();
      return {};
    case Command::device_get_region_io_fds:
      break;
  }
  throw Refused{ENOTSUP};
}

VfioUserServer::Payload VfioUserServer::negotiate(std::span<const std::byte> payload) {
  const auto version = body<Version>(payload);
  if (version.major != 0)
    throw Error(format("the peer speaks vfio-user version %u, but this device speaks version 0", version.major));
  half_open_.greeted();
  Payload reply = bytes_of(Version{0, 0});
  // QEMU reads the reply into the buffer of its request. What the text leaves out has the protocol's defaults.
  static constexpr std::string_view text = R"({"capabilities":{"max_msg_fds":8}})";
  if (payload.size() > reply.size() + text.size()) {
    const auto* start = reinterpret_cast<const std::byte*>(text.data());
    reply.insert(reply.end(), start, start + text.size());
    reply.push_back(std::byte{0});
  }
  return reply;
}

std::shared_ptr<memory::GuestMapping> VfioUserServer::file_of(int fd) {
  memory::GuestMapping::check_origin(fd);
  struct stat file{};
  require(::fstat(fd, &file) == 0 && file.st_size > 0, EBADF);
  const std::pair<uint64_t, uint64_t> key{file.st_dev, file.st_ino};
  const auto size = static_cast<uint64_t>(file.st_size);
  std::erase_if(files_, [](const auto& entry) { return entry.second.expired(); });
  for (auto [known, end] = files_.equal_range(key); known != end; ++known)
    if (auto mapping = known->second.lock(); mapping && mapping->size() >= size) return mapping;
  uint64_t bytes = 0;
  for (const auto& [other, mapped] : files_)
    if (const auto mapping = mapped.lock()) bytes += mapping->size();
  require(files_.size() < budget::files_of_card && size <= budget::physical_memory() &&
              bytes <= budget::physical_memory() - size,
          ENOSPC);
  const auto mapping = memory::GuestMapping::from_fd(fd, 0, size);
  files_.emplace(key, mapping);
  return mapping;
}

void VfioUserServer::check_files() const {
  for (const auto& [key, file] : files_) {
    if (const auto mapping = file.lock(); mapping && mapping->torn()) {
      throw Error("the peer truncated a file of guest memory");
    }
  }
}

void VfioUserServer::dma_map(Message& request) {
  const auto map = body<DmaMap>(request.payload);
  require(map.size > 0 && map.address <= UINT64_MAX - (map.size - 1));
  require((map.flags & ~(map_read | map_write)) == 0 && map.flags != 0);
  IovaMap& iovas = model_.memory();
  require(!iovas.holds(map.address, map.address + (map.size - 1)), EEXIST);
  require(iovas.size() < IovaMap::max_pieces, ENOSPC);
  require(request.fds.size() <= 1);
  try {
    if (request.fds.empty()) throw memory::NotShared("a ROM has no fd");
    const auto file = file_of(request.fds[0].get());
    require(map.offset <= file->size() && map.size <= file->size() - map.offset);
    iovas.map(map.address, file->data() + map.offset, map.size, static_cast<Rights>(map.flags), file);
  } catch (const memory::NotShared&) {
    iovas.map(map.address, nullptr, map.size, Rights::none);  // it is there, and the device does not reach it
  }
}

/// With an IOMMU in the guest, whole address spaces are unmapped at once, whatever was mapped in them; the answer says
/// how many bytes were. A mapping of which a part is unmapped keeps the rest.
VfioUserServer::Payload VfioUserServer::dma_unmap(DmaUnmap request) {
  require((request.flags & ~unmap_all) == 0);
  const bool all = request.flags != 0;
  require(all || (request.size > 0 && request.address <= UINT64_MAX - (request.size - 1)));
  const uint64_t first = all ? 0 : request.address;
  const uint64_t last = all ? UINT64_MAX : request.address + (request.size - 1);
  try {
    request.size = model_.memory().unmap_range(first, last);
  } catch (const DmaError&) {
    throw Refused{ENOSPC};  // it would leave too many pieces
  }
  return bytes_of(request);
}

void VfioUserServer::set_irqs(Message& request) {
  const auto set = body<IrqSet>(request.payload);
  require(set.index < irqs && set.start == 0 && set.count <= (set.index == irq_msix ? 1u : 0u));
  require((set.flags & set_trigger) != 0 && request.fds.size() <= 1);
  if (set.index != irq_msix) return;
  UniqueFd fd;
  if (!request.fds.empty()) fd = std::move(request.fds[0]);
  const PeerFd peer(fd.get(), PeerFd::Use::signal);
  if (fd && peer.kind() != PeerFd::Kind::eventfd) throw Error("the fd of an interrupt is not an eventfd");
  const MutexLock lock(interrupt_->mutex);
  interrupt_->peer = peer;
  interrupt_->fd = std::move(fd);
}

VfioUserServer::Payload VfioUserServer::region_read(const RegionAccess& access) {
  check_access(access);
  Payload reply = bytes_of(access);
  reply.resize(sizeof access + access.count);
  std::byte* data = reply.data() + sizeof access;
  const bool bar = access.region == region_bar0;
  for_each_piece(access, bar ? 8 : 4, [&](uint32_t offset, uint32_t size, uint32_t done) {
    const uint64_t value = bar ? model_.read(offset, size) : model_.config_read(offset, size);
    std::memcpy(data + done, &value, size);
  });
  return reply;
}

VfioUserServer::Payload VfioUserServer::region_write(std::span<const std::byte> payload) {
  const auto access = body<RegionAccess>(payload);
  check_access(access);
  const std::span<const std::byte> data = payload.subspan(sizeof access);
  require(data.size() == access.count);
  const bool bar = access.region == region_bar0;
  for_each_piece(access, bar ? 8 : 4, [&](uint32_t offset, uint32_t size, uint32_t done) {
    uint64_t value = 0;
    std::memcpy(&value, data.data() + done, size);
    if (bar) {
      model_.write(offset, value, size);
    } else {
      model_.config_write(offset, static_cast<uint32_t>(value), size);
    }
  });
  return bytes_of(access);
}

}  // namespace vhost_ioat::dma
