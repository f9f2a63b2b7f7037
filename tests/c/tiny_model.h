/* SPDX-License-Identifier: Apache-2.0
 *
 * Writes model files (docs/format.md) into memory, and remembers where in them every number that gives
 * structure lies, so that the fuzzer can aim. */
#ifndef TINY_MODEL_H
#define TINY_MODEL_H

#include "harness.h"

enum { TINY_LAYERS = 4, TINY_SPOTS = 1024, TINY_RECORDS = 64, TINY_TEST = 6 };

typedef struct tiny_shape {
    uint32_t vocab, embedding, layers, units[TINY_LAYERS];
    bool tied;
    bool text;          /* with a character tokenizer, and a start and an end of text */
    bool test;          /* with a test vector; log-probabilities are 0 until tiny_set_test */
    uint32_t alignment; /* of the tensors */
    float scale;        /* weights are uniform in ± scale / sqrt(K) */
    float output_scale; /* those of the output layer, and its bias */
    uint64_t seed;
} tiny_shape;

/* A number of the file's structure: a length, count, type, dimension, offset or scalar value. */
typedef struct tiny_spot {
    size_t at;
    int size; /* 4 or 8 bytes */
} tiny_spot;

/* One key, or one tensor's description. */
typedef struct tiny_record {
    size_t begin, end;
    size_t data, data_size; /* tensors: their values, from the start of the file */
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

static void tiny_table(tiny_model *m, const tiny_shape *shape) {
    const uint32_t rows = shape->layers + 2;
    static const char *const texts[] = {"kind", "direction", "layout", "tensor"};
    char name[64];
    for (size_t column = 0; column < 4; column++) {
        snprintf(name, sizeof name, "lstm.layer.%s", texts[column]);
        tiny_key_array(m, name, TINY_STRING, rows);
        for (uint32_t row = 0; row < rows; row++) {
            const bool first = row == 0, last = row == rows - 1;
            snprintf(name, sizeof name, "blk.%u", row - 1);
            const char *const value[] = {first  ? "embedding"
                                         : last ? "dense"
                                                : "lstm",
                                         "forward", first && !shape->tied ? "rows" : "panels16",
                                         last || (first && shape->tied) ? "output"
                                         : first                        ? "token_embd"
                                                                        : name};
            tiny_text(m, value[column]);
        }
        tiny_key_end(m);
    }
    tiny_key_array(m, "lstm.layer.input", TINY_I32, rows);
    for (uint32_t row = 0; row < rows; row++) tiny_u32(m, row - 1);
    tiny_key_end(m);
    tiny_key_array(m, "lstm.layer.units", TINY_U32, rows);
    tiny_u32(m, shape->embedding);
    for (uint32_t i = 0; i < shape->layers; i++) tiny_u32(m, shape->units[i]);
    tiny_u32(m, shape->vocab);
    tiny_key_end(m);
    tiny_key_array(m, "lstm.layer.scale", TINY_F32, rows);
    for (uint32_t row = 0; row < rows; row++) tiny_u32(m, 0);
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
    const float tolerance = 1e-4f;
    uint32_t bits;
    memcpy(&bits, &tolerance, 4);
    tiny_key_number(m, "lstm.test.tolerance", TINY_F32, bits);
    tiny_key_array(m, "lstm.test.tokens", TINY_I32, TINY_TEST);
    for (uint32_t i = 0; i < TINY_TEST; i++) tiny_u32(m, (7 * i + 1) % shape->vocab);
    tiny_key_end(m);
    tiny_key_array(m, "lstm.test.logprobs", TINY_F32, TINY_TEST - 1);
    m->test = m->size;
    for (uint32_t i = 1; i < TINY_TEST; i++) tiny_u32(m, 0);
    tiny_key_end(m);
}

/* ---- tensors ------------------------------------------------------------------------------------------ */

typedef struct tiny_tensor {
    char name[32];
    uint32_t n_dims;
    uint64_t dims[3];
    float scale;
} tiny_tensor;

static size_t tiny_panels(uint32_t rows) { return ((size_t)rows + 15) / 16; }

/* [rows, K] in panels, or with K = 0 a bias. */
static tiny_tensor tiny_packed(const char *format, uint32_t layer, size_t panels, uint32_t K, float scale) {
    tiny_tensor t = {.n_dims = K ? 3 : 2, .dims = {16, K ? K : panels, K ? panels : 1}, .scale = scale};
    snprintf(t.name, sizeof t.name, format, layer);
    return t;
}

static size_t tiny_list(const tiny_shape *shape, tiny_tensor *list) {
    size_t n = 0;
    uint32_t K = shape->embedding;
    if (!shape->tied) {
        list[n] = (tiny_tensor){.n_dims = 2, .dims = {K, shape->vocab, 1}, .scale = shape->scale};
        strcpy(list[n++].name, "token_embd.weight");
    }
    for (uint32_t i = 0; i < shape->layers; i++) {
        const uint32_t units = shape->units[i];
        const size_t panels = 4 * tiny_panels(units);
        list[n++] = tiny_packed("blk.%u.bias", i, panels, 0, shape->scale);
        list[n++] = tiny_packed("blk.%u.x.weight", i, panels, K, shape->scale);
        list[n++] = tiny_packed("blk.%u.h.weight", i, panels, units, shape->scale);
        K = units;
    }
    list[n++] = tiny_packed("output.bias", 0, tiny_panels(shape->vocab), 0, shape->output_scale);
    list[n++] = tiny_packed("output.weight", 0, tiny_panels(shape->vocab), K, shape->output_scale);
    return n;
}

/* Uniform, by the square root of the inputs narrower; also where a real file has the zeros that fill up a
 * panel, since nothing may depend on them. */
static void tiny_values(tiny_model *m, const tiny_tensor *t, uint64_t *random) {
    const size_t count = (size_t)(t->dims[0] * t->dims[1] * t->dims[2]);
    float root = 1;
    while (t->n_dims == 3 && root * root < (float)t->dims[1]) root++;
    tiny_put(m, NULL, 4 * count);
    for (size_t i = 0; i < count; i++) {
        const float value = t->scale / root * uniform(random);
        memcpy(m->bytes + m->size - 4 * count + 4 * i, &value, 4);
    }
}

static size_t tiny_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

static void tiny_tensors(tiny_model *m, const tiny_shape *shape, const tiny_tensor *list, size_t n) {
    uint64_t random = shape->seed;
    size_t offset = 0;
    for (size_t i = 0; i < n; i++) {
        tiny_record *r = &m->tensors[m->tensor_count++];
        r->begin = m->size;
        tiny_text(m, list[i].name);
        tiny_u32(m, list[i].n_dims);
        for (uint32_t d = 0; d < list[i].n_dims; d++) tiny_u64(m, list[i].dims[d]);
        tiny_u32(m, 0);
        tiny_u64(m, offset);
        r->end = m->size;
        r->data = offset;
        r->data_size = 4 * (size_t)(list[i].dims[0] * list[i].dims[1] * list[i].dims[2]);
        offset = tiny_up(offset + r->data_size, 64);
    }
    m->header_end = m->size;
    tiny_put(m, NULL, tiny_up(m->size, shape->alignment) - m->size);
    m->data_start = m->size;
    for (size_t i = 0; i < n; i++) {
        m->tensors[i].data += m->data_start;
        tiny_put(m, NULL, m->tensors[i].data - m->size);
        tiny_values(m, &list[i], &random);
    }
}

/* ---- whole file --------------------------------------------------------------------------------------- */

static tiny_model *tiny_new(const tiny_shape *shape) {
    tiny_model *m = calloc(1, sizeof *m);
    tiny_tensor list[3 * TINY_LAYERS + 3];
    const size_t n = tiny_list(shape, list);
    if (!m) exit(2);
    tiny_put(m, "GGUF", 4);
    tiny_u32(m, 3);
    tiny_u64(m, n);
    tiny_u64(m, 0); /* keys, counted below */
    tiny_key_text(m, "general.architecture", "lstm");
    tiny_key_number(m, "general.alignment", TINY_U32, shape->alignment);
    tiny_key_text(m, "lstm.task", "lm");
    tiny_key_number(m, "lstm.numerics_version", TINY_U32, 1);
    tiny_key_text(m, "lstm.start.state", "zero");
    tiny_table(m, shape);
    if (shape->text) tiny_tokenizer(m, shape);
    if (shape->test) tiny_test(m, shape);
    const uint64_t keys = m->key_count;
    memcpy(m->bytes + 16, &keys, 8);
    tiny_tensors(m, shape, list, n);
    return m;
}

static void tiny_free(tiny_model *m) {
    free(m->bytes);
    free(m);
}

/* The test vector's expectations, one for every token but the first. */
static inline void tiny_set_test(tiny_model *m, const float *logprobs) {
    memcpy(m->bytes + m->test, logprobs, 4 * (TINY_TEST - 1));
}

#endif
