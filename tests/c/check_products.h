/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of the network, columns and rows against the definition. */
#ifndef CHECK_PRODUCTS_H
#define CHECK_PRODUCTS_H

#include "operands.h"
#include "step.h"

/* ---- columns ------------------------------------------------------------------------------------------- */

static void check_columns(size_t K, size_t n, size_t width, int kind, float step, uint64_t *random) {
    const int readers = (int)below(random, READERS);
    plain_columns plain = plain_columns_new(K, n, kind, step, random);
    now("columns, K %zu, %zu of width %zu, %s, step %g", K, n, width, kind_names[kind], (double)step);
    const fl_columns c = put_columns(&plain, K, n, width, readers, step, below(random, 2), random);
    for (size_t j = 0; j < n; j++) {
        check_column(&c, j, &plain.input[j]);
        check(c.steps[j] == plain.input[j].step, "step %g, expected %g", (double)c.steps[j],
              (double)plain.input[j].step);
    }
    check(columns_intact(&in_room, &c, n), "wrote beside columns");
    plain_columns_free(&plain);
}

/* A column into each of many, in two parts. */
static void check_copies(size_t K, size_t n, int kind, uint64_t *random) {
    const int readers = (int)below(random, READERS);
    plain_columns plain = plain_columns_new(K, 1, kind, FL_HIDDEN_STEP, random);
    const fl_columns from = put_columns(&plain, K, 1, 1, BOTH, FL_HIDDEN_STEP, below(random, 2), random),
                     to = read_as(used_columns(&new_room, K, n, FL_WIDTH, below(random, 2), random), readers);
    now("copied column, K %zu, %zu of them, %s", K, n, kind_names[kind]);
    const size_t cut = 32 * below(random, from.padded / 32 + 1);
    for (size_t j = 0; j < n; j++) {
        fl_columns_copy(&to, j, &from, cut, from.padded);
        fl_columns_copy(&to, j, &from, 0, cut);
        check_column(&to, j, plain.input);
    }
    check(columns_intact(&new_room, &to, n), "wrote beside columns");
    plain_columns_free(&plain);
}

static void check_all_columns(uint64_t *random) {
    static const size_t Ks[] = {1, 3, 4, 5, 31, 32, 33, 63, 64, 65, 127, 200}, ns[] = {1, 2, 7, 8, 9, 33, 64};
    for (size_t i = 0; i < sizeof Ks / sizeof *Ks; i++)
        for (size_t j = 0; j < sizeof ns / sizeof *ns; j++)
            for (int kind = 0; kind < KINDS; kind++)
                if (!skipped(random)) {
                    const size_t width = ns[j] == 1 && below(random, 2) ? 1 : FL_WIDTH;
                    check_columns(Ks[i], ns[j], width, kind, below(random, 2) ? FL_HIDDEN_STEP : 0, random);
                    check_copies(Ks[i], ns[j], kind, random);
                }
}

/* ---- rows ---------------------------------------------------------------------------------------------- */

/* The rows of panels, and of panels of one row, as an embedding. */
static void check_rows(fl_dtype dtype, size_t rows, size_t K, int kind, size_t lanes, uint64_t *random) {
    static plain_row row;
    fl_matrix m = random_matrix(&weight_room, dtype, tiny_parts(rows, 16), K, kind, true, random);
    float *out = place(outs, K, true);
    now("rows of %s, %zu x %zu, %zu lanes, %s", dtype_names[dtype], rows, K, lanes, kind_names[kind]);
    m.lanes = lanes;
    m.panels = m.panels * 16 / lanes;
    for (size_t i = 0; i < rows; i++) {
        size_t bad = 0;
        read_row(&row, &m, i);
        fl_matrix_row(&m, i, out);
        for (size_t k = 0; k < K; k++) bad += vi_bits(out[k]) != vi_bits(row_value(&row, k));
        check(bad == 0, "%zu values of row %zu are wrong", bad, i);
        check(arena_intact(outs, out, 4 * K), "wrote beside the row");
    }
}

