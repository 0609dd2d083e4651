// SPDX-License-Identifier: BSD-3-Clause
// The software I/OAT as a PCI card: any messages of a monitor, whole or cut, with fds that fit and fds that do not.
#include <sys/mman.h>
#include <sys/socket.h>

#include <vector>

#include "dma/vfio_user.hpp"
#include "input.hpp"

using namespace vhost_ioat;
using namespace std::chrono_literals;
namespace wire = dma::vfio_user;

namespace {

/// One fd goes along with each message that asks for it: a file for DMA_MAP, an eventfd for SET_IRQS.
void put(int socket, std::span<const uint8_t> bytes, int fd) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  iovec part{const_cast<uint8_t*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(head), &fd, sizeof fd);
  }
  (void)!::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const UniqueFd file = [] {
    UniqueFd fd(::memfd_create("fuzz", MFD_CLOEXEC));
    (void)!::ftruncate(fd.get(), 1 << 16);
    return fd;
  }();
  static const UniqueFd event = make_eventfd();
  Input input(data, size);
  dma::IoatModel model({.mode = dma::IoatModel::Mode::stepped});
  dma::VfioUserServer server(model);
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return 0;
  const UniqueFd peer(ends[0]);
  server.attach(UniqueFd(ends[1]));
  std::vector<uint8_t> message;
  const auto tell = [&](uint8_t how, uint16_t command, std::span<const uint8_t> payload) {
    wire::Header header{1, command, static_cast<uint32_t>(sizeof(wire::Header) + payload.size()), 0, 0};
    if (how & 4) header.flags = wire::flag_no_reply;
    if (how & 8) header.size += how >> 4;
    message.resize(sizeof header + payload.size());
    std::memcpy(message.data(), &header, sizeof header);
    std::copy(payload.begin(), payload.end(), message.begin() + sizeof header);
    put(peer.get(), message, how & 1 ? file.get() : how & 2 ? event.get() : -1);
    const bool open = server.serve(0ms);
    uint8_t replies[4096];
    while (::recv(peer.get(), replies, sizeof replies, MSG_DONTWAIT) > 0) {
    }
    return open;
  };
  const uint8_t version[] = {0, 0, 1, 0, '{', '}', 0};
  bool open = tell(0, 1, version);
  while (open && !input.empty()) {
    const auto how = input.take<uint8_t>();
    const auto command = input.take<uint8_t>();
    open = tell(how, command % 32 == 31 ? command : command % 16, input.take_bytes(input.take<uint8_t>()));
    model.step(how >> 4);
    if (server.maps() > dma::IovaMap::max_pieces) __builtin_trap();
  }
  return 0;
}
