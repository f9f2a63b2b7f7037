/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole models: the definition's logits, the promises of fastlm.h one by one, the sampler against a naive one, nothing
 * taken from the system per token; and all ways of asking (check_ways.h). */
#ifndef CHECK_MODEL_H
#define CHECK_MODEL_H

#include "check_ways.h"

#include <sys/wait.h>
#if defined(__linux__)
#include <linux/seccomp.h>
#include <sys/prctl.h>
#endif

/* ---- small promises ------------------------------------------------------------------------------------ */

static void check_definition(const fl_model *model, uint64_t *random, uint32_t V) {
    enum { N = 6 };
    int32_t tokens[N];
    fl_state *state = state_or_exit(model);
    fl_decoder *decoder = decoder_or_exit(model);
    float *expected = malloc(V * sizeof *expected);
    for (size_t n = 0; n < N; n++) {
        const float *found = fl_logits(decoder, state);
        naive_logits(model, tokens, n, expected);
        check(memcmp(found, expected, V * sizeof *found) == 0, "logits after %zu tokens are not the definition's", n);
        for (size_t i = V; i < tiny_up(V, FL_BLOCK); i++)
            check(found[i] == -INFINITY, "logit %zu, which pads the vocabulary, is %g", i, (double)found[i]);
        tokens[n] = (int32_t)below(random, V);
        fl_feed(decoder, state, &tokens[n], 1);
    }
    free(expected);
    fl_decoder_free(decoder);
    fl_state_free(state);
}

/* With a decoder each, or the same. */
static bool same_logits(fl_decoder *one, fl_state *a, fl_decoder *other, fl_state *b, uint32_t V) {
    float *copy = malloc(4 * V);
    memcpy(copy, fl_logits(one, a), 4 * V);
    const bool same = memcmp(copy, fl_logits(other, b), 4 * V) == 0;
    free(copy);
    return same;
}

static void check_state(const fl_model *model, uint64_t *random, uint32_t V) {
    fl_state *a = state_or_exit(model), *b = state_or_exit(model), *fresh = state_or_exit(model);
    fl_decoder *one = decoder_or_exit(model), *other = decoder_or_exit(model);
    int32_t tokens[5];
    for (int i = 0; i < 5; i++) tokens[i] = (int32_t)below(random, V);
    fl_feed(one, a, tokens, 5);
    fl_feed(one, b, tokens, 2);
    check(fl_state_position(a) == 5 && fl_state_position(b) == 2, "position after reading");
    fl_feed(one, b, tokens, 0);
    check(fl_state_position(b) == 2, "position after reading nothing");
    fl_state_copy(b, a);
    check(fl_state_position(b) == 5 && same_logits(one, a, one, b, V), "a copied state differs");
    fl_feed(one, a, tokens, 1);
    fl_feed(other, b, tokens, 1);
    check(same_logits(one, a, other, b, V), "a copied state goes on differently in another decoder");
    fl_state_reset(a);
    check(fl_state_position(a) == 0 && same_logits(one, a, one, fresh, V), "a reset state is not a fresh one");
    fl_state_free(a);
    fl_state_free(b);
    fl_state_free(fresh);
    fl_decoder_free(one);
    fl_decoder_free(other);
    fl_state_free(NULL);
    fl_decoder_free(NULL);
}

/* A stop token ends the text before itself; scores are those of fl_score; texts go on where they ended. */
static void check_generate(const fl_model *model, uint64_t *random, uint32_t V) {
    const fl_sampling sampling = {.temperature = 0.9f};
    const uint64_t seed = next_random(random);
    const int32_t prompt = (int32_t)below(random, V);
    asking all, part;
    float again[DRAWN];
    fl_state *state = state_or_exit(model);
    fl_decoder *decoder = decoder_or_exit(model);
    ask(&all, state, NULL, &prompt, 1, sampling, seed, DRAWN);
    generate(decoder, &all);
    check(all.request.written == DRAWN && all.request.finish == FL_FINISH_LENGTH, "length of a text");
    fl_state_reset(state);
    fl_feed(decoder, state, &prompt, 1);
    fl_score(decoder, state, all.tokens, DRAWN, again);
    check(memcmp(all.logprobs, again, sizeof again) == 0, "generate and score give different log-probabilities");
    fl_state_reset(state);
    const int32_t stops[2] = {(int32_t)V, all.tokens[DRAWN / 2]};
    size_t first = 0;
    while (all.tokens[first] != stops[1]) first++;
    ask(&part, state, NULL, &prompt, 1, sampling, seed, DRAWN);
    part.sampling.stop = stops, part.sampling.n_stop = 2;
    generate(decoder, &part);
    check(part.request.written == first && part.request.finish == FL_FINISH_STOP &&
              memcmp(all.tokens, part.tokens, 4 * first) == 0 && part.tokens[first] == -1,
          "a stop token at %zu: %zu drawn", first, part.request.written);
    fl_state_reset(state);
    ask(&part, state, NULL, &prompt, 1, sampling, seed, 5);
    generate(decoder, &part);
    check(memcmp(all.tokens, part.tokens, 20) == 0 && part.tokens[5] == -1, "a shorter text differs");
    const int32_t last = part.tokens[4];
    ask(&part, state, NULL, &last, 1, sampling, seed, DRAWN - 5);
    generate(decoder, &part);
    check(memcmp(all.tokens + 5, part.tokens, 4 * (DRAWN - 5)) == 0, "a text in two calls differs");
    fl_decoder_free(decoder);
    fl_state_free(state);
}

