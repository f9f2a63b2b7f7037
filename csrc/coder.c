/* SPDX-License-Identifier: Apache-2.0
 *
 * A text as a number: a range coder (Martin 1979) on the model's own probabilities. All arithmetic is on whole numbers, and
 * logits have the same bits everywhere, so that what one machine writes another reads, whatever its level and threads. */
#include "step.h"

#include <stdlib.h>

struct fl_coder {
    uint64_t low, range; /* the interval that is left; a decoder keeps the code's distance from `low` in `low` */
    uint8_t *bytes;
    size_t size, room, at; /* written, allocated; where a decoder reads */
    bool reads, failed;    /* failed: out of memory */
};

enum {
    TOTAL_BITS = 30,  /* tokens have counts that add up to 2^30 */
    ESCAPE_BITS = 14, /* an escape takes so many bits, where there may be one */
    COUNT_SCALE = 32,
};

#define TOTAL ((uint64_t)1 << TOTAL_BITS)
#define LEAST_RANGE ((uint64_t)1 << 56)

fl_status fl_coder_new(const void *bytes, size_t size, fl_coder **coder, fl_error *error) {
    fl_coder *c = *coder = calloc(1, sizeof *c);
    if (c && bytes) c->bytes = malloc(size + 1);
    if (!c || (bytes && !c->bytes)) {
        fl_coder_free(c);
        return fl_fail(error, FL_ERROR_MEMORY, "no memory for a coder of %zu bytes", size);
    }
    c->range = UINT64_MAX;
    if (!bytes) return FL_OK;
    c->reads = true;
    memcpy(c->bytes, bytes, size);
    c->size = size;
    for (; c->at < 8; c->at++) c->low = c->low << 8 | (c->at < size ? c->bytes[c->at] : 0);
    return FL_OK;
}

void fl_coder_free(fl_coder *c) {
    if (!c) return;
    free(c->bytes);
    free(c);
}

/* ---- intervals ----------------------------------------------------------------------------------------- */

static void put_byte(fl_coder *c, uint8_t byte) {
    if (c->size == c->room) {
        const size_t room = c->room ? 2 * c->room : 256;
        uint8_t *grown = realloc(c->bytes, room);
        if (!grown) {
            c->failed = true;
            return;
        }
        c->bytes = grown, c->room = room;
    }
    c->bytes[c->size++] = byte;
}

/* One more in what was written already. It is there: the whole code stays below 1. */
static void carry(fl_coder *c) {
    for (size_t i = c->size; i-- > 0;)
        if (++c->bytes[i]) return;
}

static void add_to_low(fl_coder *c, uint64_t amount) {
    c->low += amount;
    if (c->low < amount) carry(c);
}

/* Takes the part [begin, begin + count) of 2^bits; the last part also has what does not divide. */
static void narrow(fl_coder *c, uint64_t begin, uint64_t count, int bits) {
    const uint64_t unit = c->range >> bits, before = unit * begin;
    c->range = begin + count == (uint64_t)1 << bits ? c->range - before : unit * count;
    if (c->reads)
        c->low -= before;
    else
        add_to_low(c, before);
    for (; c->range < LEAST_RANGE; c->range <<= 8) {
        if (!c->reads) put_byte(c, (uint8_t)(c->low >> 56));
        c->low <<= 8;
        if (c->reads && c->at++ < c->size) c->low |= c->bytes[c->at - 1];
    }
}

/* Which of 2^bits units the code is in. */
static uint64_t unit_of(const fl_coder *c, int bits) {
    const uint64_t unit = c->low / (c->range >> bits), last = ((uint64_t)1 << bits) - 1;
    return unit < last ? unit : last;
}

void fl_encode_bits(fl_coder *c, uint32_t value, int bits) { narrow(c, value, 1, bits); }

uint32_t fl_decode_bits(fl_coder *c, int bits) {
    const uint64_t value = unit_of(c, bits);
    narrow(c, value, 1, bits);
    return (uint32_t)value;
}

/* The code with the fewest bytes in the interval; what is behind them reads as zeros. */
fl_status fl_coder_finish(fl_coder *c, const uint8_t **bytes, size_t *size, fl_error *error) {
    for (int shift = 56; shift >= 0; shift -= 8) {
        const uint64_t below = ((uint64_t)1 << shift) - 1, up = (0 - c->low) & below;
        if (up >= c->range) continue;
        add_to_low(c, up);
        for (int at = 56; at >= shift; at -= 8) put_byte(c, (uint8_t)(c->low >> at));
        break;
    }
    *bytes = c->bytes, *size = c->size;
    return c->failed ? fl_fail(error, FL_ERROR_MEMORY, "no memory for %zu bytes of code", c->size) : FL_OK;
}

