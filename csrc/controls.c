/* SPDX-License-Identifier: Apache-2.0
 *
 * Controls that change logits before a token is chosen: bans, biases, and penalties for what was said before. All but
 * bans by a list of allowed tokens look at a few tokens only. */
#include "memory.h"

/* ---- bans -------------------------------------------------------------------------------------------- */

static bool is_short(const fl_request *r) { return r->written < r->min_tokens && r->sampling->n_stop; }

bool fl_bans(const fl_request *r) {
    const fl_sampling *s = r->sampling;
    return r->allowed || s->no_repeat_ngram_size || s->n_bad_words || s->corpus || is_short(r);
}

static void ban_others(const uint32_t *allowed, size_t V, float *logits) {
    for (size_t at = 0; at < V; at += 32) {
        const uint32_t word = allowed[at / 32];
        for (size_t i = 0; word != UINT32_MAX && i < 32 && at + i < V; i++)
            if (!(word >> i & 1)) logits[at + i] = -INFINITY;
    }
}

/* How many tokens, up to `most`, agree backwards from the places a < b. */
static size_t agreement(const fl_memory *m, size_t a, size_t b, size_t most) {
    size_t n = 0;
    while (n < most && n <= a && m->tokens[a - n] == m->tokens[b - n]) n++;
    return n;
}

/* No n tokens in a row twice: what followed the last n - 1 tokens where they stood before does not follow again. */
static void ban_ngrams(const fl_memory *m, uint32_t size, float *logits) {
    if (size == 1)
        for (size_t i = 0; i < m->n; i++) logits[m->tokens[i]] = -INFINITY;
    if (size == 1 || m->n < size) return;
    for (size_t at = m->before[m->n - 1]; at; at = m->before[at - 1])
        if (agreement(m, at - 1, m->n - 1, size - 1) == size - 1) logits[m->tokens[at]] = -INFINITY;
}

/* A word's last token, where all before it were just said. */
static void ban_words(const fl_sampling *s, const fl_memory *m, float *logits) {
    size_t begin = 0;
    for (size_t i = 0; i < s->n_bad_words; begin = s->bad_ends[i++]) {
        const int32_t *word = s->bad_words + begin;
        const size_t said = s->bad_ends[i] - begin - 1;
        if (!said || (m->n >= said && !memcmp(m->tokens + m->n - said, word, said * sizeof *word)))
            logits[word[said]] = -INFINITY;
    }
}

/* What would be copied, of the tokens that were written: a prompt may stand in the corpus. */
static void ban_copies(const fl_sampling *s, const fl_memory *m, size_t V, float *logits) {
    const size_t n = s->most_copied;
    if (m->n < n || memchr(m->written + m->n - n, 0, n)) return;
    fl_index_ban(s->corpus, m->tokens + m->n - n, n, logits, V);
}

void fl_ban(const fl_request *r, size_t V, float *logits) {
    const fl_sampling *s = r->sampling;
    if (r->allowed) ban_others(r->allowed, V, logits);
    if (s->no_repeat_ngram_size) ban_ngrams(r->memory, s->no_repeat_ngram_size, logits);
    ban_words(s, r->memory, logits);
    if (s->corpus) ban_copies(s, r->memory, V, logits);
    for (size_t i = 0; is_short(r) && i < s->n_stop; i++) logits[s->stop[i]] = -INFINITY;
}

/* ---- biases and penalties ---------------------------------------------------------------------------- */

/* OpenAI's logit_bias. */
static void add_biases(const fl_sampling *s, float *logits) {
    for (size_t i = 0; i < s->n_biases; i++) logits[s->bias_ids[i]] += s->biases[i];
}

#define MOST_LOGIT 0x1p60f /* far beyond any trained model's */

/* Each token of the window once. repetition_penalty (CTRL, Keskar et al. 2019) divides a positive logit and multiplies a
 * negative one, whether the token was read or written; the other two (OpenAI) count what was written. */
static void penalise(const fl_sampling *s, const fl_memory *m, float *logits) {
    for (uint32_t i = 0; i < m->n_distinct; i++) {
        const int32_t token = m->distinct[i];
        const float logit = logits[token], times = (float)m->times[token];
        float changed = logit > 0 ? logit / s->repetition_penalty : logit * s->repetition_penalty;
        changed -= times * s->frequency_penalty;
        if (m->times[token]) changed -= s->presence_penalty;
        /* Beyond measure it stays a number: infinity less infinity would be none. What is banned stays so. */
        if (logit > -INFINITY) logits[token] = fminf(fmaxf(changed, -MOST_LOGIT), MOST_LOGIT);
    }
}

/* ---- DRY --------------------------------------------------------------------------------------------- */

enum { LONGEST = 50 }; /* repetition that counts, as in the original */

#define MOST_PENALTY 0x1p60f /* far beyond any trained model's logits, and still not a ban */

static float dry_penalty(const fl_sampling *s, size_t length) {
    float penalty = s->dry_multiplier;
    for (size_t n = s->dry_allowed_length; n < length && penalty < MOST_PENALTY; n++) penalty *= s->dry_base;
    return penalty < MOST_PENALTY ? penalty : MOST_PENALTY;
}

static bool breaks(const fl_sampling *s, int32_t token) { return s->dry_breakers && s->dry_breakers[token]; }

/* The longest repetition that each token would prolong, in memory->longest; returns whether there is any. */
static bool find_repetitions(const fl_sampling *s, const fl_memory *m, size_t first) {
    bool any = false;
    size_t most = 0;
    while (most < LONGEST && most < m->n - first && !breaks(s, m->tokens[m->n - 1 - most])) most++;
    if (!most) return false;
    for (size_t at = m->before[m->n - 1]; at > first; at = m->before[at - 1]) {
        const int32_t next = m->tokens[at];
        const size_t length = agreement(m, at - 1, m->n - 1, at - first < most ? at - first : most);
        if (length < s->dry_allowed_length || breaks(s, next)) continue;
        any = true;
        if (length > m->longest[next]) m->longest[next] = (uint8_t)length;
    }
    return any;
}

/* Don't repeat yourself (text-generation-webui, pull request 5677): a token that would prolong a repetition of n tokens loses
 * multiplier * base^(n - allowed_length). Nothing is repeated across a breaker. */
static void penalise_repetitions(const fl_sampling *s, const fl_memory *m, float *logits) {
    const size_t first = s->dry_window && m->n > s->dry_window ? m->n - s->dry_window : 0;
    if (!m->n || !find_repetitions(s, m, first)) return;
    for (size_t at = m->before[m->n - 1]; at > first; at = m->before[at - 1]) {
        const int32_t next = m->tokens[at];
        if (m->longest[next]) logits[next] -= dry_penalty(s, m->longest[next]);
        m->longest[next] = 0;
    }
}

void fl_change(fl_control step, const fl_request *r, float *logits) {
    switch (step) {
    case FL_LOGIT_BIAS: add_biases(r->sampling, logits); break;
    case FL_PENALTIES: penalise(r->sampling, r->memory, logits); break;
    case FL_DRY: penalise_repetitions(r->sampling, r->memory, logits); break;
    default: break;
    }
}
