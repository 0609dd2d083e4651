// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cxxabi.h>
#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <utility>

namespace vhost_ioat {

/// What a thread needs for its first exception: the C++ runtime keeps a few bytes for each thread, and where it was
/// loaded with a module it asks for them at the first throw. When there is no memory then, the dynamic linker ends the
/// process, and exceptions are what a want of memory is told by. So a thread of ours begins with ready(), and who
/// starts it brings the address space along.
class ThrowReserve {
 public:
  /// Throws std::bad_alloc.
  ThrowReserve() : data_(::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    if (data_ == MAP_FAILED) throw std::bad_alloc();
  }
  ThrowReserve(ThrowReserve&& other) noexcept : data_(std::exchange(other.data_, MAP_FAILED)) {}
  ThrowReserve& operator=(ThrowReserve&&) = delete;
  ~ThrowReserve() { release(); }

  /// On the new thread, before anything else.
  void ready() noexcept {
    release();
    asm volatile("" : : "r"(abi::__cxa_get_globals()));  // declared as without effect: it would be left out
  }

 private:
  static constexpr size_t size = 256 << 10;
  void release() noexcept {
    if (data_ != MAP_FAILED) ::munmap(std::exchange(data_, MAP_FAILED), size);
  }
  void* data_;
};

}  // namespace vhost_ioat
