/* SPDX-License-Identifier: Apache-2.0
 *
 * What every C check needs: counting, a seeded generator, buffers that lie against pages that fault, and a
 * look at what the core takes from the system. Included once, by the file with main(). */
#ifndef HARNESS_H
#define HARNESS_H

#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* MAP_ANONYMOUS, feenableexcept */
#endif
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#if __has_feature(thread_sanitizer) && !defined(__SANITIZE_THREAD__)
#define __SANITIZE_THREAD__ 1
#endif
#endif

#if defined(__GNUC__)
#define FORMAT(string, first) __attribute__((format(printf, string, first)))
#else
#define FORMAT(string, first)
#endif

/* ---- counting ----------------------------------------------------------------------------------------- */

enum { SHOWN_FAILURES = 20 };

static uint64_t share = 1; /* one case in so many is checked, other ones with every seed */

static inline size_t rounds(size_t all) { return all / share ? all / share : 1; }

static size_t passed, failed;
static char doing[256]; /* what is being checked, for the message of a fault */

static void vcount(bool good, const char *format, va_list arguments) {
    if (good) {
        passed++;
        return;
    }
    if (++failed > SHOWN_FAILURES) return;
    printf("FAILED: %s: ", doing);
    vprintf(format, arguments);
    printf("\n");
}

FORMAT(2, 3) static void check(bool good, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vcount(good, format, arguments);
    va_end(arguments);
}

FORMAT(1, 2) static void now(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(doing, sizeof doing, format, arguments);
    va_end(arguments);
}

/* Seed and counts, last: drivers read that line. */
static inline int report(uint64_t seed) {
    printf("seed %llu\n%zu passed, %zu failed\n", (unsigned long long)seed, passed, failed);
    return failed != 0;
}

/* A fault is a failed check that ends the run; printf is not safe here in general, but the fault was not in it. */
static void on_fault(int number) {
    printf("FAILED: %s: signal %d\n%zu passed, %zu failed\n", doing, number, passed, failed + 1);
    fflush(stdout);
    _exit(1);
}

/* AddressSanitizer says more about a fault than we can, so it keeps its own handlers. */
static inline void catch_faults(void) {
#if !defined(__SANITIZE_ADDRESS__)
    signal(SIGSEGV, on_fault);
    signal(SIGBUS, on_fault);
    signal(SIGFPE, on_fault);
    signal(SIGILL, on_fault);
#else
    (void)on_fault;
#endif
}

/* ---- random numbers ----------------------------------------------------------------------------------- */

/* SplitMix64 (Steele, Lea, Flood 2014): any seed is good, any number of streams. */
static uint64_t next_random(uint64_t *random) {
    uint64_t z = *random += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

static uint64_t below(uint64_t *random, uint64_t n) { return next_random(random) % n; }

/* Uniform in [-1, 1), 24 bits. */
static float uniform(uint64_t *random) { return (float)(next_random(random) >> 40) * 0x1p-23f - 1.0f; }

static inline uint64_t clock_seed(void) { return (uint64_t)time(NULL) << 16 ^ (uint64_t)getpid(); }

/* ---- what the core takes from the system --------------------------------------------------------------- */

/* Calls and bytes of malloc, calloc, realloc and mmap by any thread since watch_begin. The program's own definitions
 * take the place of the C library's, so no linker flag is needed; under AddressSanitizer its hooks are used. */
static struct {
    _Atomic(bool) on;
    _Atomic(size_t) calls, bytes;
    _Atomic(int64_t) mapped; /* bytes mapped less bytes unmapped, since the start of the program */
    _Atomic(size_t) refuse;  /* the n-th request from now on gets no memory; 0: all get theirs */
} watch;

static void watch_begin(void) {
    watch.on = true;
    watch.calls = watch.bytes = 0;
}

static size_t watch_end(void) {
    watch.on = false;
    return watch.calls;
}

static inline void watch_count(size_t bytes) {
    if (!watch.on) return;
    watch.calls++;
    watch.bytes += bytes;
}

/* Whether this request is the one that gets nothing. */
static inline bool watch_refuses(void) { return watch.refuse && --watch.refuse == 0; }

#if defined(__SANITIZE_ADDRESS__)
#define WATCH_MALLOC 1
void __sanitizer_malloc_hook(const volatile void *memory, size_t size);
void __sanitizer_free_hook(const volatile void *memory);
void __sanitizer_malloc_hook(const volatile void *memory, size_t size) {
    (void)memory;
    watch_count(size);
}
void __sanitizer_free_hook(const volatile void *memory) {
    (void)memory;
    watch_count(0);
}
void __asan_poison_memory_region(void const volatile *memory, size_t size);
void __asan_unpoison_memory_region(void const volatile *memory, size_t size);
#elif defined(__GLIBC__) && !defined(__SANITIZE_THREAD__)
#define WATCH_MALLOC 1
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
extern void __libc_free(void *memory);
void *malloc(size_t size) {
    watch_count(size);
    return watch_refuses() ? NULL : __libc_malloc(size);
}
void *calloc(size_t count, size_t size) {
    watch_count(count * size);
    return watch_refuses() ? NULL : __libc_calloc(count, size);
}
void *realloc(void *memory, size_t size) {
    watch_count(size);
    return watch_refuses() ? NULL : __libc_realloc(memory, size);
}
void free(void *memory) {
    watch_count(0);
    __libc_free(memory);
}
#endif

#if defined(__linux__) && defined(__LP64__) && !defined(__SANITIZE_THREAD__)
#include <sys/syscall.h>
#define WATCH_MMAP 1

#if defined(__SANITIZE_ADDRESS__)
/* A mapping is whole pages; the sanitizer is told that what lies behind the bytes asked for is not to be read. */
static size_t page_tail(size_t size) { return (size + 4095) / 4096 * 4096 - size; }
#endif

void *mmap(void *address, size_t size, int protection, int flags, int file, off_t offset) {
    watch_count(size);
    if (watch_refuses()) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    watch.mapped += (int64_t)size;
    uint8_t *memory = (uint8_t *)syscall(SYS_mmap, address, size, protection, flags, file, offset);
#if defined(__SANITIZE_ADDRESS__)
    if (memory != MAP_FAILED) {
        __asan_unpoison_memory_region(memory, size);
        __asan_poison_memory_region(memory + size, page_tail(size));
    }
#endif
    if (memory == MAP_FAILED) watch.mapped -= (int64_t)size;
    return memory;
}

int munmap(void *memory, size_t size) {
    watch_count(0);
    watch.mapped -= (int64_t)size;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(memory, size + page_tail(size));
#endif
    return (int)syscall(SYS_munmap, memory, size);
}
#endif

#endif
