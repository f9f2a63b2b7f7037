/* SPDX-License-Identifier: Apache-2.0
 *
 * Writes model files (docs/format.md) into memory, and remembers where in them every number that gives
 * structure lies, so that the fuzzer can aim. */
#ifndef TINY_MODEL_H
#define TINY_MODEL_H

#include "harness.h"

enum { TINY_LAYERS = 4, TINY_SPOTS = 2048, TINY_RECORDS = 96, TINY_TEST = 6, TINY_SOURCE = 5 };

/* How a matrix is stored. */
typedef enum tiny_dtype { AS_F32, AS_BF16, AS_INT8, AS_INT4, TINY_DTYPES } tiny_dtype;

static const char *const dtype_names[] = {"f32", "bf16", "int8", "int4"};

typedef struct tiny_shape {
    uint32_t vocab, embedding, layers, units[TINY_LAYERS];
    tiny_dtype embedding_dtype, x_dtype[TINY_LAYERS], h_dtype[TINY_LAYERS], output_dtype;
    bool tied;
    uint32_t encoder;      /* layers that read a source; 0: a language model */
    uint32_t source_vocab; /* 0: the text's embedding */
    uint32_t encoder_units[TINY_LAYERS];
    bool both_ways, bridge, feed, key, additive;
    uint32_t attention; /* units; 0: none */
    bool copy;
    uint32_t labels;     /* of a classifier, whose layers are those of the encoder; 0: none */
    const char *pooling; /* its kind; attention: units of that of "pooling.attention" */
    tiny_dtype encoder_dtype, attention_dtype;
    bool spread;        /* panels have spare blocks */
    uint32_t planes;    /* of a screen that proves nothing, with 16 directions; 0: none */
    bool text;          /* with a character tokenizer, and a start and an end of text */
    bool test;          /* with a test vector; log-probabilities are 0 until tiny_set_test */
    uint32_t alignment; /* of the tensors; 0: 64 */
    float scale;        /* weights are within ± scale / sqrt(K); 0: 1 */
    float output_scale; /* those of the output layer, and its bias; 0: as scale */
    uint64_t seed;
} tiny_shape;

/* A number of the file's structure: a length, count, type, dimension, offset or scalar value. */
typedef struct tiny_spot {
    size_t at;
    int size; /* 4 or 8 bytes */
} tiny_spot;

/* What the values of a tensor may be. */
typedef enum tiny_kind { OF_F32, OF_BF16, OF_INT8, OF_SCALES, OF_UNITS, OF_ANY_BYTES, TINY_KINDS } tiny_kind;

/* One key, or one tensor's description. */
typedef struct tiny_record {
    size_t begin, end;
    tiny_kind kind;         /* tensors, here and below */
    bool weight;            /* its dtype is the writer's choice */
    bool optional;          /* without it the file may be another one */
    size_t data, data_size; /* the values, from the start of the file */
} tiny_record;

typedef struct tiny_model {
    uint8_t *bytes; /* owned */
    size_t size, room;
    size_t spot_count, key_count, tensor_count;
    tiny_spot spots[TINY_SPOTS];
    tiny_record keys[TINY_RECORDS], tensors[TINY_RECORDS];
    size_t header_end; /* of the last tensor's description */
    size_t data_start;
    size_t test; /* of the first expected log-probability */
} tiny_model;

/* ---- bytes -------------------------------------------------------------------------------------------- */

static void tiny_put(tiny_model *m, const void *bytes, size_t size) {
    if (m->size + size > m->room) {
        m->room = 2 * (m->size + size) + 4096;
        m->bytes = realloc(m->bytes, m->room);
        if (!m->bytes) exit(2);
    }
    if (bytes)
        memcpy(m->bytes + m->size, bytes, size);
    else
        memset(m->bytes + m->size, 0, size);
    m->size += size;
}

static void tiny_spot_here(tiny_model *m, int size) {
    if (m->spot_count < TINY_SPOTS) m->spots[m->spot_count++] = (tiny_spot){m->size, size};
}

