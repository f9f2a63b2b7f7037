/* SPDX-License-Identifier: Apache-2.0
 *
 * Most rows of a large output matrix are proved to lose from a bit or two of each of their weights, and only the rest are
 * computed. What is chosen is what the whole matrix would choose, to the last bit: docs/screening.md has the proof. */
#include "memory.h"
#include "step.h"

/* ---- an input ---------------------------------------------------------------------------------------- */

/* Weighs errors of the directions' bytes against each other (docs/screening.md): any positive number is right. */
#define MIX 0.125

static double squared(const float *x, size_t n) {
    double sum[4] = {0};
    for (size_t i = 0; i < n; i++) sum[i % 4] += (double)x[i] * (double)x[i];
    return sum[0] + sum[1] + (sum[2] + sum[3]);
}

/* x, its distance from the mean in two measures, and the largest sum of four that a table is made of. */
static float measure(const fl_screen *s, const fl_columns *input, bool bytes, fl_view *v) {
    const size_t K = input->inputs;
    float largest = 0;
    for (size_t k = 0; k < K; k++) v->input[k] = bytes ? (float)input->bytes[k] * FL_HIDDEN_STEP : input->values[k];
    for (size_t k = 0; k < K; k++) {
        const float away = v->input[k] - s->mean[k];
        v->standard.values[k] = away * s->spread[k];
        v->values[k] = away * s->gain[k];
    }
    for (size_t k = 0; k < 16 * s->pairs; k += 4) {
        const float *four = v->values + k;
        const float sum = fabsf(four[0]) + fabsf(four[1]) + fabsf(four[2]) + fabsf(four[3]);
        largest = sum > largest ? sum : largest;
    }
    return largest;
}

/* How far what no direction tells of may reach: distance times a row's radius. drift: of all directions together, what
 * float32 loses of them. */
static double distance_of(const fl_screen *s, const fl_view *v, double rounding) {
    const size_t K = s->basis.inputs, n = s->along.inputs;
    const double step = (double)v->along.steps[0], all = squared(v->standard.values, K);
    double shared = 0, along = 0, lost = 0;
    for (size_t i = 0; i < n; i++) {
        const double exact = (double)v->directions[i], rounded = step * (double)v->along.bytes[i];
        shared += exact * rounded, along += rounded * rounded, lost += (exact - rounded) * (exact - rounded);
    }
    const double drift = sqrt((double)n * all) * ldexp((double)K + 4, -24), far = sqrt(lost) + drift;
    const double rest = all - 2 * shared + along, slack = 2 * drift * sqrt(along) + ldexp(along, -16);
    const double sizes = sqrt(squared(v->input, K)) + sqrt(squared(s->mean, K)) + sqrt(all) + sqrt(along);
    return sqrt((rest > 0 ? rest : 0) + slack + MIX * MIX * along + far * far / (MIX * MIX) + rounding * sizes * sizes);
}

static void look(const fl_model *model, const fl_columns *input, fl_view *v) {
    const fl_screen *s = model->screen;
    const size_t K = input->inputs;
    const float largest = measure(s, input, fl_reads_bytes(&model->output), v);
    const float steps = largest < 0x1p-100f ? 0 : (float)FL_TABLE_MOST / largest;
    const double rounding = ldexp((double)K + 8, -23), grown = 1 + 0x1p-16 + rounding;
    const float *none = v->directions;
    memset(v->directions, 0, s->basis.panels * FL_PANEL * sizeof(float));
    model->kernels->product(&s->basis, 0, s->basis.panels, &v->standard, 1, &none, &v->directions);
    fl_columns_put(&v->along, 0, v->directions, 0);
    model->kernels->make_tables(v->values, 4 * s->pairs, steps, v->tables);
    v->step = largest < 0x1p-100f ? 0 : largest / (float)FL_TABLE_MOST;
    v->table_error = (float)((double)fmaxf(v->step, 0x1p-98f) * (double)fl_parts(K, 4) * 0.501 * grown);
    v->distance = (float)(distance_of(s, v, rounding) * grown);
    v->rounding = (float)rounding;
}

/* ---- rows -------------------------------------------------------------------------------------------- */

/* Rows that are looked at before the next: their bounds are still in the nearest cache. */
enum { CHUNK = 16 };

