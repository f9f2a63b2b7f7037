/* SPDX-License-Identifier: Apache-2.0
 *
 * Judges texts: pools what the last layer gives at every place, and makes log-probabilities of labels of it. Pooling goes
 * place by place, in order, so that a text read in pieces gives the bits of the whole. */
#include "encoder.h"

#include <stdlib.h>

/* ---- what pooling remembers of the places so far -------------------------------------------------------- */

/* [filled up width] each, one after the other; not all kinds have all. */
typedef struct memory {
    float *sum;     /* of all places; attention: weighted, in parts of the largest weight so far */
    float *largest; /* of each value */
    float *scores;  /* attention: the largest so far, and the sum of the weights */
} memory;

static size_t filled(const fl_model *model) { return fl_round_up(fl_encoder_outputs(model->encoder), FL_PANEL); }

static bool has_sum(fl_pool_kind kind) { return kind != FL_POOL_LAST && kind != FL_POOL_MAX; }
static bool has_largest(fl_pool_kind kind) { return kind == FL_POOL_MAX || kind == FL_POOL_CONCAT; }

size_t fl_pool_floats(const fl_model *model) {
    const fl_pool_kind kind = model->pooling->kind;
    return (size_t)(has_sum(kind) + has_largest(kind)) * filled(model) + FL_PANEL;
}

static memory memory_at(const fl_model *model, float *at) {
    const fl_pool_kind kind = model->pooling->kind;
    memory m = {.scores = at};
    at += FL_PANEL;
    m.sum = at, at += has_sum(kind) ? filled(model) : 0;
    m.largest = at;
    return m;
}

/* ---- a place ------------------------------------------------------------------------------------------- */

/* Softmax of scores that come one by one (Milakov & Gimelshein 2018): what was added up shrinks when a larger one comes. */
static void attend(const fl_kernels *kernels, const memory *m, const float *value, size_t width, float score,
                   bool first) {
    float kept = 1, weight = 1;
    if (first) {
        m->scores[0] = score, m->scores[1] = 0;
    } else if (score > m->scores[0]) {
        kept = fl_exp_step(kernels, m->scores[0] - score);
        m->scores[0] = score;
    } else {
        weight = fl_exp_step(kernels, score - m->scores[0]);
    }
    m->scores[1] = m->scores[1] * kept + weight;
    for (size_t k = 0; k < width; k++) m->sum[k] = first ? value[k] : m->sum[k] * kept + value[k] * weight;
}

static void add_place(const fl_model *model, const memory *m, const float *value, float score, bool first) {
    const fl_pool_kind kind = model->pooling->kind;
    const size_t width = fl_encoder_outputs(model->encoder);
    if (kind == FL_POOL_ATTENTION)
        attend(model->kernels, m, value, width, score, first);
    else if (has_sum(kind))
        for (size_t k = 0; k < width; k++) m->sum[k] = first ? value[k] : m->sum[k] + value[k];
    if (has_largest(kind))
        for (size_t k = 0; k < width; k++) m->largest[k] = first || value[k] > m->largest[k] ? value[k] : m->largest[k];
}

/* ---- scores of attention --------------------------------------------------------------------------------- */

/* Places whose keys are made at once: a whole number of panels. */
enum { TOGETHER = 4 * FL_PANEL };

/* score · tanh(key place + bias) of every place (Yang et al. 2016), filled up to panels for each text; to be freed. */
static fl_status score_places(fl_reading *r, float **scores, fl_error *error) {
    const fl_model *model = r->decoder->model;
    const fl_pooling *p = model->pooling;
    const size_t row = p->key.panels * FL_PANEL;
    const size_t width = fl_encoder_outputs(model->encoder);
    float *rows = malloc(TOGETHER * row * sizeof *rows), *panels = calloc(TOGETHER * row, sizeof *panels);
    float *none = calloc(row, sizeof *none), *out = *scores = malloc((r->places + r->n * FL_PANEL) * sizeof *out);
    fl_status status = FL_OK;
    if (!rows || !panels || !none || !out)
        status = fl_fail(error, FL_ERROR_MEMORY, "no memory for the scores of %zu places", r->places);
    for (size_t j = 0; !status && j < r->n; j++)
        for (size_t at = 0, n; !status && at < r->length[j]; at += n) {
            n = r->length[j] - at < TOGETHER ? r->length[j] - at : TOGETHER;
            fl_matrix keys = {.weights = panels, .inputs = p->units, .lanes = FL_PANEL, .blocks = p->units};
            keys.panels = fl_parts(n, FL_PANEL);
            status = fl_multiply_rows(r->decoder, &p->key, n, r->values[0] + (r->first[j] + at) * width, width, none,
                                      FL_HIDDEN_STEP, rows, row, error);
            if (status) break;
            fl_fill_keys(&keys, rows, row, n);
            model->kernels->compare(&keys, p->bias, p->score, out);
            out += keys.panels * FL_PANEL;
        }
    free(none);
    free(panels);
    free(rows);
    return status;
}

/* ---- a text ----------------------------------------------------------------------------------------------- */

static void divide(float *to, const float *from, size_t n, float by) {
    for (size_t k = 0; k < n; k++) to[k] = from[k] / by;
}

