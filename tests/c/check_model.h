/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole models: the same bits whatever the level, the cut of the prompt, the store of gate rows and the
 * caller's floating-point mode; the sampler against a naive one; nothing taken from the system per token. */
#ifndef CHECK_MODEL_H
#define CHECK_MODEL_H

#include "check_elementary.h"
#include "harness.h"
#include "tiny_model.h"

#include <fenv.h>
#include <sys/wait.h>
#if defined(__linux__)
#include <linux/seccomp.h>
#include <sys/prctl.h>
#endif

/* ---- models ------------------------------------------------------------------------------------------- */

static fl_model *open_or_exit(const void *bytes, size_t size, const char *isa, size_t cache) {
    const fl_load_options options = {isa, cache};
    fl_model *model;
    fl_error error;
    if (fl_model_from_memory(bytes, size, &options, &model, &error)) {
        printf("a valid model does not load: %s\n", error.message);
        exit(2);
    }
    return model;
}

static fl_session *session_or_exit(const fl_model *model) {
    fl_session *session;
    fl_error error;
    if (fl_session_new(model, &session, &error)) exit(2);
    return session;
}

/* Sizes up to `most`, odd ones and those around a panel's border among them. */
static uint32_t random_size(uint64_t *random, uint32_t most) {
    const uint32_t multiple = 16 * (1 + (uint32_t)below(random, most / 16)), kind = (uint32_t)below(random, 4);
    return kind == 0   ? 1 + (uint32_t)below(random, 4)
           : kind == 1 ? multiple - 1 + (uint32_t)below(random, 3)
                       : 1 + (uint32_t)below(random, most);
}

static tiny_shape random_shape(uint64_t *random, uint32_t most) {
    static const float scales[] = {1, 4, 40};
    tiny_shape s = {.vocab = random_size(random, most), .embedding = random_size(random, most), .alignment = 64};
    s.layers = 1 + (uint32_t)below(random, TINY_LAYERS);
    for (uint32_t i = 0; i < s.layers; i++) s.units[i] = random_size(random, most);
    s.tied = below(random, 2);
    if (s.tied) s.embedding = s.units[s.layers - 1];
    s.scale = s.output_scale = scales[below(random, 3)];
    if (below(random, 4) == 0) s.output_scale = 0x1p-138f; /* denormal logits: a flush to zero would show */
    s.seed = next_random(random);
    return s;
}

/* ---- the caller's floating-point mode ------------------------------------------------------------------ */

enum { MODE_DEFAULT, MODE_FLUSH, MODE_UP, MODE_DOWN, MODE_ZERO, MODE_TRAPS, MODES };
static const char *const mode_names[] = {"default",    "flush to zero", "round up",
                                         "round down", "round to zero", "traps"};

static void set_mode(int mode) {
    fesetenv(FE_DFL_ENV);
    if (mode == MODE_UP) fesetround(FE_UPWARD);
    if (mode == MODE_DOWN) fesetround(FE_DOWNWARD);
    if (mode == MODE_ZERO) fesetround(FE_TOWARDZERO);
#if defined(__x86_64__)
    if (mode == MODE_FLUSH) __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040); /* FTZ and DAZ */
#endif
#if defined(__GLIBC__)
    if (mode == MODE_TRAPS) feenableexcept(FE_DIVBYZERO | FE_INVALID | FE_OVERFLOW | FE_UNDERFLOW | FE_INEXACT);
#endif
}

/* All that we can see of the mode, as one number. */
static uint32_t seen_mode(void) {
    uint32_t seen = (uint32_t)fegetround();
#if defined(__x86_64__)
    seen ^= __builtin_ia32_stmxcsr() << 12;
#endif
    return seen;
}

/* ---- a trace: all that a model says, in one way of asking ------------------------------------------------ */

typedef struct way {
    const char *isa;
    size_t cache; /* row_cache_bytes */
    size_t chunk; /* tokens a call */
    int mode;
} way;

typedef struct trace {
    uint32_t *words; /* owned: bits of everything */
    size_t size, room;
    size_t taken; /* calls of malloc, free, mmap while computing */
    bool mode_kept;
} trace;

static void trace_room(trace *t, size_t words) {
    t->words = realloc(t->words, 4 * words);
    t->room = words;
    if (!t->words) exit(2);
}

