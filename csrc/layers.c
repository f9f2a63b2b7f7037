/* SPDX-License-Identifier: Apache-2.0
 *
 * From a parsed file to a network: reads the layer table and points every matrix into the mapping. */
#include "kernels.h"

#include <stdio.h>
#include <stdlib.h>

/* Limits that keep all arithmetic on sizes, and all sums (docs/numerics.md), far from overflow. */
enum { MAX_UNITS = 1 << 20, MAX_LAYERS = 1024, MAX_VOCAB = 1 << 28, MAX_LABELS = 1 << 16 };

/* What an embedding's `input` is: the token that is written, or that is read of a source. */
enum { TOKEN = -1, SOURCE_TOKEN = -2 };

/* The layer table: parallel arrays, one entry a layer (docs/format.md). */
typedef struct layer_table {
    const fl_field *kind, *input, *units, *direction, *scale, *layout, *tensor;
    uint64_t count;
} layer_table;

/* What a layer is read for. */
typedef struct reader {
    fl_model *model;
    layer_table table;
    fl_error *error;
} reader;

static fl_status read_table(reader *r) {
    const fl_file *file = &r->model->file;
    const struct {
        const char *key;
        uint32_t item_type;
        const fl_field **field;
    } columns[] = {
        {"lstm.layer.kind", FL_GGUF_STRING, &r->table.kind},
        {"lstm.layer.input", FL_GGUF_INT32, &r->table.input},
        {"lstm.layer.units", FL_GGUF_UINT32, &r->table.units},
        {"lstm.layer.direction", FL_GGUF_STRING, &r->table.direction},
        {"lstm.layer.scale", FL_GGUF_FLOAT32, &r->table.scale},
        {"lstm.layer.layout", FL_GGUF_STRING, &r->table.layout},
        {"lstm.layer.tensor", FL_GGUF_STRING, &r->table.tensor},
    };
    const fl_field *kind = fl_file_field(file, "lstm.layer.kind");
    r->table.count = kind ? kind->count : 0;
    if (r->table.count < 3 || r->table.count > MAX_LAYERS)
        return fl_fail(r->error, FL_ERROR_FORMAT, "key 'lstm.layer.kind': expected 3 to %d layers, found %llu",
                       MAX_LAYERS, (unsigned long long)r->table.count);
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        const fl_status status =
            fl_file_array(file, columns[i].key, columns[i].item_type, r->table.count, columns[i].field, r->error);
        if (status) return status;
    }
    return FL_OK;
}

static bool has_text(const fl_field *column, uint64_t layer, const char *expected) {
    size_t size;
    const char *text = fl_field_string(column, layer, &size);
    return fl_same_text(text, size, expected);
}

static fl_status expect_text(const reader *r, const fl_field *column, const char *key, uint64_t layer,
                             const char *expected) {
    size_t size;
    const char *text = fl_field_string(column, layer, &size);
    if (fl_same_text(text, size, expected)) return FL_OK;
    return fl_fail(r->error, FL_ERROR_FORMAT, "key '%s', layer %llu: this version computes '%s' here, found '%s'", key,
                   (unsigned long long)layer, expected, fl_show(text, size).text);
}

static uint32_t units_of(const reader *r, uint64_t layer) { return fl_field_u32(r->table.units, layer); }

/* A layer must be of this kind and read that layer. The embedding's layout and an encoder's direction are left to those who
 * know more. */
static fl_status check_layer(const reader *r, uint64_t layer, const char *kind, int input, uint32_t limit) {
    const layer_table *t = &r->table;
    const int32_t reads = (int32_t)fl_field_u32(t->input, layer);
    fl_status status = expect_text(r, t->kind, "lstm.layer.kind", layer, kind);
    if (!status && reads != input)
        status = fl_fail(r->error, FL_ERROR_FORMAT, "key 'lstm.layer.input', layer %llu: expected %d, found %d",
                         (unsigned long long)layer, input, (int)reads);
    if (!status && (units_of(r, layer) == 0 || units_of(r, layer) > limit))
        status = fl_fail(r->error, FL_ERROR_FORMAT, "key 'lstm.layer.units', layer %llu: expected 1 to %u, found %u",
                         (unsigned long long)layer, limit, units_of(r, layer));
    return status;
}

