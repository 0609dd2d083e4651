// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <sys/epoll.h>
#include <unistd.h>

#include <vector>

#include "base/unique_fd.hpp"
#include "doctest/doctest.h"

/// Very many who wait for one file: each epoll set of many watches it under each of many numbers. One wake-up has to go
/// to all of them.
class Crowd {
 public:
  static constexpr int sets = 300, numbers = 400;

  explicit Crowd(int fd) {
    for (int i = 0; i < numbers; ++i) numbers_.emplace_back(::dup(fd));
    for (int i = 0; i < sets; ++i) {
      sets_.emplace_back(::epoll_create1(EPOLL_CLOEXEC));
      for (const vhost_ioat::UniqueFd& number : numbers_) {
        epoll_event event{};
        event.events = EPOLLIN | EPOLLOUT | EPOLLET;
        REQUIRE(::epoll_ctl(sets_.back().get(), EPOLL_CTL_ADD, number.get(), &event) == 0);
      }
    }
  }

 private:
  std::vector<vhost_ioat::UniqueFd> numbers_, sets_;
};
