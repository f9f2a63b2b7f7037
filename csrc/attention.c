/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a decoder looks at its source, for many sequences side by side, each at its own: nothing is padded. */
#include "step.h"

/* What the parts of one step share. */
typedef struct looking {
    fl_decoder *decoder;
    const fl_layer_room *top;
    const fl_columns *hidden; /* on top */
    size_t n;
    bool many;
} looking;

static void zero(float *values, size_t n) { memset(values, 0, n * sizeof *values); }

static void score_places(const fl_decoder *d, const fl_source *s, const float *hidden, const float *query, float *out) {
    const fl_attention *a = d->model->attention;
    if (a->additive) {
        d->model->kernels->compare(&s->keys, query, a->score, out);
        return;
    }
    float step = 0;
    const fl_columns column = {.values = (float *)(uintptr_t)hidden,
                               .steps = &step,
                               .inputs = s->keys.inputs,
                               .padded = s->keys.inputs,
                               .width = 1};
    const float *start = out;
    zero(out, s->keys.panels * FL_PANEL);
    d->model->kernels->product(&s->keys, 0, s->keys.panels, &column, 1, &start, &out);
}

/* Softmax of n scores, in place: whole numbers of 2^-30 of the largest, each times the reciprocal of their sum. */
static void weigh_places(const fl_kernels *kernels, size_t n, float *scores, uint32_t *mass) {
    float largest = scores[0];
    for (size_t i = 1; i < n; i++) largest = scores[i] > largest ? scores[i] : largest;
    for (size_t i = n; i % FL_PANEL; i++) scores[i] = -INFINITY;
    const uint64_t total = kernels->mass(scores, n, largest, 1.0f, mass);
    const float share = (float)(1.0 / (double)total);
    for (size_t i = 0; i < n; i++) scores[i] = (float)mass[i] * share;
}

/* out: [values.panels * FL_PANEL] */
static void mean_value(const fl_kernels *kernels, const fl_source *s, float *weights, float *out) {
    float step = 0;
    const fl_columns column = {.values = weights, .steps = &step, .inputs = s->n, .padded = s->n, .width = 1};
    const float *start = out;
    zero(out, s->values.panels * FL_PANEL);
    kernels->product(&s->values, 0, s->values.panels, &column, 1, &start, &out);
}

/* The context of each column of a part. gates[column] holds its query until then, and the context after. */
static void look_part(void *context, uint32_t part, uint32_t parts) {
    const looking *l = context;
    fl_decoder *d = l->decoder;
    fl_attention_room *room = d->attention;
    size_t begin, end;
    fl_slice(l->n, 1, part, parts, &begin, &end);
    for (size_t j = begin; j < end; j++) {
        const fl_source *s = room->source[j];
        float *weights = room->weights[j], *found = d->gates[j];
        if (s) {
            score_places(d, s, l->top->h[j], found, weights);
            weigh_places(d->model->kernels, s->n, weights, room->mass[j]);
            mean_value(d->model->kernels, s, weights, found);
        } else {
            zero(found, fl_round_up(room->context[0].inputs, FL_PANEL)); /* a state that no source has begun */
        }
        fl_columns_put(&room->context[l->many], j, found, FL_HIDDEN_STEP);
    }
}

/* tanh(C context + H hidden + b) */
static void combine_part(void *context, uint32_t part, uint32_t parts) {
    const looking *l = context;
    fl_decoder *d = l->decoder;
    const fl_attention *a = d->model->attention;
    const fl_kernels *kernels = d->model->kernels;
    fl_layer_room *given = &d->attention->given;
    const float *start[FL_MOST_COLUMNS], *gates[FL_MOST_COLUMNS];
    size_t begin, end;
    fl_slice(a->context.panels, 2, part, parts, &begin, &end);
    for (size_t j = 0; j < l->n; j++) start[j] = a->bias, gates[j] = d->gates[j];
    kernels->product(&a->context, begin, end, &d->attention->context[l->many], l->n, start, d->gates);
    kernels->product(&a->hidden, begin, end, l->hidden, l->n, gates, d->gates);
    kernels->activate(begin, end, l->n, gates, &(l->many ? given->many : given->one)[!d->now], given->h);
}

/* Of the additive score: gates[column] = Q hidden + q */
static void query(fl_decoder *d, const fl_columns *hidden, size_t n) {
    const fl_attention *a = d->model->attention;
    const float *start[FL_MOST_COLUMNS];
    for (size_t j = 0; j < n; j++) start[j] = a->query_bias;
    fl_product(d, &a->query, hidden, n, start, d->gates);
}

void fl_attend(fl_decoder *d, size_t n, bool many) {
    const fl_layer_room *top = &d->layers[d->model->n_layers - 1];
    looking l = {.decoder = d, .top = top, .n = n, .many = many};
    l.hidden = &(many ? top->many : top->one)[!d->now];
    if (d->model->attention->additive) query(d, l.hidden, n);
    fl_team_run(&d->team, look_part, &l);
    fl_team_run(&d->team, combine_part, &l);
}

/* ---- copying ------------------------------------------------------------------------------------------- */

/* log(e^larger + e^(larger + below)) for a panel of them; below at most 0, -inf: nothing is added. */
static void add_logs(const fl_kernels *kernels, const float *below, float *larger) {
    uint32_t mass[FL_PANEL];
    kernels->mass(below, FL_PANEL, 0, 1, mass);
    for (size_t k = 0; k < FL_PANEL; k++) larger[k] += kernels->logarithm(1 + (float)mass[k] / FL_MASS_ONE);
}

