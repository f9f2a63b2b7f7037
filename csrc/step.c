/* SPDX-License-Identifier: Apache-2.0
 *
 * The network: tokens in, logits out, for many sequences side by side or for a text at once. Work is cut into parts
 * by rows of the matrices, which no result depends on. Nothing here allocates, locks or calls the operating system. */
#include "step.h"

/* ---- parts ------------------------------------------------------------------------------------------- */

/* What the parts of one phase share. */
typedef struct phase {
    fl_decoder *decoder;
    const fl_lstm *layer;
    fl_layer_room *room;
    const fl_matrix *matrix;
    const fl_columns *input;
    size_t n;                    /* columns */
    const fl_columns *old, *new; /* hidden values before and after a step */
    size_t place;                /* of a text, where its hidden values go; FL_MOST_COLUMNS: nowhere */
    const float *const *start;
    float *const *out;
    const fl_contest *contest; /* NULL: logits only */
    fl_winner *winner;         /* of each part */
} phase;

/* The caller, part 0, has the larger half: it begins first. A part with nothing to do is [0, 0), so that nobody takes its
 * border for his own. */
void fl_slice(size_t n, size_t unit, uint32_t part, uint32_t parts, size_t *begin, size_t *end) {
    const size_t units = fl_parts(n, unit);
    *begin = (units * part + parts - 1) / parts * unit;
    *end = (units * (part + 1) + parts - 1) / parts * unit;
    if (*end > n) *end = n;
    if (*begin >= *end) *begin = *end = 0;
}

/* ---- first layer's gate rows ------------------------------------------------------------------------- */

/* Bias + input product of the first layer, [groups][4][16], is a function of the token alone, so it is kept. Two
 * threads that meet the same new token both compute it and both are right; one row is then wasted. */
static const float *kept_row(const fl_row_store *store, int32_t token) {
    const uint32_t slot = store ? atomic_load_explicit(&store->slot[token], memory_order_acquire) : 0;
    return slot ? store->rows + (size_t)(slot - 1) * store->row_floats : NULL;
}

static void product_part(void *context, uint32_t part, uint32_t parts) {
    const phase *p = context;
    size_t begin, end;
    fl_slice(p->matrix->panels, FL_GATES, part, parts, &begin, &end);
    p->decoder->model->kernels->product(p->matrix, begin, end, p->input, p->n, p->start, p->out);
}

void fl_product(fl_decoder *d, const fl_matrix *matrix, const fl_columns *input, size_t n, const float *const *start,
                float *const *out) {
    phase p = {.decoder = d, .matrix = matrix, .input = input, .n = n, .start = start, .out = out};
    fl_team_run(&d->team, product_part, &p);
}

/* A place in the store for a new row, or `otherwise` if it is full. */
static float *new_row(fl_row_store *store, float *otherwise, uint32_t *slot) {
    *slot = 0;
    if (!store || atomic_load_explicit(&store->used, memory_order_relaxed) >= store->capacity) return otherwise;
    const uint32_t index = atomic_fetch_add_explicit(&store->used, 1, memory_order_relaxed);
    if (index >= store->capacity) return otherwise;
    *slot = index + 1;
    return store->rows + (size_t)index * store->row_floats;
}

void fl_gate_rows(fl_decoder *d, const fl_matrix *embedding, const fl_lstm *layer, const int32_t *tokens, size_t n,
                  const fl_columns *embedded, float *vector, float *const *otherwise, const float **rows) {
    const float *start[FL_MOST_COLUMNS];
    float *out[FL_MOST_COLUMNS];
    uint32_t slot[FL_MOST_COLUMNS];
    int32_t missing[FL_MOST_COLUMNS];
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        size_t same = 0;
        rows[i] = kept_row(layer->store, tokens[i]);
        while (!rows[i] && same < count && missing[same] != tokens[i]) same++;
        if (!rows[i] && same < count) rows[i] = out[same];
        if (rows[i]) continue;
        fl_matrix_row(embedding, (size_t)tokens[i], vector);
        fl_columns_put(embedded, count, vector, 0);
        start[count] = layer->bias;
        rows[i] = out[count] = new_row(layer->store, otherwise[i], &slot[count]);
        missing[count++] = tokens[i];
    }
    if (!count) return;
    fl_product(d, &layer->x, embedded, count, start, out);
    for (size_t i = 0; i < count; i++)
        if (slot[i]) atomic_store_explicit(&layer->store->slot[missing[i]], slot[i], memory_order_release);
}

static void gate_rows(fl_decoder *d, const int32_t *tokens, size_t n, bool many, const float **rows) {
    const fl_model *model = d->model;
    fl_gate_rows(d, &model->embedding, &model->layers[0], tokens, n, &d->embedded[many], d->vector, d->rows, rows);
}

/* Whether the first layer also reads what attention gave before. */
static bool feeds(const fl_decoder *d) { return d->attention && d->model->attention->feed.panels; }

/* ---- one step of n sequences ------------------------------------------------------------------------- */

