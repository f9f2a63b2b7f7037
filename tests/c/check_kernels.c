/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests and times every kernel on every level that this processor has, in the manner of dav1d's checkasm:
 *
 *     cc -O3 csrc/(all).c tests/c/check_kernels.c -Icsrc -lm -lpthread -o check && ./check [--seed N] [--quick] [--bench]
 *
 * A level must give the bits of the definition in definition.h, in buffers that end or begin at a page that faults.
 * --quick takes a sample, another one with every seed; --exhaustive every float; --fingerprint looks only at what a
 * numerics version promises. */
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

/* Calls `body` with every level of this processor, and says which. */
#define FOR_EACH_LEVEL(kernels)                                                                                        \
    for (size_t level_ = 0; level_ < fl_isa_count(); level_++)                                                         \
        for (const fl_kernels *kernels = level_at(level_); kernels; kernels = NULL)

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

/* Whole numbers are tried up to the reader's limits, on a panel or two. */
enum {
    MOST_K = 704,
    MOST_GROUPS = 44,
    MOST_PANELS = 4 * MOST_GROUPS,
    MOST_LOGITS = 1 << 16,
    MOST_ROWS = 16 * MOST_PANELS
};

/* A matrix's three parts. */
typedef struct matrix_room {
    arena weights, scale, group;
} matrix_room;

/* The four parts of columns. */
typedef struct columns_room {
    arena values, bytes, sums, steps;
} columns_room;

static matrix_room x_room, h_room;
static columns_room in_room, hidden_room, new_room;
static arena starts, outs, cells, logit_room, id_room;

static matrix_room matrix_room_new(void) {
    const size_t weights = 4 * (size_t)MOST_ROWS * MOST_K;
    return (matrix_room){arena_new(weights), arena_new(4 * MOST_ROWS),
                         arena_new(2 * MOST_ROWS * (MOST_K / 64 + 1) + (1 << 16))};
}

static columns_room columns_room_new(void) {
    const size_t values = (size_t)FL_WIDTH * MOST_INPUTS; /* that is, more than FL_MOST_COLUMNS of MOST_K */
    return (columns_room){arena_new(4 * values), arena_new(values), arena_new(values / 8),
                          arena_new(4 * FL_MOST_COLUMNS)};
}

static void make_arenas(void) {
    x_room = matrix_room_new(), h_room = matrix_room_new();
    in_room = columns_room_new(), hidden_room = columns_room_new(), new_room = columns_room_new();
    starts = arena_new(4 * MOST_ROWS * FL_MOST_COLUMNS);
    outs = arena_new(4 * MOST_ROWS * FL_MOST_COLUMNS);
    cells = arena_new(4 * 16 * MOST_GROUPS * FL_MOST_COLUMNS);
    logit_room = arena_new(4 * (MOST_LOGITS + FL_BLOCK));
    id_room = arena_new(4 * (MOST_LOGITS + FL_BLOCK));
}

static float *place(arena a, size_t floats, bool at_end) { return arena_place(a, 4 * floats, at_end); }

/* ---- matrices ------------------------------------------------------------------------------------------ */

enum { DTYPES = TINY_DTYPES };

static bool whole_numbers(fl_dtype dtype) { return dtype == FL_INT8 || dtype == FL_INT4; }

/* A byte of whole weights or of factors: those that saturate are as far from 0 as they can be, and mostly agree. */
static uint8_t whole_byte(int kind, uint8_t least, uint8_t most, bool restless, uint64_t *random) {
    uint8_t byte = (uint8_t)next_random(random);
    if (kind == ZEROS && below(random, 2)) return 0;
    if (kind == SATURATING || kind == EXTREME) return (below(random, 16) == 0) != restless ? least : most;
    return least == 0x81 && byte == 0x80 ? 0 : byte; /* int8 weights have no -128 */
}

static void fill_whole(uint8_t *bytes, size_t n, int kind, uint8_t least, uint8_t most, uint64_t *random) {
    const bool restless = below(random, 2);
    for (size_t i = 0; i < n; i++) bytes[i] = whole_byte(kind, least, most, restless, random);
}

