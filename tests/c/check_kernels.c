/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests and times every kernel on every level that this processor has, in the manner of dav1d's checkasm:
 *
 *     cc -O3 csrc/(all).c tests/c/check_kernels.c -Icsrc -lm -o check && ./check [--seed N] [--quick] [--bench]
 *
 * A level must give the scalar level's bits, and the scalar level those of the definition written out below,
 * in buffers that end or begin at a page that faults. --exhaustive takes every float. */
#include "arena.h"
#include "bench_kernels.h"
#include "check_elementary.h"
#include "check_model.h"
#include "definition.h"
#include "harness.h"

static bool quick;

/* ---- levels -------------------------------------------------------------------------------------------- */

/* The n-th level of this processor, or NULL. */
static const fl_kernels *level_at(size_t n) {
    const fl_kernels *kernels = NULL;
    fl_error error;
    if (n >= fl_isa_count() || !fl_isa_supported(n)) return NULL;
    check(fl_cpu_choose(fl_isa_name(n), &kernels, &error) == FL_OK, "level %s is not to be had", fl_isa_name(n));
    check(kernels && strcmp(kernels->name, fl_isa_name(n)) == 0, "asked for %s, got another level", fl_isa_name(n));
    return kernels;
}

static bool skipped(uint64_t *random) { return quick && below(random, 4) != 0; }

static size_t first_difference(const void *a, const void *b, size_t words) {
    size_t at = 0;
    while (at < words && memcmp((const uint8_t *)a + 4 * at, (const uint8_t *)b + 4 * at, 4) == 0) at++;
    return at;
}

static void check_equal(const float *found, const float *expected, size_t n, const char *what) {
    const size_t at = first_difference(found, expected, n);
    check(at == n, "%s[%zu of %zu]: %a, expected %a", what, at, n, at < n ? (double)found[at] : 0,
          at < n ? (double)expected[at] : 0);
}

/* ---- values -------------------------------------------------------------------------------------------- */

enum { ORDINARY, SATURATING, EXTREME, DENORMAL, ZEROS, KINDS };
static const char *const kind_names[] = {"ordinary", "saturating", "extreme", "denormal", "zeros"};

/* Up to ± 2^40, the largest that a file may hold (docs/numerics.md), down to the smallest denormal. */
static float extreme(uint64_t *random) {
    const float special[] = {0x1p40f, -0x1p40f, 0.0f, -0.0f, 0x1p-149f, -0x1p-149f, 0x1p-126f, 0x1.fffffep-127f};
    if (below(random, 4) == 0) return special[below(random, 8)];
    return ldexpf(uniform(random), (int)below(random, 190) - 149);
}

static float value(int kind, float narrow, uint64_t *random) {
    switch (kind) {
    case ORDINARY: return narrow * uniform(random);
    case SATURATING: return 30 * uniform(random);
    case EXTREME: return extreme(random);
    case DENORMAL: return ldexpf(uniform(random), -120 - (int)below(random, 30));
    default: return below(random, 2) ? narrow * uniform(random) : below(random, 2) ? 0.0f : -0.0f;
    }
}

static void fill(float *out, size_t n, int kind, size_t K, uint64_t *random) {
    const float narrow = K ? 1 / sqrtf((float)K) : 1;
    for (size_t i = 0; i < n; i++) out[i] = value(kind, narrow, random);
}

/* ---- buffers ------------------------------------------------------------------------------------------- */

enum { MOST_K = 704, MOST_GROUPS = 44, MOST_PANELS = 4 * MOST_GROUPS, MOST_LOGITS = 1 << 16 };

static arena weights_x, weights_h, starts, inputs, hiddens, outs, cells, logit_room, id_room;

