// Clang thread-safety attributes; nothing under other compilers.
// https://clang.llvm.org/docs/ThreadSafetyAnalysis.html
#pragma once

#if defined(__clang__)
#define CROSSBAR_ANNOTATION(x) __attribute__((x))
#else
#define CROSSBAR_ANNOTATION(x)
#endif

#define CAPABILITY(x) CROSSBAR_ANNOTATION(capability(x))
#define SCOPED_CAPABILITY CROSSBAR_ANNOTATION(scoped_lockable)
#define GUARDED_BY(x) CROSSBAR_ANNOTATION(guarded_by(x))
#define PT_GUARDED_BY(x) CROSSBAR_ANNOTATION(pt_guarded_by(x))
#define ACQUIRED_BEFORE(...) CROSSBAR_ANNOTATION(acquired_before(__VA_ARGS__))
#define ACQUIRED_AFTER(...) CROSSBAR_ANNOTATION(acquired_after(__VA_ARGS__))
#define REQUIRES(...) CROSSBAR_ANNOTATION(requires_capability(__VA_ARGS__))
#define REQUIRES_SHARED(...) CROSSBAR_ANNOTATION(requires_shared_capability(__VA_ARGS__))
#define ACQUIRE(...) CROSSBAR_ANNOTATION(acquire_capability(__VA_ARGS__))
#define ACQUIRE_SHARED(...) CROSSBAR_ANNOTATION(acquire_shared_capability(__VA_ARGS__))
#define RELEASE(...) CROSSBAR_ANNOTATION(release_capability(__VA_ARGS__))
#define RELEASE_SHARED(...) CROSSBAR_ANNOTATION(release_shared_capability(__VA_ARGS__))
#define RELEASE_GENERIC(...) CROSSBAR_ANNOTATION(release_generic_capability(__VA_ARGS__))
#define TRY_ACQUIRE(...) CROSSBAR_ANNOTATION(try_acquire_capability(__VA_ARGS__))
#define EXCLUDES(...) CROSSBAR_ANNOTATION(locks_excluded(__VA_ARGS__))
#define ASSERT_CAPABILITY(x) CROSSBAR_ANNOTATION(assert_capability(x))
#define RETURN_CAPABILITY(x) CROSSBAR_ANNOTATION(lock_returned(x))
#define NO_THREAD_SAFETY_ANALYSIS CROSSBAR_ANNOTATION(no_thread_safety_analysis)
