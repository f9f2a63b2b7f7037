/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole models say the same bits whatever the level, the cut of the prompt, the neighbours in a batch, the number of
 * threads, the store of gate rows and the caller's floating-point mode. */
#ifndef CHECK_WAYS_H
#define CHECK_WAYS_H

#include "check_elementary.h"
#include "harness.h"
#include "tiny_model.h"

#include <fenv.h>

/* ---- models ------------------------------------------------------------------------------------------- */

static fl_model *open_or_exit(const tiny_model *file, const char *isa, size_t cache, uint32_t threads) {
    const fl_load_options options = {.isa = isa, .row_cache_bytes = cache, .threads = threads};
    fl_model *model;
    fl_error error;
    if (fl_model_from_memory(file->bytes, file->size, &options, &model, &error)) {
        printf("a valid model does not load: %s: %s\n", doing, error.message);
        exit(2);
    }
    return model;
}

static fl_state *state_or_exit(const fl_model *model) {
    fl_state *state;
    fl_error error;
    if (fl_state_new(model, &state, &error)) exit(2);
    return state;
}

enum { REMEMBERED = 400 }; /* tokens, at most */

static fl_memory *memory_or_exit(const fl_model *model) {
    fl_memory *memory;
    fl_error error;
    if (fl_memory_new(model, 40, &memory, &error) || fl_memory_reserve(memory, REMEMBERED, &error)) exit(2);
    return memory;
}

static fl_decoder *decoder_or_exit(const fl_model *model) {
    fl_decoder *decoder;
    fl_error error;
    if (fl_decoder_new(model, &decoder, &error)) exit(2);
    return decoder;
}

/* Sizes up to `most`, odd ones and those around a panel's border among them. */
static uint32_t random_size(uint64_t *random, uint32_t most) {
    const uint32_t multiple = 16 * (1 + (uint32_t)below(random, most / 16)), kind = (uint32_t)below(random, 4);
    return kind == 0   ? 1 + (uint32_t)below(random, 4)
           : kind == 1 ? multiple - 1 + (uint32_t)below(random, 3)
                       : 1 + (uint32_t)below(random, most);
}

/* Every matrix in its own way, or all in one. */
static void random_dtypes(tiny_shape *s, uint64_t *random) {
    const bool alike = below(random, 2);
    const tiny_dtype one = (tiny_dtype)below(random, TINY_DTYPES);
    s->embedding_dtype = alike ? one : (tiny_dtype)below(random, TINY_DTYPES);
    s->output_dtype = alike ? one : (tiny_dtype)below(random, TINY_DTYPES);
    for (uint32_t i = 0; i < s->layers; i++) {
        s->x_dtype[i] = alike ? one : (tiny_dtype)below(random, TINY_DTYPES);
        s->h_dtype[i] = alike ? one : (tiny_dtype)below(random, TINY_DTYPES);
    }
}

