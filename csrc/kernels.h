/* SPDX-License-Identifier: Apache-2.0
 *
 * The hot code: one table of functions for each instruction set, all with the same bits (docs/numerics.md). */
#ifndef FL_KERNELS_H
#define FL_KERNELS_H

#include "internal.h"

#include <math.h>

/* Where the noise of one drawn token comes from; the token's id completes the counter. */
typedef struct fl_noise {
    uint32_t key[2];     /* the seed */
    uint32_t counter[3]; /* position (low word), sample index, purpose and position (high bits) */
} fl_noise;

enum { FL_PURPOSE_TOKEN = 0 };

/* exp() of the likeliest token in the whole numbers that the sums over the vocabulary are made of. */
#define FL_MASS_ONE 1073741824.0f /* 2^30 */

struct fl_kernels {
    const char *name;

    /* out[16 p + lane] = start[...] + sum over k of weights * input[k], k rising, one fma each, for all panels. */
    void (*product)(const fl_matrix *matrix, const float *start, const float *input, float *out);

    /* One LSTM step. start: [groups][4][16] gate inputs so far; x (or NULL: start holds its product already):
     * x.inputs floats; h: old hidden values, units floats; h_new, c: [16 * groups], h_new distinct from h. */
    void (*cell)(const fl_lstm *layer, const float *start, const float *x, const float *h, float *h_new, float *c);

    /* The token with the largest logit + temperature * g, g standard Gumbel noise (none if temperature is 0);
     * among equals the lowest id. ids (or NULL: 0, 1, …) has n entries. logits and ids must have room up to
     * the next multiple of FL_BLOCK (ids NULL) or FL_PANEL; what lies there must be -inf and INT32_MAX. */
    int32_t (*choose)(const float *logits, const int32_t *ids, size_t n, float temperature, const fl_noise *noise);

    /* Sum of round(2^30 exp((logit - largest) * scale)) over n logits, padded with -inf to a multiple of
     * FL_PANEL; each term to mass (same room) unless NULL. */
    uint64_t (*mass)(const float *logits, size_t n, float largest, float scale, uint32_t *mass);

    /* Natural logarithm of a positive normal number, for the normaliser. */
    float (*logarithm)(float x);
};

/* Levels, slowest first; cpu.c chooses. */
extern const fl_kernels fl_kernels_scalar;
extern const fl_kernels fl_kernels_avx2;
extern const fl_kernels fl_kernels_avx512;

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define FL_X86 1
#endif

#if defined(__GNUC__)
#define FL_INLINE static inline __attribute__((always_inline))
#else
#define FL_INLINE static inline
#endif
#if defined(__clang__)
#define FL_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define FL_UNROLL _Pragma("GCC unroll 32")
#else
#define FL_UNROLL
#endif

/* Functions between BEGIN and END are compiled for the named instruction set, whatever the flags say. */
#define FL_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define FL_TARGET_BEGIN(isa) FL_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define FL_TARGET_END _Pragma("clang attribute pop")
#else
#define FL_TARGET_BEGIN(isa) _Pragma("GCC push_options") FL_PRAGMA(GCC target(isa))
#define FL_TARGET_END _Pragma("GCC pop_options")
#endif

fl_status fl_cpu_choose(const char *isa, const fl_kernels **kernels, fl_error *error);

#endif