static void make_arenas(void) {
    weights_x = arena_new(4 * 16 * (size_t)MOST_PANELS * MOST_K);
    weights_h = arena_new(4 * 16 * (size_t)MOST_PANELS * MOST_K);
    starts = arena_new(4 * 16 * MOST_PANELS);
    inputs = arena_new(4 * MOST_K);
    hiddens = arena_new(4 * MOST_K);
    outs = arena_new(4 * MOST_LOGITS);
    cells = arena_new(4 * 16 * MOST_GROUPS);
    logit_room = arena_new(4 * (MOST_LOGITS + FL_BLOCK));
    id_room = arena_new(4 * (MOST_LOGITS + FL_BLOCK));
}

static float *place(arena a, size_t floats, bool at_end) { return arena_place(a, 4 * floats, at_end); }

/* ---- product ------------------------------------------------------------------------------------------- */

static void check_product(size_t panels, size_t K, int kind, bool at_end, uint64_t *random) {
    static float expected[16 * MOST_PANELS];
    const size_t rows = 16 * panels;
    float *weights = place(weights_x, rows * K, at_end), *start = place(starts, rows, at_end);
    float *input = place(inputs, K, at_end), *out = place(outs, rows, at_end);
    const fl_matrix matrix = {weights, panels, K};
    fill(weights, rows * K, kind, K, random);
    fill(start, rows, kind, 1, random);
    fill(input, K, kind == SATURATING ? ORDINARY : kind, 1, random);
    for (size_t row = 0; row < rows; row++) expected[row] = row_sum(start[row], &matrix, row, input);
    for (size_t level = 0; level < fl_isa_count(); level++) {
        const fl_kernels *kernels = level_at(level);
        if (!kernels) continue;
        now("product, %s, %zu panels, K %zu, %s, guard %s", kernels->name, panels, K, kind_names[kind],
            at_end ? "behind" : "before");
        memset(out, 0xFF, 4 * rows);
        kernels->product(&matrix, start, input, out);
        check_equal(out, expected, rows, "out");
        check(arena_intact(outs, out, 4 * rows), "wrote beside out");
    }
}

static void check_products(uint64_t *random) {
    static const size_t Ks[] = {1,  2,  3,  4,  7,   8,   9,   15,  16,  17,  31,  32,  33,  47,  48,
                                63, 64, 65, 96, 127, 128, 129, 255, 256, 257, 511, 512, 513, 650, 699};
    static const size_t panels[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 23, 33};
    for (size_t i = 0; i < sizeof Ks / sizeof *Ks; i++)
        for (size_t j = 0; j < sizeof panels / sizeof *panels; j++)
            for (int kind = 0; kind < KINDS; kind++)
                if (!skipped(random)) check_product(panels[j], Ks[i], kind, below(random, 2), random);
}

/* ---- cell ---------------------------------------------------------------------------------------------- */

static void check_cell(size_t units, size_t K, int kind, bool at_end, uint64_t *random) {
    static float old_c[16 * MOST_GROUPS], expected_c[16 * MOST_GROUPS], expected_h[16 * MOST_GROUPS];
    const size_t groups = (units + 15) / 16, width = 16 * groups, rows = 4 * width;
    const float *x = K ? place(inputs, K, at_end) : NULL;
    float *start = place(starts, rows, at_end), *h = place(hiddens, units, at_end);
    float *h_new = place(outs, width, at_end), *c = place(cells, width, at_end);
    float *wx = place(weights_x, rows * K, at_end), *wh = place(weights_h, rows * units, at_end);
    const fl_lstm layer = {{wx, 4 * groups, K}, {wh, 4 * groups, units}, NULL, groups, (uint32_t)units};
    fill(wx, rows * K, kind, K, random);
    fill(wh, rows * units, kind, units, random);
    fill(start, rows, kind, 1, random);
    if (x) fill(place(inputs, K, at_end), K, kind == SATURATING ? ORDINARY : kind, 1, random);
    for (size_t i = 0; i < units; i++) h[i] = uniform(random);
    for (size_t i = 0; i < width; i++)
        expected_c[i] = old_c[i] = kind == DENORMAL ? value(kind, 1, random) : 9 * uniform(random);
    for (size_t i = 0; i < width; i++) unit_step(&layer, i, start, x, h, &expected_h[i], &expected_c[i]);
    for (size_t level = 0; level < fl_isa_count(); level++) {
        const fl_kernels *kernels = level_at(level);
        if (!kernels) continue;
        now("cell, %s, %zu units, K %zu, %s, guard %s", kernels->name, units, K, kind_names[kind],
            at_end ? "behind" : "before");
        memcpy(c, old_c, 4 * width);
        memset(h_new, 0xFF, 4 * width);
        kernels->cell(&layer, start, x, h, h_new, c);
        check_equal(c, expected_c, width, "c");
        check_equal(h_new, expected_h, width, "h");
        check(arena_intact(outs, h_new, 4 * width) && arena_intact(cells, c, 4 * width), "wrote beside h or c");
    }
}