static void check_all_rows(uint64_t *random) {
    static const size_t Ks[] = {1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 63, 64, 65, 129};
    for (size_t i = 0; i < sizeof Ks / sizeof *Ks; i++)
        for (int dtype = 0; dtype < DTYPES; dtype++)
            for (int kind = 0; kind < KINDS; kind++)
                check_rows((fl_dtype)dtype, 1 + below(random, 40), Ks[i], kind, below(random, 2) ? 1 : 16, random);
}

/* ---- parts --------------------------------------------------------------------------------------------- */

/* Parts tile all rows, begin where a kernel may (also those with nothing to do: they must not touch another's), and one
 * alone is the last. */
static void check_slices(void) {
    static const size_t unit_sizes[] = {1, 2, 4};
    for (size_t u = 0; u < 3; u++)
        for (size_t n = 1; n < 40; n++)
            for (uint32_t parts = 1; parts < 9; parts++) {
                size_t covered = 0, last = 0, misplaced = 0;
                for (uint32_t part = 0; part < parts; part++) {
                    size_t begin, end;
                    fl_slice(n, unit_sizes[u], part, parts, &begin, &end);
                    covered += end - begin;
                    last += end == n;
                    misplaced += begin % unit_sizes[u] != 0 || begin > end || end > n;
                }
                now("%zu in %u parts by %zu", n, parts, unit_sizes[u]);
                check(covered == n && last == 1 && misplaced == 0, "%zu covered, %zu are last, %zu begin amiss",
                      covered, last, misplaced);
            }
}

/* ---- product ------------------------------------------------------------------------------------------- */

/* One product to try. */
typedef struct product_case {
    fl_dtype dtype;
    size_t panels, K, n, width;
    int kind;
    float step; /* of the columns */
    bool at_end;
} product_case;

static float expected_rows[FL_MOST_COLUMNS][MOST_ROWS];

/* In pieces and in no order: the middle first, when nothing else may be written. */
static void product_in_parts(const fl_kernels *kernels, const fl_matrix *m, const fl_columns *in, size_t n,
                             const float *const *start, float *const *out, uint64_t *random) {
    const size_t a = below(random, m->panels + 1), b = a + below(random, m->panels + 1 - a), rows = 16 * m->panels;
    const bool in_place = start[0] == out[0];
    kernels->product(m, a, b, in, n, start, out);
    size_t beside = 0;
    for (size_t j = 0; !in_place && j < n; j++)
        for (size_t row = 0; row < rows; row++)
            beside += (row < 16 * a || row >= 16 * b) && vi_bits(out[j][row]) != UINT32_MAX;
    check(beside == 0, "panels %zu to %zu: %zu rows of others were written", a, b, beside);
    kernels->product(m, b, m->panels, in, n, start, out);
    kernels->product(m, 0, a, in, n, start, out);
}

static void try_product(const fl_kernels *kernels, const product_case *c, const fl_matrix *m, const fl_columns *in,
                        const float *start, bool in_place, uint64_t *random) {
    const float *from[FL_MOST_COLUMNS];
    float *out[FL_MOST_COLUMNS];
    const size_t rows = 16 * c->panels;
    float *room = place(outs, rows * c->n, c->at_end);
    memset(room, 0xFF, 4 * rows * c->n);
    for (size_t j = 0; j < c->n; j++) {
        out[j] = room + rows * j;
        from[j] = in_place ? out[j] : start + rows * j;
        if (in_place) memcpy(out[j], start + rows * j, 4 * rows);
    }
    now("product, %s, %s, %zu panels, K %zu, %zu columns of width %zu, %s, guard %s%s", kernels->name,
        dtype_names[c->dtype], c->panels, c->K, c->n, c->width, kind_names[c->kind], c->at_end ? "behind" : "before",
        in_place ? ", in place" : "");
    fl_matrix large = *m; /* part of a matrix that no cache holds: it may be read in another order */
    large.panels += 1 << 20;
    if (below(random, 2))
        product_in_parts(kernels, m, in, c->n, from, out, random);
    else
        kernels->product(below(random, 2) ? &large : m, 0, m->panels, in, c->n, from, out);
    for (size_t j = 0; j < c->n; j++) check_equal(out[j], expected_rows[j], rows, "out");
    check(arena_intact(outs, room, 4 * rows * c->n), "wrote beside out");
}

