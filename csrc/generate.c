/* SPDX-License-Identifier: Apache-2.0
 *
 * What a caller asks for: feed, score, generate. */
#include "memory.h"
#include "step.h"

/* Tokens of a text that are read at once. Enough that a loaded weight is used as often as arithmetic allows; scoring
 * keeps a row of logits for each. */
enum { FEED = FL_MOST_COLUMNS, SCORE = 32 };

void fl_enter(fl_decoder *d, fenv_t *caller) {
    fl_fp_enter(caller);
    fl_team_begin(&d->team, d->model->threads);
}

void fl_leave(fl_decoder *d, const fenv_t *caller) {
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
    fl_enter(d, &caller);
    feed(d, state, tokens, n);
    fl_leave(d, &caller);
}

const float *fl_logits(fl_decoder *d, const fl_state *state) {
    fenv_t caller;
    fl_enter(d, &caller);
    fl_load(d, 0, false, state);
    fl_step_logits(d, 1, false);
    fl_leave(d, &caller);
    return d->logits[0];
}

void fl_logprobs(fl_decoder *d, const fl_state *state, float *logprobs) {
    const float *logits = fl_logits(d, state);
    fenv_t caller;
    fl_fp_enter(&caller);
    fl_log_softmax(d->model, logits, logprobs);
    fl_fp_leave(&caller);
}

/* States that are followed by a token, and what is wanted of what comes behind. */
typedef struct following {
    const fl_decoder *decoder;
    size_t n;
    float *logprobs; /* [n][V]; NULL: branches */
    const uint8_t *ending;
    uint32_t most;
    fl_branches *branches;
} following;

static void follow_part(void *context, uint32_t part, uint32_t parts) {
    const following *f = context;
    const fl_decoder *d = f->decoder;
    size_t begin, end;
    fl_slice(f->n, 1, part, parts, &begin, &end);
    for (size_t j = begin; j < end; j++) {
        if (f->logprobs)
            fl_log_softmax(d->model, d->logits[j], f->logprobs + j * d->model->vocab_size);
        else
            fl_branch(d->model, &d->scratch[part], d->logits[j], f->ending, f->most, &f->branches[j]);
    }
}

static void follow(fl_decoder *d, fl_state *const *states, const int32_t *tokens, size_t n, following wanted) {
    fenv_t caller;
    fl_enter(d, &caller);
    for (size_t at = 0, part; at < n; at += part) {
        part = n - at < FL_MOST_COLUMNS ? n - at : FL_MOST_COLUMNS;
        const bool many = part > 1;
        for (size_t j = 0; j < part; j++) fl_load(d, j, many, states[at + j]);
        if (tokens) fl_step(d, tokens + at, part, many);
        fl_step_logits(d, part, many);
        following f = wanted;
        f.decoder = d, f.n = part;
        if (f.logprobs)
            f.logprobs += at * d->model->vocab_size;
        else
            f.branches += at;
        fl_team_run(&d->team, follow_part, &f);
        for (size_t j = 0; tokens && j < part; j++) {
            fl_store(d, j, states[at + j]);
            states[at + j]->position++;
        }
        fl_team_pause(&d->team);
    }
    fl_leave(d, &caller);
}

void fl_advance(fl_decoder *d, fl_state *const *states, const int32_t *tokens, size_t n, float *logprobs) {
    follow(d, states, tokens, n, (following){.logprobs = logprobs});
}

