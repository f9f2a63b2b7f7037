/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory: a sequence's state, and the room to compute in. */
#include "encoder.h"

#include <stdlib.h>

/* ---- state ------------------------------------------------------------------------------------------- */

static size_t width_of(const fl_lstm *layer) { return layer->groups * FL_PANEL; }

/* Values of what attention gives, filled up. */
static size_t given_width(const fl_model *model) {
    return model->attention ? fl_round_up(model->attention->units, FL_PANEL) : 0;
}

size_t fl_state_floats(const fl_model *model) {
    if (model->pooling) return fl_encoder_floats(model->encoder) + fl_pool_floats(model);
    size_t floats = given_width(model);
    for (uint32_t i = 0; i < model->n_layers; i++) floats += 2 * width_of(&model->layers[i]);
    return floats;
}

fl_status fl_state_new(const fl_model *model, fl_state **state, fl_error *error) {
    const size_t floats = fl_state_floats(model);
    *state = calloc(1, sizeof **state + floats * sizeof(float));
    if (!*state) return fl_fail(error, FL_ERROR_MEMORY, "no memory for a state of %zu numbers", floats);
    (*state)->floats = floats;
    return FL_OK;
}

void fl_state_free(fl_state *state) { free(state); }

void fl_state_reset(fl_state *state) {
    state->position = 0;
    if (state->source)
        memcpy(state->memory, state->source->start, state->floats * sizeof(float));
    else
        memset(state->memory, 0, state->floats * sizeof(float));
}

void fl_state_begin(fl_state *state, const fl_source *source) {
    state->source = source;
    fl_state_reset(state);
}

void fl_state_copy(fl_state *state, const fl_state *from) {
    state->position = from->position;
    state->source = from->source;
    memcpy(state->memory, from->memory, from->floats * sizeof(float));
}

uint64_t fl_state_position(const fl_state *state) { return state->position; }

const float *fl_state_values(const fl_state *state, size_t *n) {
    *n = state->floats;
    return state->memory;
}

#define MOST_CELL 0x1p90f /* beyond what a bridge gives (docs/numerics.md); a cell then grows by less than 1 a token */

fl_status fl_state_set(fl_state *state, const fl_model *model, uint64_t position, const float *values,
                       fl_error *error) {
    const float *at = values;
    for (uint32_t i = 0; i < model->n_layers; i++) {
        const size_t width = width_of(&model->layers[i]);
        for (size_t k = 0; k < 2 * width; k++, at++) {
            const float most = k < width ? 1 : MOST_CELL;
            if (!(fabsf(*at) <= most)) /* also NaN */
                return fl_fail(error, FL_ERROR_ARGUMENT, "%g where a layer's %s are", (double)*at,
                               k < width ? "hidden values, at most 1," : "cells");
        }
    }
    for (size_t k = 0; k < given_width(model); k++, at++)
        if (!(fabsf(*at) <= 1))
            return fl_fail(error, FL_ERROR_ARGUMENT, "%g where values of attention, at most 1, are", (double)*at);
    state->position = position;
    memcpy(state->memory, values, state->floats * sizeof(float));
    return FL_OK;
}

/* ---- decoder ----------------------------------------------------------------------------------------- */

/* Cuts one block of memory into pieces; with block NULL only adds up their size. */
typedef struct cutter {
    uint8_t *block;
    size_t at;
} cutter;

static void *cut(cutter *c, size_t bytes) {
    void *piece = c->block ? c->block + c->at : NULL;
    c->at += fl_round_up(bytes, FL_ALIGN);
    return piece;
}

/* What products read of a column. */
typedef struct readers {
    bool floats, bytes;
} readers;

static readers readers_of(const fl_matrix *a, const fl_matrix *b) {
    const bool first = fl_reads_bytes(a), second = fl_reads_bytes(b);
    return (readers){!first || !second, first || second};
}

static readers either(readers a, readers b) { return (readers){a.floats || b.floats, a.bytes || b.bytes}; }

static fl_columns cut_columns(cutter *c, size_t inputs, size_t width, size_t columns, readers r) {
    const size_t padded = fl_round_up(inputs, 64), values = padded * fl_round_up(columns, width);
    fl_columns made = {.inputs = inputs, .padded = padded, .width = width};
    if (r.floats) made.values = cut(c, values * sizeof(float));
    if (r.bytes) made.bytes = cut(c, values);
    made.sums = cut(c, values / 32 * sizeof(int32_t));
    made.steps = cut(c, fl_round_up(columns, width) * sizeof(float));
    return made;
}

