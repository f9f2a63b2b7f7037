/* SPDX-License-Identifier: Apache-2.0
 *
 * The token loop: embed, step through the layers, logits, choose. Nothing here allocates, locks or calls the
 * operating system once a session exists. */
#include "kernels.h"

/* ---- session ----------------------------------------------------------------------------------------- */

static size_t state_floats(const fl_model *model) {
    size_t floats = 0;
    for (uint32_t i = 0; i < model->n_layers; i++) floats += 3 * model->layers[i].groups * FL_PANEL;
    return floats;
}

/* Cuts one block of memory into pieces; with block NULL only adds up their size. */
static void *cut(uint8_t *block, size_t *at, size_t bytes) {
    void *piece = block ? block + *at : NULL;
    *at += fl_round_up(bytes, FL_ALIGN);
    return piece;
}

static size_t lay_out(fl_session *session, const fl_model *model, uint8_t *block) {
    const size_t padded = fl_round_up(model->vocab_size, FL_BLOCK);
    size_t at = 0;
    cut(block, &at, sizeof *session);
    session->model = model;
    session->state.floats = state_floats(model);
    session->state.memory = cut(block, &at, session->state.floats * sizeof(float));
    session->logits = cut(block, &at, padded * sizeof(float));
    session->row = cut(block, &at, model->layers[0].groups * FL_GATES * FL_PANEL * sizeof(float));
    session->embedding = cut(block, &at, model->embedding_size * sizeof(float));
    session->candidates = cut(block, &at, padded * sizeof(fl_candidate));
    session->kept_logits = cut(block, &at, padded * sizeof(float));
    session->kept_ids = cut(block, &at, padded * sizeof(int32_t));
    session->kept_mass = cut(block, &at, padded * sizeof(uint32_t));
    return session->bytes = at;
}

fl_status fl_session_new(const fl_model *model, fl_session **session, fl_error *error) {
    fl_session sizes;
    const size_t bytes = lay_out(&sizes, model, NULL);
    uint8_t *block = fl_os_alloc(bytes);
    if (!block) return fl_fail(error, FL_ERROR_MEMORY, "no memory for a session of %zu bytes", bytes);
    *session = (fl_session *)(void *)block;
    lay_out(*session, model, block);
    return FL_OK;
}

void fl_session_free(fl_session *session) {
    if (session) fl_os_free(session, session->bytes);
}

void fl_session_reset(fl_session *session) {
    session->state.position = 0;
    memset(session->state.memory, 0, session->state.floats * sizeof(float));
}

void fl_session_copy(fl_session *session, const fl_session *from) {
    session->state.position = from->state.position;
    memcpy(session->state.memory, from->state.memory, from->state.floats * sizeof(float));
}

uint64_t fl_session_position(const fl_session *session) { return session->state.position; }

/* ---- one step ---------------------------------------------------------------------------------------- */

static const float *embed(const fl_session *session, int32_t token) {
    const fl_model *model = session->model;
    const size_t E = model->embedding_size, id = (size_t)token;
    if (model->embedding) return model->embedding + id * E;
    /* Tied: one lane of the output matrix's panel. */
    const float *lane = model->output.weights + id / FL_PANEL * E * FL_PANEL + id % FL_PANEL;
    for (size_t k = 0; k < E; k++) session->embedding[k] = lane[k * FL_PANEL];
    return session->embedding;
}

/* Bias + input product of the first layer, [groups][4][16]: a function of the token alone, so it is kept. Two
 * threads that meet the same new token both compute it and both are right; one row is then wasted. */
