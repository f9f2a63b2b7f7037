// SPDX-License-Identifier: Apache-2.0
// Peak probe: how many multiply-adds this machine makes in a second when nothing waits for memory.
//
// A batch reads a weight once and multiplies it by every sequence, so its step takes at least products / peak. The
// loops below do nothing but multiply and add in registers. Build it for the machine at hand:
//
//   cc -O3 -march=native -pthread peak.c -o peak
//   peak f32|bf16|int8 THREADS     one figure: 10^9 multiply-adds a second, the sum of all threads
//
// bf16 and int8 are the dot products of the instruction set; where it has none, the work must be done in f32 (bf16) or
// by the widening multiplication of AVX2 (int8).

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined __x86_64__
#include <immintrin.h>
#elif defined __ARM_NEON
#include <arm_neon.h>
#endif

enum {
    SUMS = 12,       // side by side, so that the latency of one hides behind the others; they fit 16 registers
    STEPS = 2000000, // in a trial: a few milliseconds
    TRIALS = 10,     // the best one counts: other programs only slow it
    MAX_THREADS = 256,
};

// Keeps a value in its register and hides from the compiler what is in it.
#if defined __x86_64__
#define HIDE(x) __asm__ volatile("" : "+v"(x));
#else
#define HIDE(x) __asm__ volatile("" : "+w"(x));
#endif

// The sums, each a variable of its own: GCC keeps an array of them in memory.
#define FOR_SUMS(X) X(s0) X(s1) X(s2) X(s3) X(s4) X(s5) X(s6) X(s7) X(s8) X(s9) X(s10) X(s11)

// A function that does STEPS × SUMS vector operations `ADD(sum)` and returns the multiply-adds in one of them.
#define KERNEL(name, width, sum_type, input_type, input)                                                               \
    static int name(void) {                                                                                            \
        input_type a = input;                                                                                          \
        sum_type s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0};                                           \
        sum_type s6 = {0}, s7 = {0}, s8 = {0}, s9 = {0}, s10 = {0}, s11 = {0};                                         \
        HIDE(a)                                                                                                        \
        FOR_SUMS(HIDE) /* equal sums would be one */                                                                   \
        for (int n = 0; n < STEPS; n++) {                                                                              \
            FOR_SUMS(ADD)                                                                                              \
        }                                                                                                              \
        FOR_SUMS(HIDE)                                                                                                 \
        return width;                                                                                                  \
    }

#if defined __AVX512F__
#define ADD(s) s = _mm512_fmadd_ps(a, a, s);
KERNEL(f32, 16, __m512, __m512, _mm512_set1_ps(0.5f))
#elif defined __FMA__
#define ADD(s) s = _mm256_fmadd_ps(a, a, s);
KERNEL(f32, 8, __m256, __m256, _mm256_set1_ps(0.5f))
#elif defined __ARM_NEON
#define ADD(s) s = vfmaq_f32(s, a, a);
KERNEL(f32, 4, float32x4_t, float32x4_t, vdupq_n_f32(0.5f))
#else
#error "no vector instructions known for this processor"
#endif

#undef ADD
#if defined __AVX512BF16__
#define ADD(s) s = _mm512_dpbf16_ps(s, (__m512bh)a, (__m512bh)a);
KERNEL(bf16, 32, __m512, __m512i, _mm512_set1_epi16(0x3f00))
#else
static int bf16(void) { return f32(); }
#endif

#undef ADD
#if defined __AVX512VNNI__
#define ADD(s) s = _mm512_dpbusd_epi32(s, a, a);
KERNEL(int8, 64, __m512i, __m512i, _mm512_set1_epi8(3))
#elif defined __AVXVNNI__
#define ADD(s) s = _mm256_dpbusd_avx_epi32(s, a, a);
KERNEL(int8, 32, __m256i, __m256i, _mm256_set1_epi8(3))
#elif defined __AVX2__ // widened: 16-bit products, summed in pairs, then in 32 bits
#define ADD(s) s = _mm256_add_epi32(s, _mm256_madd_epi16(s, a));
KERNEL(int8, 16, __m256i, __m256i, _mm256_set1_epi16(3))
#elif defined __ARM_FEATURE_DOTPROD
#define ADD(s) s = vdotq_s32(s, a, a);
KERNEL(int8, 16, int32x4_t, int8x16_t, vdupq_n_s8(3))
#else
static int int8(void) { return f32(); }
#endif

typedef struct {
    int (*kernel)(void);
    double rate; // multiply-adds a second, of the best trial
} worker;

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *work(void *argument) {
    worker *w = argument;
    for (int trial = 0; trial < TRIALS; trial++) {
        double start = seconds();
        int width = w->kernel();
        double rate = (double)STEPS * SUMS * width / (seconds() - start);
        if (rate > w->rate) w->rate = rate;
    }
    return NULL;
}

int main(int argc, char **argv) {
    int threads = argc == 3 ? atoi(argv[2]) : 0;
    if (threads < 1 || threads > MAX_THREADS) return 2;
    int (*kernel)(void) = strcmp(argv[1], "int8") == 0 ? int8 : strcmp(argv[1], "bf16") == 0 ? bf16 : f32;
    static worker workers[MAX_THREADS];
    pthread_t handles[MAX_THREADS];
    for (int i = 0; i < threads; i++) {
        workers[i].kernel = kernel;
        pthread_create(&handles[i], NULL, work, &workers[i]);
    }
    double rate = 0;
    for (int i = 0; i < threads; i++) {
        pthread_join(handles[i], NULL);
        rate += workers[i].rate;
    }
    printf("%.1f\n", rate / 1e9);
    return 0;
}