/* Each alone, then all at once. In every case another number of requests have a prompt; some write nothing. */
static void check_batch(const fl_model *model, uint64_t *random, uint32_t V) {
    enum { N = 5 };
    fl_decoder *decoder = decoder_or_exit(model);
    fl_state *alone = state_or_exit(model), *together[N];
    int32_t tokens[3];
    for (int i = 0; i < 3; i++) tokens[i] = (int32_t)below(random, V);
    for (size_t i = 0; i < N; i++) together[i] = state_or_exit(model);
    for (size_t prompts = 0; prompts <= N; prompts++) {
        asking expected, found[N];
        fl_request requests[N];
        for (size_t i = 0; i < N; i++) {
            const size_t before = i % 3, n = i < prompts ? 1 + i % 2 : 0, most = i == prompts % 4 ? 0 : 1 + i;
            fl_state_reset(together[i]);
            fl_feed(decoder, together[i], tokens, before);
            ask(&found[i], together[i], NULL, tokens, n, samplings[i], seeds[i], most);
            requests[i] = found[i].request;
        }
        fl_generate(decoder, requests, N, 0);
        for (size_t i = 0; i < N; i++) {
            fl_state_reset(alone);
            fl_feed(decoder, alone, tokens, i % 3);
            ask(&expected, alone, NULL, tokens, requests[i].n_prompt, samplings[i], seeds[i], requests[i].max_tokens);
            generate(decoder, &expected);
            const bool same = memcmp(expected.tokens, found[i].tokens, sizeof expected.tokens) == 0 &&
                              memcmp(expected.logprobs, found[i].logprobs, sizeof expected.logprobs) == 0;
            check(same && requests[i].written == expected.request.written &&
                      requests[i].finish == expected.request.finish,
                  "request %zu of %d, %zu with a prompt, writes something else", i, N, prompts);
            check(fl_state_position(alone) == fl_state_position(together[i]) &&
                      same_logits(decoder, alone, decoder, together[i], V),
                  "request %zu of %d, %zu with a prompt, ends elsewhere", i, N, prompts);
        }
    }
    fl_generate(decoder, NULL, 0, 0);
    for (size_t i = 0; i < N; i++) fl_state_free(together[i]);
    fl_state_free(alone);
    fl_decoder_free(decoder);
}