static void tiny_u32(tiny_model *m, uint32_t value) {
    tiny_spot_here(m, 4);
    tiny_put(m, &value, 4);
}

static void tiny_f32(tiny_model *m, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    tiny_u32(m, bits);
}

static void tiny_u64(tiny_model *m, uint64_t value) {
    tiny_spot_here(m, 8);
    tiny_put(m, &value, 8);
}

static void tiny_text(tiny_model *m, const char *text) {
    tiny_u64(m, strlen(text));
    tiny_put(m, text, strlen(text));
}

/* ---- keys --------------------------------------------------------------------------------------------- */

enum { TINY_U32 = 4, TINY_I32 = 5, TINY_F32 = 6, TINY_STRING = 8, TINY_ARRAY = 9 };

static void tiny_key(tiny_model *m, const char *key, uint32_t type) {
    m->keys[m->key_count++].begin = m->size;
    tiny_text(m, key);
    tiny_u32(m, type);
}

static void tiny_key_end(tiny_model *m) { m->keys[m->key_count - 1].end = m->size; }

static void tiny_key_number(tiny_model *m, const char *key, uint32_t type, uint32_t bits) {
    tiny_key(m, key, type);
    tiny_u32(m, bits);
    tiny_key_end(m);
}

static void tiny_key_text(tiny_model *m, const char *key, const char *text) {
    tiny_key(m, key, TINY_STRING);
    tiny_text(m, text);
    tiny_key_end(m);
}

static void tiny_key_array(tiny_model *m, const char *key, uint32_t item_type, uint64_t count) {
    tiny_key(m, key, TINY_ARRAY);
    tiny_u32(m, item_type);
    tiny_u64(m, count);
}

/* ---- the layer table ---------------------------------------------------------------------------------- */

/* A layer. */
typedef struct tiny_row {
    const char *kind, *direction, *layout;
    char tensor[16];
    int32_t input;
    uint32_t units;
    bool reads_bytes; /* looking an embedding up multiplies nothing */
} tiny_row;

typedef struct tiny_rows {
    tiny_row rows[2 * TINY_LAYERS + 4];
    uint32_t n;
} tiny_rows;

static tiny_row *tiny_row_add(tiny_rows *all, const char *kind, int32_t input, uint32_t units, const char *name,
                              uint32_t number) {
    tiny_row *row = &all->rows[all->n++];
    *row = (tiny_row){.kind = kind, .direction = "forward", .layout = "panels16", .input = input, .units = units};
    snprintf(row->tensor, sizeof row->tensor, name, number);
    return row;
}

static void tiny_embedding_row(tiny_rows *all, const tiny_shape *s, int32_t input, bool own) {
    const bool tied = s->tied && !own;
    tiny_row *row = tiny_row_add(all, "embedding", input, s->embedding,
                                 own    ? "source_embd"
                                 : tied ? "output"
                                        : "token_embd",
                                 0);
    row->layout = tied ? "panels16" : "rows";
}

/* Values that come out of a layer of the encoder. */
static uint32_t tiny_width(const tiny_shape *s, uint32_t layer) { return s->encoder_units[layer] * (1 + s->both_ways); }

/* What a classifier's output layer reads. */
static uint32_t tiny_pooled(const tiny_shape *s) {
    return tiny_width(s, s->encoder - 1) * (strcmp(s->pooling, "pooling.concat") ? 1 : 3);
}

