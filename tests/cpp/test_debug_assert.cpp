// SPDX-License-Identifier: BSD-3-Clause
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>

#include "base/debug_assert.hpp"
#include "doctest/doctest.h"

namespace {

/// What a child says on its error output, and how it ends.
template <typename Act>
std::pair<std::string, int> in_child(Act act) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::dup2(ends[1], STDERR_FILENO);
    ::signal(SIGABRT, SIG_DFL);  // not doctest's handler
    act();
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string said(512, 0);
  size_t n = 0;
  for (ssize_t more; (more = ::read(ends[0], said.data() + n, said.size() - n)) > 0;) n += static_cast<size_t>(more);
  said.resize(n);
  ::close(ends[0]);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return {said, status};
}

}  // namespace

TEST_CASE("an assertion that does not hold ends the process and says both values") {
  const auto [said, status] = in_child([] {
    uint32_t index = 17;
    DEBUG_ASSERT(index, <, 16u);
  });
  CHECK(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGABRT);
  CHECK(said.find("test_debug_assert.cpp:") != std::string::npos);
  CHECK(said.find("index < 16u, with 17 and 16") != std::string::npos);
}

TEST_CASE("an assertion that holds does nothing, and looks at each value once") {
  int looked = 0;
  DEBUG_ASSERT(++looked, <=, 1);
  CHECK(looked == 1);
}
