// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// Who may touch what, and holding what, in words that clang checks at compile time (-Wthread-safety, an error in
// `make thread-safety` and `make fuzz`; other compilers see nothing). The words are those of clang's documentation,
// "Thread Safety Analysis": a capability is a mutex, or a role such as "being the control thread".
#if defined(__clang__)
#define VHOST_IOAT_ANNOTATION(x) __attribute__((x))
#else
#define VHOST_IOAT_ANNOTATION(x)
#endif

#define CAPABILITY(name) VHOST_IOAT_ANNOTATION(capability(name))
#define SCOPED_CAPABILITY VHOST_IOAT_ANNOTATION(scoped_lockable)
#define GUARDED_BY(capability) VHOST_IOAT_ANNOTATION(guarded_by(capability))
#define PT_GUARDED_BY(capability) VHOST_IOAT_ANNOTATION(pt_guarded_by(capability))
#define REQUIRES(...) VHOST_IOAT_ANNOTATION(requires_capability(__VA_ARGS__))
#define EXCLUDES(...) VHOST_IOAT_ANNOTATION(locks_excluded(__VA_ARGS__))
#define ACQUIRE(...) VHOST_IOAT_ANNOTATION(acquire_capability(__VA_ARGS__))
#define TRY_ACQUIRE(...) VHOST_IOAT_ANNOTATION(try_acquire_capability(__VA_ARGS__))
#define RELEASE(...) VHOST_IOAT_ANNOTATION(release_capability(__VA_ARGS__))
#define RETURN_CAPABILITY(x) VHOST_IOAT_ANNOTATION(lock_returned(x))
#define ASSERT_CAPABILITY(x) VHOST_IOAT_ANNOTATION(assert_capability(x))
#define NO_THREAD_SAFETY_ANALYSIS VHOST_IOAT_ANNOTATION(no_thread_safety_analysis)