static void fill_bf16(uint16_t *weights, size_t n, int kind, size_t K, uint64_t *random) {
    for (size_t i = 0; i < n; i++) {
        float number;
        uint32_t bits;
        fill(&number, 1, kind, K, random);
        memcpy(&bits, &number, 4);
        weights[i] = (uint16_t)(kind == DENORMAL ? next_random(random) & 0x807F : bits >> 16);
    }
}

/* All of it, what pads inputs too: nothing may depend on that. */
static fl_matrix random_matrix(const matrix_room *room, fl_dtype dtype, size_t panels, size_t K, int kind, bool at_end,
                               uint64_t *random) {
    const size_t bytes = panels * panel_bytes(dtype, K), factors = panels * 32 * tiny_parts(K, 64), rows = 16 * panels;
    void *weights = arena_place(room->weights, bytes, at_end);
    fl_matrix m = {.dtype = dtype, .weights = weights, .panels = panels, .inputs = K, .lanes = 16};
    if (dtype == FL_F32) fill(weights, bytes / 4, kind, K, random);
    if (dtype == FL_BF16) fill_bf16(weights, bytes / 2, kind, K, random);
    if (dtype == FL_INT8) fill_whole(weights, bytes, kind, 0x81, 0x7F, random);
    if (!whole_numbers(dtype)) return m;
    float *scale = place(room->scale, rows, at_end);
    fill(scale, rows, kind, K, random);
    for (size_t i = 0; i < rows; i++) scale[i] = fabsf(scale[i]) / (kind == ORDINARY ? 64 : 1);
    m.scale = scale;
    if (dtype == FL_INT8) return m;
    int8_t *group = arena_place(room->group, factors, at_end);
    fill_whole(weights, bytes, kind, 0x00, 0xFF, random);
    fill_whole((uint8_t *)group, factors, kind, 0x80, 0x7F, random);
    m.group = group;
    return m;
}

/* ---- columns ------------------------------------------------------------------------------------------- */

/* Values of columns and what the definition makes of them: [FL_MOST_COLUMNS], each with `inputs`. */
typedef struct plain_columns {
    float *values; /* owned, here and below */
    int8_t *numbers;
    plain_input input[FL_MOST_COLUMNS];
} plain_columns;

static plain_columns plain_columns_new(size_t K, size_t n, int kind, float step, uint64_t *random) {
    plain_columns made = {malloc(4 * K * n), malloc(K * n), {{0}}};
    if (!made.values || !made.numbers) exit(2);
    for (size_t j = 0; j < n; j++) {
        float *values = made.values + j * K;
        fill(values, K, kind, 1, random);
        for (size_t k = 0; step != 0 && k < K; k++)
            values[k] = kind == SATURATING ? copysignf(1, values[k]) : uniform(random);
        made.input[j] = round_input(values, made.numbers + j * K, K, step);
    }
    return made;
}

static void plain_columns_free(plain_columns *columns) {
    free(columns->values);
    free(columns->numbers);
}

/* Room with what other sequences have left in it: any values, bytes whose sums are true. */
static fl_columns used_columns(const columns_room *room, size_t K, size_t columns, size_t width, bool at_end,
                               uint64_t *random) {
    const size_t padded = tiny_up(K, 64), places = tiny_up(columns, width), n = padded * places;
    const fl_columns c = {place(room->values, n, at_end),
                          arena_place(room->bytes, n, at_end),
                          arena_place(room->sums, n / 8, at_end),
                          place(room->steps, places, at_end),
                          K,
                          padded,
                          width};
    memset(c.values, 0xFF, 4 * n); /* not numbers */
    memset(c.sums, 0, n / 8);
    for (size_t i = 0; i < places; i++) c.steps[i] = uniform(random);
    for (size_t i = 0; i < n; i++) {
        const size_t block = i / (padded * width), k = i % (padded * width) / (4 * width) * 4 + i % 4,
                     j = i / 4 % width;
        c.bytes[i] = k < K ? (int8_t)(below(random, 255) - 127) : 0;
        c.sums[(block * (padded / 32) + k / 32) * width + j] += c.bytes[i];
    }
    return c;
}