static void expect_product(const product_case *c, const fl_matrix *m, const plain_columns *plain, const float *start) {
    static plain_row row;
    for (size_t i = 0; i < 16 * c->panels; i++) {
        read_row(&row, m, i);
        for (size_t j = 0; j < c->n; j++)
            expected_rows[j][i] = row_sum(start[16 * c->panels * j + i], &row, &plain->input[j]);
    }
}

static void check_row_sums(const fl_kernels *kernels, const fl_matrix *m, bool at_end) {
    int32_t *found = arena_place(outs, 4 * m->panels * 16, at_end);
    now("row sums, %s, %zu panels, K %zu", kernels->name, m->panels, m->inputs);
    kernels->sum_rows(m, found);
    check(memcmp(found, m->sums, 4 * m->panels * 16) == 0, "differ");
    check(arena_intact(outs, found, 4 * m->panels * 16), "wrote beside them");
}

static void check_product(const product_case *c, uint64_t *random) {
    const size_t rows = 16 * c->panels;
    const fl_matrix m = random_matrix(&weight_room, c->dtype, c->panels, c->K, c->kind, c->at_end, random);
    plain_columns plain = plain_columns_new(c->K, c->n, c->kind, c->step, random);
    const fl_columns in =
        put_columns(&plain, c->K, c->n, c->width, whole_numbers(c->dtype) ? BYTES : FLOATS, c->step, c->at_end, random);
    float *start = place(starts, rows * c->n, c->at_end);
    fill(start, rows * c->n, c->kind, 1, random);
    expect_product(c, &m, &plain, start);
    if (c->dtype == FL_INT8) FOR_EACH_LEVEL(kernels) check_row_sums(kernels, &m, c->at_end);
    FOR_EACH_LEVEL(kernels) try_product(kernels, c, &m, &in, start, below(random, 4) == 0, random);
    plain_columns_free(&plain);
}

/* Columns enough for every way to fill blocks of 4 and 8; a single one lies by itself or in a block. */
static void check_products(uint64_t *random) {
    static const size_t Ks[] = {1,  2,  3,   4,   5,   7,   8,   9,   11,  12,  13,  15,  16,
                                17, 24, 31,  32,  33,  40,  47,  48,  63,  64,  65,  72,  95,
                                96, 97, 100, 127, 128, 129, 191, 255, 256, 257, 320, 513, 699};
    static const size_t panels[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 16, 17, 23, 24, 25, 33};
    static const size_t ns[] = {1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 31, 33, 63, 64};
    enum { KS = sizeof Ks / sizeof *Ks, PANELS = sizeof panels / sizeof *panels, NS = sizeof ns / sizeof *ns };
    const size_t all = (size_t)20 * KS * NS * DTYPES;
    for (size_t done = 0; done < rounds(all); done++) {
        const size_t round = share > 1 ? below(random, all) : done;
        product_case c = {.dtype = (fl_dtype)(round % DTYPES), .K = Ks[round / DTYPES % KS]};
        const size_t column = round / (DTYPES * KS) % NS;
        c.n = ns[column], c.width = column == 0 ? 1 : FL_WIDTH;
        c.panels = panels[below(random, PANELS)];
        c.kind = (int)below(random, KINDS);
        c.step = below(random, 2) ? FL_HIDDEN_STEP : 0;
        c.at_end = below(random, 2);
        while (c.panels * c.K * c.n > (share > 1 ? 20000 : 200000))
            c.panels = 1 + c.panels / 2, c.n -= c.n > 8 && c.panels < 3;
        check_product(&c, random);
    }
}

