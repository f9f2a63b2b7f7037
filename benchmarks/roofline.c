// SPDX-License-Identifier: Apache-2.0
// Roofline probe: how fast this machine reads memory that it has read before, by footprint and number of threads.
//
// Decoding one sequence reads every weight once per token, so a token takes at least bytes / bandwidth. The loop below
// does nothing but read. Build it for the machine at hand: cc -O3 -march=native -pthread roofline.c -o roofline
//
//   roofline                   a table: GB/s by footprint, for one thread and for all that the process may use
//   roofline BYTES THREADS     one figure: GB/s

#ifdef __linux__
#define _GNU_SOURCE // sched_getaffinity
#endif
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// The widest vector of the instruction set that we are compiled for: left to itself GCC stays at 32 bytes on AVX-512,
// which the L2 cache outruns. Integers, because no bit pattern slows their sum.
#if defined __AVX512F__
enum { VECTOR_BYTES = 64 };
#elif defined __AVX2__
enum { VECTOR_BYTES = 32 };
#else
enum { VECTOR_BYTES = 16 };
#endif
typedef uint32_t vector __attribute__((vector_size(VECTOR_BYTES)));

enum {
    SUMS = 8,                 // side by side, so that the adder's latency hides behind the reads; they fit 16 registers
    TRIALS = 40,              // the best one counts: the question is what is possible, and other programs only slow it
    BYTES_A_TRIAL = 64000000, // at least: about half a millisecond, so that neither clock nor barrier shows
    MAX_THREADS = 256,
};

typedef struct {
    const vector *slice; // this thread's part of the buffer, [vectors]
    size_t vectors;      // a multiple of SUMS
    int passes, threads;
    double best; // seconds of the fastest trial
    vector sum;  // kept, so that the reads are not optimised away
} worker;

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Wait for all threads; returns when the last of them arrived. That moment, unlike the one at which a thread leaves,
// does not depend on when the system lets it run again: between two of them lies all the work and nothing else.
static double barrier(int threads) {
    static atomic_int arrived, generation;
    static double last_arrival;
    int current = atomic_load(&generation);
    if (atomic_fetch_add(&arrived, 1) == threads - 1) {
        last_arrival = seconds();
        atomic_store(&arrived, 0);
        atomic_fetch_add(&generation, 1);
    }
    while (atomic_load(&generation) == current) sched_yield();
    return last_arrival;
}

static void read_once(worker *w) {
    vector sums[SUMS] = {0};
    for (size_t i = 0; i < w->vectors; i += SUMS)
        for (int k = 0; k < SUMS; k++) sums[k] += w->slice[i + k];
    for (int k = 0; k < SUMS; k++) w->sum += sums[k];
}

static void *work(void *argument) {
    worker *w = argument;
    read_once(w);
    double start = barrier(w->threads);
    for (int trial = 0; trial < TRIALS; trial++) {
        for (int pass = 0; pass < w->passes; pass++) read_once(w);
        double end = barrier(w->threads);
        if (trial == 0 || end - start < w->best) w->best = end - start;
        start = end;
    }
    return NULL;
}

// Bytes per second of `threads` threads that each read their own slice of `bytes` bytes again and again.
static double bandwidth(size_t bytes, int threads) {
    size_t vectors = bytes / VECTOR_BYTES / threads / SUMS * SUMS, total = vectors * threads * VECTOR_BYTES;
    vector *buffer = aligned_alloc(4096, (total + 4095) / 4096 * 4096);
    static worker workers[MAX_THREADS];
    pthread_t handles[MAX_THREADS];
    if (vectors == 0 || buffer == NULL) {
        fprintf(stderr, "roofline: cannot measure %zu bytes with %d threads\n", bytes, threads);
        exit(1);
    }
    memset(buffer, 1, total);
    for (int i = 0; i < threads; i++) {
        workers[i] = (worker){
            .slice = buffer + vectors * i,
            .vectors = vectors,
            .passes = (int)(BYTES_A_TRIAL / total) + 1,
            .threads = threads,
        };
        pthread_create(&handles[i], NULL, work, &workers[i]);
    }
    for (int i = 0; i < threads; i++) pthread_join(handles[i], NULL);
    free(buffer);
    return (double)total * workers[0].passes / workers[0].best;
}

static int usable_cores(void) {
    int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
#endif
    return cores < MAX_THREADS ? cores : MAX_THREADS;
}

int main(int argc, char **argv) {
    if (argc == 3) {
        int threads = atoi(argv[2]);
        if (threads < 1 || threads > MAX_THREADS) return 2;
        printf("%.1f\n", bandwidth(strtoull(argv[1], NULL, 10), threads) / 1e9);
        return 0;
    }
    int all = usable_cores();
    printf("      MB   1 thread, GB/s   all %d, GB/s\n", all);
    for (size_t bytes = 500000; bytes <= 512000000; bytes *= 2)
        printf("%8.1f %16.1f %14.1f\n", bytes / 1e6, bandwidth(bytes, 1) / 1e9, bandwidth(bytes, all) / 1e9);
    return 0;
}
