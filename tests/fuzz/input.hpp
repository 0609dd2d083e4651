// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

/// A fuzzer's bytes, taken from the front; zero when they are used up.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : left_(data, size) {}
  bool empty() const { return left_.empty(); }
  template <typename T>
  T take() {
    T value{};
    const size_t n = std::min(sizeof value, left_.size());
    std::memcpy(&value, left_.data(), n);
    left_ = left_.subspan(n);
    return value;
  }
  std::span<const uint8_t> take_bytes(size_t n) {
    auto front = left_.first(std::min(n, left_.size()));
    left_ = left_.subspan(front.size());
    return front;
  }

 private:
  std::span<const uint8_t> left_;
};