/* That lies in panels and reads forwards. */
static fl_status check_forward(const reader *r, uint64_t layer, const char *kind, int input, uint32_t limit) {
    fl_status status = check_layer(r, layer, kind, input, limit);
    if (!status) status = expect_text(r, r->table.direction, "lstm.layer.direction", layer, "forward");
    if (!status) status = expect_text(r, r->table.layout, "lstm.layer.layout", layer, "panels16");
    return status;
}

/* How many layers of a kind follow one another. */
static uint64_t run_of(const reader *r, uint64_t from, const char *kind) {
    uint64_t at = from;
    while (at < r->table.count && has_text(r->table.kind, at, kind)) at++;
    return at - from;
}

/* ---- names ------------------------------------------------------------------------------------------- */

/* Of a matrix, without the ".weight" that its tensors' names go on with. */
typedef struct name {
    char text[256];
    size_t size;
} name;

/* The n-th layer's tensor, and what is put behind it. */
static fl_status name_of(const reader *r, uint64_t layer, const char *part, name *found) {
    size_t size;
    const char *tensor = fl_field_string(r->table.tensor, layer, &size);
    if (size > sizeof found->text - 32)
        return fl_fail(r->error, FL_ERROR_FORMAT, "key 'lstm.layer.tensor', layer %llu: a name of %zu bytes",
                       (unsigned long long)layer, size);
    memcpy(found->text, tensor, size);
    memcpy(found->text + size, part, strlen(part));
    found->size = size + strlen(part);
    return FL_OK;
}

static bool has_tensor(const reader *r, const name *n, const char *part) {
    return fl_file_tensor(&r->model->file, n->text, n->size, part) != NULL;
}

static bool same_tensor(const reader *r, uint64_t a, uint64_t b) {
    size_t size, other_size;
    const char *text = fl_field_string(r->table.tensor, a, &size);
    const char *other = fl_field_string(r->table.tensor, b, &other_size);
    return size == other_size && memcmp(text, other, size) == 0;
}

/* ---- matrices ---------------------------------------------------------------------------------------- */

/* Bounds that keep whole sums within 32 bits: 127 * 127 * K, and 128 * 32 * 8 * 127 for 32 of int4's K. */
enum { MOST_INT8_INPUTS = 1 << 17, MOST_INT4_INPUTS = 1 << 14 };

/* What tells the dtype of matrix "name". */
static fl_status find_dtype(const fl_file *file, const char *name, size_t size, fl_dtype *dtype, fl_error *error) {
    const fl_tensor *weight = fl_file_tensor(file, name, size, "weight");
    if (!weight)
        return fl_fail(error, FL_ERROR_FORMAT, "tensor '%s.weight': expected, not found", fl_show(name, size).text);
    *dtype = weight->type == FL_GGML_F32                 ? FL_F32
             : weight->type == FL_GGML_BF16              ? FL_BF16
             : fl_file_tensor(file, name, size, "group") ? FL_INT4
                                                         : FL_INT8;
    return FL_OK;
}

static const uint8_t inputs_of_block[] = {[FL_F32] = 1, [FL_BF16] = 2, [FL_INT8] = 4, [FL_INT4] = 8};

/* A panel may have more blocks than the inputs need: see docs/format.md for when. */
static uint64_t spare_blocks(const fl_file *file, const char *name, size_t size, fl_dtype dtype, uint64_t needed) {
    const uint64_t found = fl_file_tensor(file, name, size, "weight")->dims[dtype == FL_F32 ? 1 : 2];
    return found == needed + FL_SPARE_BLOCKS ? FL_SPARE_BLOCKS : 0;
}

static fl_status read_scale(const fl_file *file, const char *name, size_t size, const uint64_t dims[4],
                            const float **scale, fl_error *error) {
    const void *data;
    const fl_status status = fl_file_data(file, name, size, "scale", FL_GGML_F32, dims, &data, error);
    if (status) return status;
    *scale = data;
    for (uint64_t i = 0; i < dims[0] * dims[1]; i++)
        if (!((*scale)[i] >= 0))
            return fl_fail(error, FL_ERROR_FORMAT, "tensor '%s.scale': expected numbers from 0, found %g",
                           fl_show(name, size).text, (double)(*scale)[i]);
    return FL_OK;
}

