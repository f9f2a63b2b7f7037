/* SPDX-License-Identifier: Apache-2.0
 *
 * What every kernel reaches, against the speed at which this core reads the same amount of memory, and in cycles. */
#ifndef BENCH_KERNELS_H
#define BENCH_KERNELS_H

#include "check_model.h"

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static volatile uint64_t sink; /* so that nothing is computed in vain */

/* ---- reading ------------------------------------------------------------------------------------------- */

typedef uint64_t words16 __attribute__((vector_size(16)));
typedef uint64_t words32 __attribute__((vector_size(32)));
typedef uint64_t words64 __attribute__((vector_size(64)));

/* Eight loads in flight, whose exclusive or keeps the compiler from dropping them. */
#define DEFINE_READ(bits, words, target)                                                                               \
    target static uint64_t read##bits(const void *memory, size_t size) {                                               \
        const words *w = memory;                                                                                       \
        words a[8] = {{0}};                                                                                            \
        for (size_t i = 0; i + 8 <= size / sizeof *w; i += 8)                                                          \
            FL_UNROLL for (int j = 0; j < 8; j++) a[j] ^= w[i + (size_t)j];                                            \
        FL_UNROLL for (int j = 1; j < 8; j++) a[0] ^= a[j];                                                            \
        return a[0][0] ^ a[0][1];                                                                                      \
    }

DEFINE_READ(128, words16, )
#if defined(FL_X86)
DEFINE_READ(256, words32, __attribute__((target("avx2"))))
DEFINE_READ(512, words64, __attribute__((target("avx512f"))))

static bool has_level(const char *name) {
    for (size_t i = 0; i < fl_isa_count(); i++)
        if (strcmp(fl_isa_name(i), name) == 0) return fl_isa_supported(i);
    return false;
}
#endif

/* The widest loads that this processor has. */
static uint64_t read_memory(const void *memory, size_t size) {
#if defined(FL_X86)
    if (has_level("avx512")) return read512(memory, size);
    if (has_level("avx2")) return read256(memory, size);
#endif
    return read128(memory, size);
}

/* ---- cycles -------------------------------------------------------------------------------------------- */

/* Cycles a second of this core now, turbo and all: additions that wait for one another take one each. (The
 * processor's own counters tick at a fixed rate, or are not for us to read.) */
static double cycles_per_second(void) {
    enum { ADDITIONS = 1 << 19 };
    uint64_t sum = 1, step = 3;
    __asm__("" : "+r"(sum), "+r"(step));
    const double begin = seconds();
    for (int i = 0; i < ADDITIONS / 16; i++) {
        FL_UNROLL for (int j = 0; j < 16; j++) {
            sum += step;
            __asm__("" : "+r"(sum)); /* not to be made a multiplication */
        }
    }
    sink = sum;
    return ADDITIONS / (seconds() - begin);
}

/* ---- one measurement ------------------------------------------------------------------------------------ */

typedef struct work {
    const fl_kernels *kernels; /* NULL: read the weights only */
    const char *what, *only;   /* only: measure nothing but what has this in its name, or NULL */
    void (*once)(const struct work *w);
    size_t bytes;      /* of weights or logits, that are read */
    size_t operations; /* multiply-adds; 0: of no interest */
    double reading;    /* bytes a second that plain loads read the same memory at; 0: of no interest */
    fl_matrix matrix;
    size_t groups;
    fl_columns x, h_new;
    const float *start[FL_MOST_COLUMNS];
    float *out[FL_MOST_COLUMNS], *h[FL_MOST_COLUMNS], *c[FL_MOST_COLUMNS];
    const float *logits;
    int32_t *ids; /* NULL: all tokens */
    size_t n;     /* columns, or logits */
    float temperature;
    fl_decoder *decoder;
    fl_state *state;
} work;

typedef struct speed {
    double each;   /* seconds a call */
    double cycles; /* a call */
} speed;