static void trace_add(trace *t, const void *words, size_t n) {
    memcpy(t->words + t->size, words, 4 * n);
    t->size += n;
}

static const fl_sampling samplings[] = {
    {0, 0, 1.0, 1, 0},    {1, 0, 1.0, 2, 0},     {0.8f, 5, 1.0, 3, 1},    {0.8f, 0, 0.9, 1ull << 40, 2},
    {1.3f, 7, 0.5, 5, 3}, {1000, 0, 0.99, 6, 4}, {1e-6f, 3, 0.999, 7, 5}, {1, 1, 1.0, UINT64_MAX, UINT32_MAX},
};
enum { SAMPLINGS = sizeof samplings / sizeof *samplings, DRAWN = 8, TRACE_STOPS = 3 };

/* Calls the core: counts what it takes, and sees whether the mode is the caller's again. */
#define CALL(t, expression)                                                                                            \
    do {                                                                                                               \
        const uint32_t before = seen_mode();                                                                           \
        watch_begin();                                                                                                 \
        expression;                                                                                                    \
        (t)->taken += watch_end();                                                                                     \
        (t)->mode_kept = (t)->mode_kept && seen_mode() == before;                                                      \
    } while (0)

static void trace_feed(trace *t, fl_session *session, const int32_t *tokens, size_t n, size_t chunk) {
    for (size_t at = 0; at < n; at += chunk) CALL(t, fl_feed(session, tokens + at, chunk < n - at ? chunk : n - at));
}

static void trace_logits(trace *t, fl_session *session, const int32_t *tokens, size_t n, size_t chunk, uint32_t V) {
    const float *logits;
    for (size_t stop = 1; stop <= TRACE_STOPS; stop++) {
        const size_t begin = n * (stop - 1) / TRACE_STOPS, end = n * stop / TRACE_STOPS;
        trace_feed(t, session, tokens + begin, end - begin, chunk);
        CALL(t, logits = fl_logits(session));
        trace_add(t, logits, V);
    }
}

static void trace_scores(trace *t, fl_session *session, const int32_t *tokens, size_t n, size_t chunk) {
    fl_session_reset(session);
    for (size_t at = 0; at < n; at += chunk) {
        float *out = (float *)(void *)(t->words + t->size);
        const size_t part = chunk < n - at ? chunk : n - at;
        CALL(t, fl_score(session, tokens + at, part, out));
        t->size += part;
    }
}

/* The prompt's last chunk goes in with fl_generate itself. */
static void trace_drawn(trace *t, fl_session *session, const int32_t *tokens, size_t n, size_t chunk) {
    for (size_t i = 0; i < SAMPLINGS; i++) {
        const size_t last = chunk < n ? chunk : n;
        int32_t drawn[DRAWN + 1] = {0};
        float scores[DRAWN] = {0};
        fl_finish finish;
        size_t written;
        fl_session_reset(session);
        trace_feed(t, session, tokens, n - last, chunk);
        CALL(t, written = fl_generate(session, tokens + n - last, last, &samplings[i], NULL, 0, DRAWN, drawn, scores,
                                      &finish));
        drawn[DRAWN] = (int32_t)(16 * written + finish);
        trace_add(t, drawn, DRAWN + 1);
        trace_add(t, scores, DRAWN);
    }
}

static trace run(const tiny_model *file, const int32_t *tokens, size_t n, way w) {
    fl_model *model = open_or_exit(file->bytes, file->size, w.isa, w.cache);
    fl_session *session = session_or_exit(model);
    fl_model_info info;
    fl_model_get_info(model, &info);
    trace t = {.mode_kept = true};
    trace_room(&t, TRACE_STOPS * info.vocab_size + n + SAMPLINGS * (2 * DRAWN + 1));
    set_mode(w.mode);
    trace_logits(&t, session, tokens, n, w.chunk, info.vocab_size);
    trace_scores(&t, session, tokens, n, w.chunk);
    trace_drawn(&t, session, tokens, n, w.chunk);
    set_mode(MODE_DEFAULT);
    fl_session_free(session);
    fl_model_close(model);
    return t;
}

