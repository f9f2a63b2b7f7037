/* SPDX-License-Identifier: Apache-2.0
 *
 * What a caller asks for: feed, score, generate. */
#include "step.h"

/* Tokens of a text that are read at once. Enough that a loaded weight is used as often as arithmetic allows; scoring
 * keeps a row of logits for each. */
enum { FEED = FL_MOST_COLUMNS, SCORE = 32 };

/* The caller's floating-point mode is set aside, and workers are borrowed, for one call. */
static void enter(fl_decoder *d, fenv_t *caller) {
    fl_fp_enter(caller);
    fl_team_begin(&d->team, d->model->threads);
}

static void leave(fl_decoder *d, const fenv_t *caller) {
    fl_team_end(&d->team);
    fl_fp_leave(caller);
}

static void feed(fl_decoder *d, fl_state *state, const int32_t *tokens, size_t n) {
    if (!n) return;
    fl_load(d, 0, false, state);
    for (size_t at = 0, part; at < n; at += part) {
        part = n - at < FEED ? n - at : FEED;
        fl_read(d, tokens + at, part, false);
        fl_team_pause(&d->team);
    }
    fl_store(d, 0, state);
    state->position += n;
}

void fl_feed(fl_decoder *d, fl_state *state, const int32_t *tokens, size_t n) {
    fenv_t caller;
    enter(d, &caller);
    feed(d, state, tokens, n);
    leave(d, &caller);
}

const float *fl_logits(fl_decoder *d, const fl_state *state) {
    fenv_t caller;
    enter(d, &caller);
    fl_load(d, 0, false, state);
    fl_step_logits(d, 1, false);
    leave(d, &caller);
    return d->logits[0];
}

typedef struct scoring {
    fl_decoder *decoder;
    const int32_t *tokens;
    float *logprobs;
    size_t n;
} scoring;

static void score_part(void *context, uint32_t part, uint32_t parts) {
    const scoring *s = context;
    size_t begin, end;
    fl_slice(s->n, 1, part, parts, &begin, &end);
    for (size_t t = begin; t < end; t++)
        s->logprobs[t] = fl_logprob(s->decoder->model, s->decoder->logits[t], s->tokens[t]);
}

void fl_score(fl_decoder *d, fl_state *state, const int32_t *tokens, size_t n, float *logprobs) {
    fenv_t caller;
    enter(d, &caller);
    fl_load(d, 0, false, state);
    for (size_t at = 0, part; at < n; at += part) {
        part = n - at < SCORE ? n - at : SCORE;
        fl_read(d, tokens + at, part, true);
        fl_text_logits(d, part);
        scoring s = {d, tokens + at, logprobs + at, part};
        fl_team_run(&d->team, score_part, &s);
        fl_team_pause(&d->team);
    }
    fl_store(d, 0, state);
    state->position += n;
    leave(d, &caller);
}

/* ---- generate ---------------------------------------------------------------------------------------- */

/* Requests that are written on side by side, and the token that each has not read yet. */
typedef struct batch {
    fl_request *request[FL_MOST_COLUMNS];
    int32_t token[FL_MOST_COLUMNS];
    size_t n;
    size_t unread; /* the first so many have a token to read */
} batch;

/* Prompts, or what is left of them, that are read. */
typedef struct reading {
    fl_request *request;
    size_t n;
} reading;

/* The longest first. */
static void sort_readings(reading *list, size_t n) {
    for (size_t i = 1; i < n; i++) {
        const reading one = list[i];
        size_t at = i;
        for (; at && list[at - 1].n < one.n; at--) list[at] = list[at - 1];
        list[at] = one;
    }
}

/* Fewer than so many prompts are read faster one by one, each as a matrix: of FL_WIDTH columns that are computed too
 * many would be idle. */
enum { TOGETHER = FL_WIDTH / 2 };

/* Reads prompts side by side, as long as there are enough of them, then the rest one by one. */
static void read_prompts(fl_decoder *d, reading *list, size_t n) {
    int32_t tokens[FL_MOST_COLUMNS];
    size_t t = 0, active = n;
    sort_readings(list, n);
    while (active && !list[active - 1].n) active--;
    if (active < TOGETHER) n = 0;
    for (size_t j = 0; j < n && j < active; j++) fl_load(d, j, true, list[j].request->state);
    while (n && active >= TOGETHER) {
        for (size_t j = 0; j < active; j++) tokens[j] = list[j].request->prompt[t];
        fl_step(d, tokens, active, true);
        for (size_t j = 0; j < active; j++) list[j].request->state->position++;
        for (t++; active && (list[active - 1].n == t); active--)
            fl_store(d, active - 1, list[active - 1].request->state);
    }
    for (size_t j = 0; n && j < active; j++) fl_store(d, j, list[j].request->state);
    for (size_t j = 0; j < active; j++) feed(d, list[j].request->state, list[j].request->prompt + t, list[j].n - t);
}

/* Takes in requests as long as there is room for `room` of them. All of a prompt but its last token is read at once; the last one with
 * those of the others. */
