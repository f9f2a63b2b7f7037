/* SPDX-License-Identifier: Apache-2.0
 *
 * What every kernel reaches, against the speed at which this core reads the same amount of memory. */
#ifndef BENCH_KERNELS_H
#define BENCH_KERNELS_H

#include "check_model.h"

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

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
#endif

/* The widest loads that this processor has. */
static uint64_t read_memory(const void *memory, size_t size) {
#if defined(FL_X86)
    if (fl_isa_supported(2)) return read512(memory, size);
    if (fl_isa_supported(1)) return read256(memory, size);
#endif
    return read128(memory, size);
}

/* ---- one measurement ------------------------------------------------------------------------------------ */

typedef struct work {
    const fl_kernels *kernels; /* NULL: read the weights only */
    const char *what;
    void (*once)(const struct work *w);
    size_t bytes; /* that are read */
    fl_matrix matrix;
    fl_lstm layer;
    float *in, *out; /* room for everything else */
    int32_t *ids;
    size_t n;
    float temperature;
    fl_session *session;
} work;

static volatile uint64_t sink;

/* Fastest of five runs of about a tenth of a second, seconds a call. */
static double fastest(const work *w) {
    size_t calls = 1;
    double best = 1e9;
    for (int run = 0; run < 5;) {
        const double begin = seconds();
        for (size_t i = 0; i < calls; i++) w->once(w);
        const double each = (seconds() - begin) / (double)calls;
        if (each * (double)calls < 0.05 && calls < 1u << 28) {
            calls *= 2;
            continue;
        }
        best = each < best ? each : best;
        run++;
    }
    return best;
}

static void once_read(const work *w) { sink = read_memory(w->matrix.weights, w->bytes); }
static void once_product(const work *w) { w->kernels->product(&w->matrix, w->in, w->in, w->out); }
static void once_cell(const work *w) {
    w->kernels->cell(&w->layer, w->in, w->layer.x.weights ? w->in : NULL, w->in, w->out, w->out + 16 * w->layer.groups);
}
static void once_choose(const work *w) {
    static fl_noise noise = {{1, 2}, {3, 4, 5}};
    noise.counter[0]++;
    sink = (uint64_t)w->kernels->choose(w->in, w->ids, w->n, w->temperature, &noise);
}
static void once_mass(const work *w) { sink = w->kernels->mass(w->in, w->n, 1, 1, NULL); }
static void once_logarithm(const work *w) { w->out[0] = w->kernels->logarithm(w->in[0] + 2); }
static void once_token(const work *w) {
    const fl_sampling greedy = {0, 0, 1, 0, 0};
    int32_t token = 0;
    fl_finish finish;
    fl_generate(w->session, &token, 1, &greedy, NULL, 0, 1, &token, NULL, &finish);
}

static void bench_levels(work w, double reading) {
    for (size_t level = 0; level < fl_isa_count(); level++) {
        fl_error error;
        if (!fl_isa_supported(level) || fl_cpu_choose(fl_isa_name(level), &w.kernels, &error)) continue;
        const double each = fastest(&w), speed = (double)w.bytes / each;
        printf("  %-30s %-8s %12.0f ns %8.2f GB/s", w.what, w.kernels->name, 1e9 * each, 1e-9 * speed);
        if (reading > 0) printf("   %5.2f of reading", speed / reading);
        printf("\n");
    }
}

/* ---- all ----------------------------------------------------------------------------------------------- */

static double bench_reading(work w) {
    w.once = once_read;
    const double speed = (double)w.bytes / fastest(&w);
    printf("  %-30s %-8s %12.0f ns %8.2f GB/s\n", w.what, "reading", 1e9 * (double)w.bytes / speed, 1e-9 * speed);
    return speed;
}

static void bench_product(work w, const char *what, size_t rows, size_t K, const float *weights) {
    const size_t panels = (rows + 15) / 16;
    w.what = what;
    w.bytes = panels * 64 * K;
    w.matrix = (fl_matrix){weights, panels, K};
    const double reading = bench_reading(w);
    w.once = once_product;
    bench_levels(w, reading);
}