/* Products want to know them beforehand. */
static fl_status sum_rows(fl_model *model, fl_matrix *matrix, fl_error *error) {
    if (matrix->dtype != FL_INT8 || matrix->lanes == 1) return FL_OK;
    matrix->sums = fl_keep(model, matrix->panels * matrix->lanes * sizeof *matrix->sums);
    if (!matrix->sums) return fl_fail(error, FL_ERROR_MEMORY, "no memory for %zu sums", matrix->panels * matrix->lanes);
    model->kernels->sum_rows(matrix, matrix->sums);
    return FL_OK;
}

/* One row's panel has no dimension for its lane. */
fl_status fl_read_matrix(fl_model *model, const char *name, size_t size, size_t lanes, size_t panels, size_t inputs,
                         fl_matrix *matrix, fl_error *error) {
    const fl_file *file = &model->file;
    const uint64_t K = inputs, P = panels, L = lanes;
    fl_dtype dtype = FL_F32;
    fl_status status = find_dtype(file, name, size, &dtype, error);
    if (status) return status;
    const uint64_t most = dtype == FL_INT8 ? MOST_INT8_INPUTS : dtype == FL_INT4 ? MOST_INT4_INPUTS : K;
    if (K > most)
        return fl_fail(error, FL_ERROR_FORMAT,
                       "tensor '%s.weight': expected at most %llu inputs of whole numbers, found %llu",
                       fl_show(name, size).text, (unsigned long long)most, (unsigned long long)K);
    const bool rows = lanes == 1;
    const uint64_t items = dtype == FL_BF16 ? 2 : 4, each = fl_parts(inputs, inputs_of_block[dtype]);
    const uint64_t blocks = rows ? each : each + spare_blocks(file, name, size, dtype, each);
    const uint64_t f32[4] = {rows ? K : L, rows ? P : blocks, rows ? 1 : P, 1};
    const uint64_t packed[4] = {rows ? items * each : items, rows ? P : L, rows ? 1 : blocks, rows ? 1 : P};
    const uint64_t scale[4] = {rows ? P : L, rows ? 1 : P, 1, 1};
    const uint64_t pairs = fl_parts(inputs, 64);
    const uint64_t group[4] = {rows ? 2 * pairs : 2, rows ? P : L, rows ? 1 : pairs, rows ? 1 : P};
    const void *factors = NULL;
    *matrix = (fl_matrix){.dtype = dtype, .panels = panels, .inputs = inputs, .lanes = lanes, .blocks = (size_t)blocks};
    if (dtype == FL_F32) return fl_file_data(file, name, size, "weight", FL_GGML_F32, f32, &matrix->weights, error);
    if (dtype == FL_BF16)
        return fl_file_data(file, name, size, "weight", FL_GGML_BF16, packed, &matrix->weights, error);
    status = dtype == FL_INT8 ? fl_file_int8(file, name, size, "weight", packed, &matrix->weights, error)
                              : fl_file_data(file, name, size, "weight", FL_GGML_I8, packed, &matrix->weights, error);
    if (!status && dtype == FL_INT4)
        status = fl_file_data(file, name, size, "group", FL_GGML_I8, group, &factors, error);
    matrix->group = factors;
    if (!status) status = read_scale(file, name, size, scale, &matrix->scale, error);
    return status ? status : sum_rows(model, matrix, error);
}

/* Matrix "tensor.part" of a layer, with so many rows. */
static fl_status read_part(const reader *r, uint64_t layer, const char *part, size_t rows, size_t inputs,
                           fl_matrix *matrix) {
    name n;
    const fl_status status = name_of(r, layer, part, &n);
    if (status) return status;
    return fl_read_matrix(r->model, n.text, n.size, FL_PANEL, fl_parts(rows, FL_PANEL), inputs, matrix, r->error);
}

