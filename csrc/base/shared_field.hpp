// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstdint>

// Access to memory that somebody else reads and writes at the same time: a guest, a device, another thread of the
// program. Each of these is one access, never torn and never repeated; what was read is checked and used as a copy.
namespace vhost_ioat {

/// A field that is aligned to its size.
template <typename T>
T load_relaxed(const void* field) {
  return std::atomic_ref<T>(*static_cast<T*>(const_cast<void*>(field))).load(std::memory_order_relaxed);
}
template <typename T>
T load_acquire(const void* field) {
  return std::atomic_ref<T>(*static_cast<T*>(const_cast<void*>(field))).load(std::memory_order_acquire);
}
template <typename T>
void store_relaxed(void* field, T value) {
  std::atomic_ref<T>(*static_cast<T*>(field)).store(value, std::memory_order_relaxed);
}
template <typename T>
void store_release(void* field, T value) {
  std::atomic_ref<T>(*static_cast<T*>(field)).store(value, std::memory_order_release);
}

/// A field of any alignment (indirect tables, headers): the compiler may not read it again.
inline uint64_t load_once_u64(const void* p) {
  struct [[gnu::packed, gnu::may_alias]] Raw {
    uint64_t v;
  };
  return static_cast<const volatile Raw*>(p)->v;
}
inline uint16_t load_once_u16(const void* p) {
  struct [[gnu::packed, gnu::may_alias]] Raw {
    uint16_t v;
  };
  return static_cast<const volatile Raw*>(p)->v;
}

}  // namespace vhost_ioat