/* The largest sums that the reader's limits allow: they must neither overflow nor saturate. */
static void check_largest_sum(fl_dtype dtype, size_t width, int signs, uint64_t *random) {
    static float expected[32], start[32], out[FL_WIDTH][32];
    const size_t K = dtype == FL_INT8 ? MOST_INPUTS : 1 << 14;
    fl_matrix m = random_matrix(&weight_room, dtype, 2, K, ORDINARY, true, random);
    memset((void *)(uintptr_t)m.weights, dtype == FL_INT4 ? 0x00 : signs & 1 ? 0x81 : 0x7F, fl_matrix_bytes(&m));
    set_sums(&m, &weight_room.sums, true);
    if (dtype == FL_INT4) memset((void *)(uintptr_t)m.group, signs & 1 ? 0x7F : 0x80, 64 * tiny_parts(K, 64));
    const fl_columns in = used_columns(&in_room, K, width, width, true, random);
    float *values = malloc(4 * K);
    int8_t *numbers = malloc(K);
    if (!values || !numbers) exit(2);
    for (size_t k = 0; k < K; k++) values[k] = signs & 2 ? -1.0f : 1.0f;
    const plain_input plain = round_input(values, numbers, K, FL_HIDDEN_STEP);
    const float *from[FL_WIDTH];
    float *to[FL_WIDTH];
    for (size_t j = 0; j < width; j++) fl_columns_put(&in, j, values, FL_HIDDEN_STEP), from[j] = start, to[j] = out[j];
    for (size_t row = 0; row < 32; row++) expected[row] = matrix_sum(start[row], &m, row, &plain);
    check(fabsf(expected[0]) > m.scale[0] * 2.1e9f / 127, "the sum is not as large as it can be");
    FOR_EACH_LEVEL(kernels) {
        now("largest sum, %s, %s, width %zu, signs %d", kernels->name, dtype_names[dtype], width, signs);
        memset(out, 0xFF, sizeof out);
        kernels->product(&m, 0, 2, &in, width, from, to);
        for (size_t j = 0; j < width; j++) check_equal(out[j], expected, 32, "out");
    }
    free(values);
    free(numbers);
}

static void check_largest_sums(uint64_t *random) {
    for (int signs = 0; signs < 4; signs++)
        for (int dtype = FL_INT8; dtype <= FL_INT4; dtype++)
            for (size_t width = 1; width <= FL_WIDTH; width += FL_WIDTH - 1)
                check_largest_sum((fl_dtype)dtype, width, signs, random);
}

/* ---- update -------------------------------------------------------------------------------------------- */

/* One update to try. */
typedef struct update_case {
    size_t units, n, width;
    int kind, readers;
    bool at_end;
} update_case;

/* Of each column, [groups * 16]. */
static float old_c[FL_MOST_COLUMNS][16 * MOST_GROUPS], expected_c[FL_MOST_COLUMNS][16 * MOST_GROUPS],
    expected_h[FL_MOST_COLUMNS][16 * MOST_GROUPS];

static void expect_update(const update_case *what, const float *const *gates, uint64_t *random) {
    const size_t units = tiny_up(what->units, 16);
    for (size_t j = 0; j < what->n; j++)
        for (size_t i = 0; i < units; i++) {
            const float gate[4] = {gates[j][gate_row(i, 0)], gates[j][gate_row(i, 1)], gates[j][gate_row(i, 2)],
                                   gates[j][gate_row(i, 3)]};
            old_c[j][i] = what->kind == DENORMAL ? value(DENORMAL, 1, random) : 9 * uniform(random);
            expected_c[j][i] = old_c[j][i];
            unit_update(gate, &expected_h[j][i], &expected_c[j][i]);
        }
}

/* A place to cut a layer's groups for two threads: even. */
static size_t even_cut(size_t groups, uint64_t *random) {
    const size_t cut = 2 * below(random, groups / 2 + 1);
    return below(random, 2) ? cut : 0;
}

