/* SPDX-License-Identifier: Apache-2.0
 *
 * From logits to the next token, in three parts that do not know of one another: controls restrict the set of
 * tokens, noise is a pure function of seed, position and token, and the largest logit + temperature * noise of
 * the set wins (Gumbel-max), which draws from the softmax of the set without a normaliser. A set is NULL for
 * the whole vocabulary or a list of ids; any control that can say which tokens stay fits in here.
 *
 * Every set below is a run of tokens from the likeliest down (equal logits by rising id), and its size is
 * measured in whole numbers, so that the order in which anything is summed cannot matter. */
#include "kernels.h"

typedef struct draw {
    const fl_model *model;
    const fl_scratch *scratch;
    const float *logits; /* [V rounded up to FL_BLOCK] */
    float largest;       /* of them */
    float temperature;
} draw;

/* ---- candidates -------------------------------------------------------------------------------------- */

/* Whole numbers that order as -logit does: flip what makes floats differ from them, then reverse. */
static uint32_t falling_order(float logit) {
    uint32_t bits;
    logit += 0.0f; /* -0 and +0 are equal logits */
    memcpy(&bits, &logit, sizeof bits);
    return bits & 0x80000000 ? bits : 0x7FFFFFFF - bits;
}

/* The kernels work on whole panels: fills up the last one with what cannot win and weighs nothing. */
static void pad(const draw *d, size_t n) {
    for (; n % FL_PANEL; n++) {
        d->scratch->kept_ids[n] = INT32_MAX;
        d->scratch->kept_logits[n] = -INFINITY;
    }
}

/* Moves to the front of list[begin … n) what has a byte of first … last at `shift` of its order; returns where the
 * rest begins. */
static size_t gather(fl_candidate *list, size_t begin, size_t n, int shift, unsigned first, unsigned last) {
    for (size_t i = begin; i < n; i++) {
        const unsigned byte = list[i].order >> shift & 255;
        if (byte < first || byte > last) continue;
        const fl_candidate c = list[i];
        list[i] = list[begin];
        list[begin++] = c;
    }
    return begin;
}

/* Moves the likeliest candidates to the front, as few as together weigh at least `target`; returns how many.
 * Selection by radix: what every value of a byte weighs tells in which the target lies; all before it are in, all
 * behind it are out, and the next byte divides the rest. Linear, whatever the logits. All weigh at least
 * `target` together, and no two have the same order. */
static size_t select_run(fl_candidate *list, size_t n, uint64_t target) {
    size_t begin = 0;
    for (int shift = 56; shift >= 0 && n - begin > 1; shift -= 8) {
        uint64_t weight[256] = {0};
        for (size_t i = begin; i < n; i++) weight[list[i].order >> shift & 255] += list[i].mass;
        unsigned byte = 0;
        for (; weight[byte] < target; byte++) target -= weight[byte];
        if (byte) begin = gather(list, begin, n, shift, 0, byte - 1);
        n = gather(list, begin, n, shift, byte, byte);
    }
    return n;
}

/* Keeps of the tokens listed from `begin` on the shortest run that weighs `target`, each token weighing its mass, or 1.
 * Returns how many are listed then. */
static size_t keep_run(const draw *d, size_t begin, size_t n, const uint32_t *mass, uint64_t target) {
    const fl_scratch *s = d->scratch;
    int32_t *ids = s->kept_ids + begin;
    float *logits = s->kept_logits + begin;
    fl_candidate *list = s->candidates;
    for (size_t i = 0; i < n; i++)
        list[i] = (fl_candidate){(uint64_t)falling_order(logits[i]) << 32 | (uint32_t)ids[i], mass ? mass[i] : 1};
    n = select_run(list, n, target);
    for (size_t i = 0; i < n; i++) {
        ids[i] = (int32_t)(uint32_t)list[i].order;
        logits[i] = d->logits[ids[i]];
    }
    return begin + n;
}

/* ---- controls ---------------------------------------------------------------------------------------- */

/* So many units of the temperature below the best logit, the probability is e^-16 of the best token's: a run seldom ends
 * there. */
#define DEEPEST 16.0f
/* Halvings of that depth, and candidates that are few enough to be ordered one by one instead. */
enum { MOST_LOOKS = 12, FEW = 32, FEW_OF = 64 };

/* Lists of the whole vocabulary the shortest run that weighs `target`. Where it ends is narrowed down by weighing what
 * is above a logit, many tokens at a time, until few are left that may be in or out. */