static tiny_rows tiny_layers(const tiny_shape *s) {
    tiny_rows all = {.n = 0};
    if (s->encoder) tiny_embedding_row(&all, s, s->labels ? -1 : -2, s->source_vocab > 0);
    for (uint32_t i = 0; i < s->encoder; i++) {
        tiny_row *row = tiny_row_add(&all, "lstm", (int32_t)all.n - 1, s->encoder_units[i], "enc.%u", i);
        if (s->both_ways) row->direction = "bidirectional";
        row->reads_bytes = s->encoder_dtype >= AS_INT8;
    }
    if (s->labels) {
        tiny_row *row = tiny_row_add(&all, s->pooling, (int32_t)all.n - 1, tiny_pooled(s), "pool", 0);
        row->reads_bytes = s->attention && s->attention_dtype >= AS_INT8;
        tiny_row_add(&all, "dense", (int32_t)all.n - 1, s->labels, "output", 0);
        return all;
    }
    tiny_embedding_row(&all, s, -1, false);
    for (uint32_t i = 0; i < s->layers; i++) {
        tiny_row *row = tiny_row_add(&all, "lstm", (int32_t)all.n - 1, s->units[i], "blk.%u", i);
        row->reads_bytes = s->x_dtype[i] >= AS_INT8 || s->h_dtype[i] >= AS_INT8;
    }
    if (s->attention) {
        const char *kind = s->additive ? "attention.additive" : "attention.dot";
        tiny_row *row = tiny_row_add(&all, kind, (int32_t)all.n - 1, s->attention, "attn", 0);
        row->reads_bytes = s->attention_dtype >= AS_INT8;
    }
    tiny_row_add(&all, "dense", (int32_t)all.n - 1, s->vocab, "output", 0)->reads_bytes = s->output_dtype >= AS_INT8;
    return all;
}

static void tiny_table(tiny_model *m, const tiny_shape *shape) {
    static const char *const texts[] = {"kind", "direction", "layout", "tensor"};
    const tiny_rows all = tiny_layers(shape);
    char name[64];
    for (size_t column = 0; column < 4; column++) {
        snprintf(name, sizeof name, "lstm.layer.%s", texts[column]);
        tiny_key_array(m, name, TINY_STRING, all.n);
        for (uint32_t i = 0; i < all.n; i++) {
            const tiny_row *row = &all.rows[i];
            const char *const value[] = {row->kind, row->direction, row->layout, row->tensor};
            tiny_text(m, value[column]);
        }
        tiny_key_end(m);
    }
    tiny_key_array(m, "lstm.layer.input", TINY_I32, all.n);
    for (uint32_t i = 0; i < all.n; i++) tiny_u32(m, (uint32_t)all.rows[i].input);
    tiny_key_end(m);
    tiny_key_array(m, "lstm.layer.units", TINY_U32, all.n);
    for (uint32_t i = 0; i < all.n; i++) tiny_u32(m, all.rows[i].units);
    tiny_key_end(m);
    tiny_key_array(m, "lstm.layer.scale", TINY_F32, all.n);
    for (uint32_t i = 0; i < all.n; i++) tiny_f32(m, all.rows[i].reads_bytes ? 1.0f / 127.0f : 0);
    tiny_key_end(m);
}

static void tiny_tokenizer(tiny_model *m, const tiny_shape *shape) {
    tiny_key_text(m, "tokenizer.ggml.model", "chars");
    tiny_key_text(m, "lstm.text.documents", "line");
    tiny_key_number(m, "tokenizer.ggml.bos_token_id", TINY_U32, 0);
    tiny_key_number(m, "tokenizer.ggml.eos_token_id", TINY_U32, 0);
    tiny_key_array(m, "tokenizer.ggml.tokens", TINY_STRING, shape->vocab);
    for (uint32_t i = 0; i < shape->vocab; i++) {
        const char character[2] = {(char)('a' + i % 26), 0};
        tiny_text(m, i == 0 ? "<|border|>" : i == 1 ? "<|unknown|>" : character);
    }
    tiny_key_end(m);
}

static void tiny_test(tiny_model *m, const tiny_shape *shape) {
    tiny_key(m, "lstm.test.tolerance", TINY_F32);
    tiny_f32(m, 1e-4f);
    tiny_key_end(m);
    tiny_key_array(m, "lstm.test.tokens", TINY_I32, TINY_TEST);
    for (uint32_t i = 0; i < TINY_TEST; i++) tiny_u32(m, (7 * i + 1) % shape->vocab);
    tiny_key_end(m);
    const uint32_t said = shape->labels ? shape->labels : TINY_TEST - 1;
    tiny_key_array(m, "lstm.test.logprobs", TINY_F32, said);
    m->test = m->size;
    for (uint32_t i = 0; i < said; i++) tiny_u32(m, 0);
    tiny_key_end(m);
    if (!shape->encoder || shape->labels) return;
    tiny_key_array(m, "lstm.test.source", TINY_I32, TINY_SOURCE);
    for (uint32_t i = 0; i < TINY_SOURCE; i++)
        tiny_u32(m, (3 * i + 1) % (shape->source_vocab ? shape->source_vocab : shape->vocab));
    tiny_key_end(m);
}