/* What the output matrix reads of text j, which has `count` places by now. */
static void finish(const fl_reading *r, size_t j, const memory *m, uint64_t count, float *to) {
    const fl_encoder *e = r->decoder->model->encoder;
    const size_t width = fl_encoder_outputs(e);
    const fl_pool_kind kind = r->decoder->model->pooling->kind;
    const float *last = r->ends[j];
    for (uint32_t i = 0; i + 1 < e->n_layers; i++) last += 2 * fl_encoder_width(e, i);
    if (kind == FL_POOL_LAST || kind == FL_POOL_CONCAT) memcpy(to, last, width * sizeof *to), to += width;
    if (has_largest(kind)) memcpy(to, m->largest, width * sizeof *to), to += width;
    if (has_sum(kind)) divide(to, m->sum, width, kind == FL_POOL_ATTENTION ? m->scores[1] : (float)count);
}

static fl_state *state_of(const fl_reading *r, size_t j) { return r->states[r->order[j]]; }

/* pooled: [texts][inputs of the output matrix]. States change only if all goes well. */
static fl_status pool(fl_reading *r, float *pooled, size_t row, fl_error *error) {
    const fl_model *model = r->decoder->model;
    const size_t width = fl_encoder_outputs(model->encoder);
    float *scores = NULL, *own = malloc(fl_pool_floats(model) * sizeof *own);
    fl_status status = own ? FL_OK : fl_fail(error, FL_ERROR_MEMORY, "no memory to pool %zu values", width);
    if (!status && model->pooling->kind == FL_POOL_ATTENTION) status = score_places(r, &scores, error);
    const float *score = scores;
    for (size_t j = 0; !status && j < r->n; j++) {
        fl_state *state = state_of(r, j);
        const memory m = memory_at(model, state ? state->memory + fl_encoder_floats(model->encoder) : own);
        const uint64_t before = state ? state->position : 0;
        for (size_t t = 0; t < r->length[j]; t++)
            add_place(model, &m, r->values[0] + (r->first[j] + t) * width, score ? score[t] : 0, before + t == 0);
        if (score) score += fl_round_up(r->length[j], FL_PANEL);
        if (state) state->position += r->length[j];
        finish(r, j, &m, before + r->length[j], pooled + j * row);
    }
    if (!status) fl_keep_states(r);
    free(scores);
    free(own);
    return status;
}

/* logits: [labels], with room up to a whole panel. */
static void log_softmax(const fl_kernels *kernels, float *logits, size_t n, float *logprobs) {
    float largest = logits[0];
    for (size_t i = 1; i < n; i++) largest = logits[i] > largest ? logits[i] : largest;
    for (size_t i = n; i % FL_PANEL; i++) logits[i] = -INFINITY;
    const float whole = fl_log_sum(kernels, logits, n, largest);
    for (size_t i = 0; i < n; i++) logprobs[i] = (logits[i] - largest) - whole;
}

static fl_status judge(fl_reading *r, const fl_text *texts, fl_error *error) {
    fl_decoder *d = r->decoder;
    const fl_model *model = d->model;
    const size_t row = model->output.inputs;
    float *pooled = NULL;
    fl_columns columns[2];
    fl_status status = fl_read_places(r, error);
    void *block = fl_columns_new(&model->output, r->n, columns);
    if (!status) pooled = malloc(r->n * row * sizeof *pooled);
    if (!status && (!pooled || !block)) status = fl_fail(error, FL_ERROR_MEMORY, "no memory to judge %zu texts", r->n);
    if (!status) status = pool(r, pooled, row, error);
    if (!status) {
        const float *bias[FL_MOST_COLUMNS];
        for (size_t j = 0; j < r->n; j++) {
            fl_columns_put(&columns[r->n > 1], j, pooled + j * row, 0);
            bias[j] = model->output_bias;
        }
        fl_product(d, &model->output, &columns[r->n > 1], r->n, bias, d->logits);
        for (size_t j = 0; j < r->n; j++)
            log_softmax(model->kernels, d->logits[j], model->n_labels, texts[r->order[j]].logprobs);
    }
    free(block);
    free(pooled);
    free(r->block);
    return status;
}

fl_status fl_classify(fl_decoder *d, const fl_text *texts, size_t n, fl_error *error) {
    fenv_t caller;
    fl_status status = FL_OK;
    fl_enter(d, &caller);
    for (size_t at = 0, part; !status && at < n; at += part) {
        fl_source_text given[FL_MOST_COLUMNS];
        fl_state *states[FL_MOST_COLUMNS];
        const size_t most = n - at < FL_MOST_COLUMNS ? n - at : FL_MOST_COLUMNS;
        for (size_t i = 0; i < most; i++) {
            if (texts[at + i].state && fl_encoder_turns(d->model->encoder))
                status = fl_fail(error, FL_ERROR_ARGUMENT, "a model that also reads backwards has no state of a text");
            given[i] = (fl_source_text){texts[at + i].tokens, texts[at + i].n};
            states[i] = texts[at + i].state;
        }
        part = fl_read_together(given, most);
        if (status) break;
        fl_reading r = {.decoder = d, .n = part, .given = given, .states = states};
        status = judge(&r, texts + at, error);
        fl_team_pause(&d->team);
    }
    fl_leave(d, &caller);
    return status;
}
