/* SPDX-License-Identifier: Apache-2.0
 *
 * The elementary functions of the definition against the C library's in double, the bits that this numerics
 * version promises, and the generator against published answers. That the levels give the same bits is checked
 * in check_kernels.c. docs/numerics.md quotes what is printed. */
#ifndef CHECK_ELEMENTARY_H
#define CHECK_ELEMENTARY_H

#include "definition.h"
#include "harness.h"

/* ---- error against the exact value --------------------------------------------------------------------- */

typedef struct worst {
    double ulp, ulp_at, absolute, absolute_at;
} worst;

/* Distance of neighbouring floats at a value; of denormal ones below the smallest normal. */
static double ulp_at(double exact) {
    uint64_t bits;
    memcpy(&bits, &exact, sizeof bits);
    const int exponent = (int)(bits >> 52 & 0x7FF) - 1023, low = exponent < -126 ? -126 : exponent;
    bits = (uint64_t)(low - 23 + 1023) << 52;
    double ulp;
    memcpy(&ulp, &bits, sizeof ulp);
    return ulp;
}

static void note_ulp(worst *w, float found, double exact, double at) {
    const double ulp = fabs((double)found - exact) / ulp_at(exact);
    if (!(ulp <= w->ulp)) w->ulp = ulp, w->ulp_at = at;
}

static void note_absolute(worst *w, float found, double exact, double at) {
    const double absolute = fabs((double)found - exact);
    if (!(absolute <= w->absolute)) w->absolute = absolute, w->absolute_at = at;
}

/* Limits are what --exhaustive measured, rounded up. */
static void expect_worst(const char *what, const worst *w, double most_ulp, double most_absolute) {
    now("%s", what);
    printf("  %-32s %8.4f ulp at %-16.9g %11.3e absolute at %.9g\n", what, w->ulp, w->ulp_at, w->absolute,
           w->absolute_at);
    check(w->ulp <= most_ulp, "%.4f ulp, at most %.4f expected", w->ulp, most_ulp);
    check(w->absolute <= most_absolute, "error %.3e, at most %.3e expected", w->absolute, most_absolute);
}

/* ---- the functions ------------------------------------------------------------------------------------- */

/* Every stride-th float from 0 to 90, of both signs: near zero as dense as floats are. */
static void check_exponentials(uint32_t stride) {
    worst e = {0}, s = {0}, t = {0};
    const uint32_t limit = vi_bits(90.0f);
    for (uint64_t at = 0; at <= limit; at += stride) {
        for (uint32_t sign = 0; sign < 2; sign++) {
            const float x = float_of((uint32_t)at | sign << 31);
            const double exact = exp((double)x), sigmoid_exact = 1 / (1 + exp(-(double)x)),
                         tanh_exact = tanh((double)x);
            if (x >= -87.0f && x <= 88.0f) note_ulp(&e, exponential(x), exact, x);
            if (x <= 0) note_absolute(&e, exponential(x), exact, x);
            if (x >= -87.0f) note_ulp(&s, sigmoid(x), sigmoid_exact, x);
            note_absolute(&s, sigmoid(x), sigmoid_exact, x);
            note_ulp(&t, hyperbolic_tangent(x), tanh_exact, x);
            note_absolute(&t, hyperbolic_tangent(x), tanh_exact, x);
        }
    }
    expect_worst("exp      (-87..88; abs. x <= 0)", &e, 1.04, 5.2e-8);
    expect_worst("sigmoid  (-87..90; abs. all)", &s, 2.5, 9e-8);
    expect_worst("tanh     (-90..90)", &t, 2.5, 1.5e-7);
}

/* Every stride-th positive normal float. */
static void check_logarithm(uint32_t stride) {
    worst w = {0};
    for (uint64_t at = 0x00800000; at < 0x7F800000; at += stride) {
        const float x = float_of((uint32_t)at), found = natural_log(x);
        const double exact = log((double)x);
        note_ulp(&w, found, exact, x);
        note_absolute(&w, found, exact, x);
    }
    expect_worst("log      (all normal)", &w, 0.93, 3.9e-6);
}

/* -log(-log1p(-v)), v = (n + 1/2) / 2^32, for every stride-th n. Near its zero an error counts many ulp, which
 * matters to nobody who adds it to a logit. */