/* ---- tensors ------------------------------------------------------------------------------------------ */

typedef struct tiny_tensor {
    char name[40];
    tiny_kind kind;
    bool weight, optional;
    uint32_t n_dims;
    uint64_t dims[4];
    float most; /* no value is larger in size; bytes: no matter */
} tiny_tensor;

/* The tensors of a file, in their order. */
enum { TINY_TENSORS = TINY_RECORDS };
typedef struct tiny_list {
    tiny_tensor tensors[TINY_TENSORS];
    size_t n;
    uint64_t spare; /* blocks of a panel behind those of its inputs */
    bool optional;  /* what is added from now on */
} tiny_list;

static size_t tiny_parts(size_t n, size_t size) { return (n + size - 1) / size; }

static size_t tiny_panels(uint32_t rows) { return tiny_parts(rows, 16); }

/* "name.part", or with several dimensions of 1 at the end a shorter shape: the reader takes both. */
static void tiny_add(tiny_list *list, const char *name, const char *part, tiny_kind kind, float most,
                     const uint64_t dims[4]) {
    tiny_tensor *t = &list->tensors[list->n++];
    *t = (tiny_tensor){.kind = kind, .weight = strcmp(part, "weight") == 0, .n_dims = 4, .most = most};
    t->optional = list->optional;
    snprintf(t->name, sizeof t->name, "%s.%s", name, part);
    memcpy(t->dims, dims, sizeof t->dims);
    while (t->n_dims > 1 && t->dims[t->n_dims - 1] == 1) t->n_dims--;
}

/* As whole numbers: with a scale for every row, and int4 with a factor for every 32 inputs of one. */
static void tiny_whole(tiny_list *list, const char *name, tiny_dtype dtype, uint64_t L, uint64_t P, uint64_t K,
                       float most) {
    const uint64_t blocks = tiny_parts(K, dtype == AS_INT4 ? 8 : 4), pairs = tiny_parts(K, 64);
    const uint64_t panels[4] = {4, L, blocks + list->spare, P}, rows[4] = {4 * blocks, P, 1, 1};
    const uint64_t panel_groups[4] = {2, L, pairs, P}, row_groups[4] = {2 * pairs, P, 1, 1};
    const uint64_t panel_scales[4] = {L, P, 1, 1}, row_scales[4] = {P, 1, 1, 1};
    tiny_add(list, name, "weight", dtype == AS_INT4 ? OF_ANY_BYTES : OF_INT8, 0, L > 1 ? panels : rows);
    if (dtype == AS_INT4) tiny_add(list, name, "group", OF_ANY_BYTES, 0, L > 1 ? panel_groups : row_groups);
    tiny_add(list, name, "scale", OF_SCALES, most / (dtype == AS_INT4 ? 1024 : 127), L > 1 ? panel_scales : row_scales);
}

/* P panels of L rows of K inputs; weights get narrower by the square root of the inputs. */
static void tiny_matrix(tiny_list *list, const char *name, tiny_dtype dtype, uint64_t L, uint64_t P, uint64_t K,
                        float scale) {
    const uint64_t numbers[4] = {L, K + list->spare, P, 1}, number_rows[4] = {K, P, 1, 1};
    const uint64_t halves = tiny_parts(K, 2), pairs[4] = {2, L, halves + list->spare, P};
    const uint64_t pair_rows[4] = {2 * halves, P, 1, 1};
    float root = 1;
    while (L > 1 && root * root < (float)K) root++;
    if (dtype == AS_F32) tiny_add(list, name, "weight", OF_F32, scale / root, L > 1 ? numbers : number_rows);
    if (dtype == AS_BF16) tiny_add(list, name, "weight", OF_BF16, scale / root, L > 1 ? pairs : pair_rows);
    if (dtype >= AS_INT8) tiny_whole(list, name, dtype, L, P, K, scale / root);
}