static void check_cells(uint64_t *random) {
    static const size_t sizes[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 128, 255};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    for (size_t i = 0; i < SIZES; i++)
        for (size_t j = 0; j <= SIZES; j++)
            for (int kind = 0; kind < KINDS; kind++)
                if (!skipped(random)) check_cell(sizes[i], j < SIZES ? sizes[j] : 0, kind, below(random, 2), random);
    for (int kind = 0; kind < (quick ? 1 : KINDS); kind++) {
        check_cell(650, 699, kind, true, random);
        check_cell(699, 0, kind, false, random);
        check_cell(1, 700, kind, true, random);
    }
}

/* Gates as given, many values of the whole range: c shows sigmoid(i) where tanh(g) is 1, tanh(g) where sigmoid(i) is.
 */
static void check_activation(bool tanh_gate, uint32_t first, uint32_t stride) {
    enum { UNITS = 16 * MOST_GROUPS };
    static float start[4 * UNITS], expected[UNITS], c[UNITS], h_new[UNITS], h[1];
    const fl_lstm layer = {{NULL, 4 * MOST_GROUPS, 0}, {start, 4 * MOST_GROUPS, 0}, NULL, MOST_GROUPS, UNITS};
    for (uint32_t unit = 0; unit < UNITS; unit++) {
        float *gate = start + unit / 16 * 64 + unit % 16;
        const uint64_t bits = first + (uint64_t)(unit / 2) * stride;
        const float x = float_of((uint32_t)(bits < 0x7F800000 ? bits : 0x7F800000) | unit << 31);
        gate[0] = tanh_gate ? 100 : x, gate[32] = tanh_gate ? x : 100;
        expected[unit] = tanh_gate ? hyperbolic_tangent(x) : sigmoid(x);
    }
    for (size_t level = 0; level < fl_isa_count(); level++) {
        const fl_kernels *kernels = level_at(level);
        if (!kernels) continue;
        now("%s, %s, from bits %08x", tanh_gate ? "tanh" : "sigmoid", kernels->name, first);
        for (size_t i = 0; i < UNITS; i++) c[i] = -0.0f; /* which changes nothing that is added to it */
        kernels->cell(&layer, start, NULL, h, h_new, c);
        check_equal(c, expected, UNITS, "c");
    }
}

static void check_activations(uint32_t stride) {
    for (uint64_t first = 0; first < 0x7F800000; first += (uint64_t)stride * 8 * MOST_GROUPS)
        for (int gate = 0; gate < 2; gate++) check_activation(gate, (uint32_t)first, stride);
}

/* ---- choose -------------------------------------------------------------------------------------------- */

static fl_noise random_noise(uint64_t *random) {
    const uint64_t a = next_random(random), b = next_random(random), c = next_random(random);
    return (fl_noise){{(uint32_t)a, (uint32_t)(a >> 32)}, {(uint32_t)b, (uint32_t)(b >> 32), (uint32_t)c}};
}

static void fill_logits(float *logits, size_t n, size_t room, int kind, uint64_t *random) {
    for (size_t i = 0; i < n; i++) {
        const float r = uniform(random);
        const float values[] = {
            5 * r, (float)below(random, 2), 0x1p100f * r, r < 0 ? -0.0f : 0.0f, r < 0.7f ? -INFINITY : r, 1};
        logits[i] = values[kind];
    }
    logits[below(random, n)] = kind == 4 ? 1 : logits[0];
    for (size_t i = n; i < room; i++) logits[i] = -INFINITY;
}

