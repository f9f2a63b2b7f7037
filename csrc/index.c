/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a text's tokens stand in a corpus: an FM-index (Ferragina & Manzini 2000) of the corpus backwards, so that a
 * pattern is found token by token as it is written. The transformed corpus is a wavelet matrix (Claude & Navarro 2012):
 * a bit of each token on each level. What the file holds are bits alone; all else is computed from them here, so that no
 * file, whatever its bits, leads out of bounds: any bits are the transform of something.
 *
 * A corpus is several blocks, so that it can be built in little memory. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAGIC = 0x584e4c46 /* "FLNX" */,
    VERSION = 1,
    MOST_LEVELS = 31,
    HEADER = 64,
    OVERLAP = 1000, /* tokens of the block before that a block begins with */
    MOST_ROWS = 1 << 26,
    GROUP = 128 /* bits: two words are counted at most */
};

typedef struct block {
    size_t n, sentinel; /* tokens; the row of the transform where the corpus begins */
    const uint64_t *bits[MOST_LEVELS];
    uint32_t *ranks[MOST_LEVELS]; /* ones before each group */
    size_t zeros[MOST_LEVELS];
    size_t *first; /* [V + 1]: the first row of patterns that end with a token, and the one behind the last */
    size_t *start; /* [V]: where its occurrences begin on the last level */
} block;

struct fl_index {
    size_t vocab_size, levels, n_blocks;
    uint64_t separator; /* the token between documents: no text */
    uint64_t tokens;
    block *blocks;
};

/* ---- bits -------------------------------------------------------------------------------------------- */