static void tiny_bias(tiny_list *list, const char *name, size_t panels, float scale) {
    tiny_add(list, name, "bias", OF_F32, scale, (const uint64_t[4]){16, panels, 1, 1});
}

/* Numbers of which none is below 0. */
static void tiny_sizes(tiny_list *list, const char *part, float most, const uint64_t dims[4]) {
    tiny_add(list, "output.screen", part, OF_SCALES, most, dims);
}

static void tiny_screen(tiny_list *list, uint32_t V, uint32_t K, uint32_t planes) {
    const uint64_t blocks = tiny_parts(V, 64), pairs = tiny_parts(K, 16);
    const uint64_t inputs[4] = {K, 1, 1, 1}, rows[4] = {64, blocks, 1, 1}, sizes[4] = {64, blocks, planes, 1};
    const uint64_t bits[4] = {128, pairs, planes, blocks};
    tiny_add(list, "output.screen", "mean", OF_UNITS, 1, inputs);
    tiny_add(list, "output.screen", "spread", OF_UNITS, 1, inputs);
    tiny_add(list, "output.screen", "gain", OF_UNITS, 1, inputs);
    tiny_matrix(list, "output.screen.basis", AS_F32, 16, 1, K, 1);
    tiny_matrix(list, "output.screen.along", AS_INT8, 16, 4 * blocks, 16, 1);
    tiny_add(list, "output.screen", "shift", OF_F32, 1, rows);
    tiny_sizes(list, "radius", 1, rows);
    tiny_sizes(list, "size", 1, sizes);
    tiny_add(list, "output.screen", "bits", OF_ANY_BYTES, 0, bits);
}

static void tiny_lstm(tiny_list *list, const char *name, tiny_dtype x, tiny_dtype h, uint32_t units, uint32_t K,
                      float scale) {
    const size_t panels = 4 * tiny_panels(units);
    char part[40];
    tiny_bias(list, name, panels, scale);
    snprintf(part, sizeof part, "%s.x", name);
    tiny_matrix(list, part, x, 16, panels, K, scale);
    snprintf(part, sizeof part, "%s.h", name);
    tiny_matrix(list, part, h, 16, panels, units, scale);
}

static void tiny_encoder(tiny_list *list, const tiny_shape *s) {
    uint32_t K = s->embedding;
    char name[32];
    if (s->source_vocab) tiny_matrix(list, "source_embd", s->encoder_dtype, 1, s->source_vocab, K, s->scale);
    for (uint32_t i = 0; i < s->encoder; i++)
        for (uint32_t way = 0; way < 1u + s->both_ways; way++) {
            snprintf(name, sizeof name, way ? "enc.%u.reverse" : "enc.%u", i);
            tiny_lstm(list, name, s->encoder_dtype, s->encoder_dtype, s->encoder_units[i], i ? tiny_width(s, i - 1) : K,
                      s->scale);
        }
    list->optional = true;
    for (uint32_t i = 0; i < s->layers && s->bridge; i++)
        for (int part = 0; part < 2; part++) {
            const uint32_t from = i < s->encoder ? i : s->encoder - 1;
            snprintf(name, sizeof name, "blk.%u.bridge.%c", i, part ? 'c' : 'h');
            tiny_bias(list, name, tiny_panels(s->units[i]), s->scale);
            tiny_matrix(list, name, s->encoder_dtype, 16, tiny_panels(s->units[i]), 2 * tiny_width(s, from), s->scale);
        }
    list->optional = false;
}