static void fill_ids(int32_t *ids, size_t n, size_t room, uint64_t *random) {
    int32_t id = (int32_t)below(random, 100);
    for (size_t i = 0; i < n; i++, id += 1 + (int32_t)below(random, 200)) ids[i] = id;
    for (size_t i = n; i-- > 1;) { /* in no order */
        const size_t j = below(random, i + 1);
        const int32_t other = ids[i];
        ids[i] = ids[j], ids[j] = other;
    }
    for (size_t i = n; i < room; i++) ids[i] = INT32_MAX;
}

static void check_choose(size_t n, bool listed, int kind, bool at_end, uint64_t *random) {
    static const float temperatures[] = {0, 1, 0.7f, 1000, 1e-30f, 3e38f};
    const size_t room = tiny_up(n, listed ? FL_PANEL : FL_BLOCK);
    float *logits = place(logit_room, room, at_end);
    int32_t *ids = listed ? arena_place(id_room, 4 * room, at_end) : NULL;
    fill_logits(logits, n, room, kind, random);
    if (ids) fill_ids(ids, n, room, random);
    for (size_t t = 0; t < sizeof temperatures / sizeof *temperatures; t++) {
        const fl_noise noise = random_noise(random);
        const int32_t expected = naive_choose(logits, ids, n, temperatures[t], &noise);
        for (size_t level = 0; level < fl_isa_count(); level++) {
            const fl_kernels *kernels = level_at(level);
            if (!kernels) continue;
            now("choose, %s, n %zu, %s, kind %d, T %g", kernels->name, n, listed ? "listed" : "all", kind,
                (double)temperatures[t]);
            const int32_t found = kernels->choose(logits, ids, n, temperatures[t], &noise);
            check(found == expected, "%d, expected %d", found, expected);
        }
    }
}

/* Every bit of every token's noise: with the noise itself as the logit and temperature -1 (which only this
 * check uses) all keys are zero, so that noise which is too small wins; negated, with 1, noise too large. */
static void check_noise(size_t n, bool listed, uint64_t *random) {
    const size_t room = tiny_up(n, listed ? FL_PANEL : FL_BLOCK);
    float *logits = place(logit_room, room, true);
    int32_t *ids = listed ? arena_place(id_room, 4 * room, true) : NULL;
    const fl_noise noise = random_noise(random);
    if (ids) fill_ids(ids, n, room, random);
    int32_t lowest = 0;
    for (float sign = -1; sign <= 1; sign += 2) {
        for (size_t i = 0; i < room; i++) {
            const uint32_t id = ids ? (uint32_t)ids[i] : (uint32_t)i;
            logits[i] = i < n ? -sign * noise_at(id, &noise) : -INFINITY;
            if (ids && i < n && (i == 0 || ids[i] < lowest)) lowest = ids[i];
        }
        for (size_t level = 0; level < fl_isa_count(); level++) {
            const fl_kernels *kernels = level_at(level);
            if (!kernels) continue;
            now("noise, %s, n %zu, %s, sign %g", kernels->name, n, listed ? "listed" : "all", (double)sign);
            const int32_t found = kernels->choose(logits, ids, n, sign, &noise);
            check(found == lowest, "token %d has other bits", found);
        }
    }
}

static void check_choices(uint64_t *random) {
    static const size_t sizes[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 700, 10007};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int kind = 0; kind < 6; kind++)
            for (int variant = 0; variant < 4; variant++)
                if (!skipped(random)) check_choose(sizes[i], variant & 1, kind, variant & 2, random);
    for (int round = 0; round < (quick ? 4 : 40); round++)
        check_noise(1 + below(random, MOST_LOGITS - 1), round & 1, random);
}

/* ---- mass and logarithm -------------------------------------------------------------------------------- */