static tiny_shape random_shape(uint64_t *random, uint32_t most) {
    static const float scales[] = {1, 4, 40};
    tiny_shape s = {.vocab = random_size(random, most), .embedding = random_size(random, most)};
    s.layers = 1 + (uint32_t)below(random, TINY_LAYERS);
    for (uint32_t i = 0; i < s.layers; i++) s.units[i] = random_size(random, most);
    random_dtypes(&s, random);
    s.tied = below(random, 2);
    s.spread = below(random, 2);
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

/* ---- requests ------------------------------------------------------------------------------------------ */

enum { DRAWN = 8 };

/* A request and all that it points to. */
typedef struct asking {
    fl_request request;
    fl_sampling sampling;
    int32_t tokens[DRAWN];
    float logprobs[DRAWN];
} asking;

/* A sample index of every kind; the fingerprint promises texts with these. */
static uint32_t index_of(uint64_t seed) {
    return seed == UINT64_MAX ? UINT32_MAX : seed >> 40 ? 2 : seed < 2 ? 0 : (uint32_t)seed - 2;
}

/* memory: NULL, or what has been read so far is in it. */
static void ask(asking *a, fl_state *state, fl_memory *memory, const int32_t *prompt, size_t n, fl_sampling sampling,
                uint64_t seed, size_t max_tokens) {
    memset(a->tokens, 0xFF, sizeof a->tokens);
    memset(a->logprobs, 0xFF, sizeof a->logprobs);
    a->sampling = sampling;
    if (memory) fl_memory_add(memory, prompt, n, 0);
    a->request = (fl_request){.state = state,
                              .memory = memory,
                              .prompt = prompt,
                              .n_prompt = n,
                              .sampling = &a->sampling,
                              .seed = seed,
                              .index = index_of(seed),
                              .max_tokens = max_tokens,
                              .tokens = a->tokens,
                              .logprobs = a->logprobs,
                              .written = 99,
                              .finish = (fl_finish)99};
}

/* One request by itself. */
static void generate(fl_decoder *decoder, asking *a) {
    fl_request request = a->request;
    fl_generate(decoder, &request, 1, 0);
    a->request = request;
}

static const int32_t few_ids[] = {0};
static const float few_biases[] = {1.5f};

/* The first PROMISED are in the fingerprint, the first MEMORYLESS need no memory. */
static const fl_sampling samplings[] = {
    {0},
    {.temperature = 1},
    {.temperature = 0.8f, .steps = {FL_TEMPERATURE, FL_TOP_K}, .top_k = 5},
    {.temperature = 0.8f, .steps = {FL_TEMPERATURE, FL_TOP_P}, .top_p = 0.9},
    {.temperature = 1.3f, .steps = {FL_TEMPERATURE, FL_TOP_K, FL_TOP_P}, .top_k = 7, .top_p = 0.5},
    {.temperature = 1000, .steps = {FL_TEMPERATURE, FL_TOP_P}, .top_p = 0.99},
    {.temperature = 1e-6f, .steps = {FL_TOP_P, FL_TOP_K}, .top_k = 3, .top_p = 0.999},
    {.temperature = 1, .steps = {FL_TEMPERATURE, FL_TOP_K}, .top_k = 1},
    {.temperature = 1, .steps = {FL_TEMPERATURE, FL_MIN_P, FL_TYPICAL_P}, .min_p = 0.02f, .typical_p = 0.7},
    {.temperature = 2,
     .steps = {FL_TOP_N_SIGMA, FL_TEMPERATURE, FL_EPSILON_CUTOFF, FL_ETA_CUTOFF},
     .top_n_sigma = 2,
     .epsilon_cutoff = 0.002f,
     .eta_cutoff = 0.01f},
    {.temperature = 1,
     .steps = {FL_XTC, FL_TEMPERATURE, FL_TYPICAL_P},
     .typical_p = 0.9,
     .xtc_probability = 0.5f,
     .xtc_threshold = 0.1f},
    {.temperature = 1.5f,
     .steps = {FL_LOGIT_BIAS, FL_TEMPERATURE, FL_TOP_P, FL_XTC},
     .bias_ids = few_ids,
     .biases = few_biases,
     .n_biases = 1,
     .top_p = 0.95,
     .xtc_probability = 1,
     .xtc_threshold = 0.05f},
    {.temperature = 0.9f,
     .steps = {FL_LOGIT_BIAS, FL_PENALTIES, FL_DRY, FL_TEMPERATURE},
     .bias_ids = few_ids,
     .biases = few_biases,
     .n_biases = 1,
     .repetition_penalty = 1.3f,
     .frequency_penalty = 0.2f,
     .presence_penalty = 0.4f,
     .dry_multiplier = 0.8f,
     .dry_base = 1.75f,
     .dry_allowed_length = 1},
    {.temperature = 1, .steps = {FL_TEMPERATURE, FL_MIROSTAT}, .mirostat_tau = 3, .mirostat_eta = 0.1f},
    {.no_repeat_ngram_size = 2, .stop_repeats = 3},
};
static const uint64_t seeds[] = {1, 2, 3, 1ull << 40, 5, 6, 7, UINT64_MAX, 8, 9, 10, 11, 12, 13, 14};
enum { PROMISED = 8, MEMORYLESS = 12 };
enum { SAMPLINGS = sizeof samplings / sizeof *samplings };

/* ---- a trace: all that a model says, in one way of asking ------------------------------------------------ */

typedef struct way {
    const char *isa;
    size_t cache; /* row_cache_bytes */
    size_t chunk; /* tokens a call */
    int mode;
    size_t batch; /* requests a call */
    uint32_t threads;
} way;

/* What is asked about. */
typedef struct text {
    const tiny_model *file;
    const int32_t *tokens;
    size_t n;
} text;

enum { TRACE_STOPS = 3, TRACE_DRAWN = 2 * DRAWN + 3, MOST_BATCH = 100 };

typedef struct trace {
    uint32_t *words; /* owned: bits of everything */
    size_t size;
    size_t taken; /* calls of malloc, free, mmap while computing */
    bool mode_kept;
} trace;

static void trace_add(trace *t, const void *words, size_t n) {
    memcpy(t->words + t->size, words, 4 * n);
    t->size += n;
}

/* Calls the core: counts what it takes, and sees whether the mode is the caller's again. */
#define CALL(t, expression)                                                                                            \
    do {                                                                                                               \
        const uint32_t before = seen_mode();                                                                           \
        watch_begin();                                                                                                 \
        expression;                                                                                                    \
        (t)->taken += watch_end();                                                                                     \
        (t)->mode_kept = (t)->mode_kept && seen_mode() == before;                                                      \
    } while (0)

/* The room that a way of asking works in. */
typedef struct desk {
    fl_model *model;
    fl_decoder *decoder;
    fl_state *state, *states[MOST_BATCH];
    fl_memory *memories[MOST_BATCH];
    uint32_t V;
} desk;

static desk desk_new(const tiny_model *file, way w) {
    fl_model_info info;
    desk d = {.model = open_or_exit(file, w.isa, w.cache, w.threads)};
    fl_model_get_info(d.model, &info);
    d.V = info.vocab_size;
    d.decoder = decoder_or_exit(d.model);
    d.state = state_or_exit(d.model);
    for (size_t i = 0; i < w.batch; i++) d.states[i] = state_or_exit(d.model);
    for (size_t i = 0; i < w.batch; i++) d.memories[i] = memory_or_exit(d.model);
    fl_logits(d.decoder, d.state); /* a thread's start takes memory, and may be late: not while we count */
    return d;
}

static void desk_free(desk *d) {
    for (size_t i = 0; i < MOST_BATCH; i++) fl_state_free(d->states[i]);
    for (size_t i = 0; i < MOST_BATCH; i++) fl_memory_free(d->memories[i]);
    fl_state_free(d->state);
    fl_decoder_free(d->decoder);
    fl_model_close(d->model);
}

static void trace_feed(trace *t, desk *d, fl_state *state, const int32_t *tokens, size_t n, size_t chunk) {
    for (size_t at = 0; at < n; at += chunk)
        CALL(t, fl_feed(d->decoder, state, tokens + at, chunk < n - at ? chunk : n - at));
}

/* The memory at a place, of so many tokens that were read. */
static fl_memory *remember(const desk *d, size_t place, const int32_t *tokens, size_t n) {
    fl_memory *memory = d->memories[place];
    fl_memory_rewind(memory, 0);
    fl_memory_add(memory, tokens, n, 0);
    return memory;
}

static void trace_logits(trace *t, desk *d, const text *x, way w) {
    const float *logits;
    for (size_t stop = 1; stop <= TRACE_STOPS; stop++) {
        const size_t begin = x->n * (stop - 1) / TRACE_STOPS, end = x->n * stop / TRACE_STOPS;
        trace_feed(t, d, d->state, x->tokens + begin, end - begin, w.chunk);
        CALL(t, logits = fl_logits(d->decoder, d->state));
        trace_add(t, logits, d->V);
    }
}

/* FNV-1a, by words. */
static uint64_t hash_words(uint64_t hash, const void *words, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t word;
        memcpy(&word, (const uint8_t *)words + 4 * i, 4);
        hash = (hash ^ word) * 0x100000001B3;
    }
    return hash;
}