void *fl_columns_new(const fl_matrix *matrix, size_t columns, fl_columns found[2]) {
    cutter sizes = {NULL, 0};
    const readers all = readers_of(matrix, matrix);
    for (int i = 0; i < 2; i++) cut_columns(&sizes, matrix->inputs, i ? FL_WIDTH : 1, i ? columns : 1, all);
    cutter c = {calloc(1, sizes.at), 0};
    for (int i = 0; c.block && i < 2; i++)
        found[i] = cut_columns(&c, matrix->inputs, i ? FL_WIDTH : 1, i ? columns : 1, all);
    return c.block;
}

/* Hidden values all have one step. */
static fl_columns cut_hidden(cutter *c, size_t units, size_t width, size_t columns, readers r) {
    const fl_columns made = cut_columns(c, units, width, columns, r);
    for (size_t i = 0; c->block && i < columns; i++) made.steps[i] = FL_HIDDEN_STEP;
    return made;
}

/* Of values that are all read by the one, and those of a text's places by the other. */
static void cut_room(cutter *c, size_t units, readers all, readers top, bool cells, fl_layer_room *room) {
    const size_t width = fl_round_up(units, FL_PANEL) * sizeof(float);
    fl_layer_room made = {0};
    for (int i = 0; i < 2; i++) made.one[i] = cut_hidden(c, units, 1, 1, all);
    for (int i = 0; i < 2; i++) made.many[i] = cut_hidden(c, units, FL_WIDTH, FL_MOST_COLUMNS, all);
    made.text = cut_hidden(c, units, FL_WIDTH, FL_MOST_COLUMNS, top);
    for (size_t i = 0; i < FL_MOST_COLUMNS; i++) {
        made.h[i] = cut(c, width);
        if (cells) made.c[i] = cut(c, width);
    }
    if (c->block) *room = made;
}

/* `above` reads the layer's values besides the layer itself. */
static void cut_layer(cutter *c, const fl_lstm *layer, readers above, fl_layer_room *room) {
    cut_room(c, layer->units, either(readers_of(&layer->h, &layer->h), above), above, true, room);
}

static fl_attention_room *cut_attention(cutter *c, const fl_model *model) {
    const fl_attention *a = model->attention;
    fl_attention_room made = {0}, *room = cut(c, sizeof made);
    const size_t width = fl_encoder_outputs(model->encoder);
    readers all = readers_of(&model->output, &model->output);
    const readers top = all, contexts = readers_of(&a->context, &a->context);
    if (a->feed.panels) all = either(all, readers_of(&a->feed, &a->feed));
    cut_room(c, a->units, all, top, false, &made.given);
    made.context[0] = cut_hidden(c, width, 1, 1, contexts);
    made.context[1] = cut_hidden(c, width, FL_WIDTH, FL_MOST_COLUMNS, contexts);
    for (size_t i = 0; i < FL_MOST_COLUMNS; i++) {
        made.weights[i] = cut(c, FL_MOST_PLACES * sizeof(float));
        made.mass[i] = cut(c, FL_MOST_PLACES * sizeof(uint32_t));
        if (!a->copy) continue;
        made.hidden[i] = cut(c, width_of(&model->layers[model->n_layers - 1]) * sizeof(float));
        made.given_text[i] = cut(c, given_width(model) * sizeof(float));
    }
    if (c->block) *room = made;
    return room;
}

static fl_layer_room *cut_encoder(cutter *c, const fl_encoder *e) {
    const readers none = {false, false};
    fl_layer_room *rooms = cut(c, 2 * e->n_layers * sizeof *rooms);
    for (uint32_t i = 0; i < 2 * e->n_layers; i++)
        if (e->layers[i].units) cut_layer(c, &e->layers[i], none, rooms + (c->block ? i : 0));
    return rooms;
}

static void cut_view(cutter *c, const fl_model *model, fl_view *view) {
    const fl_screen *screen = model->screen;
    const readers floats = {true, false}, bytes = {false, true};
    const size_t K = model->output.inputs;
    view->column = cut_hidden(c, K, 1, 1, readers_of(&model->output, &model->output));
    view->standard = cut_columns(c, K, 1, 1, floats);
    view->along = cut_columns(c, screen->along.inputs, 1, 1, bytes);
    view->input = cut(c, K * sizeof(float));
    view->values = cut(c, 16 * screen->pairs * sizeof(float));
    view->directions = cut(c, screen->basis.panels * FL_PANEL * sizeof(float));
    view->tables = cut(c, 64 * screen->pairs);
    view->lower = cut(c, screen->blocks * FL_BLOCK * sizeof(float));
    view->upper = cut(c, screen->blocks * FL_BLOCK * sizeof(float));
    view->keys = cut(c, screen->blocks * FL_BLOCK * sizeof(float));
}