static void compare_way(const tiny_model *file, const int32_t *tokens, size_t n, way w, const trace *expected) {
    trace t = run(file, tokens, n, w);
    size_t at = 0;
    while (at < t.size && at < expected->size && t.words[at] == expected->words[at]) at++;
    const char *const how = mode_names[w.mode];
    check(t.size == expected->size && at == t.size, "%s, cache %zu, chunks of %zu, mode %s: word %zu of %zu differs",
          w.isa, w.cache, w.chunk, how, at, t.size);
    check(t.mode_kept, "%s: the caller's mode '%s' is not restored", w.isa, how);
    check(t.taken == 0, "%s, cache %zu: %zu calls of malloc, free or mmap while computing", w.isa, w.cache, t.taken);
    free(t.words);
}

/* Against the scalar level, default mode, one token a call, no store. */
static void check_ways(const tiny_shape *shape, size_t n, uint64_t *random) {
    tiny_model *file = tiny_new(shape);
    int32_t *tokens = malloc(n * sizeof *tokens);
    for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)below(random, shape->vocab);
    const size_t row = 4 * 16 * tiny_panels(shape->units[0]) * sizeof(float);
    const size_t caches[] = {0, 1 << 24, row - 1, row, 3 * row}, chunks[] = {1, 2, 7, n};
    trace expected = run(file, tokens, n, (way){"scalar", 0, 1, MODE_DEFAULT});
    for (size_t level = 0; level < fl_isa_count(); level++) {
        if (!fl_isa_supported(level)) continue;
        const char *isa = fl_isa_name(level);
        compare_way(file, tokens, n, (way){isa, 0, 1, MODE_DEFAULT}, &expected);
        for (size_t i = 1; i < 5; i++) compare_way(file, tokens, n, (way){isa, caches[i], 1, MODE_DEFAULT}, &expected);
        for (size_t i = 1; i < 4; i++) compare_way(file, tokens, n, (way){isa, 0, chunks[i], MODE_DEFAULT}, &expected);
        for (int mode = 1; mode < MODES; mode++)
            compare_way(file, tokens, n, (way){isa, caches[mode % 5], chunks[mode % 4], mode}, &expected);
    }
    free(expected.words);
    free(tokens);
    tiny_free(file);
}

/* ---- the session's small promises ---------------------------------------------------------------------- */

static bool same_logits(fl_session *a, fl_session *b, uint32_t V) {
    return memcmp(fl_logits(a), fl_logits(b), 4 * V) == 0;
}

static void check_definition(const fl_model *model, uint64_t *random, uint32_t V) {
    enum { N = 6 };
    int32_t tokens[N];
    fl_session *session = session_or_exit(model);
    float *expected = malloc(V * sizeof *expected);
    for (size_t n = 0; n < N; n++) {
        const float *found = fl_logits(session);
        naive_logits(model, tokens, n, expected);
        check(memcmp(found, expected, V * sizeof *found) == 0, "logits after %zu tokens are not the definition's", n);
        for (size_t i = V; i < tiny_up(V, FL_BLOCK); i++)
            check(found[i] == -INFINITY, "logit %zu, which pads the vocabulary, is %g", i, (double)found[i]);
        tokens[n] = (int32_t)below(random, V);
        fl_feed(session, &tokens[n], 1);
    }
    free(expected);
    fl_session_free(session);
}

static void check_state(const fl_model *model, uint64_t *random, uint32_t V) {
    fl_session *a = session_or_exit(model), *b = session_or_exit(model), *fresh = session_or_exit(model);
    int32_t tokens[5];
    for (int i = 0; i < 5; i++) tokens[i] = (int32_t)below(random, V);
    fl_feed(a, tokens, 5);
    fl_feed(b, tokens, 2);
    check(fl_session_position(a) == 5 && fl_session_position(b) == 2, "position after reading");
    fl_session_copy(b, a);
    check(fl_session_position(b) == 5 && same_logits(a, b, V), "a copied state differs");
    fl_feed(a, tokens, 1);
    fl_feed(b, tokens, 1);
    check(same_logits(a, b, V), "a copied state goes on differently");
    fl_session_reset(a);
    check(fl_session_position(a) == 0 && same_logits(a, fresh, V), "a reset state is not a fresh one");
    fl_session_free(a);
    fl_session_free(b);
    fl_session_free(fresh);
}

