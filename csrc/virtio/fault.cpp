// SPDX-License-Identifier: BSD-3-Clause
#include "virtio/fault.hpp"

#include <cinttypes>

#include "base/error.hpp"

namespace vhost_ioat::virtio {

std::string Fault::text() const {
  switch (kind) {
    case Kind::none:
      return "no fault";
    case Kind::avail_index:
      return format("avail index is %" PRIu64 " ahead, but the ring has %" PRIu64 " entries (VIRTIO 1.2, 2.7.13.3)",
                    value, limit);
    case Kind::avail_index_back:
      return format("avail index went back, from %" PRIu64 " ahead to %" PRIu64 " (VIRTIO 1.2, 2.7.6.1)", limit, value);
    case Kind::head:
      return format("avail ring names head %" PRIu64 ", but the ring has %" PRIu64 " entries (VIRTIO 1.2, 2.7.6)",
                    value, limit);
    case Kind::next:
      return format("descriptor links to %" PRIu64 ", but its table has %" PRIu64 " entries (VIRTIO 1.2, 2.7.5)", value,
                    limit);
    case Kind::chain_length:
      return format("chain is longer than the ring of %" PRIu64 " entries, or loops (VIRTIO 1.2, 2.7.5.2)", limit);
    case Kind::chain_bytes:
      return format("chain describes %" PRIu64 " bytes, more than 2^32 (VIRTIO 1.2, 2.7.5.2)", value);
    case Kind::order:
      return "device-readable descriptor behind a device-writable one (VIRTIO 1.2, 2.7.4.2)";
    case Kind::direction:
      return format("chain at head %" PRIu64 " has buffers of the wrong direction for this queue (VIRTIO 1.2, 5.1.6)",
                    value);
    case Kind::indirect_feature:
      return "indirect descriptor, but VIRTIO_F_INDIRECT_DESC was not negotiated (VIRTIO 1.2, 2.7.5.3.1)";
    case Kind::indirect_flags:
      return format("indirect descriptor with NEXT set, flags 0x%" PRIx64 " (VIRTIO 1.2, 2.7.5.3.1)", value);
    case Kind::indirect_length:
      return format("indirect table of %" PRIu64 " bytes; it must be a multiple of 16 from 16 to %" PRIu64
                    " (VIRTIO 1.2, 2.7.5.3.1)",
                    value, limit);
    case Kind::nested_indirect:
      return "indirect descriptor inside an indirect table (VIRTIO 1.2, 2.7.5.3.1)";
    case Kind::unmapped:
      return format("guest address 0x%" PRIx64 ", length %" PRIu64 ", is not (wholly) in guest memory", value, limit);
    case Kind::memory_torn:
      return "guest memory was truncated below its mapping";
    case Kind::walk:
      return format("after %" PRIu64 " descriptors there were still no receive buffers of %" PRIu64
                    " bytes together; give the device buffers that hold bytes (VIRTIO 1.2, 5.1.6.3.1)",
                    value, limit);
  }
  return "unknown fault";
}

}  // namespace vhost_ioat::virtio