/* The gates of a part's units, all of their inputs, and their update: other parts write other units. */
static void cells_part(void *context, uint32_t part, uint32_t parts) {
    const phase *p = context;
    fl_decoder *d = p->decoder;
    const fl_kernels *kernels = d->model->kernels;
    const float *gates[FL_MOST_COLUMNS];
    const float *const *start = p->start;
    size_t begin, end;
    fl_slice(p->layer->groups, 2, part, parts, &begin, &end);
    for (size_t i = 0; i < p->n; i++) gates[i] = d->gates[i];
    if (p->input) {
        kernels->product(p->matrix, FL_GATES * begin, FL_GATES * end, p->input, p->n, start, d->gates);
        start = gates;
    }
    kernels->product(&p->layer->h, FL_GATES * begin, FL_GATES * end, p->old, p->n, start, d->gates);
    kernels->update(begin, end, p->n, gates, p->new, p->room->h, p->room->c);
    if (p->place < FL_MOST_COLUMNS)
        fl_columns_copy(&p->room->text, p->place, p->new, begin * FL_PANEL, fl_round_up(end * FL_PANEL, 32));
}

static const fl_columns *columns_of(const fl_layer_room *room, bool many) { return many ? room->many : room->one; }

void fl_step(fl_decoder *d, const int32_t *tokens, size_t n, bool many) {
    const fl_model *model = d->model;
    const float *start[FL_MOST_COLUMNS];
    gate_rows(d, tokens, n, many, start);
    const fl_columns *below = feeds(d) ? &columns_of(&d->attention->given, many)[d->now] : NULL;
    for (uint32_t i = 0; i < model->n_layers; i++) {
        const fl_columns *hidden = columns_of(&d->layers[i], many);
        phase p = {.decoder = d, .layer = &model->layers[i], .room = &d->layers[i], .input = below};
        p.matrix = i || !below ? &model->layers[i].x : &model->attention->feed;
        p.n = n, p.start = start, p.place = FL_MOST_COLUMNS;
        p.old = &hidden[d->now], p.new = &hidden[!d->now];
        fl_team_run(&d->team, cells_part, &p);
        below = p.new;
        for (size_t j = 0; j < n && i + 1 < model->n_layers; j++) start[j] = model->layers[i + 1].bias;
    }
    if (d->attention) fl_attend(d, n, many);
    d->now = !d->now;
}

void fl_step_layer(fl_decoder *d, const fl_lstm *layer, fl_layer_room *room, size_t now, size_t n, bool many,
                   const float *const *start) {
    const fl_columns *hidden = columns_of(room, many);
    phase p = {.decoder = d, .layer = layer, .room = room, .n = n, .start = start, .place = FL_MOST_COLUMNS};
    p.old = &hidden[now], p.new = &hidden[!now];
    fl_team_run(&d->team, cells_part, &p);
}

/* ---- a text at once ---------------------------------------------------------------------------------- */

/* Token by token: what attention gives may be read by the next. */
static void read_attending(fl_decoder *d, const int32_t *tokens, size_t n, bool keep_top) {
    for (size_t t = 0; t < n; t++) {
        if (keep_top) fl_keep_place(d, t);
        fl_step(d, tokens + t, 1, false);
    }
}

/* Layer by layer: only the recurrent product must go token by token. */
void fl_read(fl_decoder *d, const int32_t *tokens, size_t n, bool keep_top) {
    const fl_model *model = d->model;
    const float *start[FL_MOST_COLUMNS], *bias[FL_MOST_COLUMNS];
    const size_t now = d->now;
    if (d->attention) {
        read_attending(d, tokens, n, keep_top);
        return;
    }
    gate_rows(d, tokens, n, n > 1, start);
    for (uint32_t i = 0; i < model->n_layers; i++) {
        const bool last = i + 1 == model->n_layers;
        if (i) {
            for (size_t t = 0; t < n; t++) bias[t] = model->layers[i].bias;
            fl_product(d, &model->layers[i].x, &d->layers[i - 1].text, n, bias, d->gates);
            for (size_t t = 0; t < n; t++) start[t] = d->gates[t];
        }
        d->now = now;
        if (last && keep_top) /* the place before the first token */
            fl_columns_copy(&d->layers[i].text, 0, &d->layers[i].one[now], 0, d->layers[i].text.padded);
        for (size_t t = 0; t < n; t++, d->now = !d->now) {
            phase p = {.decoder = d, .layer = &model->layers[i], .room = &d->layers[i], .n = 1, .start = start + t};
            p.place = !last ? t : keep_top && t + 1 < n ? t + 1 : FL_MOST_COLUMNS;
            p.old = &d->layers[i].one[d->now], p.new = &d->layers[i].one[!d->now];
            fl_team_run(&d->team, cells_part, &p);
        }
    }
}

/* ---- logits ------------------------------------------------------------------------------------------ */

/* Panels whose logits are looked at before the next are computed: they are still in the nearest cache. */
enum { CHUNK = 64 };