/* A stop token ends the text before itself; scores are those of fl_score; texts go on where they ended. */
static void check_generate(const fl_model *model, uint64_t *random, uint32_t V) {
    enum { N = 12 };
    const fl_sampling sampling = {0.9f, 0, 1.0, next_random(random), 0};
    const int32_t prompt = (int32_t)below(random, V);
    int32_t all[N], part[N];
    float scores[N], again[N];
    fl_finish finish;
    fl_session *session = session_or_exit(model);
    check(fl_generate(session, &prompt, 1, &sampling, NULL, 0, N, all, scores, &finish) == N &&
              finish == FL_FINISH_LENGTH,
          "length of a text");
    fl_session_reset(session);
    fl_feed(session, &prompt, 1);
    fl_score(session, all, N, again);
    check(memcmp(scores, again, sizeof scores) == 0, "generate and score give different log-probabilities");
    fl_session_reset(session);
    const int32_t stops[2] = {(int32_t)V, all[N / 2]};
    size_t first = 0;
    while (all[first] != stops[1]) first++;
    size_t n = fl_generate(session, &prompt, 1, &sampling, stops, 2, N, part, NULL, &finish);
    check(n == first && finish == FL_FINISH_STOP && memcmp(all, part, 4 * n) == 0, "a stop token at %zu: %zu drawn",
          first, n);
    fl_session_reset(session);
    n = fl_generate(session, &prompt, 1, &sampling, NULL, 0, 5, part, NULL, &finish);
    n += fl_generate(session, &part[4], 1, &sampling, NULL, 0, N - 5, part + 5, NULL, &finish);
    check(n == N && memcmp(all, part, sizeof all) == 0, "a text in two calls differs");
    fl_session_free(session);
}

static void check_test_vector(tiny_model *file, const char *isa) {
    fl_model *model = open_or_exit(file->bytes, file->size, isa, 0);
    fl_session *session = session_or_exit(model);
    fl_error error;
    double largest, tolerance;
    float logprobs[TINY_TEST];
    int32_t tokens[TINY_TEST];
    fl_model_info info;
    fl_model_get_info(model, &info);
    for (int32_t i = 0; i < TINY_TEST; i++) tokens[i] = (7 * i + 1) % (int32_t)info.vocab_size;
    fl_score(session, tokens, TINY_TEST, logprobs);
    fl_session_free(session);
    fl_model_close(model);
    for (int wrong = -1; wrong < TINY_TEST - 1; wrong++) { /* not a number must count, wherever it stands */
        float expected[TINY_TEST - 1];
        memcpy(expected, logprobs + 1, sizeof expected);
        if (wrong >= 0) expected[wrong] = NAN;
        tiny_set_test(file, expected);
        model = open_or_exit(file->bytes, file->size, isa, 0);
        set_mode(MODE_TRAPS);
        const fl_status status = fl_model_verify(model, &largest, &tolerance, &error);
        set_mode(MODE_DEFAULT);
        check(status == FL_OK && (wrong < 0 ? largest == 0 : !(largest <= tolerance)), "test vector, NaN at %d: %g",
              wrong, largest);
        fl_model_close(model);
    }
}

/* ---- the sampler against a naive one -------------------------------------------------------------------- */

typedef struct ranked {
    float logit;
    int32_t id;
} ranked;