static void bound(const fl_model *model, const fl_view *v, size_t begin, size_t end) {
    const fl_screen *s = model->screen;
    const size_t V = model->vocab_size, panels = FL_BLOCK / FL_PANEL;
    const float *shift = s->shift;
    float *lower = v->lower;
    for (size_t at = begin, next; at < end; at = next) {
        next = end - at > CHUNK ? at + CHUNK : end;
        model->kernels->product(&s->along, panels * at, panels * next, &v->along, 1, &shift, &lower);
        model->kernels->bound(s, v, at, next, v->lower, v->upper);
    }
    for (size_t i = V; end == s->blocks && i < end * FL_BLOCK; i++) v->lower[i] = v->upper[i] = -INFINITY;
}

/* ---- a token ----------------------------------------------------------------------------------------- */

/* What the parts of one request's screening share. */
typedef struct sieve {
    const fl_model *model;
    const fl_scratch *scratch; /* [parts] */
    const fl_view *view;
    const fl_columns *input;
    const fl_contest *contest; /* NULL: held only when all rows are finished */
    float *logits;
    float floor;
    size_t rows[FL_MOST_THREADS], computed[FL_MOST_THREADS]; /* of each part, and so the next */
    fl_winner winner[FL_MOST_THREADS];
} sieve;

/* Logits of panels; what pads the vocabulary must never win. */
static void compute(const sieve *s, size_t begin, size_t end) {
    const fl_matrix *output = &s->model->output;
    float *logits = s->logits;
    if (begin < end) s->model->kernels->product(output, begin, end, s->input, 1, &s->model->output_bias, &logits);
    for (size_t i = s->model->vocab_size; end == output->panels && i < end * FL_PANEL; i++) logits[i] = -INFINITY;
}

/* Whose lower bound is best is computed at once: his own key rules out more than a bound of it. */
static fl_winner first_guess(const sieve *s, size_t begin, size_t end) {
    const fl_kernels *kernels = s->model->kernels;
    fl_winner best = FL_NO_WINNER;
    kernels->contend(&best, s->view->lower, s->view->upper, begin, end, s->contest->temperature, &s->contest->noise,
                     s->view->keys);
    if (best.id == INT32_MAX) return best; /* a part without rows */
    const size_t panel = (size_t)best.id / FL_PANEL, first = panel * FL_PANEL;
    int32_t ids[FL_PANEL];
    compute(s, panel, panel + 1);
    for (size_t i = 0; i < FL_PANEL; i++) ids[i] = first + i < s->model->vocab_size ? (int32_t)(first + i) : INT32_MAX;
    kernels->choose(&best, s->logits + first, ids, 0, FL_PANEL, s->contest->temperature, &s->contest->noise);
    return best;
}

static void bound_part(void *context, uint32_t part, uint32_t parts) {
    sieve *s = context;
    size_t begin, end;
    fl_slice(s->model->screen->blocks, 1, part, parts, &begin, &end);
    bound(s->model, s->view, begin, end);
    s->winner[part] = s->contest ? first_guess(s, begin * FL_BLOCK, end * FL_BLOCK) : FL_NO_WINNER;
}

/* Computes the logits of panels with a row whose bound reaches the floor; returns how many rows reach it, and adds up how
 * many are computed. */
static size_t compute_above(const sieve *s, const fl_scratch *scratch, const float *bounds, float floor, size_t begin,
                            size_t end, size_t *computed) {
    const size_t V = s->model->vocab_size, last = end < V ? end : V;
    const size_t n = s->model->kernels->collect(bounds + begin, last - begin, floor, INFINITY, scratch->kept_ids,
                                                scratch->kept_logits);
    size_t from = 0, to = 0; /* panels in a row */
    for (size_t i = 0; i < n; i++) {
        const size_t panel = (begin + (size_t)scratch->kept_ids[i]) / FL_PANEL;
        if (panel > to) {
            compute(s, from, to);
            *computed += (to - from) * FL_PANEL;
            from = panel;
        }
        to = panel + 1;
    }
    compute(s, from, to);
    *computed += (to - from) * FL_PANEL;
    return n;
}

/* Logits of all who may win, and minus infinity of all others. */
static void finish_part(void *context, uint32_t part, uint32_t parts) {
    sieve *s = context;
    size_t begin, end;
    fl_slice(s->model->screen->blocks, 1, part, parts, &begin, &end);
    begin *= FL_BLOCK, end *= FL_BLOCK;
    size_t computed = 0; /* kept here, and the winner too: parts that write to one cache line slow each other down */
    fl_winner winner = FL_NO_WINNER;
    for (size_t i = begin; i < end; i++) s->logits[i] = -INFINITY;
    const size_t rows = compute_above(s, &s->scratch[part], s->view->keys, s->floor, begin, end, &computed);
    if (s->contest)
        s->model->kernels->choose(&winner, s->logits, NULL, begin, end, s->contest->temperature, &s->contest->noise);
    s->rows[part] = rows, s->computed[part] = computed, s->winner[part] = winner;
}