static size_t list_run(const draw *d, const uint32_t *mass, uint64_t target) {
    const fl_kernels *kernels = d->model->kernels;
    const fl_scratch *s = d->scratch;
    const size_t V = d->model->vocab_size;
    float floor = -INFINITY, ceiling = INFINITY; /* those from the ceiling up are in, those below the floor out */
    float shallow = 0, deep = DEEPEST;
    fl_weight in = {0, 0};
    size_t doubtful = V;
    for (int look = 0; look < MOST_LOOKS && doubtful > FEW + V / FEW_OF; look++) {
        const float middle = (shallow + deep) / 2, logit = d->largest - middle * d->temperature;
        if (logit <= floor || logit >= ceiling) break; /* a temperature beyond measure: nothing is between */
        const fl_weight above = kernels->weigh(d->logits, mass, V, logit);
        if (above.mass < target) {
            doubtful -= above.count - in.count;
            ceiling = logit, shallow = middle, in = above;
        } else {
            doubtful = above.count - in.count;
            floor = logit, deep = middle;
        }
    }
    const size_t n = in.count ? kernels->collect(d->logits, V, ceiling, INFINITY, s->kept_ids, s->kept_logits) : 0;
    const size_t m = kernels->collect(d->logits, V, floor, ceiling, s->kept_ids + n, s->kept_logits + n);
    for (size_t i = n; mass && i < n + m; i++) s->kept_mass[i] = mass[s->kept_ids[i]];
    return keep_run(d, n, m, mass ? s->kept_mass + n : NULL, target - in.mass);
}

static uint64_t share(double p, uint64_t total) {
    const double exact = p * (double)total;
    uint64_t target = (uint64_t)exact;
    if ((double)target < exact) target++;
    return target < 1 ? 1 : target > total ? total : target;
}

/* n tokens are listed already, or none (n = 0) and the whole vocabulary counts. */
static size_t keep_top_p(const draw *d, size_t n, double p) {
    const fl_kernels *kernels = d->model->kernels;
    const fl_scratch *s = d->scratch;
    const float exact = 1.0f / d->temperature, scale = exact < 0x1p60f ? exact : 0x1p60f; /* no 0 * infinity */
    if (!n) {
        const uint64_t total = kernels->mass(d->logits, d->model->vocab_size, d->largest, scale, s->mass);
        return list_run(d, s->mass, share(p, total));
    }
    pad(d, n);
    const uint64_t total = kernels->mass(s->kept_logits, n, d->largest, scale, s->kept_mass);
    return keep_run(d, 0, n, s->kept_mass, share(p, total));
}

/* ---- the next token ---------------------------------------------------------------------------------- */

static fl_noise noise_of(const fl_sampling *sampling, uint64_t position, uint32_t purpose) {
    return (fl_noise){{(uint32_t)sampling->seed, (uint32_t)(sampling->seed >> 32)},
                      {(uint32_t)position, sampling->index, purpose | (uint32_t)(position >> 32) << 8}};
}

static bool has_top_k(const fl_model *model, const fl_sampling *s) { return s->top_k && s->top_k < model->vocab_size; }
static bool has_top_p(const fl_sampling *s) { return s->top_p > 0.0 && s->top_p < 1.0; }

static bool is_filtered(const fl_model *model, const fl_sampling *s) {
    return s->temperature != 0 && (has_top_k(model, s) || has_top_p(s));
}

fl_contest fl_contest_of(const fl_model *model, const fl_sampling *sampling, uint64_t position) {
    return (fl_contest){is_filtered(model, sampling) ? 0 : sampling->temperature,
                        noise_of(sampling, position, FL_PURPOSE_TOKEN)};
}

fl_winner fl_win(const fl_model *model, const float *logits, const fl_contest *contest) {
    fl_winner winner = FL_NO_WINNER;
    model->kernels->choose(&winner, logits, NULL, 0, model->vocab_size, contest->temperature, &contest->noise);
    return winner;
}

int32_t fl_sample(const fl_model *model, const fl_scratch *scratch, const float *logits, const fl_sampling *sampling,
                  uint64_t position, fl_winner first) {
    if (!is_filtered(model, sampling)) return first.id;
    const draw d = {model, scratch, logits, first.key, sampling->temperature};
    const fl_noise noise = noise_of(sampling, position, FL_PURPOSE_TOKEN);
    size_t n = 0;
    if (has_top_k(model, sampling)) n = list_run(&d, NULL, sampling->top_k);
    if (has_top_p(sampling)) n = keep_top_p(&d, n, sampling->top_p);
    pad(&d, n);
    fl_winner winner = FL_NO_WINNER;
    model->kernels->choose(&winner, scratch->kept_logits, scratch->kept_ids, 0, n, d.temperature, &noise);
    return winner.id;
}

float fl_logprob(const fl_model *model, const float *logits, int32_t token) {
    static const fl_contest greedy = {0};
    const float largest = fl_win(model, logits, &greedy).key;
    const uint64_t total = model->kernels->mass(logits, model->vocab_size, largest, 1.0f, NULL);
    return (logits[token] - largest) - model->kernels->logarithm((float)total / FL_MASS_ONE);
}