/* Fastest of five runs of about a twentieth of a second. */
static speed fastest(const work *w) {
    size_t calls = 1;
    double best = 1e9, clock = 0;
    for (int run = 0; run < 5;) {
        const double begin = seconds();
        for (size_t i = 0; i < calls; i++) w->once(w);
        const double each = (seconds() - begin) / (double)calls, rate = cycles_per_second();
        if (each * (double)calls < 0.04 && calls < 1u << 28) {
            calls *= 2;
            continue;
        }
        best = each < best ? each : best;
        clock = rate > clock ? rate : clock;
        run++;
    }
    return (speed){best, best * clock};
}

static void once_read(const work *w) { sink = read_memory(w->matrix.weights, w->bytes); }
static void once_product(const work *w) {
    w->kernels->product(&w->matrix, 0, w->matrix.panels, &w->x, w->n, w->start, w->out);
}
static void once_update(const work *w) { w->kernels->update(0, w->groups, w->n, w->start, &w->h_new, w->h, w->c); }
static void once_choose(const work *w) {
    static fl_noise noise = {{1, 2}, {3, 4, 5}};
    fl_winner winner = FL_NO_WINNER;
    noise.counter[0]++;
    w->kernels->choose(&winner, w->logits, w->ids, 0, w->n, w->temperature, &noise);
    sink = (uint64_t)winner.id;
}
static void once_weigh(const work *w) { /* the logits' bits serve as masses: any do */
    sink = w->kernels->weigh(w->logits, (const uint32_t *)(const void *)w->logits, w->n, 0.9f).count;
}
static void once_collect(const work *w) {
    sink = w->kernels->collect(w->logits, w->n, 0.9f, INFINITY, w->ids, w->out[0]);
}
static void once_mass(const work *w) { sink = w->kernels->mass(w->logits, w->n, 1, 1, NULL); }
static void once_logarithm(const work *w) { w->out[0][0] = w->kernels->logarithm(w->logits[0] + 2); }
static void once_token(const work *w) {
    int32_t token = 0;
    static const fl_sampling greedy = {0};
    fl_request request = {
        .state = w->state, .sampling = &greedy, .prompt = &token, .n_prompt = 1, .max_tokens = 1, .tokens = &token};
    fl_generate(w->decoder, &request, 1, 0);
}

static bool wanted(const work *w) { return !w->only || strstr(w->what, w->only); }

static void print_number(bool there, int digits, double number) {
    if (there)
        printf(" %9.*f", digits, number);
    else
        printf(" %9s", "");
}

static void print_speed(const work *w, const char *level, speed found) {
    const double rate = (double)w->bytes / found.each;
    printf("  %-36s %-10s %11.2f %9.2f", w->what, level, 1e6 * found.each, 1e-9 * rate);
    print_number(w->reading > 0, 2, rate / w->reading);
    print_number(w->operations > 0, 1, 1e-9 * (double)w->operations / found.each);
    print_number(w->operations > 0, 2, (double)w->operations / found.cycles);
    print_number(true, 4, found.cycles / (double)w->bytes);
    printf("\n");
}

static void bench_levels(work w) {
    for (size_t level = 0; level < fl_isa_count() && wanted(&w); level++) {
        fl_error error;
        if (!fl_isa_supported(level) || fl_cpu_choose(fl_isa_name(level), &w.kernels, &error)) continue;
        print_speed(&w, w.kernels->name, fastest(&w));
    }
}

/* ---- all ----------------------------------------------------------------------------------------------- */

static double bench_reading(work w) {
    w.once = once_read;
    w.reading = w.operations = 0;
    if (!wanted(&w)) return 0;
    const speed found = fastest(&w);
    print_speed(&w, "reading", found);
    return (double)w.bytes / found.each;
}

/* All weights zero: how fast they are does not depend on them. The room must hold them in any dtype. */
static fl_matrix bench_matrix(fl_dtype dtype, size_t panels, size_t K, const uint8_t *room) {
    const size_t spare = dtype != FL_INT4 && K % 256 == 0 ? FL_SPARE_BLOCKS : 0; /* docs/format.md says when */
    return (fl_matrix){.dtype = dtype,
                       .weights = room,
                       .scale = (const float *)(const void *)room,
                       .group = (const int8_t *)room,
                       .sums = (int32_t *)(uintptr_t)room,
                       .panels = panels,
                       .inputs = K,
                       .lanes = 16,
                       .blocks = blocks_needed(dtype, K) + spare};
}