static void tiny_attention(tiny_list *list, const tiny_shape *s) {
    const uint32_t D = tiny_width(s, s->encoder - 1), H = s->units[s->layers - 1], A = s->attention;
    const tiny_dtype as = s->attention_dtype;
    list->optional = true;
    if (s->feed) tiny_matrix(list, "blk.0.feed", as, 16, 4 * tiny_panels(s->units[0]), A, s->scale);
    if (s->key || s->additive) tiny_matrix(list, "attn.key", as, 16, tiny_panels(s->additive ? A : H), D, s->scale);
    list->optional = false;
    if (s->additive) {
        tiny_bias(list, "attn.query", tiny_panels(A), s->scale);
        tiny_matrix(list, "attn.query", as, 16, tiny_panels(A), H, s->scale);
        tiny_add(list, "attn", "score", OF_F32, s->scale, (const uint64_t[4]){16, tiny_panels(A), 1, 1});
    }
    tiny_bias(list, "attn", tiny_panels(A), s->scale);
    tiny_matrix(list, "attn.context", as, 16, tiny_panels(A), D, s->scale);
    tiny_matrix(list, "attn.hidden", as, 16, tiny_panels(A), H, s->scale);
    list->optional = true;
    if (s->copy) tiny_add(list, "attn", "copy", OF_F32, s->scale, (const uint64_t[4]){16, tiny_panels(A), 1, 1});
    list->optional = false;
    if (s->copy) tiny_bias(list, "attn.copy", 1, s->scale);
}

static void tiny_labels(tiny_list *list, const tiny_shape *s) {
    const uint32_t D = tiny_width(s, s->encoder - 1), A = s->attention;
    if (A) {
        tiny_bias(list, "pool.key", tiny_panels(A), s->scale);
        tiny_matrix(list, "pool.key", s->attention_dtype, 16, tiny_panels(A), D, s->scale);
        tiny_add(list, "pool", "score", OF_F32, s->scale, (const uint64_t[4]){16, tiny_panels(A), 1, 1});
    }
    tiny_bias(list, "output", tiny_panels(s->labels), s->output_scale);
    tiny_matrix(list, "output", s->output_dtype, 16, tiny_panels(s->labels), tiny_pooled(s), s->output_scale);
}

static void tiny_fill_list(tiny_list *list, const tiny_shape *shape) {
    uint32_t K = shape->embedding;
    list->n = 0;
    list->optional = false;
    list->spare = shape->spread ? 4 : 0;
    if (shape->encoder) tiny_encoder(list, shape);
    if (!shape->tied) tiny_matrix(list, "token_embd", shape->embedding_dtype, 1, shape->vocab, K, shape->scale);
    if (shape->labels) {
        tiny_labels(list, shape);
        return;
    }
    for (uint32_t i = 0; i < shape->layers; i++) {
        char name[32];
        snprintf(name, sizeof name, "blk.%u", i);
        tiny_lstm(list, name, shape->x_dtype[i], shape->h_dtype[i], shape->units[i], K, shape->scale);
        K = shape->units[i];
    }
    if (shape->attention) {
        tiny_attention(list, shape);
        K = shape->attention;
    }
    tiny_bias(list, "output", tiny_panels(shape->vocab), shape->output_scale);
    tiny_matrix(list, "output", shape->output_dtype, 16, tiny_panels(shape->vocab), K, shape->output_scale);
    if (shape->planes) tiny_screen(list, shape->vocab, K, shape->planes);
}

static uint32_t tiny_type(tiny_kind kind) {
    enum { GGML_F32 = 0, GGML_I8 = 24, GGML_BF16 = 30 };
    return kind == OF_F32 || kind == OF_SCALES || kind == OF_UNITS ? GGML_F32 : kind == OF_BF16 ? GGML_BF16 : GGML_I8;
}

static size_t tiny_item_size(tiny_kind kind) { return tiny_type(kind) == 0 ? 4 : kind == OF_BF16 ? 2 : 1; }

/* One random value in its bits. Some scales are 0. */
static uint32_t tiny_value(const tiny_tensor *t, uint64_t *random) {
    float value = t->most * uniform(random);
    if (t->kind == OF_SCALES || t->kind == OF_UNITS) value = below(random, 32) ? 0.75f * t->most + 0.25f * value : 0;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return t->kind == OF_BF16        ? bits >> 16
           : t->kind == OF_INT8      ? (uint32_t)below(random, 255) - 127
           : t->kind == OF_ANY_BYTES ? (uint32_t)below(random, 256)
                                     : bits;
}