void fl_follow(fl_decoder *d, fl_state *const *states, const int32_t *tokens, size_t n, const uint8_t *ending,
               uint32_t most, fl_branches *branches) {
    follow(d, states, tokens, n, (following){.ending = ending, .most = most, .branches = branches});
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

static void score(fl_decoder *d, fl_state *state, const int32_t *tokens, size_t n, float *logprobs) {
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
}

void fl_score(fl_decoder *d, fl_state *state, const int32_t *tokens, size_t n, float *logprobs) {
    fenv_t caller;
    fl_enter(d, &caller);
    score(d, state, tokens, n, logprobs);
    fl_leave(d, &caller);
}

void fl_align(fl_decoder *d, fl_state *state, const int32_t *tokens, size_t n, float *weights) {
    const size_t places = state->source->n;
    fenv_t caller;
    fl_enter(d, &caller);
    fl_load(d, 0, false, state);
    for (size_t t = 0; t < n; t++) {
        fl_step(d, tokens + t, 1, false);
        memcpy(weights + t * places, d->attention->weights[0], places * sizeof *weights);
        fl_team_pause(&d->team);
    }
    fl_store(d, 0, state);
    state->position += n;
    fl_leave(d, &caller);
}

/* ---- many texts ---------------------------------------------------------------------------------------- */

/* Texts that are scored side by side, and how far each is. */
typedef struct shelf {
    fl_decoder *decoder;
    const fl_text *text[FL_MOST_COLUMNS];
    size_t at[FL_MOST_COLUMNS];
    int32_t token[FL_MOST_COLUMNS];
    size_t n;
} shelf;

static void take_down(const shelf *s, size_t column) {
    fl_state *state = s->text[column]->state;
    fl_store(s->decoder, column, state);
    state->position += s->at[column];
}

/* Puts a text in a column, from where its state is. */
static void put_up(shelf *s, size_t column, const fl_text *text) {
    s->text[column] = text, s->at[column] = 0;
    fl_load(s->decoder, column, true, text->state);
}

static void score_column_part(void *context, uint32_t part, uint32_t parts) {
    const shelf *s = context;
    size_t begin, end;
    fl_slice(s->n, 1, part, parts, &begin, &end);
    for (size_t j = begin; j < end; j++)
        s->text[j]->logprobs[s->at[j]] = fl_logprob(s->decoder->model, s->decoder->logits[j], s->token[j]);
}

/* The next token of every text. */
static void score_places(shelf *s) {
    for (size_t j = 0; j < s->n; j++) s->token[j] = s->text[j]->tokens[s->at[j]];
    fl_step_logits(s->decoder, s->n, true);
    fl_team_run(&s->decoder->team, score_column_part, s);
    fl_step(s->decoder, s->token, s->n, true);
    for (size_t j = 0; j < s->n; j++) s->at[j]++;
    fl_team_pause(&s->decoder->team);
}

/* The last column goes where another one was. */
static void move_last(shelf *s, size_t column) {
    const size_t last = --s->n;
    if (column == last) return;
    const fl_text *text = s->text[last];
    const size_t at = s->at[last];
    fl_store(s->decoder, last, text->state);
    fl_load(s->decoder, column, true, text->state);
    s->text[column] = text, s->at[column] = at;
}

void fl_score_texts(fl_decoder *d, const fl_text *texts, size_t n) {
    shelf s = {.decoder = d};
    fenv_t caller;
    size_t next = 0;
    fl_enter(d, &caller);
    for (; next < n && s.n < FL_MOST_COLUMNS; next++)
        if (texts[next].n) put_up(&s, s.n++, &texts[next]);
    while (s.n >= FL_WIDTH / 2) {
        score_places(&s);
        for (size_t j = s.n; j-- > 0;) {
            if (s.at[j] < s.text[j]->n) continue;
            take_down(&s, j);
            while (next < n && !texts[next].n) next++;
            if (next < n)
                put_up(&s, j, &texts[next++]);
            else
                move_last(&s, j);
        }
    }
    for (size_t j = 0; j < s.n; j++) take_down(&s, j);
    for (size_t j = 0; j < s.n; j++) {
        const fl_text *t = s.text[j];
        score(d, t->state, t->tokens + s.at[j], t->n - s.at[j], t->logprobs + s.at[j]);
    }
    fl_leave(d, &caller);
}

/* ---- generate ---------------------------------------------------------------------------------------- */

/* Requests that are written on side by side, and the token that each has not read yet. */
typedef struct batch {
    fl_decoder *decoder;
    fl_decoder *amateur; /* reads what the decoder reads, for contrastive decoding; NULL: none */
    fl_request *request[FL_MOST_COLUMNS];
    int32_t token[FL_MOST_COLUMNS];
    size_t n;
    size_t unread; /* the first so many have a token to read */
} batch;

/* The amateur's work is shared among the workers that the decoder has borrowed. */
static fl_decoder *amateur_of(const batch *b) {
    if (b->amateur) b->amateur->team = b->decoder->team;
    return b->amateur;
}

/* Whom the amateur has given back meanwhile the decoder no longer has. */
static void take_back_team(const batch *b) {
    if (b->amateur) b->decoder->team = b->amateur->team;
}

static void load(const batch *b, size_t column, bool many) {
    fl_load(b->decoder, column, many, b->request[column]->state);
    if (b->amateur) fl_load(b->amateur, column, many, b->request[column]->amateur);
}

static void store(const batch *b, size_t column) {
    fl_store(b->decoder, column, b->request[column]->state);
    if (b->amateur) fl_store(b->amateur, column, b->request[column]->amateur);
}

/* ---- prompts ----------------------------------------------------------------------------------------- */

/* Prompts, or what is left of them, that are read. */
typedef struct reading {
    fl_state *state;
    const int32_t *prompt;
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
    for (size_t j = 0; j < n && j < active; j++) fl_load(d, j, true, list[j].state);
    while (n && active >= TOGETHER) {
        for (size_t j = 0; j < active; j++) tokens[j] = list[j].prompt[t];
        fl_step(d, tokens, active, true);
        for (size_t j = 0; j < active; j++) list[j].state->position++;
        for (t++; active && (list[active - 1].n == t); active--) fl_store(d, active - 1, list[active - 1].state);
    }
    for (size_t j = 0; n && j < active; j++) fl_store(d, j, list[j].state);
    for (size_t j = 0; j < active; j++) feed(d, list[j].state, list[j].prompt + t, list[j].n - t);
}

static void clear(fl_request *r) { r->written = 0, r->finish = FL_FINISH_LENGTH, r->ended_by = -1; }

/* Takes in requests as long as there is room for `room` of them. All of a prompt but its last token is read at once; the
 * last one with those of the others. */
static size_t admit(batch *b, fl_request *requests, size_t n, size_t room) {
    reading list[FL_MOST_COLUMNS], second[FL_MOST_COLUMNS];
    size_t taken = 0, count = 0;
    for (; taken < n && b->n < room && count < room; taken++) {
        fl_request *r = &requests[taken];
        const bool writes = r->max_tokens > 0, last = writes && r->n_prompt > 0;
        clear(r);
        second[count] = (reading){r->amateur, r->prompt, r->n_prompt - last};
        list[count++] = (reading){r->state, r->prompt, r->n_prompt - last};
        if (!writes) continue;
        b->request[b->n] = r;
        if (last) { /* those with nothing to read stand behind */
            b->request[b->n] = b->request[b->unread];
            b->request[b->unread] = r;
            b->token[b->unread++] = r->prompt[r->n_prompt - 1];
        }
        b->n++;
    }
    read_prompts(b->decoder, list, count);
    if (b->amateur) read_prompts(amateur_of(b), second, count);
    take_back_team(b);
    return taken;
}

/* ---- tokens ------------------------------------------------------------------------------------------ */

/* Everyone reads a token. The first time some may have none, and join only now. */
static void advance(batch *b, bool many) {
    if (b->unread) fl_step(b->decoder, b->token, b->unread, many);
    if (b->unread && b->amateur) fl_step(amateur_of(b), b->token, b->unread, many);
    for (size_t j = 0; j < b->unread; j++) b->request[j]->state->position++;
    for (size_t j = 0; j < b->unread && b->amateur; j++) b->request[j]->amateur->position++;
    for (size_t j = b->unread; j < b->n; j++) load(b, j, many);
    b->unread = b->n;
}

static bool contains(const int32_t *tokens, size_t n, int32_t token) {
    for (size_t i = 0; i < n; i++)
        if (tokens[i] == token) return true;
    return false;
}

/* What is reported of a place: of what the model said before any control. */
static void report(fl_request *r, const fl_model *model, const fl_scratch *scratch, const float *logits,
                   int32_t token) {
    const size_t place = r->written, k = r->alternatives;
    if (r->logprobs) r->logprobs[place] = fl_logprob(model, logits, token);
    if (k)
        fl_likeliest(model, scratch, logits, r->alternatives, r->alternative_ids + place * k,
                     r->alternative_logprobs + place * k);
}

static int32_t draw_token(batch *b, size_t column, const fl_scratch *scratch, const fl_winner *first) {
    const fl_decoder *d = b->decoder;
    fl_request *r = b->request[column];
    const float *logits = d->logits[column], *amateur = b->amateur ? b->amateur->logits[column] : NULL;
    const int32_t token = fl_sample(d->model, scratch, r, logits, amateur, first);
    if (token >= 0) report(r, d->model, scratch, logits, token);
    return token;
}

/* Tokens after which it is told whether a text's screening is worth it. */
enum { TRIED = 8 };

/* Whether so few rows were computed that the screen has cost less than they all would have. */
static bool is_worth(const fl_model *model, const fl_request *r) {
    const double all = (double)r->screened * (double)model->vocab_size;
    return r->screened < TRIED || (double)r->computed < model->worth_screening * all;
}

/* Whether nobody in a batch needs all logits. */
static bool is_screened(const batch *b) {
    const fl_model *model = b->decoder->model;
    for (size_t j = 0; j < b->n; j++)
        if (!fl_screens(model, b->request[j]) || !is_worth(model, b->request[j])) return false;
    return true;
}

static void screen_part(void *context, uint32_t part, uint32_t parts) {
    batch *b = context;
    fl_decoder *d = b->decoder;
    fl_scratch *scratch = &d->scratch[part];
    size_t begin, end;
    fl_slice(b->n, 1, part, parts, &begin, &end);
    for (size_t j = begin; j < end; j++) {
        const fl_columns *hidden = fl_step_hidden(d, j, true, scratch);
        b->token[j] = fl_screen_draw(d->model, NULL, scratch, b->request[j], hidden, d->logits[j]);
    }
}

static void draw_part(void *context, uint32_t part, uint32_t parts) {
    batch *b = context;
    size_t begin, end;
    fl_slice(b->n, 1, part, parts, &begin, &end);
    for (size_t j = begin; j < end; j++) b->token[j] = draw_token(b, j, &b->decoder->scratch[part], NULL);
}

/* token[j] of everyone: rows of the vocabulary are shared out for one sequence, sequences for many. */
static void draw_tokens(batch *b) {
    fl_decoder *d = b->decoder;
    const bool alone = b->n == 1;
    if (is_screened(b)) {
        if (alone)
            b->token[0] = fl_screen_draw(d->model, &d->team, d->scratch, b->request[0],
                                         fl_step_hidden(d, 0, false, NULL), d->logits[0]);
        else
            fl_team_run(&d->team, screen_part, b);
        return;
    }
    if (b->amateur) fl_step_logits(amateur_of(b), b->n, !alone);
    if (alone && !fl_changes(b->request[0])) {
        const fl_contest contest = fl_contest_of(b->request[0]);
        const fl_winner first = fl_step_winner(d, &contest);
        b->token[0] = draw_token(b, 0, &d->scratch[0], &first);
        return;
    }
    fl_step_logits(d, b->n, !alone);
    if (alone)
        b->token[0] = draw_token(b, 0, &d->scratch[0], NULL);
    else
        fl_team_run(&d->team, draw_part, b);
}

/* Returns whether the request goes on. */
static bool write_token(fl_request *r, int32_t token) {
    const fl_sampling *s = r->sampling;
    if (token < 0 || contains(s->stop, s->n_stop, token)) {
        r->finish = token < 0 ? FL_FINISH_UNSATISFIABLE : FL_FINISH_STOP;
        r->ended_by = token;
        if (r->memory) fl_memory_undraw(r->memory);
        return false;
    }
    r->tokens[r->written++] = token;
    if (r->memory) fl_memory_add(r->memory, &token, 1, 1);
    if (s->stop_repeats && fl_memory_repeats(r->memory, s->stop_repeats))
        r->finish = FL_FINISH_REPETITION;
    else if (s->pauses && s->pauses[token])
        r->finish = FL_FINISH_PAUSE;
    return r->written < r->max_tokens && r->finish == FL_FINISH_LENGTH;
}

/* Writes until someone is done, or time is up: who goes on is kept, with states stored. */
static void write_on(batch *b, uint64_t deadline) {
    bool goes_on[FL_MOST_COLUMNS], late = false;
    const bool many = b->n > 1;
    size_t kept;
    for (size_t j = 0; j < b->unread; j++) load(b, j, many);
    do {
        advance(b, many);
        draw_tokens(b);
        kept = 0;
        for (size_t j = 0; j < b->n; j++) kept += goes_on[j] = write_token(b->request[j], b->token[j]);
        fl_team_pause(&b->decoder->team);
        late = deadline && fl_clock() >= deadline;
    } while (kept == b->n && !late);
    for (size_t j = 0; j < b->n; j++) store(b, j);
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

/* The time is up for requests that are being written, or were not begun. */
static void give_up(batch *b, fl_request *requests, size_t n) {
    for (size_t j = 0; j < b->n; j++) b->request[j]->finish = FL_FINISH_DEADLINE;
    for (size_t i = 0; i < n; i++) {
        clear(&requests[i]);
        requests[i].finish = FL_FINISH_DEADLINE;
        requests[i].n_prompt = 0;
    }
    b->n = 0;
}

void fl_generate(fl_decoder *d, fl_request *requests, size_t n, uint64_t deadline) {
    const size_t room = d->model->output.dtype == FL_INT4 && n <= FEW_INT4 ? 1 : FL_MOST_COLUMNS;
    fenv_t caller;
    batch b = {.decoder = d, .amateur = n ? requests->sampling->amateur : NULL};
    fl_enter(d, &caller);
    for (size_t next = 0; next < n || b.n;) {
        next += admit(&b, requests + next, n - next, room);
        if (b.n) write_on(&b, deadline);
        if (deadline && fl_clock() >= deadline) {
            give_up(&b, requests + next, n - next);
            break;
        }
    }
    fl_leave(d, &caller);
}

static void expand_part(void *context, uint32_t part, uint32_t parts) {
    const batch *b = context;
    size_t begin, end;
    fl_slice(b->n, 1, part, parts, &begin, &end);
    for (size_t j = begin; j < end; j++)
        fl_successors(b->decoder->model, &b->decoder->scratch[part], b->request[j], b->decoder->logits[j]);
}

void fl_expand(fl_decoder *d, fl_request *requests, size_t n) {
    fenv_t caller;
    fl_enter(d, &caller);
    for (size_t next = 0; next < n;) {
        batch b = {.decoder = d};
        next += admit(&b, requests + next, n - next, FL_MOST_COLUMNS);
        const bool many = b.n > 1;
        for (size_t j = 0; j < b.unread; j++) load(&b, j, many);
        advance(&b, many);
        fl_step_logits(d, b.n, many);
        fl_team_run(&d->team, expand_part, &b);
        for (size_t j = 0; j < b.n; j++) store(&b, j);
        fl_team_pause(&d->team);
    }
    fl_leave(d, &caller);
}

/* ---- one token at a time ------------------------------------------------------------------------------- */

/* Where fl_logits has left what the model says, and where logits of the caller's go. */
enum { SAID, GIVEN };

void fl_draw(fl_decoder *d, const float *logits, fl_request *r) {
    const size_t V = d->model->vocab_size;
    float *given = d->logits[GIVEN];
    fenv_t caller;
    fl_fp_enter(&caller);
    memcpy(given, logits, V * sizeof *given);
    for (size_t i = V; i % FL_BLOCK; i++) given[i] = -INFINITY;
    clear(r);
    const int32_t token = fl_sample(d->model, d->scratch, r, given, NULL, NULL);
    if (token >= 0) report(r, d->model, d->scratch, d->logits[SAID], token);
    write_token(r, token);
    fl_fp_leave(&caller);
}

size_t fl_candidates(fl_decoder *d, const fl_request *r, int32_t *ids, float *logits) {
    fenv_t caller;
    fl_fp_enter(&caller);
    const size_t n = fl_restrict(d->model, d->scratch, r, d->logits[SAID], NULL, ids, logits);
    fl_fp_leave(&caller);
    return n;
}