static void logits_part(void *context, uint32_t part, uint32_t parts) {
    const phase *p = context;
    const fl_model *model = p->decoder->model;
    const size_t panels = model->output.panels, V = model->vocab_size;
    fl_winner winner = FL_NO_WINNER; /* kept here: parts that write to one cache line slow each other down */
    size_t begin, end;
    fl_slice(panels, FL_BLOCK / FL_PANEL, part, parts, &begin, &end);
    for (size_t at = begin, next; at < end; at = next) {
        next = p->contest && end - at > CHUNK ? at + CHUNK : end;
        model->kernels->product(&model->output, at, next, p->input, p->n, p->start, p->out);
        if (next == panels) /* what pads the vocabulary must never win */
            for (size_t j = 0; j < p->n; j++)
                for (size_t i = V; i < fl_round_up(V, FL_BLOCK); i++) p->out[j][i] = -INFINITY;
        if (p->contest)
            model->kernels->choose(&winner, p->out[0], NULL, at * FL_PANEL, next == panels ? V : next * FL_PANEL,
                                   p->contest->temperature, &p->contest->noise);
    }
    if (p->contest) p->winner[part] = winner;
}

static void logits_of(fl_decoder *d, const fl_columns *hidden, size_t n, const fl_contest *contest, fl_winner *winner) {
    const float *bias[FL_MOST_COLUMNS] = {0};
    for (size_t j = 0; j < n; j++) bias[j] = d->model->output_bias;
    phase p = {.decoder = d, .input = hidden, .n = n, .start = bias, .out = d->logits};
    p.contest = contest, p.winner = winner;
    fl_team_run(&d->team, logits_part, &p);
}

static fl_layer_room *top(const fl_decoder *d) {
    return d->attention ? &d->attention->given : &d->layers[d->model->n_layers - 1];
}

static bool copies(const fl_decoder *d) { return d->attention && d->model->attention->copy; }

void fl_step_logits(fl_decoder *d, size_t n, bool many) {
    logits_of(d, many ? &top(d)->many[d->now] : &top(d)->one[d->now], n, NULL, NULL);
    if (copies(d)) fl_copy_tokens(d, n, many);
}

fl_winner fl_step_winner(fl_decoder *d, const fl_contest *contest) {
    fl_winner winners[FL_MOST_THREADS], best = FL_NO_WINNER;
    if (copies(d)) { /* logits change after all of them are known */
        fl_step_logits(d, 1, false);
        return fl_win(d->model, d->logits[0], contest);
    }
    logits_of(d, &top(d)->one[d->now], 1, contest, winners);
    for (uint32_t i = 0; i < d->team.size; i++) best = fl_better(best, winners[i]);
    return best;
}

const fl_columns *fl_step_hidden(const fl_decoder *d, size_t column, bool many, const fl_scratch *scratch) {
    if (!many) return &top(d)->one[d->now];
    fl_columns_put(&scratch->view.column, 0, top(d)->h[column], FL_HIDDEN_STEP);
    return &scratch->view.column;
}

void fl_text_logits(fl_decoder *d, size_t n) {
    logits_of(d, &top(d)->text, n, NULL, NULL);
    if (copies(d)) fl_copy_text_tokens(d, n);
}

/* ---- states ------------------------------------------------------------------------------------------ */

static size_t given_bytes(const fl_model *model) {
    return fl_round_up(model->attention->units, FL_PANEL) * sizeof(float);
}

void fl_load(fl_decoder *d, size_t column, bool many, const fl_state *state) {
    const float *memory = state->memory;
    for (uint32_t i = 0; i < d->model->n_layers; i++) {
        const size_t width = d->model->layers[i].groups * FL_PANEL;
        fl_layer_room *room = &d->layers[i];
        fl_columns_put(many ? &room->many[d->now] : &room->one[d->now], column, memory, FL_HIDDEN_STEP);
        memcpy(room->h[column], memory, width * sizeof(float));
        memcpy(room->c[column], memory + width, width * sizeof(float));
        memory += 2 * width;
    }
    if (!d->attention) return;
    fl_layer_room *given = &d->attention->given;
    d->attention->source[column] = state->source;
    fl_columns_put(&(many ? given->many : given->one)[d->now], column, memory, FL_HIDDEN_STEP);
    memcpy(given->h[column], memory, given_bytes(d->model));
}

void fl_store(const fl_decoder *d, size_t column, fl_state *state) {
    float *memory = state->memory;
    for (uint32_t i = 0; i < d->model->n_layers; i++) {
        const size_t width = d->model->layers[i].groups * FL_PANEL;
        const fl_layer_room *room = &d->layers[i];
        memcpy(memory, room->h[column], width * sizeof(float));
        memcpy(memory + width, room->c[column], width * sizeof(float));
        memory += 2 * width;
    }
    if (d->attention) memcpy(memory, d->attention->given.h[column], given_bytes(d->model));
}