static void cut_scratch(cutter *c, const fl_model *model, fl_scratch *scratch) {
    const size_t V = model->vocab_size;
    if (model->screen) cut_view(c, model, &scratch->view);
    const size_t listed = fl_round_up(V, FL_PANEL) + FL_PANEL;
    scratch->candidates = cut(c, V * sizeof(fl_candidate));
    scratch->mass = cut(c, fl_round_up(V, FL_PANEL) * sizeof(uint32_t));
    scratch->kept_logits = cut(c, listed * sizeof(float));
    scratch->kept_ids = cut(c, listed * sizeof(int32_t));
    scratch->kept_mass = cut(c, listed * sizeof(uint32_t));
    scratch->changed = cut(c, fl_round_up(V, FL_BLOCK) * sizeof(float));
    scratch->values = cut(c, fl_round_up(V, FL_BLOCK) * sizeof(float));
}

/* Of a layer's values, besides the layer itself. */
static readers readers_above(const fl_model *model, uint32_t layer) {
    const fl_attention *a = model->attention;
    if (layer + 1 < model->n_layers) return readers_of(&model->layers[layer + 1].x, &model->layers[layer + 1].x);
    if (!a) return readers_of(&model->output, &model->output);
    return a->additive ? readers_of(&a->hidden, &a->query) : readers_of(&a->hidden, &a->hidden);
}

static void lay_out_source(fl_decoder *decoder, const fl_encoder *e, cutter *c) {
    const fl_lstm *first = e->layers;
    readers all = readers_of(&first[0].x, &first[0].x);
    if (first[1].units) all = either(all, readers_of(&first[1].x, &first[1].x));
    decoder->encoder = cut_encoder(c, e);
    decoder->source_embedded[0] = cut_columns(c, e->embedding_size, 1, 1, all);
    decoder->source_embedded[1] = cut_columns(c, e->embedding_size, FL_WIDTH, FL_MOST_COLUMNS, all);
}

/* What reading tokens one by one, and choosing the next, needs. */
static void lay_out_tokens(fl_decoder *decoder, const fl_model *model, cutter *c) {
    const readers first = readers_of(&model->layers[0].x, &model->layers[0].x);
    decoder->embedded[0] = cut_columns(c, model->embedding_size, 1, 1, first);
    decoder->embedded[1] = cut_columns(c, model->embedding_size, FL_WIDTH, FL_MOST_COLUMNS, first);
    decoder->vector = cut(c, model->embedding_size * sizeof(float));
    for (size_t i = 0; i < FL_MOST_COLUMNS; i++)
        decoder->rows[i] = cut(c, FL_GATES * width_of(&model->layers[0]) * sizeof(float));
    fl_scratch *scratch = cut(c, model->threads * sizeof *scratch);
    for (uint32_t i = 0; i < model->threads; i++) cut_scratch(c, model, scratch ? &scratch[i] : &(fl_scratch){0});
    decoder->scratch = scratch;
}

static void lay_out(fl_decoder *decoder, const fl_model *model, cutter *c) {
    const size_t padded = fl_round_up(model->pooling ? model->n_labels : model->vocab_size, FL_BLOCK);
    size_t widest = 0;
    cut(c, sizeof *decoder);
    *decoder = (fl_decoder){.model = model};
    decoder->layers = cut(c, model->n_layers * sizeof *decoder->layers);
    for (uint32_t i = 0; i < model->n_layers; i++) {
        const size_t width = width_of(&model->layers[i]);
        cut_layer(c, &model->layers[i], readers_above(model, i), decoder->layers + (c->block ? i : 0));
        widest = width > widest ? width : widest;
    }
    if (model->attention) decoder->attention = cut_attention(c, model);
    if (model->encoder) lay_out_source(decoder, model->encoder, c);
    for (uint32_t i = 0; model->encoder && i < 2 * model->encoder->n_layers; i++) {
        const size_t width = width_of(&model->encoder->layers[i]);
        widest = width > widest ? width : widest;
    }
    if (given_width(model) > widest) widest = given_width(model);
    for (size_t i = 0; i < FL_MOST_COLUMNS; i++) {
        decoder->gates[i] = cut(c, FL_GATES * widest * sizeof(float));
        decoder->logits[i] = cut(c, padded * sizeof(float));
    }
    if (model->n_layers) lay_out_tokens(decoder, model, c);
    decoder->bytes = c->at;
}

fl_status fl_decoder_new(const fl_model *model, fl_decoder **decoder, fl_error *error) {
    fl_decoder sizes;
    cutter measure = {NULL, 0};
    lay_out(&sizes, model, &measure);
    cutter c = {fl_os_alloc(measure.at), 0};
    if (!c.block) return fl_fail(error, FL_ERROR_MEMORY, "no memory for a decoder of %zu bytes", measure.at);
    *decoder = (fl_decoder *)(void *)c.block;
    lay_out(*decoder, model, &c);
    fl_threads_reserve(model->threads);
    return FL_OK;
}

void fl_decoder_free(fl_decoder *decoder) {
    if (!decoder) return;
    fl_threads_release(decoder->model->threads);
    fl_os_free(decoder, decoder->bytes);
}