static void try_update(const fl_kernels *kernels, const update_case *what, const float *const *gates,
                       uint64_t *random) {
    static int8_t numbers[16 * MOST_GROUPS];
    float *h[FL_MOST_COLUMNS], *c[FL_MOST_COLUMNS];
    const size_t units = tiny_up(what->units, 16), groups = units / 16, all = units * what->n,
                 cut = even_cut(groups, random);
    float *h_room = place(hiddens, all, what->at_end), *c_room = place(cells, all, what->at_end);
    memset(h_room, 0xFF, 4 * all);
    for (size_t j = 0; j < what->n; j++) {
        h[j] = h_room + units * j, c[j] = c_room + units * j;
        memcpy(c[j], old_c[j], 4 * units);
    }
    const fl_columns h_new =
        read_as(used_columns(&new_room, what->units, what->n, what->width, what->at_end, random), what->readers);
    now("update, %s, %zu units, %zu columns of width %zu, %s, guard %s, cut at %zu", kernels->name, what->units,
        what->n, what->width, kind_names[what->kind], what->at_end ? "behind" : "before", cut);
    kernels->update(cut, groups, what->n, gates, &h_new, h, c);
    kernels->update(0, cut, what->n, gates, &h_new, h, c);
    for (size_t j = 0; j < what->n; j++) {
        const plain_input expected = round_input(expected_h[j], numbers, what->units, FL_HIDDEN_STEP);
        check_equal(c[j], expected_c[j], units, "c");
        check_equal(h[j], expected_h[j], units, "h");
        check_column(&h_new, j, &expected);
    }
    check(columns_intact(&new_room, &h_new, what->n), "wrote beside what products read");
    check(arena_intact(cells, c_room, 4 * all) && arena_intact(hiddens, h_room, 4 * all), "wrote beside c or h");
}

static void check_update(const update_case *what, uint64_t *random) {
    const size_t rows = 4 * tiny_up(what->units, 16);
    float *start = place(starts, rows * what->n, what->at_end);
    const float *gates[FL_MOST_COLUMNS];
    fill(start, rows * what->n, what->kind, 1, random);
    for (size_t j = 0; j < what->n; j++) gates[j] = start + rows * j;
    expect_update(what, gates, random);
    FOR_EACH_LEVEL(kernels) try_update(kernels, what, gates, random);
}

static void check_updates(uint64_t *random) {
    static const size_t sizes[] = {1,  2,  7,  8,  9,  15, 16, 17, 31,  32,  33,  47,
                                   48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 200, 650};
    static const size_t ns[] = {1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 31, 33, 63, 64};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t j = 0; j < sizeof ns / sizeof *ns; j++)
            for (int kind = 0; kind < KINDS; kind++) {
                const update_case what = {.units = sizes[i],
                                          .n = ns[j],
                                          .width = j == 0 ? 1 : FL_WIDTH,
                                          .kind = kind,
                                          .readers = (int)below(random, READERS),
                                          .at_end = below(random, 2)};
                if (!skipped(random)) check_update(&what, random);
            }
}

/* Gates as given, many values of the whole range: c shows sigmoid(i) where tanh(g) is 1, tanh(g) where sigmoid(i) is.
 */
static void check_activation(bool tanh_gate, uint32_t first, uint32_t stride, const fl_columns *h_new) {
    enum { UNITS = 16 * MOST_GROUPS };
    static float start[4 * UNITS], expected[UNITS], h[UNITS], c[UNITS];
    const float *gates[1] = {start};
    float *hidden[1] = {h}, *cell[1] = {c};
    for (uint32_t unit = 0; unit < UNITS; unit++) {
        float *gate = start + unit / 16 * 64 + unit % 16;
        const uint64_t bits = first + (uint64_t)(unit / 2) * stride;
        const float x = float_of((uint32_t)(bits < 0x7F800000 ? bits : 0x7F800000) | unit << 31);
        gate[0] = tanh_gate ? 100 : x, gate[32] = tanh_gate ? x : 100;
        expected[unit] = tanh_gate ? hyperbolic_tangent(x) : sigmoid(x);
    }
    FOR_EACH_LEVEL(kernels) {
        now("%s, %s, from bits %08x", tanh_gate ? "tanh" : "sigmoid", kernels->name, first);
        for (size_t i = 0; i < UNITS; i++) c[i] = -0.0f; /* which changes nothing that is added to it */
        kernels->update(0, MOST_GROUPS, 1, gates, h_new, hidden, cell);
        check_equal(c, expected, UNITS, "c");
    }
}

static void check_activations(uint32_t stride, uint64_t *random) {
    const fl_columns h_new = used_columns(&new_room, 16 * MOST_GROUPS, 1, 1, true, random);
    for (uint64_t first = 0; first < 0x7F800000; first += (uint64_t)stride * 8 * MOST_GROUPS)
        for (int gate = 0; gate < 2; gate++) check_activation(gate, (uint32_t)first, stride, &h_new);
}

#endif