/* Where a state has come to: its position, and one number for the logits. */
static void trace_state(trace *t, desk *d, const fl_state *state) {
    uint32_t words[2] = {(uint32_t)fl_state_position(state)};
    const float *logits;
    CALL(t, logits = fl_logits(d->decoder, state));
    words[1] = (uint32_t)(hash_words(0, logits, d->V) >> 32);
    trace_add(t, words, 2);
}

static void trace_scores(trace *t, desk *d, const text *x, way w) {
    fl_state_reset(d->state);
    for (size_t at = 0; at < x->n; at += w.chunk) {
        float *out = (float *)(void *)(t->words + t->size);
        const size_t part = w.chunk < x->n - at ? w.chunk : x->n - at;
        CALL(t, fl_score(d->decoder, d->state, x->tokens + at, part, out));
        t->size += part;
    }
    trace_state(t, d, d->state);
}

/* The text or, save once, its beginning; a part goes in with the request itself; every third may stop at one of the
 * text's tokens. */
static void ask_traced(trace *t, desk *d, asking *a, size_t place, const text *x, size_t which, way w,
                       uint64_t *random) {
    fl_state *state = d->states[place];
    const size_t n = which && x->n > 20 ? 20 : x->n, lasts[] = {w.chunk, 0, 1, n},
                 last = lasts[w.batch == 1 ? 0 : below(random, 4)], with = last < n ? last : n;
    fl_state_reset(state);
    trace_feed(t, d, state, x->tokens, n - with, w.chunk);
    ask(a, state, remember(d, place, x->tokens, n - with), x->tokens + n - with, with, samplings[which], seeds[which],
        DRAWN);
    if (which % 3 == 2) a->sampling.stop = x->tokens, a->sampling.n_stop = 2;
}