static void check_test_vector(tiny_model *file, const char *isa) {
    fl_model *model = open_or_exit(file, isa, 0, 1);
    fl_state *state = state_or_exit(model);
    fl_decoder *decoder = decoder_or_exit(model);
    fl_error error;
    double largest, tolerance;
    float logprobs[TINY_TEST];
    int32_t tokens[TINY_TEST];
    fl_model_info info;
    fl_model_get_info(model, &info);
    for (int32_t i = 0; i < TINY_TEST; i++) tokens[i] = (7 * i + 1) % (int32_t)info.vocab_size;
    fl_score(decoder, state, tokens, TINY_TEST, logprobs);
    fl_decoder_free(decoder);
    fl_state_free(state);
    fl_model_close(model);
    for (int wrong = -1; wrong < TINY_TEST - 1; wrong++) { /* not a number must count, wherever it stands */
        float expected[TINY_TEST - 1];
        memcpy(expected, logprobs + 1, sizeof expected);
        if (wrong >= 0) expected[wrong] = NAN;
        tiny_set_test(file, expected);
        model = open_or_exit(file, isa, 0, 1);
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
    uint32_t kept = s->temperature == 0 ? 1 : s->top_k < V ? s->top_k : V;
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
    static const float temperatures[] = {0, 1, 0.7f, 1.5f, 1000, 1e-3f, 1e-30f, 0x1p60f, 1e-44f};
    static const double shares[] = {1, 0.9, 0.5, 0.999999, 1e-9, 0.1};
    const uint32_t ks[] = {V, 1, 2, 5, 1 + V / 2, V, V + 1, 1 + (uint32_t)below(random, V)};
    fl_sampling s = {.temperature = temperatures[below(random, 9)], .top_k = ks[below(random, 8)]};
    s.top_p = equal_logits ? border_share(s.top_k < V ? s.top_k : V, random) : shares[below(random, 6)];
    uint8_t *step = s.steps;
    *step++ = FL_TEMPERATURE;
    if (below(random, 4))
        *step++ = FL_TOP_K;
    else
        s.top_k = V;
    if (below(random, 4))
        *step++ = FL_TOP_P;
    else
        s.top_p = 1;
    return s;
}

/* As large as internal.h says, and no larger. */
static fl_scratch scratch_new(uint32_t V) {
    const size_t padded = 4 * tiny_up(V, FL_PANEL), listed = 4 * tiny_up(V + FL_PANEL, FL_PANEL);
    return (fl_scratch){.candidates = malloc(V * sizeof(fl_candidate)),
                        .mass = malloc(padded),
                        .kept_logits = malloc(listed),
                        .kept_ids = malloc(listed),
                        .kept_mass = malloc(listed),
                        .changed = malloc(4 * tiny_up(V, FL_BLOCK)),
                        .values = malloc(4 * tiny_up(V, FL_BLOCK))};
}

static void scratch_free(fl_scratch *s) {
    free(s->candidates);
    free(s->mass);
    free(s->kept_logits);
    free(s->kept_ids);
    free(s->kept_mass);
    free(s->changed);
    free(s->values);
}

static void check_sampler(const fl_model *model, uint64_t *random, uint32_t V, int rounds) {
    fl_scratch scratch = scratch_new(V);
    float *logits = malloc(4 * tiny_up(V, FL_BLOCK));
    for (int round = 0; round < rounds; round++) {
        const int kind = round % HARD_KINDS;
        const fl_sampling s = random_sampling(V, kind == EQUAL, random);
        hard_logits(logits, V, kind, random);
        for (uint32_t i = V; i < tiny_up(V, FL_BLOCK); i++) logits[i] = -INFINITY;
        fl_state state = {.position = next_random(random) >> 10 >> below(random, 50)};
        const fl_request r = {
            .state = &state, .sampling = &s, .seed = next_random(random), .index = (uint32_t)next_random(random)};
        const fl_noise noise = {{(uint32_t)r.seed, (uint32_t)(r.seed >> 32)},
                                {(uint32_t)state.position, r.index, (uint32_t)(state.position >> 32) << 8}};
        const fl_contest contest = fl_contest_of(&r);
        const fl_winner first = fl_win(model, logits, &contest);
        const int32_t expected = naive_sample(logits, V, &s, &noise),
                      found = fl_sample(model, &scratch, &r, logits, NULL, below(random, 2) ? &first : NULL);
        check(found == expected, "%s, V %u, kind %d, T %g, k %u, p %.17g: %d, expected %d", model->kernels->name, V,
              kind, (double)s.temperature, s.top_k, s.top_p, found, expected);
    }
    free(logits);
    scratch_free(&scratch);
}

/* ---- nothing but arithmetic ---------------------------------------------------------------------------- */

#if defined(__linux__) && defined(WATCH_MMAP)
/* All that computes, with one thread: more of them talk to the system about cores now and then. */
static void compute_everything(fl_decoder *decoder, fl_state *const states[MEMORYLESS]) {
    static asking asked[MEMORYLESS];
    static fl_request requests[MEMORYLESS];
    const int32_t tokens[4] = {0};
    float scores[4];
    fl_feed(decoder, states[0], tokens, 4);
    fl_score(decoder, states[0], tokens, 4, scores);
    fl_logits(decoder, states[0]);
    for (size_t i = 0; i < MEMORYLESS; i++) {
        ask(&asked[i], states[i], NULL, tokens, 4, samplings[i], seeds[i], DRAWN);
        requests[i] = asked[i].request;
        fl_generate(decoder, &requests[i], 1, 0);
    }
    fl_generate(decoder, requests, MEMORYLESS, 0);
}
#endif

/* In Linux' strict mode any system call but read, write and exit kills. */
static void check_no_system_calls(const fl_model *model) {
#if defined(__linux__) && defined(WATCH_MMAP)
    fl_decoder *decoder = decoder_or_exit(model);
    fl_state *states[MEMORYLESS];
    for (size_t i = 0; i < MEMORYLESS; i++) states[i] = state_or_exit(model);
    int status = 0;
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)) syscall(SYS_exit, 77); /* not allowed here */
        compute_everything(decoder, states);
        syscall(SYS_exit, 0);
    }
    const bool waited = child > 0 && waitpid(child, &status, 0) == child;
    if (waited && WIFEXITED(status) && WEXITSTATUS(status) == 77)
        printf("not checked here: system calls per token\n");
    else
        check(waited && WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: a system call while computing",
              model->kernels->name);
    for (size_t i = 0; i < MEMORYLESS; i++) fl_state_free(states[i]);
    fl_decoder_free(decoder);
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