static void check_mass(size_t n, int kind, bool at_end, uint64_t *random) {
    static const float scales[] = {1, 0.001f, 1.37f, 0x1p60f};
    static uint32_t expected[MOST_LOGITS];
    const size_t room = tiny_up(n, FL_PANEL);
    float *logits = place(logit_room, room, at_end);
    uint32_t *terms = arena_place(outs, 4 * room, at_end);
    fill_logits(logits, n, room, kind, random);
    float largest = logits[0];
    for (size_t i = 1; i < n; i++) largest = logits[i] > largest ? logits[i] : largest;
    for (size_t s = 0; s < 4; s++) {
        uint64_t total = 0;
        for (size_t i = 0; i < room; i++) {
            const float x = (logits[i] - largest) * scales[s];
            total += expected[i] = (uint32_t)fmaf(exponential(x), FL_MASS_ONE, 0.5f);
        }
        for (size_t level = 0; level < fl_isa_count(); level++) {
            const fl_kernels *kernels = level_at(level);
            if (!kernels) continue;
            now("mass, %s, n %zu, kind %d, scale %g", kernels->name, n, kind, (double)scales[s]);
            memset(terms, 0xFF, 4 * room);
            check(kernels->mass(logits, n, largest, scales[s], terms) == total, "total with terms");
            const size_t at = first_difference(terms, expected, n);
            check(at == n, "term %zu: %u, expected %u", at, terms[at < n ? at : 0], expected[at < n ? at : 0]);
            check(kernels->mass(logits, n, largest, scales[s], NULL) == total, "total without terms");
            check(arena_intact(outs, terms, 4 * room), "wrote beside the terms");
        }
    }
}

static void check_masses(uint64_t *random) {
    static const size_t sizes[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 700, 10007};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int kind = 0; kind < 6; kind++)
            for (int at_end = 0; at_end < 2; at_end++)
                if (!skipped(random)) check_mass(sizes[i], kind, at_end, random);
}

static void check_logarithms(uint32_t stride) {
    for (size_t level = 0; level < fl_isa_count(); level++) {
        const fl_kernels *kernels = level_at(level);
        if (!kernels) continue;
        now("logarithm, %s", kernels->name);
        size_t bad = 0;
        for (uint64_t at = 0x00800000; at < 0x7F800000; at += stride) {
            const float x = float_of((uint32_t)at);
            bad += vi_bits(kernels->logarithm(x)) != vi_bits(natural_log(x));
        }
        check(bad == 0, "%zu values differ", bad);
    }
}

/* ---- main ---------------------------------------------------------------------------------------------- */

static void check_all(uint64_t *random, uint32_t stride) {
    make_arenas();
    printf("levels:");
    for (size_t i = 0; i < fl_isa_count(); i++)
        printf(" %s%s", fl_isa_name(i), fl_isa_supported(i) ? "" : " (not here)");
    printf("\n");
    check_elementary(stride);
    check_activations(quick ? 65521 : 1021);
    check_logarithms(quick ? 65521 : 251);
    check_products(random);
    check_cells(random);
    check_choices(random);
    check_masses(random);
    check_models(random, quick);
}

int main(int count, char **arguments) {
    uint64_t seed = clock_seed();
    uint32_t stride = 257;
    bool measure = false;
    for (int i = 1; i < count; i++) {
        if (strcmp(arguments[i], "--seed") == 0 && i + 1 < count)
            seed = strtoull(arguments[++i], NULL, 0);
        else if (strcmp(arguments[i], "--quick") == 0)
            quick = true, stride = 16381;
        else if (strcmp(arguments[i], "--exhaustive") == 0)
            stride = 1;
        else if (strcmp(arguments[i], "--bench") == 0)
            measure = true;
        else
            return fprintf(stderr, "usage: %s [--seed N] [--quick | --exhaustive] [--bench]\n", *arguments), 2;
    }
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ); /* a run that hangs still shows what has failed */
    printf("seed %llu\n", (unsigned long long)seed);
    catch_faults();
    uint64_t random = seed;
    if (measure)
        bench(&random);
    else
        check_all(&random, stride);
    return report(seed);
}
