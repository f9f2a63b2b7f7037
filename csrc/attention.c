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

void fl_attend(fl_decoder *d, size_t n, bool many) {
    const fl_attention *a = d->model->attention;
    const fl_layer_room *top = &d->layers[d->model->n_layers - 1];
    looking l = {.decoder = d, .top = top, .n = n, .many = many};
    l.hidden = &(many ? top->many : top->one)[!d->now];
    if (a->additive) {
        const float *start[FL_MOST_COLUMNS];
        for (size_t j = 0; j < n; j++) start[j] = a->query_bias;
        fl_product(d, &a->query, l.hidden, n, start, d->gates);
    }
    fl_team_run(&d->team, look_part, &l);
    fl_team_run(&d->team, combine_part, &l);
}