/* Columns of zeros. */
static fl_columns bench_columns(size_t K, size_t n, size_t width) {
    const size_t padded = tiny_up(K, 64), values = padded * tiny_up(n, width);
    uint8_t *room = fl_os_alloc(5 * values + values / 8 + 4 * FL_MOST_COLUMNS);
    if (!room) exit(2);
    return (fl_columns){.values = (float *)(void *)room,
                        .sums = (int32_t *)(void *)(room + 4 * values),
                        .bytes = (int8_t *)room + 4 * values + values / 8,
                        .steps = (float *)(void *)(room + 5 * values + values / 8),
                        .inputs = K,
                        .padded = padded,
                        .width = width};
}

static void bench_columns_free(const fl_columns *c, size_t n) {
    const size_t values = c->padded * tiny_up(n, c->width);
    fl_os_free(c->values, 5 * values + values / 8 + 4 * FL_MOST_COLUMNS);
}

static void bench_product(work w, size_t rows, size_t K, const uint8_t *weights) {
    static const size_t ns[] = {1, 8, FL_MOST_COLUMNS};
    char what[64];
    w.what = what;
    for (int dtype = FL_F32; dtype <= FL_INT4; dtype++) {
        const size_t panels = tiny_parts(rows, 16);
        w.matrix = bench_matrix((fl_dtype)dtype, panels, K, weights);
        w.bytes = fl_matrix_bytes(&w.matrix);
        for (size_t i = 0; i < 3; i++) {
            snprintf(what, sizeof what, "product %s %zu x %zu, %zu", dtype_names[dtype], rows, K, ns[i]);
            if (i == 0) w.reading = bench_reading(w);
            w.n = ns[i];
            w.operations = 16 * panels * K * w.n;
            w.x = bench_columns(K, w.n, w.n == 1 ? 1 : FL_WIDTH);
            w.once = once_product;
            bench_levels(w);
            bench_columns_free(&w.x, w.n);
        }
    }
}

/* Bytes are of gates; next read as floats, as bytes, or both. */
static void bench_update(work w, size_t units, size_t n) {
    static const char *const readers[] = {"both", "floats", "bytes"};
    char what[64];
    w.what = what;
    w.n = n;
    w.groups = tiny_parts(units, 16);
    w.bytes = 256 * w.groups * n;
    w.once = once_update;
    const fl_columns h_new = bench_columns(units, n, n == 1 ? 1 : FL_WIDTH);
    for (size_t i = 0; i < 3; i++) {
        snprintf(what, sizeof what, "update %zu, %zu columns, %s", units, n, readers[i]);
        w.h_new = h_new;
        if (i == 1) w.h_new.bytes = NULL;
        if (i == 2) w.h_new.values = NULL;
        bench_levels(w);
    }
    bench_columns_free(&h_new, n);
}

static void bench_choices(work w, float *logits, int32_t *ids, size_t n, uint64_t *random) {
    char what[64];
    w.n = n;
    w.bytes = 4 * n;
    w.what = what;
    w.logits = logits;
    for (size_t i = 0; i < tiny_up(n, FL_BLOCK); i++) {
        logits[i] = i < n ? uniform(random) : -INFINITY;
        ids[i] = i < n ? (int32_t)(3 * i) : INT32_MAX;
    }
    snprintf(what, sizeof what, "choose greedy, V %zu", n);
    w.once = once_choose;
    bench_levels(w);
    snprintf(what, sizeof what, "choose with noise, V %zu", n);
    w.temperature = 1;
    bench_levels(w);
    snprintf(what, sizeof what, "choose from list, %zu", n);
    w.ids = ids;
    bench_levels(w);
    snprintf(what, sizeof what, "collect, V %zu", n); /* one in twenty */
    w.once = once_collect;
    bench_levels(w);
    snprintf(what, sizeof what, "weigh, V %zu", n);
    w.once = once_weigh;
    bench_levels(w);
    snprintf(what, sizeof what, "mass, V %zu", n);
    w.once = once_mass;
    bench_levels(w);
}