static const float *gate_row(const fl_session *session, int32_t token) {
    const fl_model *model = session->model;
    const fl_lstm *first = &model->layers[0];
    fl_row_store *store = model->store;
    float *row = session->row;
    uint32_t index = 0;
    if (store) {
        const uint32_t slot = atomic_load_explicit(&store->slot[token], memory_order_acquire);
        if (slot) return store->rows + (size_t)(slot - 1) * store->row_floats;
        index = store->capacity;
        if (atomic_load_explicit(&store->used, memory_order_relaxed) < store->capacity)
            index = atomic_fetch_add_explicit(&store->used, 1, memory_order_relaxed);
        if (index < store->capacity) row = store->rows + (size_t)index * store->row_floats;
    }
    model->kernels->product(&first->x, first->bias, embed(session, token), row);
    if (row != session->row) atomic_store_explicit(&store->slot[token], index + 1, memory_order_release);
    return row;
}

/* h is kept twice: position tells which one is current. */
static void step(fl_session *session, int32_t token) {
    const fl_model *model = session->model;
    const size_t old = session->state.position & 1;
    float *memory = session->state.memory;
    const float *start = gate_row(session, token), *x = NULL;
    for (uint32_t i = 0; i < model->n_layers; i++) {
        const fl_lstm *layer = &model->layers[i];
        const size_t width = layer->groups * FL_PANEL;
        float *h_new = memory + !old * width;
        if (i) start = layer->bias;
        model->kernels->cell(layer, start, x, memory + old * width, h_new, memory + 2 * width);
        x = h_new;
        memory += 3 * width;
    }
    session->state.position++;
}

/* Hidden values of the last layer. */
static const float *top(const fl_session *session) {
    const fl_model *model = session->model;
    const size_t width = model->layers[model->n_layers - 1].groups * FL_PANEL;
    const float *memory = session->state.memory + session->state.floats - 3 * width;
    return memory + (session->state.position & 1) * width;
}

static void compute_logits(fl_session *session) {
    const fl_model *model = session->model;
    model->kernels->product(&model->output, model->output_bias, top(session), session->logits);
    /* What pads the vocabulary must never win. */
    for (size_t i = model->vocab_size; i < fl_round_up(model->vocab_size, FL_BLOCK); i++)
        session->logits[i] = -INFINITY;
}

static void read_tokens(fl_session *session, const int32_t *tokens, size_t n) {
    for (size_t i = 0; i < n; i++) step(session, tokens[i]);
}

/* ---- public ------------------------------------------------------------------------------------------ */

void fl_feed(fl_session *session, const int32_t *tokens, size_t n) {
    fenv_t caller;
    fl_fp_enter(&caller);
    read_tokens(session, tokens, n);
    fl_fp_leave(&caller);
}

const float *fl_logits(fl_session *session) {
    fenv_t caller;
    fl_fp_enter(&caller);
    compute_logits(session);
    fl_fp_leave(&caller);
    return session->logits;
}

void fl_score(fl_session *session, const int32_t *tokens, size_t n, float *logprobs) {
    fenv_t caller;
    fl_fp_enter(&caller);
    for (size_t i = 0; i < n; i++) {
        compute_logits(session);
        logprobs[i] = fl_logprob(session, tokens[i]);
        step(session, tokens[i]);
    }
    fl_fp_leave(&caller);
}

static bool contains(const int32_t *tokens, size_t n, int32_t token) {
    for (size_t i = 0; i < n; i++)
        if (tokens[i] == token) return true;
    return false;
}

size_t fl_generate(fl_session *session, const int32_t *prompt, size_t n_prompt, const fl_sampling *sampling,
                   const int32_t *stop_tokens, size_t n_stop, size_t max_tokens, int32_t *tokens, float *logprobs,
                   fl_finish *finish) {
    fenv_t caller;
    size_t n = 0;
    fl_fp_enter(&caller);
    *finish = FL_FINISH_LENGTH;
    read_tokens(session, prompt, n_prompt);
    while (n < max_tokens) {
        if (n) step(session, tokens[n - 1]);
        compute_logits(session);
        const int32_t token = fl_sample(session, sampling);
        if (contains(stop_tokens, n_stop, token)) {
            *finish = FL_FINISH_STOP;
            break;
        }
        if (logprobs) logprobs[n] = fl_logprob(session, token);
        tokens[n++] = token;
    }
    fl_fp_leave(&caller);
    return n;
}