/* Numbers "tensor.part.suffix" for so many rows, in panels. */
static fl_status read_numbers(const reader *r, uint64_t layer, const char *part, const char *suffix, size_t rows,
                              const float **numbers) {
    name n;
    fl_status status = name_of(r, layer, part, &n);
    if (status) return status;
    const uint64_t dims[4] = {FL_PANEL, fl_parts(rows, FL_PANEL), 1, 1};
    const void *data = NULL;
    status = fl_file_data(&r->model->file, n.text, n.size, suffix, FL_GGML_F32, dims, &data, r->error);
    *numbers = data;
    return status;
}

/* Where whole numbers are multiplied, hidden values are too, in steps of 1/127. */
static fl_status check_step(const reader *r, uint64_t layer, bool whole) {
    const uint32_t found = fl_field_u32(r->table.scale, layer);
    const float step = whole ? FL_HIDDEN_STEP : 0.0f;
    float given;
    memcpy(&given, &found, sizeof given);
    if (given == step) return FL_OK;
    return fl_fail(r->error, FL_ERROR_FORMAT, "key 'lstm.layer.scale', layer %llu: expected %g, found %g",
                   (unsigned long long)layer, (double)step, (double)given);
}

/* ---- layers ------------------------------------------------------------------------------------------ */

/* reverse: "" or what the names of the direction that reads backwards have behind the layer's. */
static fl_status read_lstm(const reader *r, uint64_t layer, const char *reverse, size_t inputs, fl_lstm *lstm) {
    char x[16], h[16];
    snprintf(x, sizeof x, "%s.x", reverse);
    snprintf(h, sizeof h, "%s.h", reverse);
    lstm->units = units_of(r, layer);
    lstm->groups = fl_parts(lstm->units, FL_PANEL);
    const size_t rows = lstm->groups * FL_GATES * FL_PANEL;
    fl_status status = read_part(r, layer, x, rows, inputs, &lstm->x);
    if (!status) status = read_part(r, layer, h, rows, lstm->units, &lstm->h);
    return status ? status : read_numbers(r, layer, reverse, "bias", rows, &lstm->bias);
}

static bool layer_reads_bytes(const fl_lstm *lstm) { return fl_reads_bytes(&lstm->x) || fl_reads_bytes(&lstm->h); }

/* Layers that read forwards, one on top of the other, behind the embedding `first`. */
static fl_status read_stack(const reader *r, uint64_t first) {
    fl_model *model = r->model;
    model->layers = fl_keep(model, model->n_layers * sizeof *model->layers);
    if (!model->layers) return fl_fail(r->error, FL_ERROR_MEMORY, "no memory for %u layers", model->n_layers);
    fl_status status = FL_OK;
    for (uint32_t i = 0; !status && i < model->n_layers; i++) {
        const uint64_t layer = first + 1 + i;
        status = check_forward(r, layer, "lstm", (int)layer - 1, MAX_UNITS);
        if (!status) status = read_lstm(r, layer, "", units_of(r, layer - 1), &model->layers[i]);
        if (!status) status = check_step(r, layer, layer_reads_bytes(&model->layers[i]));
    }
    return status;
}

static fl_status read_output(const reader *r, uint64_t layer) {
    fl_model *model = r->model;
    fl_status status = check_forward(r, layer, "dense", (int)layer - 1, MAX_VOCAB);
    if (!status) status = read_part(r, layer, "", model->vocab_size, units_of(r, layer - 1), &model->output);
    if (!status) status = read_numbers(r, layer, "", "bias", model->vocab_size, &model->output_bias);
    return status ? status : check_step(r, layer, fl_reads_bytes(&model->output));
}

/* An embedding lies in rows of its own or, tied, is read out of the output matrix's panels. */
static fl_status read_embedding(const reader *r, uint64_t layer) {
    fl_model *model = r->model;
    name n;
    model->tied = same_tensor(r, layer, r->table.count - 1);
    model->embedding = model->output;
    fl_status status = check_step(r, layer, false);
    if (!status && model->tied && model->output.inputs != model->embedding_size)
        status = fl_fail(r->error, FL_ERROR_FORMAT,
                         "a tied embedding of size %u needs a last layer as wide, found %zu units",
                         model->embedding_size, model->output.inputs);
    if (!status) status = expect_text(r, r->table.direction, "lstm.layer.direction", layer, "forward");
    if (!status)
        status = expect_text(r, r->table.layout, "lstm.layer.layout", layer, model->tied ? "panels16" : "rows");
    if (status || model->tied) return status;
    status = name_of(r, layer, "", &n);
    if (status) return status;
    return fl_read_matrix(model, n.text, n.size, 1, model->vocab_size, model->embedding_size, &model->embedding,
                          r->error);
}

