// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <string>

namespace vhost_ioat::virtio {

/// What a driver did wrong. Kept as numbers, so that the data path neither allocates nor formats; text() does.
struct Fault {
  enum class Kind : uint8_t {
    none,
    avail_index,       // value: distance, limit: ring size
    avail_index_back,  // value: distance, limit: the distance it had before
    head,              // value: head, limit: ring size
    next,              // value: next, limit: table size
    chain_length,      // limit: ring size
    chain_bytes,       // value: bytes
    order,             // a readable descriptor behind a writable one
    direction,         // value: head
    indirect_feature,  // used without being negotiated
    indirect_flags,    // value: flags
    indirect_length,   // value: bytes, limit: ring size * 16
    nested_indirect,
    unmapped,  // value: address, limit: length
    memory_torn,
    walk,  // value: descriptors looked at, limit: bytes looked for
  };
  Kind kind = Kind::none;
  uint64_t value = 0, limit = 0;

  explicit operator bool() const { return kind != Kind::none; }
  std::string text() const;
};

}  // namespace vhost_ioat::virtio
