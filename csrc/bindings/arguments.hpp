// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

// Numbers and paths as Python gives them. pybind11 by itself answers a number out of range with the C++ signature of
// the function; these say the value and the range.
namespace vhost_ioat::bindings {

namespace py = pybind11;

/// A whole number that fits T. Out of range: ConfigError; no whole number, or a bool: TypeError.
template <typename T>
struct Whole {
  T value{};
  Whole() = default;
  Whole(T number) : value(number) {}    // NOLINT(google-explicit-constructor): it stands for one
  operator T() const { return value; }  // NOLINT(google-explicit-constructor)
};

/// What a bound function takes for an argument of type T.
template <typename T>
using FromPython = std::conditional_t<std::is_integral_v<T> && !std::is_same_v<T, bool>, Whole<T>, T>;

/// A whole number of any size, the nearest long long to it: for numbers whose range the callee checks, such as a queue.
struct Clamped {
  long long value = 0;
  operator long long() const { return value; }  // NOLINT(google-explicit-constructor)
};

/// Seconds to wait. None, infinity and all that is longer than ten years: no limit. Below zero: 0. nan: ConfigError.
struct Seconds {
  static constexpr double longest = 3e8;
  bool forever = true;
  double value = 0;
  double or_longest() const { return forever ? longest : value; }
};

/// str, bytes or os.PathLike, as open() takes them.
struct Path {
  std::string text;
};

/// The nearest long long to a whole number; throws py::error_already_set (TypeError).
long long clamped(PyObject* number);
/// A whole number within [low, high]; `high` is at least 0.
uint64_t whole_within(py::handle number, long long low, uint64_t high);
Seconds seconds_of(py::handle timeout);
std::string path_of(py::handle path);

}  // namespace vhost_ioat::bindings

namespace pybind11::detail {

template <typename T>
struct type_caster<vhost_ioat::bindings::Whole<T>> {
  PYBIND11_TYPE_CASTER(vhost_ioat::bindings::Whole<T>, const_name("int"));
  bool load(handle number, bool) {
    using Limits = std::numeric_limits<T>;
    value.value = static_cast<T>(vhost_ioat::bindings::whole_within(number, static_cast<long long>(Limits::min()),
                                                                    static_cast<uint64_t>(Limits::max())));
    return true;
  }
  static handle cast(vhost_ioat::bindings::Whole<T> number, return_value_policy policy, handle parent) {
    return make_caster<T>::cast(number.value, policy, parent);
  }
};

template <>
struct type_caster<vhost_ioat::bindings::Clamped> {
  PYBIND11_TYPE_CASTER(vhost_ioat::bindings::Clamped, const_name("int"));
  bool load(handle number, bool) {
    value.value = vhost_ioat::bindings::clamped(number.ptr());
    return true;
  }
};

template <>
struct type_caster<vhost_ioat::bindings::Seconds> {
  PYBIND11_TYPE_CASTER(vhost_ioat::bindings::Seconds, const_name("float | None"));
  bool load(handle timeout, bool) {
    value = vhost_ioat::bindings::seconds_of(timeout);
    return true;
  }
};

template <>
struct type_caster<vhost_ioat::bindings::Path> {
  PYBIND11_TYPE_CASTER(vhost_ioat::bindings::Path, const_name("os.PathLike"));
  bool load(handle path, bool) {
    value.text = vhost_ioat::bindings::path_of(path);
    return true;
  }
};

}  // namespace pybind11::detail