/* Somebody else's: short, other in everything, and gone early. */
static void ask_other(trace *t, desk *d, asking *a, size_t place, const text *x, uint64_t *random) {
    fl_state *state = d->states[place];
    const size_t before = below(random, 3), n = below(random, 4);
    fl_sampling sampling = samplings[below(random, SAMPLINGS)];
    fl_state_reset(state);
    trace_feed(t, d, state, x->tokens, before < x->n ? before : x->n, 1);
    ask(a, state, remember(d, place, NULL, 0), x->tokens, n < x->n ? n : x->n, sampling, next_random(random),
        below(random, DRAWN));
    if (below(random, 2)) a->request.logprobs = NULL;
    if (below(random, 2)) a->sampling.stop = x->tokens, a->sampling.n_stop = x->n;
}

static void trace_request(trace *t, desk *d, const asking *a) {
    const fl_request *r = &a->request;
    const uint32_t how = (uint32_t)(16 * r->written + (uint32_t)r->finish);
    trace_add(t, &how, 1);
    trace_add(t, a->tokens, DRAWN);
    trace_add(t, a->logprobs, DRAWN);
    trace_state(t, d, r->state);
}

/* Fewer than 8 requests a call: one of ours among others. Else all of ours among others. In any order. */
static void trace_drawn(trace *t, desk *d, const text *x, way w) {
    static asking asked[MOST_BATCH];
    fl_request requests[MOST_BATCH];
    size_t place[MOST_BATCH];
    uint64_t random = w.batch;
    const size_t ours = w.batch < SAMPLINGS ? 1 : SAMPLINGS;
    for (size_t first = 0; first < SAMPLINGS; first += ours) {
        for (size_t i = 0; i < w.batch; i++) {
            if (i < ours)
                ask_traced(t, d, &asked[i], i, x, first + i, w, &random);
            else
                ask_other(t, d, &asked[i], i, x, &random);
            const size_t to = below(&random, i + 1);
            place[i] = place[to], place[to] = i;
        }
        for (size_t i = 0; i < w.batch; i++) requests[i] = asked[place[i]].request;
        CALL(t, fl_generate(d->decoder, requests, w.batch, 0));
        for (size_t i = 0; i < w.batch; i++) asked[place[i]].request = requests[i];
        for (size_t i = 0; i < ours; i++) trace_request(t, d, &asked[i]);
    }
}