static void check_gumbel(uint32_t stride) {
    worst w = {0};
    for (uint64_t n = 0; n <= UINT32_MAX; n += stride) {
        const double v = ((double)n + 0.5) * 0x1p-32, exact = -log(-log1p(-v));
        const float found = gumbel((uint32_t)n);
        if (fabs(exact) > 1) note_ulp(&w, found, exact, (double)n);
        note_absolute(&w, found, exact, (double)n);
    }
    expect_worst("gumbel   (ulp where |g| > 1)", &w, 2.8, 1e-6);
}

static void check_special_values(void) {
    now("special values");
    check(exponential(0.0f) == 1.0f, "exp(0) is %.9g", exponential(0.0f));
    check(sigmoid(0.0f) == 0.5f, "sigmoid(0) is %.9g", sigmoid(0.0f));
    check(hyperbolic_tangent(0.0f) == 0.0f, "tanh(0) is %.9g", hyperbolic_tangent(0.0f));
    check(natural_log(1.0f) == 0.0f, "log(1) is %.9g", natural_log(1.0f));
    const float far[] = {91.0f, 1e4f, 0x1p40f, 0x1p100f, INFINITY};
    for (size_t i = 0; i < sizeof far / sizeof *far; i++) {
        check(sigmoid(far[i]) == 1.0f && sigmoid(-far[i]) >= 0 && sigmoid(-far[i]) < 1e-37f, "sigmoid(%g)", far[i]);
        check(hyperbolic_tangent(far[i]) == 1.0f && hyperbolic_tangent(-far[i]) == -1.0f, "tanh(%g)", far[i]);
        check(exponential(-far[i]) < 1.7e-38f, "exp(-%g)", far[i]);
    }
    /* |tanh| <= 1 and 0 <= sigmoid <= 1 keep |c| below the number of steps, so that nothing can overflow. */
    for (uint32_t at = 0; at < 0x7F800000; at += 65521) {
        const float x = float_of(at);
        check(fabsf(hyperbolic_tangent(x)) <= 1 && sigmoid(x) <= 1 && sigmoid(-x) >= 0, "range at %g", x);
    }
}

/* One number for all bits of all functions (FNV-1a over a stride of arguments). If it changes, every text that a
 * seed gives changes: that is another FL_NUMERICS_VERSION. */
static uint64_t fingerprint(void) {
    uint64_t hash = 0xCBF29CE484222325;
    for (uint64_t at = 0; at <= UINT32_MAX; at += 16381) {
        const uint32_t bits = (uint32_t)at, size = bits & 0x7FFFFFFF;
        const float x = float_of(size < 0x7F800000 ? bits : 0),
                    positive = float_of(size < 0x00800000 ? 0x00800000 : size);
        const float results[] = {exponential(x), sigmoid(x), hyperbolic_tangent(x),
                                 natural_log(size < 0x7F800000 ? positive : 1), gumbel(bits)};
        for (size_t i = 0; i < 5; i++) hash = (hash ^ vi_bits(results[i])) * 0x100000001B3;
    }
    return hash;
}

static void check_fingerprint(void) {
    static const uint64_t promised[] = {[1] = 0x3864B6BD265331AF}; /* by numerics version */
    const uint64_t found = fingerprint();
    now("bits of numerics version %d", FL_NUMERICS_VERSION);
    check(FL_NUMERICS_VERSION < sizeof promised / sizeof *promised && found == promised[FL_NUMERICS_VERSION],
          "they are 0x%016llX", (unsigned long long)found);
}

/* ---- the generator ------------------------------------------------------------------------------------- */

/* Known answers of Random123 (Salmon et al. 2011, kat_vectors: philox4x32, 10 rounds). */
static void check_philox(void) {
    static const struct {
        uint32_t counter[4], key[2], expected[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX},
         {UINT32_MAX, UINT32_MAX},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const uint32_t *c = known[i].counter;
        const fl_noise noise = {{known[i].key[0], known[i].key[1]}, {c[1], c[2], c[3]}};
        vi word[4];
        now("philox known answer %zu", i);
        philox(c[0], &noise, word);
        check(memcmp(word, known[i].expected, sizeof word) == 0, "found %08x %08x %08x %08x", word[0], word[1], word[2],
              word[3]);
    }
}

static void check_elementary(uint32_t stride) {
    printf("largest errors of the elementary functions, every %u%s float:\n", stride, stride == 1 ? "st" : "th");
    check_exponentials(stride);
    check_logarithm(stride);
    check_gumbel(stride);
    check_special_values();
    check_fingerprint();
    check_philox();
}

#endif