int fl_coder_is_past_end(const fl_coder *c) { return c->at > c->size + 8; }

/* ---- a token's count ----------------------------------------------------------------------------------- */

/* Counts of all tokens: 1 and a share of the rest by probability; the likeliest also has what does not divide. */
typedef struct counts {
    const uint32_t *mass;
    uint64_t scale, surplus;
    size_t vocab_size, best;
} counts;

static uint64_t count_of(const counts *c, size_t token) {
    return 1 + (c->mass[token] * c->scale >> COUNT_SCALE) + (token == c->best ? c->surplus : 0);
}

static counts count_all(const fl_decoder *d, const float *logits, bool escapes) {
    static const fl_contest greedy = {0};
    const size_t V = d->model->vocab_size;
    const uint64_t total = TOTAL - (escapes ? TOTAL >> ESCAPE_BITS : 0);
    const fl_winner best = fl_win(d->model, logits, &greedy);
    const uint64_t mass = d->model->kernels->mass(logits, V, best.key, 1.0f, d->scratch->mass);
    counts c = {d->scratch->mass, ((total - V) << COUNT_SCALE) / mass, 0, V, (size_t)best.id};
    uint64_t sum = 0;
    for (size_t i = 0; i < V; i++) sum += c.mass[i] * c.scale >> COUNT_SCALE;
    c.surplus = total - V - sum;
    return c;
}

static void encode_token(const fl_decoder *d, fl_coder *coder, const float *logits, int32_t token, bool escapes) {
    const counts c = count_all(d, logits, escapes);
    const size_t id = token < 0 ? c.vocab_size : (size_t)token;
    uint64_t begin = id;
    for (size_t i = 0; i < id; i++) begin += c.mass[i] * c.scale >> COUNT_SCALE;
    if (c.best < id) begin += c.surplus;
    narrow(coder, begin, token < 0 ? TOTAL - begin : count_of(&c, id), TOTAL_BITS);
}

/* -1: an escape, or a code that is none of ours. */
static int32_t decode_token(const fl_decoder *d, fl_coder *coder, const float *logits, bool escapes) {
    const counts c = count_all(d, logits, escapes);
    const uint64_t unit = unit_of(coder, TOTAL_BITS);
    uint64_t begin = 0;
    for (size_t id = 0; id < c.vocab_size; id++) {
        const uint64_t count = count_of(&c, id);
        if (unit - begin < count) {
            narrow(coder, begin, count, TOTAL_BITS);
            return (int32_t)id;
        }
        begin += count;
    }
    narrow(coder, begin, TOTAL - begin, TOTAL_BITS);
    return -1;
}

/* ---- texts --------------------------------------------------------------------------------------------- */

enum { AT_ONCE = 32 };

void fl_encode(fl_decoder *d, fl_state *state, fl_coder *coder, const int32_t *tokens, size_t n, int escapes) {
    fenv_t caller;
    fl_enter(d, &caller);
    fl_load(d, 0, false, state);
    for (size_t at = 0, part; at < n; at += part) {
        part = n - at < AT_ONCE ? n - at : AT_ONCE;
        fl_read(d, tokens + at, part, true);
        fl_text_logits(d, part);
        for (size_t t = 0; t < part; t++) encode_token(d, coder, d->logits[t], tokens[at + t], escapes);
        fl_team_pause(&d->team);
    }
    fl_store(d, 0, state);
    state->position += n;
    fl_leave(d, &caller);
}

void fl_encode_escape(fl_decoder *d, const fl_state *state, fl_coder *coder) {
    const float *logits = fl_logits(d, state);
    fenv_t caller;
    fl_fp_enter(&caller);
    encode_token(d, coder, logits, -1, true);
    fl_fp_leave(&caller);
}

size_t fl_decode(fl_decoder *d, fl_state *state, fl_coder *coder, int32_t *tokens, size_t n, int escapes) {
    size_t done = 0;
    fenv_t caller;
    fl_enter(d, &caller);
    fl_load(d, 0, false, state);
    while (done < n && !fl_coder_is_past_end(coder)) {
        fl_step_logits(d, 1, false);
        tokens[done] = decode_token(d, coder, d->logits[0], escapes);
        if (tokens[done] < 0) break;
        fl_step(d, &tokens[done++], 1, false);
        fl_team_pause(&d->team);
    }
    fl_store(d, 0, state);
    state->position += done;
    fl_leave(d, &caller);
    return done;
}