static unsigned ones(uint64_t word) {
    word -= word >> 1 & 0x5555555555555555u;
    word = (word & 0x3333333333333333u) + (word >> 2 & 0x3333333333333333u);
    return (unsigned)(((word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u >> 56);
}

/* Ones among the first i bits of a level. */
static size_t rank(const block *b, size_t level, size_t i) {
    const uint64_t *bits = b->bits[level];
    size_t found = b->ranks[level][i / GROUP], word = i / GROUP * (GROUP / 64);
    for (; word < i / 64; word++) found += ones(bits[word]);
    return i % 64 ? found + ones(bits[word] & ((UINT64_C(1) << i % 64) - 1)) : found;
}

/* Where a place of the first level is on the last one, if its token is this. */
static size_t descend(const fl_index *x, const block *b, size_t place, size_t token) {
    for (size_t level = 0; level < x->levels; level++) {
        const size_t before = rank(b, level, place);
        place = token >> (x->levels - 1 - level) & 1 ? b->zeros[level] + before : place - before;
    }
    return place;
}

/* ---- patterns ---------------------------------------------------------------------------------------- */

/* Rows of the patterns that go on with what was read so far. */
typedef struct range {
    size_t low, high;
} range;

static range all(const block *b) { return (range){0, b->n + 1}; }

/* The sentinel is no token and is left out of the bits. */
static size_t without_sentinel(const block *b, size_t row) { return row - (row > b->sentinel); }

/* Both ends go down together: each level waits for memory, and so they wait at once. */
static range read(const fl_index *x, const block *b, range r, size_t token) {
    if (r.low == 0 && r.high == b->n + 1) return (range){b->first[token], b->first[token + 1]};
    size_t low = without_sentinel(b, r.low), high = without_sentinel(b, r.high);
    for (size_t level = 0; level < x->levels && low < high; level++) {
        const size_t a = rank(b, level, low), z = rank(b, level, high);
        const bool bit = token >> (x->levels - 1 - level) & 1;
        low = bit ? b->zeros[level] + a : low - a, high = bit ? b->zeros[level] + z : high - z;
    }
    if (low >= high) return (range){0, 0};
    const size_t base = b->first[token] - b->start[token];
    return (range){base + low, base + high};
}

/* Whether it is one of the corpus' texts. */
static bool is_text(const fl_index *x, int32_t token) {
    return token >= 0 && (size_t)token < x->vocab_size && (uint64_t)token != x->separator;
}

static range read_all(const fl_index *x, const block *b, const int32_t *tokens, size_t n) {
    range r = all(b);
    for (size_t i = 0; i < n && r.low < r.high; i++) {
        if (!is_text(x, tokens[i])) return (range){0, 0};
        r = read(x, b, r, (size_t)tokens[i]);
    }
    return r;
}

uint64_t fl_index_count(const fl_index *x, const int32_t *tokens, size_t n) {
    uint64_t found = 0;
    for (size_t i = 0; n && i < x->n_blocks; i++) {
        const range r = read_all(x, &x->blocks[i], tokens, n);
        found += r.high - r.low;
    }
    return found;
}

static bool stands(const fl_index *x, const block *b, const int32_t *tokens, size_t n) {
    const range r = read_all(x, b, tokens, n);
    return r.low < r.high;
}

/* The least begin behind the first of n tokens, so that those from there on stand in the block: n if none does. Where a
 * longer run stands, a shorter one does; steps double, for mostly a near one is found. */
static size_t least_begin(const fl_index *x, const block *b, const int32_t *tokens, size_t n) {
    size_t from = 1, step = 1, to;
    while (to = from + step - 1, to < n && !stands(x, b, tokens + to, n - to)) from = to + 1, step *= 2;
    for (to = to < n ? to : n; from < to;) {
        const size_t middle = from + (to - from) / 2;
        if (stands(x, b, tokens + middle, n - middle))
            to = middle;
        else
            from = middle + 1;
    }
    return from;
}

static void longest_in(const fl_index *x, const block *b, const int32_t *tokens, size_t n, uint32_t *lengths) {
    size_t begin = 0;
    range r = all(b);
    for (size_t i = 0; i < n; i++) {
        const range longer = is_text(x, tokens[i]) ? read(x, b, r, (size_t)tokens[i]) : (range){0, 0};
        if (longer.low < longer.high) {
            r = longer;
        } else {
            begin += least_begin(x, b, tokens + begin, i + 1 - begin);
            r = read_all(x, b, tokens + begin, i + 1 - begin);
        }
        if (lengths[i] < i + 1 - begin) lengths[i] = (uint32_t)(i + 1 - begin);
    }
}

void fl_index_longest(const fl_index *x, const int32_t *tokens, size_t n, uint32_t *lengths) {
    memset(lengths, 0, n * sizeof *lengths);
    for (size_t i = 0; i < x->n_blocks; i++) longest_in(x, &x->blocks[i], tokens, n, lengths);
}

/* ---- what may not follow ----------------------------------------------------------------------------- */

/* Bans each token that stands in a range of places of a level, of which the upper bits are known. */
static void ban_range(const fl_index *x, const block *b, size_t level, range r, size_t token, float *logits,
                      size_t vocab_size) {
    if (r.low >= r.high) return;
    if (level == x->levels) {
        if (token < vocab_size && token != x->separator) logits[token] = -INFINITY;
        return;
    }
    const size_t low = rank(b, level, r.low), high = rank(b, level, r.high), zeros = b->zeros[level];
    ban_range(x, b, level + 1, (range){r.low - low, r.high - high}, token << 1, logits, vocab_size);
    ban_range(x, b, level + 1, (range){zeros + low, zeros + high}, token << 1 | 1, logits, vocab_size);
}

void fl_index_ban(const fl_index *x, const int32_t *tokens, size_t n, float *logits, size_t vocab_size) {
    for (size_t i = 0; i < x->n_blocks; i++) {
        const block *b = &x->blocks[i];
        const range r = read_all(x, b, tokens, n);
        if (r.low < r.high)
            ban_range(x, b, 0, (range){without_sentinel(b, r.low), without_sentinel(b, r.high)}, 0, logits, vocab_size);
    }
}

/* ---- opening ----------------------------------------------------------------------------------------- */

static uint64_t read64(const uint8_t *at) {
    uint64_t value = 0;
    for (size_t i = 8; i-- > 0;) value = value << 8 | at[i];
    return value;
}

static size_t words_of(size_t n) { return n / 64 + (n % 64 != 0); }

/* Ones before each group, and how many zeros there are. */
static fl_status count_level(block *b, size_t level, fl_error *error) {
    const size_t words = words_of(b->n), groups = words / (GROUP / 64) + 1;
    uint32_t *ranks = b->ranks[level] = malloc(groups * sizeof *ranks), found = 0;
    if (!ranks) return fl_fail(error, FL_ERROR_MEMORY, "no memory for an index of %zu tokens", b->n);
    for (size_t word = 0; word < words; word++) {
        if (word % (GROUP / 64) == 0) ranks[word / (GROUP / 64)] = found;
        found += ones(b->bits[level][word]);
    }
    if (words % (GROUP / 64) == 0) ranks[words / (GROUP / 64)] = found;
    if (b->n % 64 && b->bits[level][words - 1] >> b->n % 64)
        return fl_fail(error, FL_ERROR_FORMAT, "the index has bits behind its last token");
    b->zeros[level] = b->n - found;
    return FL_OK;
}

static fl_status count_tokens(const fl_index *x, block *b, fl_error *error) {
    size_t row = 1; /* the first is the sentinel's */
    b->first = malloc((2 * x->vocab_size + 1) * sizeof *b->first);
    if (!b->first) return fl_fail(error, FL_ERROR_MEMORY, "no memory for an index of %zu tokens", x->vocab_size);
    b->start = b->first + x->vocab_size + 1;
    for (size_t token = 0; token < x->vocab_size; token++) {
        b->first[token] = row;
        b->start[token] = descend(x, b, 0, token);
        row += descend(x, b, b->n, token) - b->start[token];
    }
    b->first[x->vocab_size] = row;
    if (row != b->n + 1) return fl_fail(error, FL_ERROR_FORMAT, "the index has tokens beyond its vocabulary");
    return FL_OK;
}

static fl_status open_block(const fl_index *x, block *b, const uint8_t **at, const uint8_t *end, fl_error *error) {
    const uint8_t *data = *at;
    if (end - data < 16) return fl_fail(error, FL_ERROR_FORMAT, "the index ends within a block");
    const uint64_t n = read64(data), sentinel = read64(data + 8);
    const size_t left = (size_t)(end - data) - 16;
    if (n == 0 || n >= UINT32_MAX || sentinel > n || words_of((size_t)n) > left / 8 / x->levels)
        return fl_fail(error, FL_ERROR_FORMAT, "a block of %llu tokens, begun at %llu: the index has %zu bytes left",
                       (unsigned long long)n, (unsigned long long)sentinel, left);
    b->n = (size_t)n, b->sentinel = (size_t)sentinel;
    data += 16;
    for (size_t level = 0; level < x->levels; level++, data += 8 * words_of(b->n)) {
        b->bits[level] = (const uint64_t *)(const void *)data;
        fl_status status = count_level(b, level, error);
        if (status != FL_OK) return status;
    }
    *at = data;
    return count_tokens(x, b, error);
}

static fl_status read_header(fl_index *x, const uint8_t *data, size_t size, fl_error *error) {
    if (size < HEADER || read64(data) != ((uint64_t)VERSION << 32 | MAGIC))
        return fl_fail(error, FL_ERROR_FORMAT, "expected an index that 'fastlm index' has written, of version %d",
                       VERSION);
    const uint64_t vocab_size = read64(data + 8), blocks = read64(data + 16);
    if (blocks > (size - HEADER) / 16)
        return fl_fail(error, FL_ERROR_FORMAT, "the index has fewer blocks than it says");
    /* A file of a few bytes must not ask for all memory. */
    if (vocab_size < 1 || blocks >= MOST_ROWS || vocab_size > MOST_ROWS / (blocks + 1))
        return fl_fail(error, FL_ERROR_FORMAT,
                       "%llu blocks of a vocabulary of %llu tokens: expected one token at least, and %d at most in all",
                       (unsigned long long)blocks, (unsigned long long)vocab_size, MOST_ROWS);
    x->vocab_size = (size_t)vocab_size, x->n_blocks = (size_t)blocks, x->separator = read64(data + 24);
    for (x->levels = 1; (x->vocab_size - 1) >> x->levels; x->levels++) {
    }
    return FL_OK;
}

static fl_status open_blocks(fl_index *x, const uint8_t *data, size_t size, fl_error *error) {
    const uint8_t *at = data + HEADER;
    x->blocks = calloc(x->n_blocks + 1, sizeof *x->blocks);
    if (!x->blocks) return fl_fail(error, FL_ERROR_MEMORY, "no memory for an index of %zu blocks", x->n_blocks);
    for (size_t i = 0; i < x->n_blocks; i++) {
        fl_status status = open_block(x, &x->blocks[i], &at, data + size, error);
        if (status != FL_OK) return status;
        const size_t again = i ? OVERLAP : 0; /* not more than are there, whatever the file says */
        x->tokens += x->blocks[i].n - (again < x->blocks[i].n ? again : x->blocks[i].n);
    }
    if (at != data + size) return fl_fail(error, FL_ERROR_FORMAT, "the index has bytes behind its last block");
    return FL_OK;
}

fl_status fl_index_open(const void *data, size_t size, fl_index **index, fl_error *error) {
    fl_index *x = *index = calloc(1, sizeof *x);
    if (!x) return fl_fail(error, FL_ERROR_MEMORY, "no memory for an index");
    fl_status status = (uintptr_t)data % 8 ? fl_fail(error, FL_ERROR_ARGUMENT, "the index is not aligned to 8 bytes")
                                           : read_header(x, data, size, error);
    if (status == FL_OK) status = open_blocks(x, data, size, error);
    if (status != FL_OK) {
        fl_index_free(x);
        *index = NULL;
    }
    return status;
}

void fl_index_free(fl_index *x) {
    if (!x) return;
    for (size_t i = 0; x->blocks && i < x->n_blocks; i++) {
        for (size_t level = 0; level < x->levels; level++) free(x->blocks[i].ranks[level]);
        free(x->blocks[i].first);
    }
    free(x->blocks);
    free(x);
}

size_t fl_index_vocab_size(const fl_index *x) { return x->vocab_size; }

uint64_t fl_index_tokens(const fl_index *x) { return x->tokens; }