static size_t admit(fl_decoder *d, batch *b, fl_request *requests, size_t n, size_t room) {
    reading list[FL_MOST_COLUMNS];
    size_t taken = 0, count = 0;
    for (; taken < n && b->n < room && count < room; taken++) {
        fl_request *r = &requests[taken];
        const bool writes = r->max_tokens > 0, last = writes && r->n_prompt > 0;
        r->written = 0;
        r->finish = FL_FINISH_LENGTH;
        list[count++] = (reading){r, r->n_prompt - last};
        if (!writes) continue;
        b->request[b->n] = r;
        if (last) { /* those with nothing to read stand behind */
            b->request[b->n] = b->request[b->unread];
            b->request[b->unread] = r;
            b->token[b->unread++] = r->prompt[r->n_prompt - 1];
        }
        b->n++;
    }
    read_prompts(d, list, count);
    return taken;
}

/* Everyone reads a token. The first time some may have none, and join only now. */
static void advance(fl_decoder *d, batch *b, bool many) {
    if (b->unread) fl_step(d, b->token, b->unread, many);
    for (size_t j = 0; j < b->unread; j++) b->request[j]->state->position++;
    for (size_t j = b->unread; j < b->n; j++) fl_load(d, j, many, b->request[j]->state);
    b->unread = b->n;
}

static bool contains(const int32_t *tokens, size_t n, int32_t token) {
    for (size_t i = 0; i < n; i++)
        if (tokens[i] == token) return true;
    return false;
}

typedef struct drawing {
    fl_decoder *decoder;
    batch *batch;
} drawing;

static void draw_token(fl_decoder *d, batch *b, size_t column, const fl_scratch *scratch, fl_winner first) {
    fl_request *r = b->request[column];
    const float *logits = d->logits[column];
    const int32_t token = fl_sample(d->model, scratch, logits, &r->sampling, r->state->position, first);
    b->token[column] = token;
    if (r->logprobs) r->logprobs[r->written] = fl_logprob(d->model, logits, token);
}

static void draw_part(void *context, uint32_t part, uint32_t parts) {
    const drawing *w = context;
    fl_decoder *d = w->decoder;
    size_t begin, end;
    fl_slice(w->batch->n, 1, part, parts, &begin, &end);
    for (size_t j = begin; j < end; j++) {
        const fl_request *r = w->batch->request[j];
        const fl_contest contest = fl_contest_of(d->model, &r->sampling, r->state->position);
        draw_token(d, w->batch, j, &d->scratch[part], fl_win(d->model, d->logits[j], &contest));
    }
}

/* token[j] of everyone: rows of the vocabulary are shared out for one sequence, sequences for many. */
static void draw_tokens(fl_decoder *d, batch *b) {
    if (b->n == 1) {
        const fl_request *r = b->request[0];
        const fl_contest contest = fl_contest_of(d->model, &r->sampling, r->state->position);
        draw_token(d, b, 0, &d->scratch[0], fl_step_winner(d, &contest));
        return;
    }
    drawing w = {d, b};
    fl_step_logits(d, b->n, true);
    fl_team_run(&d->team, draw_part, &w);
}

/* Returns whether the request goes on. */
static bool write_token(fl_request *r, int32_t token) {
    if (contains(r->stop, r->n_stop, token)) {
        r->finish = FL_FINISH_STOP;
        return false;
    }
    r->tokens[r->written++] = token;
    return r->written < r->max_tokens;
}

/* Writes until someone is done: who goes on is kept, with states stored. */
static void write_on(fl_decoder *d, batch *b) {
    bool goes_on[FL_MOST_COLUMNS];
    const bool many = b->n > 1;
    size_t kept;
    for (size_t j = 0; j < b->unread; j++) fl_load(d, j, many, b->request[j]->state);
    do {
        advance(d, b, many);
        draw_tokens(d, b);
        kept = 0;
        for (size_t j = 0; j < b->n; j++) kept += goes_on[j] = write_token(b->request[j], b->token[j]);
        fl_team_pause(&d->team);
    } while (kept == b->n);
    for (size_t j = 0; j < b->n; j++) fl_store(d, j, b->request[j]->state);
    kept = 0;
    for (size_t j = 0; j < b->n; j++) {
        if (!goes_on[j]) continue;
        b->request[kept] = b->request[j];
        b->token[kept++] = b->token[j];
    }
    b->n = b->unread = kept;
}

/* A column of int4 weights side by side with others costs as much as a whole block: two texts are written faster one after
 * the other. */
enum { FEW_INT4 = 2 };

void fl_generate(fl_decoder *d, fl_request *requests, size_t n) {
    const size_t room = d->model->output.dtype == FL_INT4 && n <= FEW_INT4 ? 1 : FL_MOST_COLUMNS;
    fenv_t caller;
    batch b = {.n = 0};
    enter(d, &caller);
    for (size_t next = 0; next < n || b.n;) {
        next += admit(d, &b, requests + next, n - next, room);
        if (b.n) write_on(d, &b);
    }
    leave(d, &caller);
}