/* Against the layout in internal.h, element by element. */
static void check_column(const fl_columns *c, size_t column, const plain_input *expected, bool values_too) {
    const size_t width = c->width, start = column / width * c->padded * width, j = column % width;
    size_t bad = 0;
    for (size_t g = 0; g < c->padded / 32; g++) {
        int32_t sum = 0;
        for (size_t k = 32 * g; k < 32 * g + 32; k++) {
            const int8_t byte = c->bytes[start + (k / 4 * width + j) * 4 + k % 4];
            bad += byte != (k < c->inputs ? expected->numbers[k] : 0);
            sum += byte;
            if (values_too && k < c->inputs)
                bad += vi_bits(c->values[start + k * width + j]) != vi_bits(expected->values[k]);
        }
        bad += c->sums[start / 32 + g * width + j] != sum;
    }
    check(bad == 0, "column %zu: %zu values, bytes or sums are wrong", column, bad);
}

static bool columns_intact(const columns_room *room, const fl_columns *c, size_t columns) {
    const size_t places = tiny_up(columns, c->width), n = c->padded * places;
    return arena_intact(room->values, c->values, 4 * n) && arena_intact(room->bytes, c->bytes, n) &&
           arena_intact(room->sums, c->sums, n / 8) && arena_intact(room->steps, c->steps, 4 * places);
}

static fl_columns put_columns(const columns_room *room, const plain_columns *plain, size_t K, size_t n, size_t width,
                              float step, bool at_end, uint64_t *random) {
    const fl_columns c = used_columns(room, K, n, width, at_end, random);
    for (size_t j = 0; j < n; j++) fl_columns_put(&c, j, plain->input[j].values, step);
    return c;
}

/* Columns in and out, from a block of one width to one of another. */
static void check_columns(size_t K, size_t n, size_t width, int kind, float step, bool at_end, uint64_t *random) {
    plain_columns plain = plain_columns_new(K, n, kind, step, random);
    float *out = place(outs, K, at_end);
    now("columns, K %zu, %zu of width %zu, %s, step %g", K, n, width, kind_names[kind], (double)step);
    const fl_columns c = put_columns(&in_room, &plain, K, n, width, step, at_end, random);
    const fl_columns copy = used_columns(&hidden_room, K, n, width == 1 ? FL_WIDTH : 1, at_end, random);
    const size_t cut = 32 * below(random, c.padded / 32 + 1);
    for (size_t j = 0; j < n; j++) {
        check_column(&c, j, &plain.input[j], true);
        check(c.steps[j] == plain.input[j].step, "step %g, expected %g", (double)c.steps[j],
              (double)plain.input[j].step);
        fl_columns_get(&c, j, out);
        check_equal(out, plain.input[j].values, K, "got back");
        if (copy.width == 1 && j) continue;
        fl_columns_copy(&copy, j, &c, j, cut, c.padded);
        fl_columns_copy(&copy, j, &c, j, 0, cut);
        check_column(&copy, j, &plain.input[j], true);
    }
    check(columns_intact(&in_room, &c, n) && columns_intact(&hidden_room, &copy, n), "wrote beside columns");
    plain_columns_free(&plain);
}

static void check_all_columns(uint64_t *random) {
    static const size_t Ks[] = {1, 3, 4, 5, 31, 32, 33, 63, 64, 65, 127, 200}, ns[] = {1, 2, 7, 8, 9, 33, 64};
    for (size_t i = 0; i < sizeof Ks / sizeof *Ks; i++)
        for (size_t j = 0; j < sizeof ns / sizeof *ns; j++)
            for (int kind = 0; kind < KINDS; kind++)
                if (!skipped(random))
                    check_columns(Ks[i], ns[j], ns[j] == 1 && below(random, 2) ? 1 : FL_WIDTH, kind,
                                  below(random, 2) ? FL_HIDDEN_STEP : 0, below(random, 2), random);
}

/* ---- rows ---------------------------------------------------------------------------------------------- */