static void bench_cell(work w, const char *what, size_t units, size_t inputs, const float *weights) {
    const size_t groups = (units + 15) / 16, x_floats = 64 * groups * inputs;
    w.what = what;
    w.bytes = (x_floats + 64 * groups * units) * sizeof(float);
    w.matrix.weights = weights;
    w.layer = (fl_lstm){{inputs ? weights : NULL, 4 * groups, inputs},
                        {weights + x_floats, 4 * groups, units},
                        NULL,
                        groups,
                        (uint32_t)units};
    const double reading = bench_reading(w);
    w.once = once_cell;
    bench_levels(w, reading);
}

static void bench_choices(work w, size_t n) {
    char what[64];
    w.n = n;
    w.bytes = 4 * n;
    w.what = what;
    snprintf(what, sizeof what, "choose greedy, V %zu", n);
    w.once = once_choose;
    bench_levels(w, 0);
    snprintf(what, sizeof what, "choose with noise, V %zu", n);
    w.temperature = 1;
    bench_levels(w, 0);
    snprintf(what, sizeof what, "choose from list, %zu", n);
    for (size_t i = 0; i < tiny_up(n, 16); i++) w.ids[i] = i < n ? (int32_t)(3 * i) : INT32_MAX;
    bench_levels(w, 0);
    snprintf(what, sizeof what, "mass, V %zu", n);
    w.once = once_mass;
    bench_levels(w, 0);
}

static void bench_token(const char *what, const tiny_shape *shape) {
    tiny_model *file = tiny_new(shape);
    for (size_t level = 0; level < fl_isa_count(); level++) {
        if (!fl_isa_supported(level)) continue;
        fl_model *model = open_or_exit(file->bytes, file->size, fl_isa_name(level), 64 << 20);
        const work w = {.once = once_token, .session = session_or_exit(model)};
        const double each = fastest(&w);
        printf("  %-30s %-8s %12.0f ns %8.0f tokens/s\n", what, fl_isa_name(level), 1e9 * each, 1 / each);
        fl_session_free(w.session);
        fl_model_close(model);
    }
    tiny_free(file);
}

static void bench(uint64_t *random) {
    enum { WEIGHTS = 16 << 20, ROOM = 1 << 17 };
    float *weights = fl_os_alloc(4 * (size_t)WEIGHTS);
    work w = {.in = fl_os_alloc(4 * ROOM), .out = fl_os_alloc(4 * ROOM), .ids = fl_os_alloc(4 * ROOM)};
    if (!weights || !w.in || !w.out || !w.ids) exit(2);
    for (size_t i = 0; i < WEIGHTS; i++) weights[i] = 0.05f * uniform(random);
    for (size_t i = 0; i < ROOM; i++) w.in[i] = uniform(random);
    printf("GB/s are of weights (or logits) read; 'reading' is plain loads over the same bytes, in the same run:\n");
    bench_product(w, "product 96 x 256", 96, 256, weights);
    bench_product(w, "product 1024 x 256", 1024, 256, weights);
    bench_product(w, "product 2600 x 650", 2600, 650, weights);
    bench_product(w, "product 10000 x 650", 10000, 650, weights);
    bench_cell(w, "cell 256, inputs done", 256, 0, weights);
    bench_cell(w, "cell 650, inputs done", 650, 0, weights);
    bench_cell(w, "cell 650, inputs 650", 650, 650, weights);
    for (size_t i = 0; i < ROOM; i++) w.in[i] = i < 96 ? w.in[i] : -INFINITY;
    bench_choices(w, 96);
    for (size_t i = 0; i < ROOM; i++) w.in[i] = i < 10000 ? uniform(random) : -INFINITY;
    bench_choices(w, 10000);
    w.what = "logarithm", w.once = once_logarithm, w.bytes = 4;
    bench_levels(w, 0);
    bench_token(
        "token, V 96, H 256",
        &(tiny_shape){
            .vocab = 96, .embedding = 64, .layers = 1, .units = {256}, .alignment = 64, .scale = 1, .output_scale = 1});
    bench_token("token, V 10000, H 650 x 2", &(tiny_shape){.vocab = 10000,
                                                           .embedding = 650,
                                                           .layers = 2,
                                                           .units = {650, 650},
                                                           .alignment = 64,
                                                           .scale = 1,
                                                           .output_scale = 1});
    fl_os_free(weights, 4 * (size_t)WEIGHTS);
    fl_os_free(w.in, 4 * ROOM);
    fl_os_free(w.out, 4 * ROOM);
    fl_os_free(w.ids, 4 * ROOM);
}

#endif
