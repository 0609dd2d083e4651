// SPDX-License-Identifier: BSD-3-Clause
#include "port/notice.hpp"

#include <cinttypes>

#include "base/error.hpp"

namespace vhost_ioat::port {

std::string Notice::text(Kind kind, const Notice& n) {
  switch (kind) {
    case Kind::short_buffer:
      return format("the guest gives receive buffers of %" PRIu64 " bytes, too short for anything below %" PRIu64
                    "; they are given back unused (VIRTIO 1.2, 5.1.6.3.1)",
                    n.value, n.limit);
    case Kind::gso_without_checksum:
      return format("the guest asks for segmentation (gso_type %" PRIu64
                    ") without NEEDS_CSUM; such packets are dropped when they need to be cut; its driver must set both "
                    "(VIRTIO 1.2, 5.1.6.2.1)",
                    n.value);
    case Kind::memory_exhausted:
      return format("packet memory is exhausted: all %" PRIu64 " bytes are held, a burst needs %" PRIu64
                    "; packets wait in the guest until bursts are released; release them, or raise mempool",
                    n.limit, n.value);
    case Kind::memory_cut_up:
      return format("packet memory is cut up by bursts that are held: a packet needs %" PRIu64
                    " bytes in one piece, the largest free one of %" PRIu64 " has %" PRIu64
                    "; such packets are dropped, shorter ones pass; release bursts, keep packets with Burst.detach(), "
                    "or raise mempool",
                    n.value, n.limit, n.extra);
    case Kind::call_failed:
      return "the other end of its call fd is gone; the guest is told of nothing until its front end sends another one";
    case Kind::costly_fd:
      return "so many wait for its call or kick fd that each use of it takes too long";
  }
  return "unknown notice";
}

}  // namespace vhost_ioat::port