/* The rows of panels, and of panels of one row, as an embedding. */
static void check_rows(fl_dtype dtype, size_t rows, size_t K, int kind, size_t lanes, uint64_t *random) {
    static plain_row row;
    fl_matrix m = random_matrix(&x_room, dtype, tiny_parts(rows, 16), K, kind, true, random);
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
    if (below(random, 2))
        product_in_parts(kernels, m, in, c->n, from, out, random);
    else
        kernels->product(m, 0, m->panels, in, c->n, from, out);
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

static void check_product(const product_case *c, uint64_t *random) {
    const size_t rows = 16 * c->panels;
    const fl_matrix m = random_matrix(&x_room, c->dtype, c->panels, c->K, c->kind, c->at_end, random);
    plain_columns plain = plain_columns_new(c->K, c->n, c->kind, c->step, random);
    const fl_columns in = put_columns(&in_room, &plain, c->K, c->n, c->width, c->step, c->at_end, random);
    float *start = place(starts, rows * c->n, c->at_end);
    fill(start, rows * c->n, c->kind, 1, random);
    expect_product(c, &m, &plain, start);
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
    for (int round = 0; round < KS * NS * DTYPES * (quick ? 2 : 20); round++) {
        product_case c = {.dtype = (fl_dtype)(round % DTYPES), .K = Ks[round / DTYPES % KS]};
        const size_t column = (size_t)round / (DTYPES * KS) % NS;
        c.n = ns[column], c.width = column == 0 ? 1 : FL_WIDTH;
        c.panels = panels[below(random, PANELS)];
        c.kind = (int)below(random, KINDS);
        c.step = below(random, 2) ? FL_HIDDEN_STEP : 0;
        c.at_end = below(random, 2);
        while (c.panels * c.K * c.n > (quick ? 20000 : 200000))
            c.panels = 1 + c.panels / 2, c.n -= c.n > 8 && c.panels < 3;
        check_product(&c, random);
    }
}

/* The largest sums that the reader's limits allow: they must neither overflow nor saturate. */
static void check_largest_sum(fl_dtype dtype, size_t width, int signs, uint64_t *random) {
    static float expected[32], start[32], out[FL_WIDTH][32];
    const size_t K = dtype == FL_INT8 ? MOST_INPUTS : 1 << 14;
    fl_matrix m = random_matrix(&x_room, dtype, 2, K, ORDINARY, true, random);
    memset((void *)(uintptr_t)m.weights, dtype == FL_INT4 ? 0x00 : signs & 1 ? 0x81 : 0x7F, 2 * panel_bytes(dtype, K));
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

/* ---- cell ---------------------------------------------------------------------------------------------- */

/* One step to try. K 0: the input product is done. */
typedef struct cell_case {
    fl_dtype x_dtype, h_dtype;
    size_t units, K, n;
    int kind;
    bool at_end;
} cell_case;

/* Old and expected c and h of each column, [groups * 16]. */
static float old_c[FL_MOST_COLUMNS][16 * MOST_GROUPS], expected_c[FL_MOST_COLUMNS][16 * MOST_GROUPS],
    expected_h[FL_MOST_COLUMNS][16 * MOST_GROUPS];

static void fill_cells(size_t n, size_t width, int kind, uint64_t *random) {
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < width; i++)
            expected_c[j][i] = old_c[j][i] = kind == DENORMAL ? value(kind, 1, random) : 9 * uniform(random);
}

/* What a step has left: values, bytes, sums, c. */
static void check_new_state(const cell_case *what, const fl_columns *h_new, float *const *c) {
    const size_t width = tiny_up(what->units, 16);
    static int8_t numbers[16 * MOST_GROUPS];
    for (size_t j = 0; j < what->n; j++) {
        const plain_input expected = round_input(expected_h[j], numbers, what->units, FL_HIDDEN_STEP);
        check_equal(c[j], expected_c[j], width, "c");
        check_column(h_new, j, &expected, true);
    }
    check(columns_intact(&new_room, h_new, what->n), "wrote beside h");
    check(arena_intact(cells, c[0], 4 * width * what->n), "wrote beside c");
}

/* Room for what a step writes. */
static fl_columns fresh_state(const cell_case *what, size_t width, float **c, uint64_t *random) {
    const size_t units = tiny_up(what->units, 16);
    float *room = place(cells, units * what->n, what->at_end);
    for (size_t j = 0; j < what->n; j++) {
        c[j] = room + units * j;
        memcpy(c[j], old_c[j], 4 * units);
    }
    return used_columns(&new_room, what->units, what->n, width, what->at_end, random);
}

/* A place to cut a layer's groups for two threads: even. */
static size_t even_cut(size_t groups, uint64_t *random) {
    const size_t cut = 2 * below(random, groups / 2 + 1);
    return below(random, 2) ? cut : 0;
}

static void try_cell(const fl_kernels *kernels, const cell_case *what, const fl_lstm *layer, const float *start,
                     const fl_columns *x, const fl_columns *h, uint64_t *random) {
    float *c[1];
    const fl_columns h_new = fresh_state(what, 1, c, random);
    const size_t cut = even_cut(layer->groups, random);
    now("cell, %s, x %s, h %s, %zu units, K %zu, %s, guard %s, cut at %zu", kernels->name, dtype_names[what->x_dtype],
        dtype_names[what->h_dtype], what->units, what->K, kind_names[what->kind], what->at_end ? "behind" : "before",
        cut);
    kernels->cell(layer, cut, layer->groups, start, x, h, &h_new, c[0]);
    kernels->cell(layer, 0, cut, start, x, h, &h_new, c[0]);
    check_new_state(what, &h_new, c);
}

static void check_cell(const cell_case *what, uint64_t *random) {
    const size_t groups = tiny_parts(what->units, 16), width = 16 * groups, rows = 4 * width;
    const int kind = what->kind;
    const bool at_end = what->at_end;
    const float step = below(random, 2) ? FL_HIDDEN_STEP : 0;
    fl_lstm layer = {.groups = groups, .units = (uint32_t)what->units};
    float *start = place(starts, rows, at_end);
    layer.h = random_matrix(&h_room, what->h_dtype, 4 * groups, what->units, kind, at_end, random);
    plain_columns plain_h = plain_columns_new(what->units, 1, kind, FL_HIDDEN_STEP, random), plain_x = {0};
    const fl_columns h = put_columns(&hidden_room, &plain_h, what->units, 1, 1, FL_HIDDEN_STEP, at_end, random);
    fl_columns x = {0};
    if (what->K) {
        layer.x = random_matrix(&x_room, what->x_dtype, 4 * groups, what->K, kind, at_end, random);
        plain_x = plain_columns_new(what->K, 1, kind == SATURATING ? ORDINARY : kind, step, random);
        x = put_columns(&in_room, &plain_x, what->K, 1, 1, step, at_end, random);
    }
    fill(start, rows, kind, 1, random);
    fill_cells(1, width, kind, random);
    for (size_t i = 0; i < width; i++)
        unit_step(&layer, i, start, what->K ? plain_x.input : NULL, plain_h.input, &expected_h[0][i],
                  &expected_c[0][i]);
    FOR_EACH_LEVEL(kernels) try_cell(kernels, what, &layer, start, what->K ? &x : NULL, &h, random);
    plain_columns_free(&plain_h);
    plain_columns_free(&plain_x);
}

static cell_case random_cell(size_t units, size_t K, uint64_t *random) {
    return (cell_case){.x_dtype = (fl_dtype)below(random, DTYPES),
                       .h_dtype = (fl_dtype)below(random, DTYPES),
                       .units = units,
                       .K = K,
                       .n = 1,
                       .kind = (int)below(random, KINDS),
                       .at_end = below(random, 2)};
}

static void check_cells(uint64_t *random) {
    static const size_t sizes[] = {0,  1,  2,  4,  7,  8,  9,  15, 16, 17,  24,  31,  32,  33,
                                   40, 47, 48, 49, 63, 64, 65, 80, 96, 100, 127, 128, 129, 255};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    for (int round = 0; round < (quick ? 1 : 6); round++)
        for (size_t i = 1; i < SIZES; i++)
            for (size_t j = 0; j < SIZES; j++) {
                const cell_case what = random_cell(sizes[i], sizes[j], random);
                if (!skipped(random)) check_cell(&what, random);
            }
    for (int dtype = 0; dtype < (quick ? 1 : DTYPES); dtype++) {
        static const size_t large[][2] = {{650, 699}, {699, 0}, {1, 700}};
        for (size_t i = 0; i < 3; i++) {
            cell_case what = random_cell(large[i][0], large[i][1], random);
            if (!quick) what.h_dtype = (fl_dtype)dtype;
            check_cell(&what, random);
        }
    }
}

/* ---- update -------------------------------------------------------------------------------------------- */

static void try_update(const fl_kernels *kernels, const cell_case *what, const fl_lstm *layer,
                       const float *const *gates, uint64_t *random) {
    float *c[FL_MOST_COLUMNS];
    const fl_columns h_new = fresh_state(what, FL_WIDTH, c, random);
    const size_t cut = even_cut(layer->groups, random);
    now("update, %s, %zu units, %zu columns, %s, guard %s, cut at %zu", kernels->name, what->units, what->n,
        kind_names[what->kind], what->at_end ? "behind" : "before", cut);
    kernels->update(layer, cut, layer->groups, what->n, gates, &h_new, c);
    kernels->update(layer, 0, cut, what->n, gates, &h_new, c);
    check_new_state(what, &h_new, c);
}

static void check_update(const cell_case *what, uint64_t *random) {
    const size_t groups = tiny_parts(what->units, 16), width = 16 * groups, rows = 4 * width;
    const fl_lstm layer = {.groups = groups, .units = (uint32_t)what->units};
    float *start = place(starts, rows * what->n, what->at_end);
    const float *gates[FL_MOST_COLUMNS];
    fill(start, rows * what->n, what->kind, 1, random);
    fill_cells(what->n, width, what->kind, random);
    for (size_t j = 0; j < what->n; j++) {
        gates[j] = start + rows * j;
        for (size_t i = 0; i < width; i++) {
            const float gate[4] = {gates[j][gate_row(i, 0)], gates[j][gate_row(i, 1)], gates[j][gate_row(i, 2)],
                                   gates[j][gate_row(i, 3)]};
            unit_update(gate, &expected_h[j][i], &expected_c[j][i]);
        }
    }
    FOR_EACH_LEVEL(kernels) try_update(kernels, what, &layer, gates, random);
}

static void check_updates(uint64_t *random) {
    static const size_t sizes[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 100, 200};
    static const size_t ns[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 31, 33, 63, 64};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t j = 0; j < sizeof ns / sizeof *ns; j++)
            for (int kind = 0; kind < KINDS; kind++) {
                cell_case what = random_cell(sizes[i], 0, random);
                what.n = ns[j], what.kind = kind;
                if (!skipped(random)) check_update(&what, random);
            }
}