/* ---- sequence to sequence ------------------------------------------------------------------------------ */

/* Of tokens that are only read: in rows, whose number its tensor tells. */
static fl_status read_rows(const reader *r, fl_encoder *e) {
    name n;
    fl_status status = expect_text(r, r->table.layout, "lstm.layer.layout", 0, "rows");
    if (!status) status = name_of(r, 0, "", &n);
    if (status) return status;
    const fl_tensor *weight = fl_file_tensor(&r->model->file, n.text, n.size, "weight");
    const uint64_t rows = weight ? weight->dims[1] : 0;
    if (rows < 1 || rows > MAX_VOCAB)
        return fl_fail(r->error, FL_ERROR_FORMAT, "tensor '%s.weight': expected 1 to %d rows, found %llu",
                       fl_show(n.text, n.size).text, MAX_VOCAB, (unsigned long long)rows);
    e->vocab_size = (uint32_t)rows;
    return fl_read_matrix(r->model, n.text, n.size, 1, (size_t)rows, e->embedding_size, &e->embedding, r->error);
}

/* Of a source's tokens: the decoder's own, or another one. */
static fl_status read_source_embedding(const reader *r, uint64_t decoders) {
    fl_model *model = r->model;
    fl_encoder *e = model->encoder;
    e->embedding_size = units_of(r, 0);
    fl_status status = check_step(r, 0, false);
    if (!status) status = expect_text(r, r->table.direction, "lstm.layer.direction", 0, "forward");
    if (!status && same_tensor(r, 0, decoders)) {
        e->embedding = model->embedding, e->vocab_size = model->vocab_size;
        if (e->embedding_size != model->embedding_size)
            return fl_fail(r->error, FL_ERROR_FORMAT, "key 'lstm.layer.units', layer 0: expected %u, found %u",
                           model->embedding_size, e->embedding_size);
        return expect_text(r, r->table.layout, "lstm.layer.layout", 0, model->tied ? "panels16" : "rows");
    }
    return status ? status : read_rows(r, e);
}

static fl_status read_encoder_layer(const reader *r, uint64_t layer, size_t inputs, fl_lstm *pair) {
    const bool both = has_text(r->table.direction, layer, "bidirectional");
    fl_status status = check_layer(r, layer, "lstm", (int)layer - 1, MAX_UNITS);
    if (!status && !both) status = expect_text(r, r->table.direction, "lstm.layer.direction", layer, "forward");
    if (!status) status = expect_text(r, r->table.layout, "lstm.layer.layout", layer, "panels16");
    if (!status) status = read_lstm(r, layer, "", inputs, &pair[0]);
    if (!status && both) status = read_lstm(r, layer, ".reverse", inputs, &pair[1]);
    if (status) return status;
    return check_step(r, layer, layer_reads_bytes(&pair[0]) || (both && layer_reads_bytes(&pair[1])));
}

static fl_status read_encoder(const reader *r, uint32_t n_layers, int tokens) {
    fl_encoder *e = r->model->encoder;
    e->n_layers = n_layers;
    e->layers = fl_keep(r->model, 2 * n_layers * sizeof *e->layers);
    if (!e->layers) return fl_fail(r->error, FL_ERROR_MEMORY, "no memory for %u layers", n_layers);
    fl_status status = check_layer(r, 0, "embedding", tokens, MAX_UNITS);
    size_t inputs = units_of(r, 0);
    for (uint32_t i = 0; !status && i < n_layers; i++) {
        status = read_encoder_layer(r, i + 1, inputs, &e->layers[2 * i]);
        inputs = fl_encoder_width(e, i);
    }
    return status;
}