static size_t all_weights(const fl_model *model) {
    size_t bytes = fl_matrix_bytes(&model->output);
    for (uint32_t i = 0; i < model->n_layers; i++) {
        bytes += fl_matrix_bytes(&model->layers[i].h);
        if (i) bytes += fl_matrix_bytes(&model->layers[i].x); /* the first layer's rows are kept */
    }
    return bytes;
}

/* A greedy token in a call of its own. */
static void bench_token(work w, const char *name, tiny_shape shape) {
    char what[64];
    w.what = what;
    w.once = once_token;
    for (int dtype = AS_F32; dtype < TINY_DTYPES; dtype++) {
        snprintf(what, sizeof what, "token %s, %s", dtype_names[dtype], name);
        if (!wanted(&w)) continue;
        shape.output_dtype = shape.embedding_dtype = (tiny_dtype)dtype;
        for (uint32_t i = 0; i < shape.layers; i++) shape.x_dtype[i] = shape.h_dtype[i] = (tiny_dtype)dtype;
        tiny_model *file = tiny_new(&shape);
        for (size_t level = 0; level < fl_isa_count(); level++) {
            if (!fl_isa_supported(level)) continue;
            fl_model *model = open_or_exit(file, fl_isa_name(level), 64 << 20, 1);
            w.state = state_or_exit(model);
            w.decoder = decoder_or_exit(model);
            w.bytes = all_weights(model);
            print_speed(&w, fl_isa_name(level), fastest(&w));
            fl_decoder_free(w.decoder);
            fl_state_free(w.state);
            fl_model_close(model);
        }
        tiny_free(file);
    }
}

/* Room for everything that is neither weights nor columns. */
static void bench_room(work *w, size_t floats) {
    for (size_t j = 0; j < FL_MOST_COLUMNS; j++) {
        w->start[j] = w->out[j] = fl_os_alloc(4 * floats);
        w->h[j] = fl_os_alloc(4 * floats);
        w->c[j] = fl_os_alloc(4 * floats);
        if (!w->start[j] || !w->h[j] || !w->c[j]) exit(2);
    }
}

static void bench(uint64_t *random, const char *only) {
    enum { WEIGHTS = 1 << 26, ROOM = 1 << 15 };
    uint8_t *weights = fl_os_alloc(WEIGHTS);
    int32_t *ids = fl_os_alloc(4 * ROOM);
    work w = {.only = only};
    if (!weights || !ids) exit(2);
    memset(weights, 0, WEIGHTS); /* pages of its own */
    bench_room(&w, ROOM);
    printf("GB/s: of weights (update: gates; choose, mass: logits). Fraction of the speed of plain loads over the same "
           "bytes in\n"
           "the same run ('reading'). Cycles: of time, at the rate of additions that wait for one another.\n"
           "  %-36s %-10s %11s %9s %9s %9s %9s %9s\n",
           "", "", "us", "GB/s", "fraction", "G madd/s", "madd/cyc", "cyc/byte");
    bench_product(w, 96, 256, weights);
    bench_product(w, 1024, 256, weights);
    bench_product(w, 2600, 650, weights);
    bench_product(w, 10000, 650, weights);
    bench_update(w, 650, 1);
    bench_update(w, 650, 8);
    bench_update(w, 650, FL_MOST_COLUMNS);
    bench_choices(w, w.c[0], ids, 96, random);
    bench_choices(w, w.c[0], ids, 10000, random);
    w.what = "logarithm", w.once = once_logarithm, w.bytes = 4, w.logits = w.c[0];
    bench_levels(w);
    bench_token(w, "V 96, H 256", (tiny_shape){.vocab = 96, .embedding = 64, .layers = 1, .units = {256}});
    bench_token(w, "V 10000, H 650 x 2",
                (tiny_shape){.vocab = 10000, .embedding = 650, .layers = 2, .units = {650, 650}});
}

#endif
