/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads sources: many of them side by side, each to the bits that it would have alone. Layer by layer, since a layer's input
 * products of all places go together; only the recurrent ones go place by place. */
#include "encoder.h"

#include <stdlib.h>

static void sort_texts(fl_reading *r) {
    for (size_t i = 0; i < r->n; i++) {
        size_t at = i;
        for (; at && r->given[r->order[at - 1]].n < r->given[i].n; at--) r->order[at] = r->order[at - 1];
        r->order[at] = i;
    }
    for (size_t j = 0; j < r->n; j++) {
        r->length[j] = r->given[r->order[j]].n;
        r->first[j] = r->places;
        r->places += r->length[j];
    }
}

/* ---- sizes --------------------------------------------------------------------------------------------- */

/* Of what lies at one place, in floats. */
typedef struct room {
    size_t values, gates, ends;
} room;

static room measure(const fl_encoder *e) {
    room needed = {.values = e->embedding_size};
    for (uint32_t i = 0; i < e->n_layers; i++) {
        const size_t width = fl_encoder_width(e, i);
        if (width > needed.values) needed.values = width;
        needed.ends += 2 * width;
        for (int way = 0; way < 2; way++) {
            const size_t row = e->layers[2 * i + way].groups * FL_GATES * FL_PANEL;
            if (row > needed.gates) needed.gates = row;
        }
    }
    needed.values = fl_round_up(needed.values, FL_PANEL);
    return needed;
}

static fl_status take_room(fl_reading *r, fl_error *error) {
    const room needed = measure(r->decoder->model->encoder);
    const size_t size = r->places * (2 * needed.values + needed.gates + 1) + r->n * needed.ends;
    float *at = r->block = malloc(r->places * sizeof *r->rows + size * sizeof *at);
    if (!at) return fl_fail(error, FL_ERROR_MEMORY, "no memory to read %zu places", r->places);
    r->rows = (const float **)(void *)at;
    at = (float *)(void *)(r->rows + r->places);
    for (int i = 0; i < 2; i++, at += r->places * needed.values) r->values[i] = at;
    r->gates = at;
    at += r->places * needed.gates;
    for (size_t j = 0; j < r->n; j++, at += needed.ends) r->ends[j] = at;
    r->tokens = (int32_t *)(void *)at;
    for (size_t j = 0; j < r->n; j++)
        memcpy(r->tokens + r->first[j], r->given[r->order[j]].tokens, r->length[j] * sizeof *r->tokens);
    return FL_OK;
}

/* ---- products of many rows ---------------------------------------------------------------------------- */

fl_status fl_multiply_rows(fl_decoder *d, const fl_matrix *matrix, size_t n, const float *values, size_t width,
                           const float *start, float step, float *out, size_t row, fl_error *error) {
    const size_t most = n < FL_MOST_COLUMNS ? n : FL_MOST_COLUMNS;
    fl_columns columns[2];
    void *block = fl_columns_new(matrix, most, columns);
    if (!block) return fl_fail(error, FL_ERROR_MEMORY, "no memory for %zu columns", most);
    const float *from[FL_MOST_COLUMNS];
    float *to[FL_MOST_COLUMNS];
    for (size_t at = 0, some; at < n; at += some) {
        some = n - at < most ? n - at : most;
        for (size_t i = 0; i < some; i++) {
            fl_columns_put(&columns[some > 1], i, values + (at + i) * width, step);
            from[i] = start, to[i] = out + (at + i) * row;
        }
        fl_product(d, matrix, &columns[some > 1], some, from, to);
    }
    free(block);
    return FL_OK;
}

/* ---- one layer in one direction ------------------------------------------------------------------------ */

size_t fl_encoder_floats(const fl_encoder *e) {
    size_t floats = 0;
    for (uint32_t i = 0; i < e->n_layers; i++) floats += 2 * e->layers[2 * i].groups * FL_PANEL;
    return floats;
}

/* A layer's part of the state of a text that goes on; NULL: it begins. */
static float *state_of(const fl_reading *r, size_t j, const fl_lstm *layer) {
    const fl_encoder *e = r->decoder->model->encoder;
    fl_state *state = r->states ? r->states[r->order[j]] : NULL;
    if (!state) return NULL;
    float *at = state->memory;
    for (const fl_lstm *below = e->layers; below < layer; below += 2) at += 2 * below->groups * FL_PANEL;
    return at;
}

static void begin_columns(const fl_reading *r, fl_layer_room *room, const fl_lstm *layer, bool many) {
    const size_t width = layer->groups * FL_PANEL, bytes = width * sizeof(float);
    for (size_t j = 0; j < r->n; j++) {
        const float *state = state_of(r, j, layer);
        if (state) {
            memcpy(room->h[j], state, bytes);
            memcpy(room->c[j], state + width, bytes);
        } else {
            memset(room->h[j], 0, bytes);
            memset(room->c[j], 0, bytes);
        }
        fl_columns_put(many ? room->many : room->one, j, room->h[j], FL_HIDDEN_STEP);
    }
}