/* How the decoder's first state comes from the encoder's last one: by matrices, or as it is, if it fits. */
static fl_status read_bridge(const reader *r, uint64_t layer, uint32_t i) {
    fl_model *model = r->model;
    fl_bridge *bridge = &model->encoder->bridges[i];
    const uint32_t below = i < model->encoder->n_layers ? i : model->encoder->n_layers - 1;
    const size_t width = fl_encoder_width(model->encoder, below), units = model->layers[i].units;
    name n;
    fl_status status = name_of(r, layer, ".bridge.h", &n);
    bridge->from = below;
    if (status) return status;
    if (!has_tensor(r, &n, "weight")) {
        if (width == units) return FL_OK;
        return fl_fail(
            r->error, FL_ERROR_FORMAT,
            "layer %llu has %zu units: without a bridge it starts from the encoder's layer %u, which has %zu",
            (unsigned long long)layer, units, below, width);
    }
    status = read_part(r, layer, ".bridge.h", units, 2 * width, &bridge->h);
    if (!status) status = read_part(r, layer, ".bridge.c", units, 2 * width, &bridge->c);
    if (!status) status = read_numbers(r, layer, ".bridge.h", "bias", units, &bridge->h_bias);
    return status ? status : read_numbers(r, layer, ".bridge.c", "bias", units, &bridge->c_bias);
}

static bool attention_reads_bytes(const fl_attention *a) {
    return fl_reads_bytes(&a->key) || fl_reads_bytes(&a->query) || fl_reads_bytes(&a->context) ||
           fl_reads_bytes(&a->hidden);
}

/* What decides whether a token is copied, if any is: then a source's tokens are those of texts. */
static fl_status read_copy(const reader *r, uint64_t layer) {
    fl_model *model = r->model;
    fl_attention *a = model->attention;
    name n;
    fl_status status = name_of(r, layer, "", &n);
    if (status || !has_tensor(r, &n, "copy")) return status;
    status = read_numbers(r, layer, "", "copy", a->units, &a->copy);
    if (!status) status = read_numbers(r, layer, ".copy", "bias", 1, &a->copy_bias);
    if (!status && model->encoder->vocab_size > model->vocab_size)
        status = fl_fail(r->error, FL_ERROR_FORMAT,
                         "tensor '%s.copy': tokens of a source are copied, but it has %u, and a text only %u",
                         fl_show(n.text, n.size).text, model->encoder->vocab_size, model->vocab_size);
    return status;
}

static fl_status read_attention(const reader *r, uint64_t layer, uint64_t decoders) {
    fl_model *model = r->model;
    fl_attention *a = model->attention;
    const size_t width = fl_encoder_outputs(model->encoder);
    const size_t top = model->layers[model->n_layers - 1].units, units = units_of(r, layer);
    name n, feed;
    a->units = (uint32_t)units;
    a->additive = has_text(r->table.kind, layer, "attention.additive");
    fl_status status =
        check_forward(r, layer, a->additive ? "attention.additive" : "attention.dot", (int)layer - 1, MAX_UNITS);
    if (!status) status = name_of(r, layer, ".key", &n);
    if (status) return status;
    if (a->additive || has_tensor(r, &n, "weight"))
        status = read_part(r, layer, ".key", a->additive ? units : top, width, &a->key);
    else if (width != top)
        status = fl_fail(r->error, FL_ERROR_FORMAT,
                         "attention.dot without a key matrix: the encoder's outputs have %zu values, the decoder's %zu",
                         width, top);
    if (!status && a->additive) status = read_part(r, layer, ".query", units, top, &a->query);
    if (!status && a->additive) status = read_numbers(r, layer, ".query", "bias", units, &a->query_bias);
    if (!status && a->additive) status = read_numbers(r, layer, "", "score", units, &a->score);
    if (!status) status = read_part(r, layer, ".context", units, width, &a->context);
    if (!status) status = read_part(r, layer, ".hidden", units, top, &a->hidden);
    if (!status) status = read_numbers(r, layer, "", "bias", units, &a->bias);
    if (!status) status = check_step(r, layer, attention_reads_bytes(a));
    if (!status) status = read_copy(r, layer);
    if (!status) status = name_of(r, decoders + 1, ".feed", &feed);
    if (status || !has_tensor(r, &feed, "weight")) return status;
    return read_part(r, decoders + 1, ".feed", model->layers[0].groups * FL_GATES * FL_PANEL, units, &a->feed);
}