/* By the decoder's team, or by the caller alone if there is none. */
static void run(fl_team *team, void (*part)(void *, uint32_t, uint32_t), sieve *s) {
    if (team)
        fl_team_run(team, part, s);
    else
        part(s, 0, 1);
}

static fl_winner best_of(const sieve *s, uint32_t parts) {
    fl_winner best = FL_NO_WINNER;
    for (uint32_t i = 0; i < parts; i++) best = fl_better(best, s->winner[i]);
    return best;
}

/* The same where controls come first: so many rows of the best lower bounds are computed, and are their own bounds. */
static void sharpen(const sieve *s, uint32_t rows) {
    const fl_view *v = s->view;
    int32_t *ids = s->scratch->kept_ids;
    const size_t n = fl_top(s->model, s->scratch, v->lower, rows);
    for (size_t i = 0; i < n; i++) {
        const size_t panel = (size_t)ids[i] / FL_PANEL, first = panel * FL_PANEL;
        if (v->lower[ids[i]] == v->upper[ids[i]]) continue; /* its panel is computed */
        compute(s, panel, panel + 1);
        for (size_t k = first; k < first + FL_PANEL && k < s->model->vocab_size; k++)
            v->lower[k] = v->upper[k] = s->logits[k];
    }
}

static void compute_all(const sieve *s) {
    for (size_t i = s->model->vocab_size; i < s->model->screen->blocks * FL_BLOCK; i++) s->logits[i] = -INFINITY;
    compute(s, 0, s->model->output.panels);
}

/* Logits that are not within their bounds. */
static size_t wrong_bounds(const sieve *s) {
    size_t wrong = 0;
    bound(s->model, s->view, 0, s->model->screen->blocks);
    compute_all(s);
    for (size_t i = 0; i < s->model->vocab_size; i++)
        wrong += !(s->view->lower[i] <= s->logits[i] && s->logits[i] <= s->view->upper[i]);
    return wrong;
}

static bool draws_another(const sieve *s, const fl_request *r, int32_t token) {
    compute_all(s);
    return fl_sample(s->model, s->scratch, r, s->logits, NULL, NULL) != token;
}

/* One in so many rows: if more may be likelier than the winner, it is not asked. */
enum { MANY_LIKELIER = 8 };

/* The winner among all, if it is surely in the set, else the winner of the set: from all logits. */
static int32_t ask(const sieve *s, const fl_request *r, int32_t winner, size_t *computed) {
    const size_t V = s->model->vocab_size;
    const float logit = s->logits[winner];
    if (s->model->kernels->weigh(s->view->upper, NULL, V, logit).count < V / MANY_LIKELIER) {
        compute_above(s, s->scratch, s->view->upper, logit, 0, V, computed);
        if (fl_admits(s->model, s->scratch, r, s->logits, winner)) return winner;
    }
    compute_all(s);
    *computed += V;
    return fl_sample(s->model, s->scratch, r, s->logits, NULL, NULL);
}

int32_t fl_screen_draw(const fl_model *model, fl_team *team, fl_scratch *scratch, fl_request *r,
                       const fl_columns *input, float *logits) {
    const bool asked = fl_is_asked(model, r), direct = asked || fl_is_contest(r);
    const fl_contest contest = fl_draw_of(r);
    const uint32_t parts = team ? team->size : 1;
    sieve s = {.model = model, .scratch = scratch, .view = &scratch->view, .input = input, .logits = logits};
    look(model, input, &scratch->view);
    if (model->checks_screen) r->wrong += wrong_bounds(&s);
    s.contest = direct ? &contest : NULL;
    run(team, bound_part, &s);
    s.floor = best_of(&s, parts).key;
    if (!direct) {
        sharpen(&s, fl_sharp_rows(model, r));
        s.floor = fl_screen_floor(model, scratch, r, s.view);
    }
    run(team, finish_part, &s);
    const fl_winner first = best_of(&s, parts);
    for (uint32_t i = 0; i < parts; i++) r->finished += s.rows[i], r->computed += s.computed[i];
    r->screened++;
    const int32_t token = asked && first.id != INT32_MAX
                              ? ask(&s, r, first.id, &r->computed)
                              : fl_sample(model, scratch, r, logits, NULL, direct ? &first : NULL);
    if (model->checks_screen) r->wrong += draws_another(&s, r, token);
    return token;
}