static trace run(const text *x, way w) {
    desk d = desk_new(x->file, w);
    trace t = {.mode_kept = true};
    t.words = malloc(4 * (TRACE_STOPS * d.V + x->n + 2 + SAMPLINGS * TRACE_DRAWN));
    if (!t.words) exit(2);
    set_mode(w.mode);
    trace_logits(&t, &d, x, w);
    trace_scores(&t, &d, x, w);
    trace_drawn(&t, &d, x, w);
    set_mode(MODE_DEFAULT);
    desk_free(&d);
    return t;
}

static void compare_way(const text *x, way w, const trace *expected) {
    trace t = run(x, w);
    size_t at = 0;
    while (at < t.size && at < expected->size && t.words[at] == expected->words[at]) at++;
    const char *const how = mode_names[w.mode];
    check(t.size == expected->size && at == t.size,
          "%s, cache %zu, chunks of %zu, batches of %zu, %u threads, mode %s: word %zu of %zu differs", w.isa, w.cache,
          w.chunk, w.batch, w.threads, how, at, t.size);
    check(t.mode_kept, "%s: the caller's mode '%s' is not restored", w.isa, how);
    check(t.taken == 0, "%s, cache %zu, batches of %zu: %zu calls of malloc, free or mmap while computing", w.isa,
          w.cache, w.batch, t.taken);
    free(t.words);
}

/* Each thing changed alone, then all at once. */
static void compare_ways(const text *x, const char *isa, size_t row, const trace *expected, uint64_t *random) {
    const size_t caches[] = {0, 1 << 24, row - 1, row, 3 * row}, chunks[] = {1, 2, 7, 33, x->n},
                 batches[] = {1, 2, 3, 8, 64, MOST_BATCH};
    const way plain = {isa, 0, 1, MODE_DEFAULT, 1, 1};
    compare_way(x, plain, expected);
    for (size_t i = 1; i < 5; i++) compare_way(x, (way){isa, caches[i], 1, MODE_DEFAULT, 1, 1}, expected);
    for (size_t i = 1; i < 5; i++) compare_way(x, (way){isa, 0, chunks[i], MODE_DEFAULT, 1, 1}, expected);
    for (size_t i = 1; i < 6; i++) compare_way(x, (way){isa, 0, 1, MODE_DEFAULT, batches[i], 1}, expected);
    for (uint32_t i = 2; i < 4; i++) compare_way(x, (way){isa, 0, x->n, MODE_DEFAULT, i, i}, expected);
    for (int mode = 1; mode < MODES; mode++)
        compare_way(x,
                    (way){isa, caches[below(random, 5)], chunks[below(random, 5)], mode, batches[below(random, 5)],
                          1 + (uint32_t)below(random, 2)},
                    expected);
}

/* A wide model takes its time: the two ways that differ most. */
static void compare_few_ways(const text *x, const char *isa, const trace *expected) {
    compare_way(x, (way){isa, 1 << 26, x->n, MODE_FLUSH, 1, 2}, expected);
    compare_way(x, (way){isa, 0, 2, MODE_UP, 11, 1}, expected);
}

