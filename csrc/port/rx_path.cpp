// SPDX-License-Identifier: BSD-3-Clause
#include "port/rx_path.hpp"

#include <cstring>

namespace vhost_ioat::port {

using virtio::Feature;
using virtio::NetHeader;

/// There was no memory the last time: is there none at all now? Then the packets go on waiting.
bool RxPath::exhausted(memory::PacketArena& arena) noexcept {
  const size_t free = arena.largest_free();
  // Told again only after much was free in between: a program that lives at the limit would be told all the time.
  if (free >= starved_ && arena.bytes_in_use() <= arena.size() / 2) {
    starved_ = 0;
    notices_.again(Notice::Kind::memory_exhausted);
    notices_.again(Notice::Kind::memory_cut_up);
  }
  if (free == 0) counters_.nombuf.add(1);
  return free == 0;
}

/// `word` and `csum_offset` are the header as it was read; `header` is zero before. False: the packet is dropped, and
/// counted.
bool RxPath::accept_header(NetHeader& header, uint64_t word, uint16_t csum_offset, uint32_t len) noexcept {
  if ((word & 0xffff) == 0) return true;
  NetHeader h;
  std::memcpy(static_cast<void*>(&h), &word, sizeof word);
  h.csum_offset = csum_offset;
  h.flags &= features_.has(Feature::CSUM) ? virtio::NET_HDR_F_NEEDS_CSUM : uint8_t{0};
  const Verdict verdict = judge_header(h, len);
  if (verdict == Verdict::accepted) {
    header = h;
    return true;
  }
  counters_.errors.add(1);
  (verdict == Verdict::gso           ? counters_.gso_dropped
   : verdict == Verdict::gso_no_csum ? counters_.gso_no_csum_dropped
                                     : counters_.header_dropped)
      .add(1);
  return false;
}

/// Asks for nothing that was not negotiated, and for nothing that cannot be (VIRTIO 1.2, 5.1.6.2.1).
RxPath::Verdict RxPath::judge_header(NetHeader& h, uint32_t len) noexcept {
  if (virtio::segment_without_checksum(h) && virtio::may_send_segment(features_, h)) {
    // A driver must set both. Some do not, for packets of any length: one that needs no cutting is what it would be
    // without gso_type, whole and with its checksum, so it passes as that. One that must be cut would leave whoever
    // cuts it without the place of the checksum.
    if (virtio::is_one_segment(h, len)) {
      h = {};
      return Verdict::accepted;
    }
    notices_.add(Notice::Kind::gso_without_checksum, h.gso_type, 0);
    return Verdict::gso_no_csum;
  }
  if (!virtio::valid(h, len)) return Verdict::header;
  return virtio::may_send_segment(features_, h) ? Verdict::accepted : Verdict::gso;
}

void RxPath::count_dropped(Shape why) noexcept {
  switch (why) {
    case Shape::simple:
    case Shape::pieces:
      return;
    case Shape::empty:
      counters_.empty_dropped.add(1);
      break;
    case Shape::oversize:
      counters_.oversize_dropped.add(1);
      break;
    case Shape::too_many_pieces:
      counters_.pieces_dropped.add(1);
      break;
    case Shape::no_memory:
      counters_.nombuf.add(1);
      counters_.nombuf_dropped.add(1);
      return;  // our shortage, not the guest's error
  }
  counters_.errors.add(1);
}

}  // namespace vhost_ioat::port