/* Also where a real file has the zeros that fill up a panel or a block, since nothing may depend on them. */
static void tiny_values(tiny_model *m, const tiny_tensor *t, size_t bytes, uint64_t *random) {
    const size_t item = tiny_item_size(t->kind);
    tiny_put(m, NULL, bytes);
    for (size_t at = m->size - bytes; at < m->size; at += item) {
        const uint32_t value = tiny_value(t, random);
        memcpy(m->bytes + at, &value, item);
    }
}

static size_t tiny_up(size_t n, size_t multiple) { return tiny_parts(n, multiple) * multiple; }

/* The table's row of a tensor; returns the bytes of its values. */
static size_t tiny_describe(tiny_model *m, const tiny_tensor *t, size_t offset) {
    tiny_record *r = &m->tensors[m->tensor_count++];
    *r = (tiny_record){.begin = m->size, .kind = t->kind, .weight = t->weight, .data = offset};
    r->optional = t->optional;
    tiny_text(m, t->name);
    tiny_u32(m, t->n_dims);
    for (uint32_t d = 0; d < t->n_dims; d++) tiny_u64(m, t->dims[d]);
    tiny_u32(m, tiny_type(t->kind));
    tiny_u64(m, offset);
    r->end = m->size;
    r->data_size = tiny_item_size(t->kind) * (size_t)(t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3]);
    return r->data_size;
}

static void tiny_tensors(tiny_model *m, const tiny_shape *shape, const tiny_list *list) {
    uint64_t random = shape->seed;
    size_t offset = 0;
    for (size_t i = 0; i < list->n; i++) offset = tiny_up(offset + tiny_describe(m, &list->tensors[i], offset), 64);
    m->header_end = m->size;
    tiny_put(m, NULL, tiny_up(m->size, shape->alignment) - m->size);
    m->data_start = m->size;
    for (size_t i = 0; i < list->n; i++) {
        m->tensors[i].data += m->data_start;
        tiny_put(m, NULL, m->tensors[i].data - m->size);
        tiny_values(m, &list->tensors[i], m->tensors[i].data_size, &random);
    }
}

/* ---- whole file --------------------------------------------------------------------------------------- */

static tiny_shape tiny_defaults(tiny_shape s) {
    if (s.alignment == 0) s.alignment = 64;
    if (s.scale == 0) s.scale = 1;
    if (s.output_scale == 0) s.output_scale = s.scale;
    return s;
}

static inline tiny_model *tiny_new(const tiny_shape *wanted) {
    const tiny_shape complete = tiny_defaults(*wanted), *shape = &complete;
    tiny_model *m = calloc(1, sizeof *m);
    tiny_list list;
    if (!m) exit(2);
    tiny_fill_list(&list, shape);
    tiny_put(m, "GGUF", 4);
    tiny_u32(m, 3);
    tiny_u64(m, list.n);
    tiny_u64(m, 0); /* keys, counted below */
    tiny_key_text(m, "general.architecture", "lstm");
    tiny_key_number(m, "general.alignment", TINY_U32, shape->alignment);
    const bool translates = shape->encoder && !shape->labels;
    tiny_key_text(m, "lstm.task", shape->labels ? "classifier" : translates ? "seq2seq" : "lm");
    tiny_key_number(m, "lstm.numerics_version", TINY_U32, 1);
    tiny_key_text(m, "lstm.start.state", translates ? "source" : "zero");
    tiny_table(m, shape);
    if (shape->text) tiny_tokenizer(m, shape);
    if (shape->test) tiny_test(m, shape);
    const uint64_t keys = m->key_count;
    memcpy(m->bytes + 16, &keys, 8);
    tiny_tensors(m, shape, &list);
    return m;
}

static inline void tiny_free(tiny_model *m) {
    free(m->bytes);
    free(m);
}

/* The test vector's expectations, one for every token but the first. */
static inline void tiny_set_test(tiny_model *m, const float *logprobs) {
    memcpy(m->bytes + m->test, logprobs, 4 * (TINY_TEST - 1));
}

#endif