/* Against the scalar level, default mode, one token a call, no store, alone. */
static void check_ways(const tiny_shape *shape, size_t n, bool few, uint64_t *random) {
    tiny_model *file = tiny_new(shape);
    int32_t *tokens = malloc(n * sizeof *tokens);
    for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)below(random, shape->vocab);
    const text x = {file, tokens, n};
    trace expected = run(&x, (way){"scalar", 0, 1, MODE_DEFAULT, 1, 1});
    for (size_t level = 0; level < fl_isa_count(); level++) {
        if (!fl_isa_supported(level) || (few && level == 0)) continue;
        if (few)
            compare_few_ways(&x, fl_isa_name(level), &expected);
        else
            compare_ways(&x, fl_isa_name(level), 256 * tiny_panels(shape->units[0]), &expected, random);
    }
    free(expected.words);
    free(tokens);
    tiny_free(file);
}

/* The last shape mixes dtypes, and is tied. */
static tiny_shape fingerprint_shape(int which) {
    const bool mixed = which == TINY_DTYPES;
    tiny_shape s = {.vocab = 90, .embedding = 71, .layers = 3, .units = {65, 100, 71}, .scale = 4, .seed = 1};
    s.tied = mixed;
    s.embedding_dtype = s.output_dtype = (tiny_dtype)(mixed ? AS_INT8 : which);
    for (int i = 0; i < 3; i++) {
        s.x_dtype[i] = (tiny_dtype)(mixed ? i + 1 : which);
        s.h_dtype[i] = (tiny_dtype)(mixed ? 3 - i : which);
    }
    return s;
}

/* Scores of a text, logits after it, and what is drawn then in every way. */
static uint64_t hash_model(uint64_t hash, const tiny_model *file, const char *isa) {
    enum { N = 40 };
    fl_model *model = open_or_exit(file, isa, 0, 1);
    fl_state *state = state_or_exit(model);
    fl_decoder *decoder = decoder_or_exit(model);
    int32_t tokens[N];
    float scores[N];
    for (int32_t i = 0; i < N; i++) tokens[i] = 7 * i % 90;
    fl_score(decoder, state, tokens, N, scores);
    hash = hash_words(hash, scores, N);
    hash = hash_words(hash, fl_logits(decoder, state), 90);
    for (size_t i = 0; i < PROMISED; i++) {
        asking a;
        ask(&a, state, NULL, NULL, 0, samplings[i], seeds[i], DRAWN);
        generate(decoder, &a);
        hash = hash_words(hash, a.tokens, DRAWN);
        hash = hash_words(hash, a.logprobs, DRAWN);
    }
    fl_decoder_free(decoder);
    fl_state_free(state);
    fl_model_close(model);
    return hash;
}

/* One number for all bits of models of every dtype. If it changes, so do the texts of every seed: another
 * FL_NUMERICS_VERSION. */
static uint64_t model_fingerprint(const char *isa) {
    uint64_t hash = 0xCBF29CE484222325;
    for (int which = 0; which <= TINY_DTYPES; which++) {
        const tiny_shape shape = fingerprint_shape(which);
        tiny_model *file = tiny_new(&shape);
        hash = hash_model(hash, file, isa);
        tiny_free(file);
    }
    return hash;
}

static void check_model_fingerprint(void) {
    static const uint64_t promised[] = {[1] = 0x3A3CFDAB10ED8028}; /* by numerics version */
    for (size_t level = 0; level < fl_isa_count(); level++) {
        if (!fl_isa_supported(level)) continue;
        now("bits of models, %s", fl_isa_name(level));
        const uint64_t found = model_fingerprint(fl_isa_name(level));
        check(FL_NUMERICS_VERSION < sizeof promised / sizeof *promised && found == promised[FL_NUMERICS_VERSION],
              "they are 0x%016llX", (unsigned long long)found);
    }
}

#endif