/* Place by place, all sources that have one left; what comes out goes to values[1], `at` floats into each place. */
static void step_places(fl_reading *r, const fl_lstm *layer, fl_layer_room *room, bool backward, size_t width,
                        size_t at) {
    const bool many = r->n > 1;
    const float *start[FL_MOST_COLUMNS];
    begin_columns(r, room, layer, many);
    for (size_t t = 0, now = 0, n = r->n; t < r->length[0]; t++, now = !now) {
        size_t place[FL_MOST_COLUMNS];
        while (r->length[n - 1] <= t) n--;
        for (size_t j = 0; j < n; j++) {
            place[j] = r->first[j] + (backward ? r->length[j] - 1 - t : t);
            start[j] = r->rows[place[j]];
        }
        fl_step_layer(r->decoder, layer, room, now, n, many, start);
        for (size_t j = 0; j < n; j++)
            memcpy(r->values[1] + place[j] * width + at, room->h[j], layer->units * sizeof(float));
    }
}

/* The last h and c of one direction; those of a layer's directions lie h h c c. */
static void keep_ends(const fl_reading *r, const fl_layer_room *room, const fl_lstm *layer, size_t h, size_t c) {
    for (size_t j = 0; j < r->n; j++) {
        memcpy(r->ends[j] + h, room->h[j], layer->units * sizeof(float));
        memcpy(r->ends[j] + c, room->c[j], layer->units * sizeof(float));
    }
}

void fl_keep_states(const fl_reading *r) {
    const fl_encoder *e = r->decoder->model->encoder;
    for (size_t j = 0; j < r->n; j++) {
        const float *end = r->ends[j];
        for (uint32_t i = 0; i < e->n_layers; i++) {
            const fl_lstm *layer = &e->layers[2 * i];
            float *state = state_of(r, j, layer);
            if (!state) break;
            memcpy(state, end, layer->units * sizeof(float));
            memcpy(state + layer->groups * FL_PANEL, end + layer->units, layer->units * sizeof(float));
            end += 2 * layer->units;
        }
    }
}

/* Gate rows of all places of the first layer: most tokens have come before. */
static fl_status look_up_places(fl_reading *r, const fl_lstm *layer) {
    fl_decoder *d = r->decoder;
    const size_t row = layer->groups * FL_GATES * FL_PANEL;
    float *otherwise[FL_MOST_COLUMNS];
    for (size_t at = 0, n; at < r->places; at += n) {
        n = r->places - at < FL_MOST_COLUMNS ? r->places - at : FL_MOST_COLUMNS;
        for (size_t i = 0; i < n; i++) otherwise[i] = r->gates + (at + i) * row;
        fl_gate_rows(d, &d->model->encoder->embedding, layer, r->tokens + at, n, &d->source_embedded[n > 1],
                     r->values[0], otherwise, r->rows + at);
    }
    return FL_OK;
}

static fl_status multiply_layer(fl_reading *r, const fl_lstm *layer, size_t inputs, fl_error *error) {
    const size_t row = layer->groups * FL_GATES * FL_PANEL;
    for (size_t place = 0; place < r->places; place++) r->rows[place] = r->gates + place * row;
    return fl_multiply_rows(r->decoder, &layer->x, r->places, r->values[0], inputs, layer->bias, FL_HIDDEN_STEP,
                            r->gates, row, error);
}

static fl_status read_layer(fl_reading *r, uint32_t i, size_t inputs, size_t ends, fl_error *error) {
    const fl_encoder *e = r->decoder->model->encoder;
    const size_t width = fl_encoder_width(e, i);
    for (size_t way = 0, at = 0; way < 2; way++) {
        const fl_lstm *layer = &e->layers[2 * i + way];
        fl_layer_room *room = &r->decoder->encoder[2 * i + way];
        if (!layer->units) break;
        const fl_status status = i ? multiply_layer(r, layer, inputs, error) : look_up_places(r, layer);
        if (status) return status;
        step_places(r, layer, room, way == 1, width, at);
        keep_ends(r, room, layer, ends + at, ends + width + at);
        at += layer->units;
    }
    float *const written = r->values[1];
    r->values[1] = r->values[0], r->values[0] = written;
    return FL_OK;
}

/* ---- what attention and the decoder's first state need ---------------------------------------------------- */

static size_t key_inputs(const fl_model *model) {
    const fl_attention *a = model->attention;
    return a->additive ? a->units : model->layers[model->n_layers - 1].units;
}