static fl_status make_parts(const reader *r, bool attends) {
    fl_model *model = r->model;
    model->encoder = fl_keep(model, sizeof *model->encoder);
    model->attention = attends ? fl_keep(model, sizeof *model->attention) : NULL;
    if (model->encoder) model->encoder->bridges = fl_keep(model, model->n_layers * sizeof *model->encoder->bridges);
    if (model->encoder && model->encoder->bridges && (model->attention || !attends)) return FL_OK;
    return fl_fail(r->error, FL_ERROR_MEMORY, "no memory for an encoder");
}

/* ---- a network ----------------------------------------------------------------------------------------- */

/* The rest of the table behind the decoder's embedding: its LSTM layers, attention, the output. */
static fl_status read_decoder(const reader *r, uint64_t embedding, bool attends) {
    fl_model *model = r->model;
    const uint64_t output = embedding + model->n_layers + 1 + attends;
    model->embedding_size = units_of(r, embedding);
    model->vocab_size = units_of(r, r->table.count - 1);
    fl_status status = check_layer(r, embedding, "embedding", TOKEN, MAX_UNITS);
    if (!status) status = read_stack(r, embedding);
    if (!status && output + 1 != r->table.count)
        status =
            check_layer(r, output < r->table.count ? output : r->table.count - 1, "dense", (int)output - 1, MAX_VOCAB);
    if (!status && output + 1 != r->table.count)
        status = fl_fail(r->error, FL_ERROR_FORMAT, "key 'lstm.layer.kind': expected %llu layers, found %llu",
                         (unsigned long long)output + 1, (unsigned long long)r->table.count);
    if (!status) status = read_output(r, output);
    return status ? status : read_embedding(r, embedding);
}

static fl_status read_translator(const reader *r) {
    fl_model *model = r->model;
    const uint64_t encoders = run_of(r, 1, "lstm"), embedding = 1 + encoders;
    const uint64_t decoders = run_of(r, embedding + 1, "lstm"), above = embedding + 1 + decoders;
    const bool attends = above < r->table.count && !has_text(r->table.kind, above, "dense");
    if (!encoders) return expect_text(r, r->table.kind, "lstm.layer.kind", 1, "lstm");
    if (embedding + 1 >= r->table.count)
        return fl_fail(r->error, FL_ERROR_FORMAT,
                       "key 'lstm.layer.kind': expected the text's layers behind those of the source, found none");
    if (!decoders) return expect_text(r, r->table.kind, "lstm.layer.kind", embedding + 1, "lstm");
    model->n_layers = (uint32_t)decoders;
    fl_status status = make_parts(r, attends);
    if (!status) status = read_encoder(r, (uint32_t)encoders, SOURCE_TOKEN);
    if (!status) status = read_decoder(r, embedding, attends);
    if (!status) status = read_source_embedding(r, embedding);
    for (uint32_t i = 0; !status && i < model->n_layers; i++) status = read_bridge(r, embedding + 1 + i, i);
    if (!status && attends) status = read_attention(r, above, embedding);
    return status;
}

/* ---- classifier ---------------------------------------------------------------------------------------- */

static const char *const pool_kinds[] = {
    [FL_POOL_LAST] = "pooling.last",           [FL_POOL_MEAN] = "pooling.mean",     [FL_POOL_MAX] = "pooling.max",
    [FL_POOL_ATTENTION] = "pooling.attention", [FL_POOL_CONCAT] = "pooling.concat",
};