/* Each request for memory refused in turn: a clean error, nothing kept. With one thread: without memory for more of them
 * there are fewer, which is no error. */
static void check_out_of_memory(const tiny_model *file) {
#if defined(WATCH_MMAP)
    const fl_load_options options = {.row_cache_bytes = 1 << 16, .threads = 1};
    bool done = false;
    for (size_t n = 1; !done; n++) {
        const int64_t mapped = watch.mapped;
        fl_model *model = NULL;
        fl_state *state = NULL;
        fl_decoder *decoder = NULL;
        fl_error error;
        now("request %zu for memory refused", n);
        watch.refuse = n;
        fl_status status = fl_model_from_memory(file->bytes, file->size, &options, &model, &error);
        if (!status) status = fl_state_new(model, &state, &error);
        if (!status) status = fl_decoder_new(model, &decoder, &error);
        done = watch.refuse > 0; /* all were served */
        watch.refuse = 0;
        check(status == (done ? FL_OK : FL_ERROR_MEMORY), "status %d: %s", status, status ? error.message : "");
        fl_decoder_free(decoder);
        fl_state_free(state);
        fl_model_close(model);
        check(watch.mapped == mapped, "%lld bytes are still mapped", (long long)(watch.mapped - mapped));
    }
#else
    (void)file;
#endif
}

static void check_small_promises(uint64_t *random, size_t count) {
    for (size_t round = 0; round < count; round++) {
        tiny_shape shape = random_shape(random, 100);
        if (round % 4 == 0) shape.vocab = 1000 + (uint32_t)below(random, 3000);
        shape.test = true;
        tiny_model *file = tiny_new(&shape);
        for (size_t level = 0; level < fl_isa_count(); level++) {
            if (!fl_isa_supported(level)) continue;
            fl_model *model = open_or_exit(file, fl_isa_name(level), round % 2 << 16, 1);
            now("a model of V %u, %u layers, %s", shape.vocab, shape.layers, fl_isa_name(level));
            check_definition(model, random, shape.vocab);
            check_state(model, random, shape.vocab);
            check_generate(model, random, shape.vocab);
            check_batch(model, random, shape.vocab);
            check_sampler(model, random, shape.vocab, 128);
            check_no_system_calls(model);
            fl_model_close(model);
            check_test_vector(file, fl_isa_name(level));
        }
        check_out_of_memory(file);
        tiny_free(file);
    }
}

static void name_shape(const tiny_shape *s) {
    now("a model of V %u, E %u, %u layers of %u…, %s, %s embedding, %s x, %s h, %s output, scale %g, %g", s->vocab,
        s->embedding, s->layers, s->units[0], s->tied ? "tied" : "untied", dtype_names[s->embedding_dtype],
        dtype_names[s->x_dtype[0]], dtype_names[s->h_dtype[0]], dtype_names[s->output_dtype], (double)s->scale,
        (double)s->output_scale);
}

static void check_models(uint64_t *random) {
    check_watch();
    check_model_fingerprint();
    check_small_promises(random, rounds(40));
    for (size_t round = 0; round < rounds(60); round++) {
        const bool large = round % 10 == 9, long_text = round % 3 == 2; /* longer than what is read at once */
        const tiny_shape shape = random_shape(random, large ? 700 : 80);
        name_shape(&shape);
        check_ways(&shape, large ? 5 : long_text ? FL_MOST_COLUMNS + 9 : 20, large, random);
    }
}

#endif