static int by_token(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Where each place's token is for the first time. */
static bool find_first(const fl_source_text *text, uint32_t *first) {
    uint64_t *sorted = malloc(text->n * sizeof *sorted); /* token, then place */
    if (!sorted) return false;
    for (size_t i = 0; i < text->n; i++) sorted[i] = (uint64_t)text->tokens[i] << 32 | i;
    qsort(sorted, text->n, sizeof *sorted, by_token);
    for (size_t i = 0; i < text->n; i++) {
        const bool again = i && sorted[i] >> 32 == sorted[i - 1] >> 32;
        first[(uint32_t)sorted[i]] = again ? first[(uint32_t)sorted[i - 1]] : (uint32_t)sorted[i];
    }
    free(sorted);
    return true;
}

/* Room for everything behind the source itself; without attention nothing is looked at again but the first state. */
static fl_status new_source(const fl_model *model, const fl_source_text *given, fl_source **source, fl_error *error) {
    const size_t n = given->n, panels = fl_parts(n, FL_PANEL), state = fl_state_floats(model);
    const size_t width = fl_encoder_outputs(model->encoder);
    const size_t keys = model->attention ? panels * FL_PANEL * key_inputs(model) : 0;
    const size_t values = model->attention ? fl_round_up(width, FL_PANEL) * n : 0;
    const size_t copied = model->attention && model->attention->copy ? 2 * n : 0; /* tokens, and where each is first */
    fl_source *s = calloc(1, sizeof *s + (state + keys + values + copied) * sizeof(float));
    if (!s) return fl_fail(error, FL_ERROR_MEMORY, "no memory for a source of %zu tokens", n);
    float *at = s->memory;
    s->n = n;
    s->start = at, at += state;
    if (keys)
        s->keys = (fl_matrix){.weights = at,
                              .panels = panels,
                              .inputs = key_inputs(model),
                              .lanes = FL_PANEL,
                              .blocks = key_inputs(model)};
    at += keys;
    if (values)
        s->values = (fl_matrix){
            .weights = at, .panels = fl_parts(width, FL_PANEL), .inputs = n, .lanes = FL_PANEL, .blocks = n};
    at += values;
    *source = s;
    if (!copied) return FL_OK;
    memcpy(at, given->tokens, n * sizeof *given->tokens);
    s->tokens = (const int32_t *)(const void *)at;
    s->first = (const uint32_t *)(const void *)(at + n);
    if (find_first(given, (uint32_t *)(void *)(at + n))) return FL_OK;
    return fl_fail(error, FL_ERROR_MEMORY, "no memory for a source of %zu tokens", n);
}

void fl_source_free(fl_source *source) { free(source); }
size_t fl_source_size(const fl_source *source) { return source->n; }

void fl_fill_keys(const fl_matrix *keys, const float *rows, size_t row, size_t n) {
    float *to = (float *)(uintptr_t)keys->weights;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < keys->inputs; k++)
            to[(i / FL_PANEL * keys->inputs + k) * FL_PANEL + i % FL_PANEL] = rows[i * row + k];
}

/* Rows [n][width] become the inputs of a matrix with a row for each value. */
static void fill_values(const fl_matrix *values, const float *rows, size_t width, size_t n) {
    float *to = (float *)(uintptr_t)values->weights;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < width; k++) to[(k / FL_PANEL * n + i) * FL_PANEL + k % FL_PANEL] = rows[i * width + k];
}

/* Keys of all places, to be freed. */
static fl_status make_keys(fl_reading *r, const fl_matrix *matrix, float **rows, fl_error *error) {
    const fl_encoder *e = r->decoder->model->encoder;
    const size_t row = matrix->panels * FL_PANEL, width = fl_encoder_outputs(e);
    float *none = calloc(row, sizeof *none);
    *rows = malloc(r->places * row * sizeof **rows);
    fl_status status = FL_OK;
    if (!*rows || !none) status = fl_fail(error, FL_ERROR_MEMORY, "no memory for the keys of %zu places", r->places);
    if (!status)
        status = fl_multiply_rows(r->decoder, matrix, r->places, r->values[0], width, none, FL_HIDDEN_STEP, *rows, row,
                                  error);
    free(none);
    return status;
}

static fl_status fill_sources(fl_reading *r, fl_source **sources, fl_error *error) {
    const fl_model *model = r->decoder->model;
    const fl_attention *a = model->attention;
    const size_t width = fl_encoder_outputs(model->encoder);
    const size_t row = a->key.panels ? a->key.panels * FL_PANEL : width;
    float *made = NULL;
    const fl_status status = a->key.panels ? make_keys(r, &a->key, &made, error) : FL_OK;
    for (size_t j = 0; !status && j < r->n; j++) {
        fl_source *s = sources[r->order[j]];
        fl_fill_keys(&s->keys, (made ? made : r->values[0]) + r->first[j] * row, row, s->n);
        fill_values(&s->values, r->values[0] + r->first[j] * width, width, s->n);
    }
    free(made);
    return status;
}

