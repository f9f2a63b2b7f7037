/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of the next token against the definition. */
#ifndef CHECK_CHOICES_H
#define CHECK_CHOICES_H

#include "operands.h"

#include <float.h>

/* Around every number of lanes, and a vocabulary. */
static const size_t list_sizes[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 700, 10007};
enum { LIST_SIZES = sizeof list_sizes / sizeof *list_sizes };

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
    for (size_t i = 0; i < LIST_SIZES; i++)
        for (int kind = 0; kind < 6; kind++)
            for (int variant = 0; variant < 4; variant++)
                if (!skipped(random)) check_choose(list_sizes[i], variant & 1, kind, variant & 2, random);
    for (size_t round = 0; round < rounds(40); round++)
        check_noise(1 + below(random, MOST_LOGITS - 1), round & 1, random);
}

/* ---- collect ------------------------------------------------------------------------------------------- */

static void check_collect(size_t n, int kind, bool at_end, uint64_t *random) {
    static int32_t expected_ids[MOST_LOGITS];
    static float expected[MOST_LOGITS];
    const size_t room = tiny_up(n, FL_PANEL);
    float *logits = place(logit_room, room, at_end);
    fill_logits(logits, n, room, kind, random);
    const float limits[] = {-INFINITY, logits[below(random, n)], nextafterf(logits[0], INFINITY), 0, -0.0f, INFINITY};
    for (size_t f = 0; f < 36; f++) {
        const float floor = limits[f / 6], ceiling = limits[f % 6];
        size_t count = 0;
        for (size_t i = 0; i < n; i++)
            if (logits[i] >= floor && logits[i] < ceiling)
                expected_ids[count] = (int32_t)i, expected[count++] = logits[i];
        const size_t listed = count + FL_PANEL;
        float *kept = place(outs, listed, at_end);
        int32_t *ids = arena_place(id_room, 4 * listed, at_end);
        FOR_EACH_LEVEL(kernels) {
            now("collect, %s, n %zu, kind %d, from %g, below %g, guard %s", kernels->name, n, kind, (double)floor,
                (double)ceiling, at_end ? "behind" : "before");
            memset(ids, 0xFF, 4 * listed);
            memset(kept, 0xFF, 4 * listed);
            const size_t found = kernels->collect(logits, n, floor, ceiling, ids, kept);
            check(found == count, "%zu tokens, expected %zu", found, count);
            check(memcmp(ids, expected_ids, 4 * count) == 0, "other tokens");
            check_equal(kept, expected, count, "logits");
            check(arena_intact(outs, kept, 4 * listed) && arena_intact(id_room, ids, 4 * listed),
                  "wrote beside the list");
        }
    }
}

static void check_collections(uint64_t *random) {
    for (size_t i = 0; i < LIST_SIZES; i++)
        for (int kind = 0; kind < 6; kind++)
            for (int at_end = 0; at_end < 2; at_end++)
                if (!skipped(random)) check_collect(list_sizes[i], kind, at_end, random);
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
    for (size_t i = 0; i < LIST_SIZES; i++)
        for (int kind = 0; kind < 6; kind++)
            for (int at_end = 0; at_end < 2; at_end++)
                if (!skipped(random)) check_mass(list_sizes[i], kind, at_end, random);
}

static void check_weigh(size_t n, int kind, bool at_end, uint64_t *random) {
    const size_t room = tiny_up(n, FL_PANEL);
    float *logits = place(logit_room, room, at_end);
    uint32_t *mass = arena_place(outs, 4 * room, at_end);
    fill_logits(logits, n, room, kind, random);
    for (size_t i = 0; i < room; i++) mass[i] = kind & 1 ? UINT32_MAX : (uint32_t)next_random(random);
    const float floors[] = {-FLT_MAX, fmaxf(logits[below(random, n)], -FLT_MAX), nextafterf(logits[0], INFINITY), 0,
                            -0.0f};
    for (size_t f = 0; f < sizeof floors / sizeof *floors; f++) {
        fl_weight expected = {0, 0};
        for (size_t i = 0; i < n; i++)
            if (logits[i] >= floors[f]) expected.mass += mass[i], expected.count++;
        FOR_EACH_LEVEL(kernels) {
            now("weigh, %s, n %zu, kind %d, floor %g", kernels->name, n, kind, (double)floors[f]);
            const fl_weight found = kernels->weigh(logits, mass, n, floors[f]);
            check(found.mass == expected.mass && found.count == expected.count, "%zu tokens, expected %zu", found.count,
                  expected.count);
            check(kernels->weigh(logits, NULL, n, floors[f]).mass == expected.count, "each 1");
        }
    }
}

static void check_weights(uint64_t *random) {
    for (size_t i = 0; i < LIST_SIZES; i++)
        for (int kind = 0; kind < 6; kind++)
            for (int at_end = 0; at_end < 2; at_end++)
                if (!skipped(random)) check_weigh(list_sizes[i], kind, at_end, random);
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

#endif
