// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace vhost_ioat {

/// Base of what this library throws. A message says what, which value, which limit, what to do.
/// Errors of the operating system are std::system_error and reach Python as OSError.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};
/// A bad argument or devarg.
class ConfigError : public Error {
 public:
  using Error::Error;
};
/// A driver broke a ring. Thrown only by the classes of `vhost_ioat.virtio`; a port counts and reports instead.
class GuestError : public Error {
 public:
  using Error::Error;
};
/// A DMA engine failed or refused. Thrown only by the classes of `vhost_ioat.dma`.
class DmaError : public Error {
 public:
  using Error::Error;
};
/// The peer broke the vhost-user protocol. Thrown only by the embedded guest.
class ProtocolError : public Error {
 public:
  using Error::Error;
};
/// The peer went away. Thrown only by the embedded guest.
class Disconnected : public Error {
 public:
  using Error::Error;
};

/// printf into a std::string, for messages (std::format is absent from GCC 12).
[[gnu::format(printf, 1, 2)]] inline std::string format(const char* fmt, ...) {
  va_list args, again;
  va_start(args, fmt);
  va_copy(again, args);
  std::string out(static_cast<size_t>(std::vsnprintf(nullptr, 0, fmt, args)), '\0');
  std::vsnprintf(out.data(), out.size() + 1, fmt, again);
  va_end(again);
  va_end(args);
  return out;
}

}  // namespace vhost_ioat