/* The first state of one decoder layer, h at `to` and c behind it. */
static fl_status cross_bridge(fl_decoder *d, const fl_bridge *bridge, const fl_lstm *layer, const float *ends,
                              size_t width, float *to, fl_error *error) {
    const size_t room = layer->groups * FL_PANEL;
    if (!bridge->h.panels) {
        memcpy(to, ends, layer->units * sizeof *to);
        memcpy(to + room, ends + width, layer->units * sizeof *to);
        return FL_OK;
    }
    const fl_matrix *matrix[] = {&bridge->h, &bridge->c};
    const float *bias[] = {bridge->h_bias, bridge->c_bias};
    for (int i = 0; i < 2; i++) {
        fl_columns columns[2];
        void *block = fl_columns_new(matrix[i], 1, columns);
        if (!block) return fl_fail(error, FL_ERROR_MEMORY, "no memory for a column");
        float *out = to + (size_t)i * room;
        fl_columns_put(columns, 0, ends, 0);
        fl_product(d, matrix[i], columns, 1, &bias[i], &out);
        free(block);
    }
    const float *in = to;
    float step = FL_HIDDEN_STEP;
    const fl_columns nowhere = {
        .steps = &step, .inputs = layer->units, .padded = fl_round_up(layer->units, 64), .width = 1};
    d->model->kernels->activate(0, layer->groups, 1, &in, &nowhere, &to);
    return FL_OK;
}

static fl_status first_states(fl_reading *r, fl_source **sources, fl_error *error) {
    const fl_model *model = r->decoder->model;
    for (size_t j = 0; j < r->n; j++) {
        float *to = (float *)(uintptr_t)sources[r->order[j]]->start;
        for (uint32_t i = 0; i < model->n_layers; i++) {
            const fl_bridge *bridge = &model->encoder->bridges[i];
            const float *ends = r->ends[j];
            for (uint32_t below = 0; below < bridge->from; below++) ends += 2 * fl_encoder_width(model->encoder, below);
            const fl_status status = cross_bridge(r->decoder, bridge, &model->layers[i], ends,
                                                  fl_encoder_width(model->encoder, bridge->from), to, error);
            if (status) return status;
            to += 2 * model->layers[i].groups * FL_PANEL;
        }
    }
    return FL_OK;
}

/* ---- the call ------------------------------------------------------------------------------------------- */

fl_status fl_read_places(fl_reading *r, fl_error *error) {
    const fl_encoder *e = r->decoder->model->encoder;
    sort_texts(r);
    fl_status status = take_room(r, error);
    size_t inputs = e->embedding_size, ends = 0;
    for (uint32_t i = 0; !status && i < e->n_layers; i++) {
        status = read_layer(r, i, inputs, ends, error);
        inputs = fl_encoder_width(e, i);
        ends += 2 * inputs;
    }
    return status;
}

static fl_status read_sources(fl_reading *r, fl_source **sources, fl_error *error) {
    const fl_model *model = r->decoder->model;
    fl_status status = FL_OK;
    for (size_t i = 0; !status && i < r->n; i++) status = new_source(model, &r->given[i], &sources[i], error);
    if (!status) status = fl_read_places(r, error);
    if (!status) status = first_states(r, sources, error);
    if (!status && model->attention) status = fill_sources(r, sources, error);
    free(r->block);
    return status;
}

size_t fl_read_together(const fl_source_text *texts, size_t n) {
    size_t part = 1, places = texts[0].n;
    for (; part < n && part < FL_MOST_COLUMNS; part++)
        if ((places += texts[part].n) > FL_MOST_PLACES) break;
    return part;
}

fl_status fl_read_sources(fl_decoder *d, const fl_source_text *readings, size_t n, fl_source **sources,
                          fl_error *error) {
    fenv_t caller;
    fl_status status = FL_OK;
    for (size_t i = 0; i < n; i++) sources[i] = NULL;
    fl_enter(d, &caller);
    for (size_t at = 0, part; !status && at < n; at += part) {
        part = fl_read_together(readings + at, n - at);
        fl_reading r = {.decoder = d, .n = part, .given = readings + at};
        status = read_sources(&r, sources + at, error);
        fl_team_pause(&d->team);
    }
    fl_leave(d, &caller);
    for (size_t i = 0; status && i < n; i++) {
        fl_source_free(sources[i]);
        sources[i] = NULL;
    }
    return status;
}
