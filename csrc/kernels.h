/* SPDX-License-Identifier: Apache-2.0
 *
 * The hot code: one table of functions for each instruction set, all with the same bits (docs/numerics.md). */
#ifndef FL_KERNELS_H
#define FL_KERNELS_H

#include "internal.h"

enum { FL_PURPOSE_TOKEN, FL_PURPOSE_XTC }; /* what a random number is for */

/* exp() of the likeliest token in the whole numbers that the sums over the vocabulary are made of. */
#define FL_MASS_ONE 1073741824.0f /* 2^30 */

/* Ranges of panels and groups let threads share the work: no result depends on how it is cut. */
struct fl_kernels {
    const char *name;

    /* sums[row] = sum of an int8 matrix's weights, [panels][FL_PANEL]: what products want to know beforehand. */
    void (*sum_rows)(const fl_matrix *matrix, int32_t *sums);

    /* For the panels begin … end-1 and the first n columns: out[column][16 panel + lane] = start[column][...] plus
     * the product of weights and column. out may be start. */
    void (*product)(const fl_matrix *matrix, size_t begin, size_t end, const fl_columns *input, size_t n,
                    const float *const *start, float *const *out);

    /* The LSTM cells' update of n columns for the groups begin … end-1, begin even. gates[column]: [groups][4][16], all
     * inputs added up. The new hidden values go to h[column], and to h_new for the products that come; c[column] is
     * updated. */
    void (*update)(size_t begin, size_t end, size_t n, const float *const *gates, const fl_columns *h_new,
                   float *const *h, float *const *c);

    /* tanh of the panels begin … end-1, begin even, of n columns: to h[column], and to h_new for the products that come. */
    void (*activate)(size_t begin, size_t end, size_t n, const float *const *in, const fl_columns *h_new,
                     float *const *h);

    /* For the panels of f32 rows (keys), 16 a panel: out[16 panel + lane] = the sum, k rising, of score[k] *
     * tanh(row[k] + query[k]). */
    void (*compare)(const fl_matrix *keys, const float *query, const float *score, float *out);

    /* A table of 16 for each four of the values: under the bits b the sum of the four, each with a minus where its bit
     * is 0, times `steps`, rounded, plus FL_TABLE_ZERO. */
    void (*make_tables)(const float *values, size_t groups, float steps, uint8_t *tables);

    /* Bounds of the logits of the blocks begin … end-1 (docs/screening.md). lower holds the shift plus the product
     * along the directions. */
    void (*bound)(const fl_screen *screen, const fl_view *view, size_t begin, size_t end, float *lower, float *upper);

    /* As `choose` for the tokens begin … end-1, whole blocks, with lower bounds of their logits; keys become upper bounds
     * of theirs. */
    void (*contend)(fl_winner *winner, const float *lower, const float *upper, size_t begin, size_t end,
                    float temperature, const fl_noise *noise, float *keys);

    /* Lets the tokens begin … end-1 challenge the winner with the key logit + temperature * g, g standard Gumbel
     * noise (none if temperature is 0). ids: NULL for the tokens themselves, else logits[i] is token ids[i]'s. begin is
     * a multiple of FL_BLOCK; logits and ids must have room up to the next multiple of FL_BLOCK (ids NULL) or
     * FL_PANEL; what lies there must be -inf and INT32_MAX. */
    void (*choose)(fl_winner *winner, const float *logits, const int32_t *ids, size_t begin, size_t end,
                   float temperature, const fl_noise *noise);

    /* Lists the tokens whose logit is at least `floor` and below `ceiling`, by rising id, with their logits; returns how
     * many. logits are padded to a multiple of FL_PANEL; ids and kept have room for FL_PANEL more than are listed. */
    size_t (*collect)(const float *logits, size_t n, float floor, float ceiling, int32_t *ids, float *kept);

    /* What the tokens whose logit is at least `floor`, which is finite, weigh together: each its mass, or 1 if mass is
     * NULL. Both are padded to a multiple of FL_PANEL, logits with -inf. */
    fl_weight (*weigh)(const float *logits, const uint32_t *mass, size_t n, float floor);

    /* Sum of round(2^30 exp((logit - largest) * scale)) over n logits, padded with -inf to a multiple of
     * FL_PANEL; each term to mass (same room) unless NULL. */
    uint64_t (*mass)(const float *logits, size_t n, float largest, float scale, uint32_t *mass);

    /* Natural logarithm of a positive normal number, for the normaliser. */
    float (*logarithm)(float x);

    /* 32 random bits that belong to no token. */
    uint32_t (*word)(const fl_noise *noise);
};

/* Logarithm of the sum of e^(value - largest) over n values, padded with -inf to a multiple of FL_PANEL: what a
 * log-probability is less than its value, above the largest. */
static inline float fl_log_sum(const fl_kernels *kernels, const float *values, size_t n, float largest) {
    return kernels->logarithm((float)kernels->mass(values, n, largest, 1.0f, NULL) / FL_MASS_ONE);
}

/* e^x for x up to 0, in steps of 2^-30, as all weights are (docs/numerics.md). */
static inline float fl_exp_step(const fl_kernels *kernels, float x) {
    float row[FL_PANEL] = {x};
    for (int i = 1; i < FL_PANEL; i++) row[i] = -INFINITY;
    return (float)kernels->mass(row, 1, 0, 1, NULL) / FL_MASS_ONE;
}

/* Levels, slowest first; cpu.c chooses. */
extern const fl_kernels fl_kernels_scalar;
extern const fl_kernels fl_kernels_avx2;
extern const fl_kernels fl_kernels_avxvnni;
extern const fl_kernels fl_kernels_avx512;
extern const fl_kernels fl_kernels_avx512vnni;
extern const fl_kernels fl_kernels_neon;

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define FL_X86 1
#endif

/* Each compiler has its own name for the dot product, which older ones do not have. */
#if defined(__aarch64__) && defined(__clang__)
#define FL_NEON 1
#define FL_NEON_TARGET "dotprod"
#elif defined(__aarch64__) && defined(__GNUC__) && __GNUC__ >= 8
#define FL_NEON 1
#define FL_NEON_TARGET "arch=armv8.2-a+dotprod"
#endif

#if defined(__GNUC__)
#define FL_INLINE static inline __attribute__((always_inline))
#else
#define FL_INLINE static inline
#endif
#if defined(__GNUC__)
#define FL_NOINLINE __attribute__((noinline))
#else
#define FL_NOINLINE
#endif
#if defined(__GNUC__)
#define FL_PREFETCH(address) __builtin_prefetch(address)
#else
#define FL_PREFETCH(address) (void)(address)
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
/* How many threads share a step that reads so many bytes of weights. asked: 0 for what is useful here. */
fl_status fl_cpu_threads(uint32_t asked, size_t bytes, uint32_t *threads, fl_error *error);

#endif
