/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of screens against the definition. */
#ifndef CHECK_SCREENS_H
#define CHECK_SCREENS_H

#include "check_choices.h"

static void check_tables(size_t groups, int kind, bool at_end, uint64_t *random) {
    static uint8_t expected[4 * MOST_LOGITS];
    float *values = place(logit_room, 4 * groups, at_end), largest = 0;
    uint8_t *tables = arena_place(outs, 16 * groups, at_end);
    fill(values, 4 * groups, kind, 1, random);
    for (size_t g = 0; g < groups; g++) {
        const float *four = values + 4 * g;
        largest = fmaxf(largest, fabsf(four[0]) + fabsf(four[1]) + fabsf(four[2]) + fabsf(four[3]));
    }
    const float steps = largest < 0x1p-100f ? 0 : (float)FL_TABLE_MOST / largest;
    for (size_t i = 0; i < 16 * groups; i++) expected[i] = table_entry(values + i / 16 * 4, i % 16, steps);
    FOR_EACH_LEVEL(kernels) {
        now("tables, %s, %zu groups, %s", kernels->name, groups, kind_names[kind]);
        memset(tables, 0xFF, 16 * groups);
        kernels->make_tables(values, groups, steps, tables);
        size_t wrong = 0;
        for (size_t i = 0; i < 16 * groups; i++)
            /* a product that is rounded once, against one that is rounded twice: a step apart where it is halfway */
            wrong += tables[i] + 1u < expected[i] || tables[i] > expected[i] + 1u || tables[i] < 1 || tables[i] > 63;
        check(wrong == 0, "%zu entries", wrong);
        check(arena_intact(outs, tables, 16 * groups), "wrote beside the tables");
        if (level_ == 0)
            memcpy(expected, tables, 16 * groups);
        else
            check(memcmp(expected, tables, 16 * groups) == 0, "another table than the first level's");
    }
}

static fl_screen random_screen(size_t blocks, size_t planes, size_t K, bool at_end, uint64_t *random) {
    fl_screen s = {.blocks = blocks, .planes = planes, .pairs = (K + 15) / 16};
    const size_t rows = blocks * FL_BLOCK, bits = blocks * planes * s.pairs * 2 * FL_BLOCK;
    float *radius = place(weight_room.scale, rows, at_end), *size = place(starts, planes * rows, at_end);
    uint8_t *signs = arena_place(weight_room.weights, bits, at_end);
    for (size_t i = 0; i < rows; i++) radius[i] = fabsf(uniform(random));
    for (size_t i = 0; i < planes * rows; i++) size[i] = below(random, 8) ? fabsf(uniform(random)) : 0;
    for (size_t i = 0; i < bits; i++) signs[i] = (uint8_t)next_random(random);
    s.radius = radius, s.size = size, s.bits = signs;
    return s;
}

static void check_bound(size_t blocks, size_t planes, size_t K, bool at_end, uint64_t *random) {
    static float along[MOST_ROWS], low[MOST_ROWS], high[MOST_ROWS];
    const fl_screen s = random_screen(blocks, planes, K, at_end, random);
    const size_t rows = blocks * FL_BLOCK, begin = below(random, blocks), first = begin * FL_BLOCK;
    uint8_t *tables = arena_place(in_room.bytes, 64 * s.pairs, at_end);
    fl_view v = {.tables = tables, .step = 0.01f, .table_error = 0.3f, .distance = 1.5f, .rounding = 0x1p-14f};
    for (size_t i = 0; i < 64 * s.pairs; i++)
        tables[i] = below(random, 4) ? (uint8_t)(1 + below(random, 63)) : 63; /* what four of them may add up to */
    float *lower = place(outs, rows, at_end), *upper = place(logit_room, rows, at_end);
    for (size_t i = 0; i < rows; i++) along[i] = 20 * uniform(random);
    memcpy(low, along, sizeof low);
    for (size_t i = first; i < rows; i++) naive_bound(&s, &v, i, &low[i], &high[i]);
    FOR_EACH_LEVEL(kernels) {
        now("bound, %s, blocks %zu to %zu, %zu planes, K %zu", kernels->name, begin, blocks, planes, K);
        memcpy(lower, along, 4 * rows);
        kernels->bound(&s, &v, begin, blocks, lower, upper);
        check_equal(lower, low, rows, "lower");
        check_equal(upper + first, high + first, rows - first, "upper");
        check(arena_intact(outs, lower, 4 * rows) && arena_intact(logit_room, upper, 4 * rows), "wrote beside");
    }
}

static void check_contend(size_t blocks, int kind, bool at_end, uint64_t *random) {
    static const float temperatures[] = {0, 1, 0.7f, 1000, 1e-30f, 3e38f};
    static float high[MOST_ROWS];
    const size_t n = blocks * FL_BLOCK;
    float *lower = place(logit_room, n, at_end), *keys = place(outs, n, at_end), *upper = place(starts, n, at_end);
    fill_logits(lower, n, n, kind, random);
    for (size_t t = 0; t < sizeof temperatures / sizeof *temperatures; t++) {
        const fl_noise noise = random_noise(random);
        const fl_winner expected = naive_choose(lower, NULL, n, temperatures[t], &noise);
        for (size_t i = 0; i < n; i++) {
            const float logit = lower[i] + 0.5f;
            high[i] = temperatures[t] == 0 ? logit : fmaf(temperatures[t], noise_at((uint32_t)i, &noise), logit);
        }
        FOR_EACH_LEVEL(kernels) {
            now("contend, %s, %zu blocks, kind %d, T %g", kernels->name, blocks, kind, (double)temperatures[t]);
            for (size_t i = 0; i < n; i++) upper[i] = lower[i] + 0.5f;
            fl_winner found = FL_NO_WINNER;
            kernels->contend(&found, lower, upper, 0, n, temperatures[t], &noise, keys);
            check(same_winner(found, expected), "%d, expected %d", found.id, expected.id);
            check_equal(keys, high, n, "keys");
        }
    }
}

/* As many as 16 bits hold the sums of. */
static void check_largest_tables(uint64_t *random) { check_bound(1, 1, FL_MOST_SCREENED, true, random); }

static void check_screens(uint64_t *random) {
    static const size_t inputs[] = {1, 15, 16, 17, 33, 64, 200, 650};
    for (size_t round = 0; round < rounds(400); round++) {
        const bool at_end = round & 1;
        check_tables(1 + below(random, 200), (int)below(random, KINDS), at_end, random);
        check_bound(1 + below(random, 4), 1 + below(random, FL_MOST_PLANES), inputs[round % 8], at_end, random);
        if (round < 24) check_contend(1 + below(random, 4), (int)(round % 6), at_end, random);
    }
    check_largest_tables(random);
}

#endif
