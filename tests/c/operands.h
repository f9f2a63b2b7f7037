/* SPDX-License-Identifier: Apache-2.0
 *
 * What kernels are given: levels to run on, values of every kind, matrices and columns of them, each part against a page
 * that faults. */
#ifndef OPERANDS_H
#define OPERANDS_H

#include "arena.h"
#include "definition.h"
#include "harness.h"
#include "tiny_model.h"

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

static bool skipped(uint64_t *random) { return share > 1 && below(random, share / 2) != 0; }

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

/* A matrix's parts. */
typedef struct matrix_room {
    arena weights, scale, group, sums;
} matrix_room;

/* The four parts of columns. */
typedef struct columns_room {
    arena values, bytes, sums, steps;
} columns_room;

static matrix_room weight_room;
static columns_room in_room, new_room;
static arena starts, outs, hiddens, cells, logit_room, id_room;

static matrix_room matrix_room_new(void) {
    const size_t weights = 4 * (size_t)MOST_ROWS * MOST_K;
    return (matrix_room){arena_new(weights), arena_new(4 * MOST_ROWS),
                         arena_new(2 * MOST_ROWS * (MOST_K / 64 + 1) + (1 << 16)), arena_new(4 * MOST_ROWS)};
}

static columns_room columns_room_new(void) {
    const size_t values = (size_t)FL_WIDTH * MOST_INPUTS; /* that is, more than FL_MOST_COLUMNS of MOST_K */
    return (columns_room){arena_new(4 * values), arena_new(values), arena_new(values / 8),
                          arena_new(4 * FL_MOST_COLUMNS)};
}

static void make_arenas(void) {
    weight_room = matrix_room_new();
    in_room = columns_room_new(), new_room = columns_room_new();
    starts = arena_new(4 * MOST_ROWS * FL_MOST_COLUMNS);
    outs = arena_new(4 * MOST_ROWS * FL_MOST_COLUMNS);
    hiddens = arena_new(4 * 16 * MOST_GROUPS * FL_MOST_COLUMNS);
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

/* What every row of an int8 matrix adds up to, what pads its inputs too. */
static void set_sums(fl_matrix *m, const arena *room, bool at_end) {
    if (m->dtype != FL_INT8) return;
    const int8_t *weights = m->weights;
    m->sums = arena_place(*room, 4 * m->panels * 16, at_end);
    memset(m->sums, 0, 4 * m->panels * 16);
    for (size_t panel = 0; panel < m->panels; panel++, weights += 64 * m->blocks)
        for (size_t i = 0; i < 64 * blocks_needed(FL_INT8, m->inputs); i++)
            m->sums[panel * 16 + i / 4 % 16] += weights[i];
}

/* All of it, what pads inputs and panels too: nothing may depend on that. */
static fl_matrix random_matrix(const matrix_room *room, fl_dtype dtype, size_t panels, size_t K, int kind, bool at_end,
                               uint64_t *random) {
    const size_t blocks = blocks_needed(dtype, K) + (below(random, 2) ? FL_SPARE_BLOCKS : 0);
    const size_t bytes = 64 * panels * blocks, factors = panels * 32 * tiny_parts(K, 64), rows = 16 * panels;
    void *weights = arena_place(room->weights, bytes, at_end);
    fl_matrix m = {.dtype = dtype, .weights = weights, .panels = panels, .inputs = K, .lanes = 16, .blocks = blocks};
    if (dtype == FL_F32) fill(weights, bytes / 4, kind, K, random);
    if (dtype == FL_BF16) fill_bf16(weights, bytes / 2, kind, K, random);
    if (dtype == FL_INT8) fill_whole(weights, bytes, kind, 0x81, 0x7F, random);
    if (!whole_numbers(dtype)) return m;
    float *scale = place(room->scale, rows, at_end);
    fill(scale, rows, kind, K, random);
    for (size_t i = 0; i < rows; i++) scale[i] = fabsf(scale[i]) / (kind == ORDINARY ? 64 : 1);
    m.scale = scale;
    set_sums(&m, &room->sums, at_end);
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

/* Columns which products read as floats only, as bytes only, or both. */
enum { FLOATS, BYTES, BOTH, READERS };

static fl_columns read_as(fl_columns c, int readers) {
    if (readers == FLOATS) c.bytes = NULL, c.sums = NULL;
    if (readers == BYTES) c.values = NULL;
    return c;
}

/* Against the layout in internal.h, element by element, of what there is. */
static void check_column(const fl_columns *c, size_t column, const plain_input *expected) {
    const size_t width = c->width, start = column / width * c->padded * width, j = column % width;
    size_t bad = 0;
    for (size_t k = 0; c->values && k < c->inputs; k++)
        bad += vi_bits(c->values[start + k * width + j]) != vi_bits(expected->values[k]);
    for (size_t g = 0; c->bytes && g < c->padded / 32; g++) {
        int32_t sum = 0;
        for (size_t k = 32 * g; k < 32 * g + 32; k++) {
            const int8_t byte = c->bytes[start + (k / 4 * width + j) * 4 + k % 4];
            bad += byte != (k < c->inputs ? expected->numbers[k] : 0);
            sum += byte;
        }
        bad += c->sums[start / 32 + g * width + j] != sum;
    }
    check(bad == 0, "column %zu: %zu values, bytes or sums are wrong", column, bad);
}

static bool columns_intact(const columns_room *room, const fl_columns *c, size_t columns) {
    const size_t places = tiny_up(columns, c->width), n = c->padded * places;
    return (!c->values || arena_intact(room->values, c->values, 4 * n)) &&
           (!c->bytes || (arena_intact(room->bytes, c->bytes, n) && arena_intact(room->sums, c->sums, n / 8))) &&
           arena_intact(room->steps, c->steps, 4 * places);
}

static fl_columns put_columns(const plain_columns *plain, size_t K, size_t n, size_t width, int readers, float step,
                              bool at_end, uint64_t *random) {
    const fl_columns c = read_as(used_columns(&in_room, K, n, width, at_end, random), readers);
    for (size_t j = 0; j < n; j++) fl_columns_put(&c, j, plain->input[j].values, step);
    return c;
}

#endif