static int by_rank(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

/* The definition: sort, keep a run from the front, add noise, take the largest. */
static int32_t naive_sample(const float *logits, uint32_t V, const fl_sampling *s, const fl_noise *noise) {
    ranked *list = malloc(V * sizeof *list);
    for (uint32_t i = 0; i < V; i++) list[i] = (ranked){logits[i], (int32_t)i};
    qsort(list, V, sizeof *list, by_rank);
    uint32_t kept = s->temperature == 0 ? 1 : s->top_k && s->top_k < V ? s->top_k : V;
    if (s->temperature > 0 && s->top_p < 1) {
        const float inverse = 1.0f / s->temperature, scale = inverse < 0x1p60f ? inverse : 0x1p60f;
        uint64_t total = 0, sum = 0;
        uint32_t term, n = 0;
        for (uint32_t i = 0; i < kept; i++)
            total += fl_kernels_reference.mass(&list[i].logit, 1, list[0].logit, scale, NULL);
        const double exact = s->top_p * (double)total;
        while (n < kept && ((double)sum < exact || sum == 0)) {
            fl_kernels_reference.mass(&list[n++].logit, 1, list[0].logit, scale, &term);
            sum += term;
        }
        kept = n;
    }
    float best = -INFINITY;
    int32_t winner = list[0].id;
    for (uint32_t i = 0; s->temperature > 0 && i < kept; i++) {
        const float key = fmaf(s->temperature, noise_at((uint32_t)list[i].id, noise), list[i].logit);
        if (key > best || (key == best && list[i].id < winner)) best = key, winner = list[i].id;
    }
    free(list);
    return winner;
}

/* Logits of every kind that makes a selection hard: sorted either way, many equal, far apart, signed zeros. */
enum { HARD_KINDS = 8, EQUAL = 5 };

static void hard_logits(float *logits, uint32_t V, int kind, uint64_t *random) {
    for (uint32_t i = 0; i < V; i++) {
        const float r = uniform(random);
        const float values[] = {3 * r,
                                (float)i * 0.01f,
                                (float)(V - i) * 0.01f,
                                (float)below(random, 4),
                                0x1p80f * r,
                                r < 0 ? -0.0f : 0.0f,
                                1e-3f * r,
                                r < 0.9f ? -100 + r : r};
        logits[i] = values[kind];
    }
}

/* Shares at the very border of a run: of n equal tokens j, half a unit of mass less, or half a unit more. */
static double border_share(uint32_t n, uint64_t *random) {
    const double unit = 0x1p30, half = 0.5 * (double)((int)below(random, 3) - 1);
    return ((double)below(random, n) * unit + unit + half) / ((double)n * unit);
}

static fl_sampling random_sampling(uint32_t V, bool equal_logits, uint64_t *random) {
    static const float temperatures[] = {0, 1, 0.7f, 1.5f, 1000, 1e-3f, 1e-30f};
    static const double shares[] = {1, 0.9, 0.5, 0.999999, 1e-9, 0.1};
    const uint32_t ks[] = {0, 1, 2, 5, V / 2, V, V + 1, 1 + (uint32_t)below(random, V)};
    fl_sampling s = {.temperature = temperatures[below(random, 7)], .top_k = ks[below(random, 8)]};
    s.top_p = equal_logits ? border_share(s.top_k && s.top_k < V ? s.top_k : V, random) : shares[below(random, 6)];
    s.seed = next_random(random);
    s.index = (uint32_t)next_random(random);
    return s;
}

static void check_sampler(const fl_model *model, uint64_t *random, uint32_t V, int rounds) {
    fl_session *session = session_or_exit(model);
    for (int round = 0; round < rounds; round++) {
        const int kind = round % HARD_KINDS;
        const fl_sampling s = random_sampling(V, kind == EQUAL, random);
        hard_logits(session->logits, V, kind, random);
        for (uint32_t i = V; i < tiny_up(V, 64); i++) session->logits[i] = -INFINITY;
        session->state.position = next_random(random) >> 10 >> below(random, 50);
        const uint64_t position = session->state.position;
        const fl_noise noise = {{(uint32_t)s.seed, (uint32_t)(s.seed >> 32)},
                                {(uint32_t)position, s.index, (uint32_t)(position >> 32) << 8}};
        const int32_t expected = naive_sample(session->logits, V, &s, &noise), found = fl_sample(session, &s);
        check(found == expected, "%s, V %u, kind %d, T %g, k %u, p %.17g: %d, expected %d", model->kernels->name, V,
              kind, (double)s.temperature, s.top_k, s.top_p, found, expected);
    }
    fl_session_free(session);
}

/* ---- nothing but arithmetic ---------------------------------------------------------------------------- */

/* In Linux' strict mode any system call but read, write and exit kills. */
static void check_no_system_calls(const fl_model *model) {
#if defined(__linux__) && defined(WATCH_MMAP)
    fl_session *session = session_or_exit(model);
    int32_t tokens[16] = {0};
    float scores[16];
    fl_finish finish;
    int status = 0;
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)) syscall(SYS_exit, 77); /* not allowed here */
        fl_feed(session, tokens, 4);
        fl_score(session, tokens, 4, scores);
        for (size_t i = 0; i < SAMPLINGS; i++)
            fl_generate(session, tokens, 4, &samplings[i], NULL, 0, 16, tokens, scores, &finish);
        syscall(SYS_exit, 0);
    }
    const bool waited = child > 0 && waitpid(child, &status, 0) == child;
    if (waited && WIFEXITED(status) && WEXITSTATUS(status) == 77)
        printf("not checked here: system calls per token\n");
    else
        check(waited && WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: a system call while computing",
              model->kernels->name);
    fl_session_free(session);
