/* SPDX-License-Identifier: Apache-2.0
 *
 * From logits to the next token, in three parts that do not know of one another: controls change logits (controls.c),
 * steps restrict the set of tokens, and the largest logit + temperature * noise of the set wins (Gumbel-max), which
 * draws from the softmax of the set without a normaliser. Noise is a pure function of seed, position and token.
 *
 * A set is the whole vocabulary or a list. Most steps keep what is above a logit, or a run: tokens from the first
 * down in some order (equal ones by rising id) until they weigh enough. Weights are whole numbers, so that the order
 * in which anything is summed cannot matter. */
#include "kernels.h"
#include "memory.h"

#include <stdlib.h>

/* What is known of a token's draw, step by step. */
typedef struct draw {
    const fl_model *model;
    const fl_scratch *scratch;
    const fl_request *request;
    const float *logits; /* [V rounded up to FL_BLOCK] */
    bool listed;         /* the set is kept_ids, kept_logits; else the whole vocabulary */
    size_t n;            /* tokens listed */
    float largest;       /* logit of the set */
    float unit;          /* what logits are divided by: 1 before the step temperature */
    bool known;          /* whether `total` and the tokens' masses are of this set and unit */
    uint64_t total;
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
static void pad(const draw *d) {
    for (size_t n = d->n; n % FL_PANEL; n++) {
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
        for (; byte < 255 && weight[byte] < target; byte++) target -= weight[byte];
        if (byte) begin = gather(list, begin, n, shift, 0, byte - 1);
        n = gather(list, begin, n, shift, byte, byte);
    }
    return n;
}

/* Keeps of the m tokens listed behind the first n the shortest run that weighs `target`, each token weighing its mass, or 1.
 * They are in the order of their values. */
static void keep_run(draw *d, size_t n, size_t m, const float *values, const uint32_t *mass, uint64_t target) {
    const fl_scratch *s = d->scratch;
    int32_t *ids = s->kept_ids + n;
    fl_candidate *list = s->candidates;
    for (size_t i = 0; i < m; i++)
        list[i] = (fl_candidate){(uint64_t)falling_order(values[i]) << 32 | (uint32_t)ids[i], mass ? mass[i] : 1};
    m = select_run(list, m, target);
    for (size_t i = 0; i < m; i++) ids[i] = (int32_t)(uint32_t)list[i].order;
    for (size_t i = 0; i < n + m; i++) s->kept_logits[i] = d->logits[s->kept_ids[i]];
    d->listed = true, d->n = n + m;
}

/* ---- runs ---------------------------------------------------------------------------------------------- */

/* So many units below the first, the probability of a token is e^-16 of the best one's: a run seldom ends there. */
#define DEEPEST 16.0f
/* Halvings of that depth, and candidates that are few enough to be ordered one by one instead. */
enum { MOST_LOOKS = 12, FEW = 32, FEW_OF = 64 };

/* Lists of the whole vocabulary the shortest run that weighs `target`. values: what tokens are ordered by, padded as
 * logits are; first: none is larger. Where the run ends is narrowed down by weighing what is above a value, many tokens
 * at a time, until few are left that may be in or out. */
static void list_run(draw *d, const float *values, float first, const uint32_t *mass, uint64_t target) {
    const fl_kernels *kernels = d->model->kernels;
    const fl_scratch *s = d->scratch;
    const size_t V = d->model->vocab_size;
    float floor = -INFINITY, ceiling = INFINITY; /* those from the ceiling up are in, those below the floor out */
    float shallow = 0, deep = DEEPEST;
    fl_weight in = {0, 0};
    size_t doubtful = V;
    for (int look = 0; look < MOST_LOOKS && doubtful > FEW + V / FEW_OF; look++) {
        const float middle = (shallow + deep) / 2, value = first - middle * d->unit;
        if (value <= floor || value >= ceiling) break; /* a temperature beyond measure: nothing is between */
        const fl_weight above = kernels->weigh(values, mass, V, value);
        if (above.mass < target) {
            doubtful -= above.count - in.count;
            ceiling = value, shallow = middle, in = above;
        } else {
            doubtful = above.count - in.count;
            floor = value, deep = middle;
        }
    }
    const size_t n = in.count ? kernels->collect(values, V, ceiling, INFINITY, s->kept_ids, s->kept_logits) : 0;
    const size_t m = kernels->collect(values, V, floor, ceiling, s->kept_ids + n, s->kept_logits + n);
    for (size_t i = n; mass && i < n + m; i++) s->kept_mass[i] = mass[s->kept_ids[i]];
    keep_run(d, n, m, s->kept_logits + n, mass ? s->kept_mass + n : NULL, target - in.mass);
}

/* The part p of a total, in whole numbers: at least 1. */
static uint64_t share(double p, uint64_t total) {
    const double exact = p * (double)total;
    uint64_t target = (uint64_t)exact;
    if ((double)target < exact) target++;
    return target < 1 ? 1 : target > total ? total : target;
}

/* ---- what is known of a set ------------------------------------------------------------------------------ */

static float scale_of(const draw *d) {
    const float exact = 1.0f / d->unit;
    return exact < 0x1p60f ? exact : 0x1p60f; /* no 0 * infinity */
}

/* Probabilities of the set: every token's mass, and their total. */
static void weigh(draw *d) {
    const fl_kernels *kernels = d->model->kernels;
    const fl_scratch *s = d->scratch;
    if (d->known) return;
    if (d->listed) pad(d);
    d->total = d->listed ? kernels->mass(s->kept_logits, d->n, d->largest, scale_of(d), s->kept_mass)
                         : kernels->mass(d->logits, d->model->vocab_size, d->largest, scale_of(d), s->mass);
    d->known = true;
}

/* Natural logarithm of a positive number of any size that is given here. */
static float logarithm(const draw *d, float x) { return d->model->kernels->logarithm(x < FLT_MIN ? FLT_MIN : x); }

/* The logit of a token whose probability in the set has this natural logarithm. */
static float logit_at(draw *d, float log_probability) {
    weigh(d);
    return d->largest + d->unit * (log_probability + logarithm(d, (float)d->total / FL_MASS_ONE));
}

/* Sums in this order: one for each of 16 lanes, which are then added up as a tree. */
enum { SUMS = 16 };

static double total_of(double *sums) {
    for (size_t n = SUMS / 2; n; n /= 2)
        for (size_t i = 0; i < n; i++) sums[i] += sums[i + n];
    return sums[0];
}

/* The logits of the set, and how many there are. */
static const float *logits_of(const draw *d, size_t *n) {
    *n = d->listed ? d->n : d->model->vocab_size;
    return d->listed ? d->scratch->kept_logits : d->logits;
}

/* The mean logit, each weighed by its probability. */
static float mean_logit(draw *d) {
    size_t n;
    const float *logits = logits_of(d, &n);
    const uint32_t *mass = d->listed ? d->scratch->kept_mass : d->scratch->mass;
    double sums[SUMS] = {0};
    weigh(d);
    for (size_t at = 0; at < n; at += SUMS) /* behind the last are padding's logits, of mass 0 */
        for (size_t i = 0; i < SUMS; i++)
            sums[i] += (double)(int32_t)mass[at + i] * (double)(logits[at + i] > -INFINITY ? logits[at + i] : 0);
    return (float)(total_of(sums) / (double)d->total);
}

/* The standard deviation of the finite logits (of all, not of a sample). */
static float deviation(draw *d) {
    size_t n;
    const float *logits = logits_of(d, &n);
    double sums[SUMS] = {0}, squares[SUMS] = {0}, counts[SUMS] = {0};
    if (d->listed) pad(d);
    for (size_t at = 0; at < n; at += SUMS)
        for (size_t i = 0; i < SUMS; i++) { /* from the largest down: no cancellation */
            const bool finite = logits[at + i] > -INFINITY;
            const double below = finite ? (double)d->largest - (double)logits[at + i] : 0;
            sums[i] += below, squares[i] += below * below, counts[i] += finite;
        }
    const double count = total_of(counts), mean = total_of(sums) / count;
    const double variance = total_of(squares) / count - mean * mean;
    return variance > 0 ? (float)sqrt(variance) : 0;
}

/* ---- steps ----------------------------------------------------------------------------------------------- */

/* Everything from a logit up stays, and the likeliest in any case. */
static void keep_floor(draw *d, float floor) {
    const fl_scratch *s = d->scratch;
    if (floor > d->largest) floor = d->largest;
    if (d->listed) {
        size_t kept = 0;
        for (size_t i = 0; i < d->n; i++) {
            s->kept_ids[kept] = s->kept_ids[i];
            s->kept_logits[kept] = s->kept_logits[i];
            kept += s->kept_logits[i] >= floor;
        }
        d->n = kept;
    } else {
        const size_t V = d->model->vocab_size;
        d->n = d->model->kernels->collect(d->logits, V, floor, INFINITY, s->kept_ids, s->kept_logits);
        d->listed = true;
    }
    d->known = false;
}

static void keep_top_k(draw *d, uint32_t k) {
    const size_t V = d->model->vocab_size;
    if (k >= (d->listed ? d->n : V)) return;
    if (d->listed)
        keep_run(d, 0, d->n, d->scratch->kept_logits, NULL, k);
    else
        list_run(d, d->logits, d->largest, NULL, k);
    d->known = false;
}

/* As a list, of finite ones. */
static void list_top(draw *d, uint32_t n) {
    keep_top_k(d, n);
    keep_floor(d, -FLT_MAX);
}

static void keep_top_p(draw *d, double p) {
    weigh(d);
    const uint64_t target = share(p, d->total);
    if (d->listed)
        keep_run(d, 0, d->n, d->scratch->kept_logits, d->scratch->kept_mass, target);
    else
        list_run(d, d->logits, d->largest, d->scratch->mass, target);
    d->known = false;
}

/* Largest of a list that may have lost its first. */
static void find_largest(draw *d) {
    d->largest = -INFINITY;
    for (size_t i = 0; i < d->n; i++)
        if (d->scratch->kept_logits[i] > d->largest) d->largest = d->scratch->kept_logits[i];
}

/* A token's surprise is -(logit - largest) / unit + a constant, and the mean surprise is that of the mean logit: so those
 * nearest to it are those with logits nearest to the mean one. */
static void keep_typical(draw *d, double p) {
    const float centre = mean_logit(d);
    const uint64_t target = share(p, d->total);
    float *values = d->scratch->values;
    size_t n;
    const float *logits = logits_of(d, &n);
    for (size_t i = 0; i < fl_round_up(n, FL_PANEL); i++) values[i] = -fabsf(logits[i] - centre);
    if (d->listed)
        keep_run(d, 0, n, values, d->scratch->kept_mass, target);
    else
        list_run(d, values, 0, d->scratch->mass, target);
    find_largest(d);
    d->known = false;
}

/* The entropy of the set, in nats. */
static float entropy(draw *d) {
    const float mean = mean_logit(d);
    return (d->largest - mean) / d->unit + logarithm(d, (float)d->total / FL_MASS_ONE);
}

static float eta_of(draw *d, float epsilon) {
    const float e = logarithm(d, epsilon), by_entropy = e / 2 - entropy(d);
    return e < by_entropy ? e : by_entropy;
}

static fl_noise noise_of(const fl_request *r, uint32_t purpose) {
    const uint64_t position = r->state->position;
    return (fl_noise){{(uint32_t)r->seed, (uint32_t)(r->seed >> 32)},
                      {(uint32_t)position, r->index, purpose | (uint32_t)(position >> 32) << 8}};
}

/* The logits, in memory of our own. */
static float *own_logits(draw *d) {
    float *changed = d->scratch->changed;
    if (d->logits != changed) memcpy(changed, d->logits, fl_round_up(d->model->vocab_size, FL_BLOCK) * sizeof *changed);
    d->logits = changed;
    return changed;
}

/* The least likely token of a list, among equals the highest id. */
static fl_winner least(const fl_scratch *s, size_t n) {
    fl_winner last = {INFINITY, -1};
    for (size_t i = 0; i < n; i++) {
        const fl_winner one = {s->kept_logits[i], s->kept_ids[i]};
        if (fl_better(last, one).id == last.id) last = one;
    }
    return last;
}

/* Takes the tokens from a logit up out of the set, but for the least likely of them. */
static void drop_top(draw *d, float floor) {
    const fl_scratch *s = d->scratch;
    draw top = *d;
    keep_floor(&top, floor);
    const fl_winner last = least(s, top.n);
    float *logits = own_logits(d);
    for (size_t i = 0; i < top.n; i++)
        if (s->kept_ids[i] != last.id) logits[s->kept_ids[i]] = -INFINITY;
    d->largest = last.key;
}

static void drop_top_listed(draw *d, float floor) {
    const fl_scratch *s = d->scratch;
    fl_winner last = {INFINITY, -1};
    size_t kept = 0;
    for (size_t i = 0; i < d->n; i++) {
        const fl_winner one = {s->kept_logits[i], s->kept_ids[i]};
        if (one.key >= floor && fl_better(last, one).id == last.id) last = one;
    }
    for (size_t i = 0; i < d->n; i++) {
        const fl_winner one = {s->kept_logits[i], s->kept_ids[i]};
        s->kept_ids[kept] = one.id;
        s->kept_logits[kept] = one.key;
        kept += one.key < floor || one.id == last.id;
    }
    d->n = kept, d->largest = last.key;
}

/* Exclude top choices (text-generation-webui, pull request 6335): with a probability, all tokens that reach the threshold
 * but the least likely of them are taken out. */
static void exclude_top(draw *d, const fl_sampling *s) {
    const fl_noise noise = noise_of(d->request, FL_PURPOSE_XTC);
    if ((double)d->model->kernels->word(&noise) >= (double)s->xtc_probability * 0x1p32) return;
    const float floor = logit_at(d, logarithm(d, s->xtc_threshold));
    if (floor > d->largest) return;
    (d->listed ? drop_top_listed : drop_top)(d, floor);
    d->known = false;
}

#define LN_2 0.693147181f

/* Mirostat 2 (Basu et al. 2020, in llama.cpp's form): tokens more surprising than mu bits go. */
static float mirostat_mu(const draw *d) {
    const float mu = d->request->memory->surprise;
    return isnan(mu) ? 2 * d->request->sampling->mirostat_tau : mu;
}

/* mu moves against the surprise of the token drawn, among those that were left. */
static void adapt_mirostat(draw *d, int32_t token) {
    const fl_sampling *s = d->request->sampling;
    const float mu = mirostat_mu(d);
    weigh(d);
    const float nats = (d->largest - d->logits[token]) / d->unit + logarithm(d, (float)d->total / FL_MASS_ONE);
    d->request->memory->surprise = mu - s->mirostat_eta * (nats / LN_2 - s->mirostat_tau);
}

static void take_step(draw *d, fl_control step) {
    const fl_sampling *s = d->request->sampling;
    switch (step) {
    case FL_TEMPERATURE: d->unit = s->temperature, d->known = false; break;
    case FL_TOP_N_SIGMA: keep_floor(d, d->largest - s->top_n_sigma * deviation(d)); break;
    case FL_TOP_K: keep_top_k(d, s->top_k); break;
    case FL_TOP_P: keep_top_p(d, s->top_p); break;
    case FL_MIN_P: keep_floor(d, d->largest + d->unit * logarithm(d, s->min_p)); break;
    case FL_TYPICAL_P: keep_typical(d, s->typical_p); break;
    case FL_EPSILON_CUTOFF: keep_floor(d, logit_at(d, logarithm(d, s->epsilon_cutoff))); break;
    case FL_ETA_CUTOFF: keep_floor(d, logit_at(d, eta_of(d, s->eta_cutoff))); break;
    case FL_XTC: exclude_top(d, s); break;
    case FL_MIROSTAT: keep_floor(d, logit_at(d, -mirostat_mu(d) * LN_2)); break;
    default: break; /* logits were changed before */
    }
}

/* ---- the next token ------------------------------------------------------------------------------------ */

static bool has_step(const fl_sampling *s, fl_control first, fl_control last) {
    for (size_t i = 0; i < FL_CONTROLS && s->steps[i]; i++)
        if (s->steps[i] >= first && s->steps[i] <= last) return true;
    return false;
}

static bool is_filtered(const fl_sampling *s) {
    return s->temperature != 0 && has_step(s, FL_TOP_N_SIGMA, FL_MIROSTAT);
}

bool fl_changes(const fl_request *r) {
    return r->sampling->amateur || fl_bans(r) || has_step(r->sampling, FL_LOGIT_BIAS, FL_DRY);
}

fl_contest fl_draw_of(const fl_request *r) {
    return (fl_contest){r->sampling->temperature, noise_of(r, FL_PURPOSE_TOKEN)};
}

fl_contest fl_contest_of(const fl_request *r) {
    fl_contest contest = fl_draw_of(r);
    if (is_filtered(r->sampling)) contest.temperature = 0;
    return contest;
}

bool fl_is_contest(const fl_request *r) { return !fl_changes(r) && !is_filtered(r->sampling); }

fl_winner fl_win(const fl_model *model, const float *logits, const fl_contest *contest) {
    fl_winner winner = FL_NO_WINNER;
    model->kernels->choose(&winner, logits, NULL, 0, model->vocab_size, contest->temperature, &contest->noise);
    return winner;
}

static float largest_of(const fl_model *model, const float *logits) {
    static const fl_contest greedy = {0};
    return fl_win(model, logits, &greedy).key;
}

/* Contrastive decoding (Li et al. 2022, in the form of O'Brien & Lewis 2023). */
static void contrast(draw *d, const float *amateur) {
    const fl_sampling *s = d->request->sampling;
    const float floor = largest_of(d->model, d->logits) + logarithm(d, s->contrast_alpha), beta = s->contrast_beta;
    float *logits = own_logits(d);
    for (size_t i = 0; i < d->model->vocab_size; i++)
        logits[i] = logits[i] >= floor ? logits[i] + beta * (logits[i] - amateur[i]) : -INFINITY;
}

/* Each token's new logit never falls when its logit rises. */
static void change_each(const fl_model *model, const fl_request *r, float *logits) {
    const uint8_t *steps = r->sampling->steps;
    if (fl_bans(r)) fl_ban(r, model->vocab_size, logits);
    for (size_t i = 0; i < FL_CONTROLS && steps[i]; i++) fl_change((fl_control)steps[i], r, logits);
}

static void change_logits(draw *d, const float *amateur) {
    if (amateur) contrast(d, amateur);
    change_each(d->model, d->request, own_logits(d));
}

/* The set of which a token is drawn; false if it is empty. first: the contest's winner, if it was held already. */
static bool restrict_set(draw *d, const float *amateur, const fl_winner *first, fl_winner *winner) {
    const fl_sampling *s = d->request->sampling;
    const fl_contest contest = fl_contest_of(d->request);
    const bool changes = fl_changes(d->request);
    if (changes) change_logits(d, amateur);
    *winner = first && !changes ? *first : fl_win(d->model, d->logits, &contest);
    if (winner->key == -INFINITY) return false;
    d->largest = winner->key;
    for (size_t i = 0; is_filtered(s) && i < FL_CONTROLS && s->steps[i]; i++) take_step(d, (fl_control)s->steps[i]);
    return true;
}

/* A long list is drawn from faster among all tokens, which share their noise by four. */
static void spread(draw *d) {
    const fl_scratch *s = d->scratch;
    const size_t padded = fl_round_up(d->model->vocab_size, FL_BLOCK);
    for (size_t i = 0; i < padded; i++) s->changed[i] = -INFINITY;
    for (size_t i = 0; i < d->n; i++) s->changed[s->kept_ids[i]] = s->kept_logits[i];
    d->logits = s->changed;
}

enum { LONG_LIST = 4 }; /* one in so many of the vocabulary */

static int32_t pick(draw *d) {
    const fl_contest contest = fl_draw_of(d->request);
    const float temperature = contest.temperature;
    fl_winner winner = FL_NO_WINNER;
    if (d->listed && d->n < d->model->vocab_size / LONG_LIST) {
        pad(d);
        d->model->kernels->choose(&winner, d->scratch->kept_logits, d->scratch->kept_ids, 0, d->n, temperature,
                                  &contest.noise);
        return winner.id;
    }
    if (d->listed) spread(d);
    return fl_win(d->model, d->logits, &contest).id;
}

static draw begin(const fl_model *model, const fl_scratch *scratch, const fl_request *request, const float *logits) {
    return (draw){.model = model, .scratch = scratch, .request = request, .logits = logits, .unit = 1};
}

int32_t fl_sample(const fl_model *model, const fl_scratch *scratch, const fl_request *request, const float *logits,
                  const float *amateur, const fl_winner *first) {
    draw d = begin(model, scratch, request, logits);
    fl_winner winner;
    if (!restrict_set(&d, amateur, first, &winner)) return -1;
    if (!is_filtered(request->sampling)) return winner.id;
    const int32_t token = pick(&d);
    if (has_step(request->sampling, FL_MIROSTAT, FL_MIROSTAT)) adapt_mirostat(&d, token);
    return token;
}

size_t fl_restrict(const fl_model *model, const fl_scratch *scratch, const fl_request *request, const float *logits,
                   const float *amateur, int32_t *ids, float *kept) {
    draw d = begin(model, scratch, request, logits);
    fl_winner winner;
    if (!restrict_set(&d, amateur, NULL, &winner)) return 0;
    if (request->sampling->temperature == 0) {
        ids[0] = winner.id, kept[0] = winner.key;
        return 1;
    }
    keep_floor(&d, -FLT_MAX);
    memcpy(ids, scratch->kept_ids, d.n * sizeof *ids);
    memcpy(kept, scratch->kept_logits, d.n * sizeof *kept);
    return d.n;
}

/* ---- screens ------------------------------------------------------------------------------------------- */

/* The first step that takes tokens out of the set; FL_NO_CONTROL if none does. unit: what it divides logits by. */
static fl_control first_restriction(const fl_model *model, const fl_sampling *s, float *unit) {
    *unit = 1;
    for (size_t i = 0; is_filtered(s) && i < FL_CONTROLS && s->steps[i]; i++) {
        const fl_control step = (fl_control)s->steps[i];
        if (step == FL_TEMPERATURE) *unit = s->temperature;
        if (step < FL_TOP_N_SIGMA || (step == FL_TOP_K && s->top_k >= model->vocab_size)) continue;
        return step;
    }
    return FL_NO_CONTROL;
}

/* Steps whose sums of floats depend on the order of a list, which depends on the tokens that are not in it; or that act when
 * a token is drawn. */
static bool has_order(const fl_sampling *s) {
    return has_step(s, FL_TOP_N_SIGMA, FL_TOP_N_SIGMA) || has_step(s, FL_TYPICAL_P, FL_TYPICAL_P) ||
           has_step(s, FL_ETA_CUTOFF, FL_ETA_CUTOFF) || has_step(s, FL_MIROSTAT, FL_MIROSTAT);
}

/* Whether all steps keep the likeliest tokens, up to a number, a share or a floor. */
static bool keeps_likeliest(const fl_sampling *s) {
    for (size_t i = 0; i < FL_CONTROLS && s->steps[i]; i++)
        if (s->steps[i] != FL_TEMPERATURE && s->steps[i] != FL_TOP_K && s->steps[i] != FL_TOP_P &&
            s->steps[i] != FL_MIN_P)
            return false;
    return true;
}

bool fl_is_asked(const fl_model *model, const fl_request *r) {
    float unit;
    return first_restriction(model, r->sampling, &unit) == FL_TOP_P && !fl_changes(r) && keeps_likeliest(r->sampling);
}

bool fl_screens(const fl_model *model, const fl_request *r) {
    float unit;
    const fl_control step = first_restriction(model, r->sampling, &unit);
    if (!model->screens || r->logprobs || r->alternatives || r->sampling->amateur) return false;
    return step == FL_NO_CONTROL || fl_is_asked(model, r) ||
           ((step == FL_TOP_K || step == FL_MIN_P) && !has_order(r->sampling));
}

/* What stands before a token: likelier ones, and equal ones of lower id. */
static fl_weight before(const fl_model *model, const float *logits, const uint32_t *mass, int32_t token) {
    const size_t V = model->vocab_size;
    const float logit = logits[token];
    const fl_weight with = model->kernels->weigh(logits, mass, V, logit);
    fl_weight found = {with.mass - mass[token], with.count - 1};
    for (size_t i = (size_t)token + 1; i < V && found.count; i++)
        if (logits[i] == logit) found.mass -= mass[i], found.count--;
    return found;
}

bool fl_admits(const fl_model *model, const fl_scratch *scratch, const fl_request *r, const float *logits,
               int32_t token) {
    const fl_sampling *s = r->sampling;
    draw d = begin(model, scratch, r, logits);
    float floor = -FLT_MAX;
    bool ranked = false; /* a number was kept: who stands behind the token may be out */
    d.largest = largest_of(model, logits);
    for (size_t i = 0; i < FL_CONTROLS && s->steps[i]; i++) {
        const fl_control step = (fl_control)s->steps[i];
        if (step == FL_TEMPERATURE) d.unit = s->temperature, d.known = false;
        if (step == FL_MIN_P) floor = fmaxf(floor, d.largest + d.unit * logarithm(&d, s->min_p));
        if (logits[token] < floor) return false;
        if (step != FL_TOP_K && step != FL_TOP_P) continue;
        weigh(&d); /* what is known of the whole, which may be more */
        const fl_weight ahead = before(model, logits, scratch->mass, token);
        const uint64_t known = ranked ? ahead.mass + scratch->mass[token]
                                      : model->kernels->weigh(logits, scratch->mass, model->vocab_size, floor).mass;
        if (step == FL_TOP_P && ahead.mass >= share(s->top_p, known)) return false;
        if (step == FL_TOP_K && ahead.count >= s->top_k) return false;
        if (step == FL_TOP_K) ranked = true;
    }
    return true;
}

float fl_screen_floor(const fl_model *model, const fl_scratch *scratch, const fl_request *r, const fl_view *v) {
    const fl_sampling *s = r->sampling;
    const size_t padded = fl_round_up(model->vocab_size, FL_BLOCK);
    draw d = begin(model, scratch, r, v->lower);
    const fl_control step = first_restriction(model, s, &d.unit);
    if (fl_changes(r)) {
        change_each(model, r, v->lower);
        change_each(model, r, v->upper);
    }
    if (step == FL_NO_CONTROL) {
        const fl_contest contest = fl_draw_of(r);
        fl_winner best = FL_NO_WINNER;
        model->kernels->contend(&best, v->lower, v->upper, 0, padded, contest.temperature, &contest.noise, v->keys);
        return best.key;
    }
    memcpy(v->keys, v->upper, padded * sizeof *v->keys);
    if (step == FL_TOP_K) return least(scratch, fl_top(model, scratch, v->lower, s->top_k)).key;
    d.largest = largest_of(model, v->lower);
    return d.largest + d.unit * logarithm(&d, s->min_p);
}

enum { SHARP_ROWS = 8 };

uint32_t fl_sharp_rows(const fl_model *model, const fl_request *r) {
    float unit;
    return first_restriction(model, r->sampling, &unit) == FL_TOP_K ? r->sampling->top_k : SHARP_ROWS;
}

size_t fl_top(const fl_model *model, const fl_scratch *scratch, const float *values, uint32_t n) {
    draw d = begin(model, scratch, NULL, values);
    d.largest = largest_of(model, values);
    list_top(&d, n);
    return d.n;
}

/* ---- log-probabilities --------------------------------------------------------------------------------- */

/* Of all tokens: what the logarithm of a probability is the logit above the largest less this. */
static float normaliser(const fl_model *model, const float *logits, float largest) {
    return fl_log_sum(model->kernels, logits, model->vocab_size, largest);
}

float fl_logprob(const fl_model *model, const float *logits, int32_t token) {
    const float largest = largest_of(model, logits);
    return (logits[token] - largest) - normaliser(model, logits, largest);
}

void fl_log_softmax(const fl_model *model, const float *logits, float *logprobs) {
    const float largest = largest_of(model, logits), whole = normaliser(model, logits, largest);
    for (size_t i = 0; i < model->vocab_size; i++) logprobs[i] = (logits[i] - largest) - whole;
}

static int by_order(const void *a, const void *b) {
    const uint64_t x = ((const fl_candidate *)a)->order, y = ((const fl_candidate *)b)->order;
    return (x > y) - (x < y);
}

/* The n tokens of largest value, the largest first; d->largest is known. Returns how many there are. */
static size_t rank(draw *d, uint32_t n, int32_t *ids) {
    const fl_scratch *s = d->scratch;
    fl_candidate *list = s->candidates;
    list_top(d, n);
    for (size_t i = 0; i < d->n; i++)
        list[i].order = (uint64_t)falling_order(s->kept_logits[i]) << 32 | (uint32_t)s->kept_ids[i];
    qsort(list, d->n, sizeof *list, by_order);
    for (size_t i = 0; i < d->n; i++) ids[i] = (int32_t)(uint32_t)list[i].order;
    return d->n;
}

void fl_likeliest(const fl_model *model, const fl_scratch *scratch, const float *logits, uint32_t n, int32_t *ids,
                  float *logprobs) {
    draw d = begin(model, scratch, NULL, logits);
    d.largest = largest_of(model, logits);
    const float whole = normaliser(model, logits, d.largest);
    const size_t found = rank(&d, n, ids);
    for (size_t i = 0; i < found; i++) logprobs[i] = (logits[ids[i]] - d.largest) - whole;
}

void fl_branch(const fl_model *model, const fl_scratch *scratch, const float *logits, const uint8_t *ending,
               uint32_t most, fl_branches *branches) {
    const size_t V = model->vocab_size;
    const uint32_t *mass = scratch->mass;
    draw d = begin(model, scratch, NULL, logits);
    uint64_t ended = 0;
    d.largest = largest_of(model, logits);
    weigh(&d);
    const double total = (double)d.total;
    const float whole = logarithm(&d, (float)d.total / FL_MASS_ONE), largest = d.largest;
    float *left = own_logits(&d);
    for (size_t i = 0; i < V; i++) {
        if (!ending[i]) continue;
        ended += mass[i];
        left[i] = -INFINITY;
    }
    uint64_t listed = 0;
    d.largest = largest_of(model, left);
    branches->n = d.largest > -INFINITY ? rank(&d, most, branches->ids) : 0;
    for (size_t i = 0; i < branches->n; i++) {
        listed += mass[branches->ids[i]];
        branches->logprobs[i] = (logits[branches->ids[i]] - largest) - whole;
    }
    branches->ended = (double)ended / total, branches->listed = (double)listed / total;
    branches->unlisted = (double)(d.total - ended - listed) / total;
}

static void clear_from(const fl_request *r, size_t found) {
    for (; found < r->alternatives; found++) r->alternative_ids[found] = -1, r->alternative_logprobs[found] = -INFINITY;
}

/* The likeliest after all changes, on top of log-probabilities. */
static void list_likeliest(const fl_model *model, const fl_scratch *scratch, const fl_request *r, const float *logits) {
    draw d = begin(model, scratch, r, logits);
    fl_log_softmax(model, logits, own_logits(&d));
    if (fl_changes(r)) change_logits(&d, NULL);
    d.largest = largest_of(model, d.logits);
    for (size_t i = 0; i < r->n_asked; i++) r->asked_logprobs[i] = d.logits[r->asked[i]];
    const size_t found = d.largest > -INFINITY ? rank(&d, r->alternatives, r->alternative_ids) : 0;
    for (size_t i = 0; i < found; i++) r->alternative_logprobs[i] = d.logits[r->alternative_ids[i]];
    clear_from(r, found);
}

/* The winners of the contest, one after the other: each leaves the set. */
static void list_drawn(const fl_model *model, const fl_scratch *scratch, const fl_request *r, const float *logits) {
    const fl_contest contest = fl_draw_of(r);
    const float temperature = contest.temperature;
    draw d = begin(model, scratch, r, logits);
    fl_winner winner = FL_NO_WINNER;
    size_t found = 0;
    if (!restrict_set(&d, NULL, NULL, &winner)) {
        clear_from(r, 0);
        return;
    }
    if (d.unit != temperature) d.unit = temperature, d.known = false;
    if (!is_filtered(r->sampling)) d.largest = largest_of(model, d.logits);
    weigh(&d);
    const float whole = logarithm(&d, (float)d.total / FL_MASS_ONE);
    if (d.listed) spread(&d);
    float *left = own_logits(&d);
    for (; found < r->alternatives; found++, left[winner.id] = -INFINITY) {
        winner = fl_win(model, left, &contest);
        if (winner.key == -INFINITY) break;
        r->alternative_ids[found] = winner.id;
        r->alternative_logprobs[found] = (left[winner.id] - d.largest) / temperature - whole;
        r->keys[found] = (winner.key - d.largest) / temperature - whole;
    }
    clear_from(r, found);
}

void fl_successors(const fl_model *model, const fl_scratch *scratch, const fl_request *r, const float *logits) {
    if (r->keys)
        list_drawn(model, scratch, r, logits);
    else if (r->n_asked || fl_changes(r))
        list_likeliest(model, scratch, r, logits);
    else
        fl_likeliest(model, scratch, logits, r->alternatives, r->alternative_ids, r->alternative_logprobs);
}