static float add_log(const fl_kernels *kernels, float a, float b) {
    return (a > b ? a : b) + kernels->logarithm(1 + fl_exp_step(kernels, a > b ? b - a : a - b));
}

/* Scores of places become logarithms of shares; those of a token that comes again are added up where it is first. */
static void log_shares(const fl_kernels *kernels, const fl_source *s, float *scores) {
    float largest = scores[0];
    for (size_t i = 1; i < s->n; i++) largest = scores[i] > largest ? scores[i] : largest;
    for (size_t i = s->n; i % FL_PANEL; i++) scores[i] = -INFINITY;
    const float whole = fl_log_sum(kernels, scores, s->n, largest);
    for (size_t i = 0; i < s->n; i++) scores[i] = (scores[i] - largest) - whole;
    for (size_t i = 0; i < s->n; i++)
        if (s->first[i] != i) scores[s->first[i]] = add_log(kernels, scores[s->first[i]], scores[i]);
}

/* With probability p a token is written, by the logits, else copied from a place of the source (See et al. 2017). Where odds of
 * p are e^gate and the logits' normaliser is e^whole, a logit l becomes log(e^l + e^(whole - gate) share), and those of tokens
 * that are not in the source stay. apart: whole - gate. */
static void add_copies(const fl_kernels *kernels, const fl_source *s, const float *shares, float apart, float *logits) {
    for (size_t at = 0; at < s->n; at += FL_PANEL) {
        const size_t n = s->n - at < FL_PANEL ? s->n - at : FL_PANEL;
        float below[FL_PANEL], larger[FL_PANEL] = {0};
        for (size_t k = 0; k < FL_PANEL; k++) {
            below[k] = -INFINITY;
            if (k >= n || s->first[at + k] != at + k) continue;
            const float copied = apart + shares[at + k], written = logits[s->tokens[at + k]];
            larger[k] = copied > written ? copied : written;
            below[k] = copied > written ? written - copied : copied - written;
        }
        add_logs(kernels, below, larger);
        for (size_t k = 0; k < n; k++)
            if (s->first[at + k] == at + k) logits[s->tokens[at + k]] = larger[k];
    }
}

/* hidden: on top; queried: what the additive score makes of it; given: what attention did; shares: room for the source's
 * places. */
static void copy_column(const fl_decoder *d, const fl_source *s, const float *hidden, const float *queried,
                        const float *given, float *shares, float *logits) {
    static const fl_contest greedy = {0};
    const fl_model *model = d->model;
    const fl_attention *a = model->attention;
    const fl_kernels *kernels = model->kernels;
    score_places(d, s, hidden, queried, shares);
    log_shares(kernels, s, shares);
    float gate = a->copy_bias[0];
    for (size_t k = 0; k < a->units; k++) gate += a->copy[k] * given[k];
    const float largest = fl_win(model, logits, &greedy).key;
    const float whole = largest + fl_log_sum(kernels, logits, model->vocab_size, largest);
    add_copies(kernels, s, shares, whole - gate, logits);
}

/* What the parts of one call share. */
typedef struct copying {
    fl_decoder *decoder;
    size_t n;
    float *const *hidden, *const *given;
    bool text; /* all columns are places of one */
} copying;

static void copy_part(void *context, uint32_t part, uint32_t parts) {
    const copying *c = context;
    fl_decoder *d = c->decoder;
    fl_attention_room *room = d->attention;
    size_t begin, end;
    fl_slice(c->n, 1, part, parts, &begin, &end);
    for (size_t j = begin; j < end; j++) {
        const fl_source *s = room->source[c->text ? 0 : j];
        if (s) copy_column(d, s, c->hidden[j], d->gates[j], c->given[j], room->weights[j], d->logits[j]);
    }
}

static void add_all_copies(fl_decoder *d, const copying *c, const fl_columns *hidden) {
    if (d->model->attention->additive) query(d, hidden, c->n);
    fl_team_run(&d->team, copy_part, (void *)(uintptr_t)c);
}

void fl_copy_tokens(fl_decoder *d, size_t n, bool many) {
    const fl_layer_room *top = &d->layers[d->model->n_layers - 1];
    const copying c = {.decoder = d, .n = n, .hidden = top->h, .given = d->attention->given.h};
    add_all_copies(d, &c, &(many ? top->many : top->one)[d->now]);
}

void fl_copy_text_tokens(fl_decoder *d, size_t n) {
    const fl_attention_room *room = d->attention;
    const copying c = {.decoder = d, .n = n, .hidden = room->hidden, .given = room->given_text, .text = true};
    add_all_copies(d, &c, &d->layers[d->model->n_layers - 1].text);
}

void fl_keep_place(fl_decoder *d, size_t place) {
    const fl_attention *a = d->model->attention;
    fl_attention_room *room = d->attention;
    fl_layer_room *top = &d->layers[d->model->n_layers - 1];
    fl_columns_copy(&room->given.text, place, &room->given.one[d->now], 0, room->given.text.padded);
    if (!a->copy) return;
    if (a->additive) fl_columns_copy(&top->text, place, &top->one[d->now], 0, top->text.padded);
    memcpy(room->hidden[place], top->h[0], top->text.inputs * sizeof(float));
    memcpy(room->given_text[place], room->given.h[0], a->units * sizeof(float));
}