static fl_status read_pooling(const reader *r, uint64_t layer, size_t width) {
    fl_pooling *p = r->model->pooling;
    size_t kind = 0;
    while (kind < FL_POOL_CONCAT && !has_text(r->table.kind, layer, pool_kinds[kind])) kind++;
    p->kind = (fl_pool_kind)kind;
    const size_t units = kind == FL_POOL_CONCAT ? 3 * width : width;
    size_t size;
    const char *found = fl_field_string(r->table.kind, layer, &size);
    if (!fl_same_text(found, size, pool_kinds[kind]))
        return fl_fail(r->error, FL_ERROR_FORMAT,
                       "key 'lstm.layer.kind', layer %llu: expected pooling.last, .mean, .max, .attention or .concat, "
                       "found '%s'",
                       (unsigned long long)layer, fl_show(found, size).text);
    fl_status status = check_forward(r, layer, pool_kinds[kind], (int)layer - 1, 2 * 3 * MAX_UNITS);
    if (!status && units_of(r, layer) != units)
        status = fl_fail(r->error, FL_ERROR_FORMAT, "key 'lstm.layer.units', layer %llu: expected %zu, found %u",
                         (unsigned long long)layer, units, units_of(r, layer));
    if (status || kind != FL_POOL_ATTENTION) return status ? status : check_step(r, layer, false);
    name n;
    status = name_of(r, layer, ".key", &n);
    if (status) return status;
    const fl_tensor *bias = fl_file_tensor(&r->model->file, n.text, n.size, "bias");
    const uint64_t panels = bias ? bias->dims[1] : 0;
    if (panels < 1 || panels > MAX_UNITS / FL_PANEL)
        return fl_fail(r->error, FL_ERROR_FORMAT, "tensor '%s.bias': expected 1 to %d panels, found %llu",
                       fl_show(n.text, n.size).text, MAX_UNITS / FL_PANEL, (unsigned long long)panels);
    p->units = (uint32_t)panels * FL_PANEL; /* what fills them up has a score of zero */
    status = read_part(r, layer, ".key", p->units, width, &p->key);
    if (!status) status = read_numbers(r, layer, ".key", "bias", p->units, &p->bias);
    if (!status) status = read_numbers(r, layer, "", "score", p->units, &p->score);
    return status ? status : check_step(r, layer, fl_reads_bytes(&p->key));
}

/* Labels are few: rounding their rows would save nothing. */
static fl_status read_labels(const reader *r, uint64_t layer) {
    fl_model *model = r->model;
    fl_status status = check_forward(r, layer, "dense", (int)layer - 1, MAX_LABELS);
    model->n_labels = units_of(r, layer);
    if (!status) status = read_part(r, layer, "", model->n_labels, units_of(r, layer - 1), &model->output);
    if (!status) status = read_numbers(r, layer, "", "bias", model->n_labels, &model->output_bias);
    if (!status && fl_reads_bytes(&model->output))
        status =
            fl_fail(r->error, FL_ERROR_FORMAT, "layer %llu, a classifier's output: expected f32 or bf16, found int%d",
                    (unsigned long long)layer, model->output.dtype == FL_INT8 ? 8 : 4);
    return status ? status : check_step(r, layer, false);
}

static fl_status read_classifier(const reader *r) {
    fl_model *model = r->model;
    const uint64_t encoders = run_of(r, 1, "lstm"), above = encoders + 1;
    if (!encoders) return expect_text(r, r->table.kind, "lstm.layer.kind", 1, "lstm");
    if (r->table.count != above + 2)
        return fl_fail(r->error, FL_ERROR_FORMAT, "key 'lstm.layer.kind': expected %llu layers, found %llu",
                       (unsigned long long)above + 2, (unsigned long long)r->table.count);
    model->encoder = fl_keep(model, sizeof *model->encoder);
    model->pooling = fl_keep(model, sizeof *model->pooling);
    if (!model->encoder || !model->pooling) return fl_fail(r->error, FL_ERROR_MEMORY, "no memory for a classifier");
    fl_encoder *e = model->encoder;
    e->embedding_size = units_of(r, 0);
    fl_status status = read_encoder(r, (uint32_t)encoders, TOKEN);
    if (!status) status = check_step(r, 0, false);
    if (!status) status = expect_text(r, r->table.direction, "lstm.layer.direction", 0, "forward");
    if (!status) status = read_rows(r, e);
    model->vocab_size = e->vocab_size, model->embedding_size = e->embedding_size;
    if (!status) status = read_pooling(r, above, fl_encoder_outputs(e));
    return status ? status : read_labels(r, above + 1);
}

fl_status fl_read_layers(fl_model *model, fl_task task, fl_error *error) {
    reader r = {.model = model, .error = error};
    const fl_status status = read_table(&r);
    if (status) return status;
    if (task == FL_TASK_SEQ2SEQ) return read_translator(&r);
    if (task == FL_TASK_CLASSIFIER) return read_classifier(&r);
    model->n_layers = (uint32_t)r.table.count - 2;
    return read_decoder(&r, 0, false);
}