#else
    (void)model;
#endif
}

/* The counter must count, or the checks above prove nothing. */
static void check_watch(void) {
    now("the allocation counter");
#if defined(WATCH_MALLOC)
    void *(*volatile take)(size_t) = malloc; /* compilers think they know what malloc itself cannot change */
    void (*volatile give_back)(void *) = free;
    watch_begin();
    give_back(take(100));
    const size_t calls = watch_end();
    check(calls >= 2 && watch.bytes >= 100, "malloc and free are not seen");
#else
    printf("not checked here: malloc while computing\n");
#endif
#if defined(WATCH_MMAP)
    fl_error error;
    fl_mapping mapping;
    watch_begin();
    if (fl_os_copy("x", 1, &mapping, &error) == FL_OK) fl_os_unmap(&mapping);
    check(watch_end() == 2, "mmap and munmap are not seen");
#else
    printf("not checked here: mmap while computing\n");
#endif
}

/* Each request for memory refused in turn: a clean error, nothing kept. */
static void check_out_of_memory(const tiny_model *file) {
#if defined(WATCH_MMAP)
    const fl_load_options options = {NULL, 1 << 16};
    bool done = false;
    for (size_t n = 1; !done; n++) {
        const int64_t mapped = watch.mapped;
        fl_model *model = NULL;
        fl_session *session = NULL;
        fl_error error;
        now("request %zu for memory refused", n);
        watch.refuse = n;
        fl_status status = fl_model_from_memory(file->bytes, file->size, &options, &model, &error);
        if (!status) status = fl_session_new(model, &session, &error);
        done = watch.refuse > 0; /* all were served */
        watch.refuse = 0;
        check(status == (done ? FL_OK : FL_ERROR_MEMORY), "status %d: %s", status, status ? error.message : "");
        fl_session_free(session);
        fl_model_close(model);
        check(watch.mapped == mapped, "%lld bytes are still mapped", (long long)(watch.mapped - mapped));
    }
#else
    (void)file;
#endif
}

static void check_small_promises(uint64_t *random, int rounds) {
    for (int round = 0; round < rounds; round++) {
        tiny_shape shape = random_shape(random, 100);
        if (round % 4 == 0) shape.vocab = 1000 + (uint32_t)below(random, 3000);
        shape.test = true;
        tiny_model *file = tiny_new(&shape);
        for (size_t level = 0; level < fl_isa_count(); level++) {
            if (!fl_isa_supported(level)) continue;
            fl_model *model = open_or_exit(file->bytes, file->size, fl_isa_name(level), round % 2 << 16);
            now("a model of V %u, %u layers, %s", shape.vocab, shape.layers, fl_isa_name(level));
            check_definition(model, random, shape.vocab);
            check_state(model, random, shape.vocab);
            check_generate(model, random, shape.vocab);
            check_sampler(model, random, shape.vocab, 128);
            check_no_system_calls(model);
            fl_model_close(model);
            check_test_vector(file, fl_isa_name(level));
        }
        check_out_of_memory(file);
        tiny_free(file);
    }
}

static void check_models(uint64_t *random, bool quick) {
    check_watch();
    check_small_promises(random, quick ? 4 : 16);
    for (int round = 0; round < (quick ? 4 : 20); round++) {
        const bool large = round % 10 == 9;
        const tiny_shape shape = random_shape(random, large ? 700 : 80);
        now("a model of V %u, E %u, %u layers of %u…, %s, scale %g, %g", shape.vocab, shape.embedding, shape.layers,
            shape.units[0], shape.tied ? "tied" : "untied", (double)shape.scale, (double)shape.output_scale);
        check_ways(&shape, large ? 5 : 20, random);
    }
}

#endif