/* Gates as given, many values of the whole range: c shows sigmoid(i) where tanh(g) is 1, tanh(g) where sigmoid(i) is.
 */
static void check_activation(bool tanh_gate, uint32_t first, uint32_t stride, const fl_columns *h_new) {
    enum { UNITS = 16 * MOST_GROUPS };
    static float start[4 * UNITS], expected[UNITS], c[UNITS];
    const fl_lstm layer = {.groups = MOST_GROUPS, .units = UNITS};
    const float *gates[1] = {start};
    float *cell_state[1] = {c};
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
        kernels->update(&layer, 0, MOST_GROUPS, 1, gates, h_new, cell_state);
        check_equal(c, expected, UNITS, "c");
    }
}

static void check_activations(uint32_t stride, uint64_t *random) {
    const fl_columns h_new = used_columns(&new_room, 16 * MOST_GROUPS, 1, 1, true, random);
    for (uint64_t first = 0; first < 0x7F800000; first += (uint64_t)stride * 8 * MOST_GROUPS)
        for (int gate = 0; gate < 2; gate++) check_activation(gate, (uint32_t)first, stride, &h_new);
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

/* Keys of -0 and 0 are equal. */
static bool same_winner(fl_winner a, fl_winner b) { return a.id == b.id && a.key == b.key; }

/* In blocks, and in no order, as threads may: one winner that is handed on, or two that meet at the end. */
static fl_winner choose_in_parts(const fl_kernels *kernels, const float *logits, const int32_t *ids, size_t n,
                                 float temperature, const fl_noise *noise, uint64_t *random) {
    const size_t cut = FL_BLOCK * below(random, n / FL_BLOCK + 1);
    fl_winner first = FL_NO_WINNER, second = FL_NO_WINNER;
    const bool hand_on = below(random, 2);
    kernels->choose(&first, logits, ids, cut, n, temperature, noise);
    kernels->choose(hand_on ? &first : &second, logits, ids, 0, cut, temperature, noise);
    if (hand_on) return first;
    return first.key > second.key || (first.key == second.key && first.id < second.id) ? first : second;
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
        const fl_winner expected = naive_choose(logits, ids, n, temperatures[t], &noise);
        FOR_EACH_LEVEL(kernels) {
            now("choose, %s, n %zu, %s, kind %d, T %g", kernels->name, n, listed ? "listed" : "all", kind,
                (double)temperatures[t]);
            fl_winner whole = FL_NO_WINNER;
            kernels->choose(&whole, logits, ids, 0, n, temperatures[t], &noise);
            const fl_winner parts = choose_in_parts(kernels, logits, ids, n, temperatures[t], &noise, random);
            check(same_winner(whole, expected), "%d, expected %d", whole.id, expected.id);
            check(same_winner(parts, expected), "%d in parts, expected %d", parts.id, expected.id);
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
        FOR_EACH_LEVEL(kernels) {
            fl_winner found = FL_NO_WINNER;
            now("noise, %s, n %zu, %s, sign %g", kernels->name, n, listed ? "listed" : "all", (double)sign);
            kernels->choose(&found, logits, ids, 0, n, sign, &noise);
            check(found.id == lowest && found.key == 0, "token %d has other bits", found.id);
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
        FOR_EACH_LEVEL(kernels) {
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
    FOR_EACH_LEVEL(kernels) {
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
    check_activations(quick ? 65521 : 1021, random);
    check_logarithms(quick ? 65521 : 251);
    check_all_columns(random);
    check_all_rows(random);
    check_products(random);
    check_largest_sums(random);
    check_cells(random);
    check_updates(random);
    check_choices(random);
    check_masses(random);
    check_models(random, quick);
}

int main(int count, char **arguments) {
    uint64_t seed = clock_seed();
    uint32_t stride = 257;
    bool measure = false, fingerprints = false;
    const char *only = NULL;
    static const char usage[] =
        "usage: %s [--seed N] [--quick | --exhaustive | --fingerprint | --bench [--only PART_OF_A_NAME]]\n";
    for (int i = 1; i < count; i++) {
        if (strcmp(arguments[i], "--seed") == 0 && i + 1 < count)
            seed = strtoull(arguments[++i], NULL, 0);
        else if (strcmp(arguments[i], "--quick") == 0)
            quick = true, stride = 16381;
        else if (strcmp(arguments[i], "--exhaustive") == 0)
            stride = 1;
        else if (strcmp(arguments[i], "--fingerprint") == 0)
            fingerprints = true;
        else if (strcmp(arguments[i], "--bench") == 0)
            measure = true;
        else if (strcmp(arguments[i], "--only") == 0 && i + 1 < count)
            only = arguments[++i];
        else
            return fprintf(stderr, usage, *arguments), 2;
    }
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ); /* a run that hangs still shows what has failed */
    printf("seed %llu\n", (unsigned long long)seed);
    catch_faults();
    uint64_t random = seed;
    if (measure)
        bench(&random, only);
    else if (fingerprints)
        check_fingerprint(), check_model_fingerprint();
    else
        check_all(&random, stride);
    return report(seed);
}
