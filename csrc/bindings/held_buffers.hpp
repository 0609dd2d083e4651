// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <map>
#include <memory>
#include <utility>

#include "base/error.hpp"
#include "base/mutex.hpp"
#include "bindings/bindings.hpp"

namespace vhost_ioat::bindings {

/// Memory of a Python object that a device may write, held in place.
class HeldBuffer {
 public:
  explicit HeldBuffer(const py::object& object) {
    // PyBUF_WRITABLE alone asks for contiguous bytes; Python raises BufferError for anything else.
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_WRITABLE) != 0) throw py::error_already_set();
  }
  HeldBuffer(const HeldBuffer&) = delete;
  HeldBuffer& operator=(const HeldBuffer&) = delete;
  ~HeldBuffer() { PyBuffer_Release(&view_); }
  void* data() const { return view_.buf; }
  size_t size() const { return static_cast<size_t>(view_.len); }

 private:
  Py_buffer view_;
};

/// What a device reaches of Python's memory. The GIL is not held while the device is waited for.
class HeldBuffers {
 public:
  template <typename Space>
  void map(Space& space, uint64_t iova, const py::object& object) {
    auto buffer = std::make_unique<HeldBuffer>(object);
    {
      const Unlocked unlocked;
      space.map(iova, buffer->data(), buffer->size());
    }
    const MutexLock lock(mutex_);
    by_iova_[iova] = std::move(buffer);
  }
  /// Gives the buffer back, which must live until the device has been kept from it.
  std::unique_ptr<HeldBuffer> take(uint64_t iova) {
    const MutexLock lock(mutex_);
    auto entry = by_iova_.extract(iova);
    if (!entry) throw DmaError(format("no buffer is mapped at IOVA 0x%llx", static_cast<unsigned long long>(iova)));
    return std::move(entry.mapped());
  }

 private:
  Mutex mutex_;
  std::map<uint64_t, std::unique_ptr<HeldBuffer>> by_iova_ GUARDED_BY(mutex_);
};

}  // namespace vhost_ioat::bindings
