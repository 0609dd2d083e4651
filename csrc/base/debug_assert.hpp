// SPDX-License-Identifier: BSD-3-Clause
#pragma once

/// A precondition or an invariant of ours, never something that a peer decides: DEBUG_ASSERT(index, <, size) ends the
/// process with both values when it does not hold. On in tests, fuzzers and sanitizers; not even compiled into what is
/// shipped (NDEBUG).
#ifdef NDEBUG
#define DEBUG_ASSERT(value, relation, limit) static_cast<void>(0)
#else
#include <cstdio>
#include <cstdlib>

namespace vhost_ioat {
template <typename Value, typename Limit>
[[noreturn, gnu::cold, gnu::noinline]] void debug_assert_failed(const char* file, int line, const char* claim,
                                                                const Value& value, const Limit& limit) {
  std::fprintf(stderr, "%s:%d: not true: %s, with %lld and %lld\n", file, line, claim, static_cast<long long>(value),
               static_cast<long long>(limit));
  std::abort();
}
}  // namespace vhost_ioat

#define DEBUG_ASSERT(value, relation, limit)                                                              \
  do {                                                                                                    \
    const auto debug_value = (value);                                                                     \
    const auto debug_limit = (limit);                                                                     \
    if (!(debug_value relation debug_limit))                                                              \
      ::vhost_ioat::debug_assert_failed(__FILE__, __LINE__, #value " " #relation " " #limit, debug_value, \
                                        debug_limit);                                                     \
  } while (false)
#endif
