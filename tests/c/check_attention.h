/* SPDX-License-Identifier: Apache-2.0
 *
 * What only attention needs: hyperbolic tangents of whole columns, and additive scores. */
#ifndef CHECK_ATTENTION_H
#define CHECK_ATTENTION_H

#include "check_products.h"

static void try_activate(const fl_kernels *kernels, const update_case *what, const float *const *in, uint64_t *random) {
    static int8_t numbers[16 * MOST_GROUPS];
    float *h[FL_MOST_COLUMNS];
    const size_t units = tiny_up(what->units, 16), panels = units / 16, all = units * what->n,
                 cut = even_cut(panels, random);
    float *h_room = place(hiddens, all, what->at_end);
    memset(h_room, 0xFF, 4 * all);
    for (size_t j = 0; j < what->n; j++) h[j] = h_room + units * j;
    const fl_columns h_new =
        read_as(used_columns(&new_room, what->units, what->n, what->width, what->at_end, random), what->readers);
    now("activate, %s, %zu units, %zu columns of width %zu, %s, guard %s, cut at %zu", kernels->name, what->units,
        what->n, what->width, kind_names[what->kind], what->at_end ? "behind" : "before", cut);
    kernels->activate(cut, panels, what->n, in, &h_new, h);
    kernels->activate(0, cut, what->n, in, &h_new, h);
    for (size_t j = 0; j < what->n; j++) {
        for (size_t i = 0; i < units; i++) expected_h[j][i] = hyperbolic_tangent(in[j][i]);
        const plain_input expected = round_input(expected_h[j], numbers, what->units, FL_HIDDEN_STEP);
        check_equal(h[j], expected_h[j], units, "h");
        check_column(&h_new, j, &expected);
    }
    check(columns_intact(&new_room, &h_new, what->n), "wrote beside what products read");
    check(arena_intact(hiddens, h_room, 4 * all), "wrote beside h");
}

static void check_activate(uint64_t *random) {
    static const size_t sizes[] = {1, 15, 16, 17, 31, 32, 33, 48, 64, 65, 97, 200, 650};
    static const size_t ns[] = {1, 1, 2, 5, 8, 9, 33, 64};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t j = 0; j < sizeof ns / sizeof *ns; j++) {
            const update_case what = {.units = sizes[i],
                                      .n = ns[j],
                                      .width = j == 0 ? 1 : FL_WIDTH,
                                      .kind = (int)below(random, KINDS),
                                      .readers = (int)below(random, READERS),
                                      .at_end = below(random, 2)};
            const size_t units = tiny_up(what.units, 16);
            float *start = place(starts, units * what.n, what.at_end);
            const float *in[FL_MOST_COLUMNS];
            if (skipped(random)) continue;
            fill(start, units * what.n, what.kind, 1, random);
            for (size_t column = 0; column < what.n; column++) in[column] = start + units * column;
            FOR_EACH_LEVEL(kernels) try_activate(kernels, &what, in, random);
        }
}

/* Scores of `panels` panels of places, K values each. */
static void check_compared(size_t panels, size_t K, int kind, bool at_end, uint64_t *random) {
    enum { MOST_PLACES = 16 * 9 };
    static float expected[MOST_PLACES];
    const size_t rows = 16 * panels;
    const fl_matrix keys = random_matrix(&weight_room, FL_F32, panels, K, kind, at_end, random);
    float *query = place(starts, K, at_end), *score = place(cells, K, at_end);
    fill(query, K, kind, 1, random);
    fill(score, K, kind, 1, random);
    for (size_t row = 0; row < rows; row++) {
        const float *key = (const float *)keys.weights + row / 16 * keys.blocks * 16 + row % 16;
        expected[row] = 0;
        for (size_t k = 0; k < K; k++)
            expected[row] = fmaf(score[k], hyperbolic_tangent(key[16 * k] + query[k]), expected[row]);
    }
    FOR_EACH_LEVEL(kernels) {
        float *out = place(hiddens, rows, at_end);
        now("compare, %s, %zu panels of %zu, %s", kernels->name, panels, K, kind_names[kind]);
        memset(out, 0xFF, 4 * rows);
        kernels->compare(&keys, query, score, out);
        check_equal(out, expected, rows, "scores");
        check(arena_intact(hiddens, out, 4 * rows), "wrote beside the scores");
    }
}

static void check_compare(uint64_t *random) {
    static const size_t widths[] = {1, 2, 15, 16, 17, 64, 100};
    for (size_t panels = 1; panels <= 9; panels++)
        for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
            if (!skipped(random))
                check_compared(panels, widths[i], (int)below(random, KINDS), below(random, 2), random);
}

#endif
