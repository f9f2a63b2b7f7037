/* SPDX-License-Identifier: Apache-2.0
 *
 * From a parsed file to a model: reads the layer table and points every matrix into the mapping. */
#include "kernels.h"

#include <stdlib.h>

/* Limits that keep all arithmetic on sizes, and all sums (docs/numerics.md), far from overflow. */
enum { MAX_UNITS = 1 << 20, MAX_LAYERS = 1024, MAX_VOCAB = 1 << 28 };

/* The layer table: parallel arrays, one entry a layer (docs/format.md). */
typedef struct layer_table {
    const fl_field *kind, *input, *units, *direction, *scale, *layout, *tensor;
    uint64_t count;
} layer_table;

static fl_status read_table(const fl_file *file, layer_table *table, fl_error *error) {
    const struct {
        const char *key;
        uint32_t item_type;
        const fl_field **field;
    } columns[] = {
        {"lstm.layer.kind", FL_GGUF_STRING, &table->kind},
        {"lstm.layer.input", FL_GGUF_INT32, &table->input},
        {"lstm.layer.units", FL_GGUF_UINT32, &table->units},
        {"lstm.layer.direction", FL_GGUF_STRING, &table->direction},
        {"lstm.layer.scale", FL_GGUF_FLOAT32, &table->scale},
        {"lstm.layer.layout", FL_GGUF_STRING, &table->layout},
        {"lstm.layer.tensor", FL_GGUF_STRING, &table->tensor},
    };
    const fl_field *kind = fl_file_field(file, "lstm.layer.kind");
    table->count = kind ? kind->count : 0;
    if (table->count < 3 || table->count > MAX_LAYERS)
        return fl_fail(error, FL_ERROR_FORMAT, "key 'lstm.layer.kind': expected 3 to %d layers, found %llu", MAX_LAYERS,
                       (unsigned long long)table->count);
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        const fl_status status =
            fl_file_array(file, columns[i].key, columns[i].item_type, table->count, columns[i].field, error);
        if (status) return status;
    }
    return FL_OK;
}

static fl_status expect_text(const fl_field *column, const char *key, uint64_t layer, const char *expected,
                             fl_error *error) {
    size_t size;
    const char *text = fl_field_string(column, layer, &size);
    if (fl_same_text(text, size, expected)) return FL_OK;
    return fl_fail(error, FL_ERROR_FORMAT, "key '%s', layer %llu: this version computes '%s' here, found '%s'", key,
                   (unsigned long long)layer, expected, fl_show(text, size).text);
}

/* An embedding, LSTM layers that read one another in turn, and a dense layer on top. */
static fl_status check_layer(const layer_table *table, uint64_t layer, fl_error *error) {
    const bool first = layer == 0, last = layer == table->count - 1;
    const uint32_t units = fl_field_u32(table->units, layer), limit = last ? MAX_VOCAB : MAX_UNITS;
    fl_status status = expect_text(table->kind, "lstm.layer.kind", layer,
                                   first  ? "embedding"
                                   : last ? "dense"
                                          : "lstm",
                                   error);
    if (!status) status = expect_text(table->direction, "lstm.layer.direction", layer, "forward", error);
    if (!status && !first) status = expect_text(table->layout, "lstm.layer.layout", layer, "panels16", error);
    if (!status && fl_field_u32(table->input, layer) != (uint32_t)layer - 1)
        status = fl_fail(error, FL_ERROR_FORMAT, "key 'lstm.layer.input', layer %llu: expected %d, found %d",
                         (unsigned long long)layer, (int)layer - 1, (int)fl_field_u32(table->input, layer));
    if (!status && fl_field_u32(table->scale, layer) << 1) /* not 0, of either sign */
        status = fl_fail(error, FL_ERROR_FORMAT,
                         "key 'lstm.layer.scale', layer %llu: this version computes no quantised inputs",
                         (unsigned long long)layer);
    if (!status && (units == 0 || units > limit))
        status = fl_fail(error, FL_ERROR_FORMAT, "key 'lstm.layer.units', layer %llu: expected 1 to %u, found %u",
                         (unsigned long long)layer, limit, units);
    return status;
}

static fl_status read_matrix(const fl_file *file, const layer_table *table, uint64_t layer, const char *suffix,
                             size_t panels, size_t inputs, fl_matrix *matrix, fl_error *error) {
    size_t size;
    const char *name = fl_field_string(table->tensor, layer, &size);
    const uint64_t dims[4] = {FL_PANEL, inputs, panels, 1};
    *matrix = (fl_matrix){NULL, panels, inputs};
    return fl_file_weights(file, name, size, suffix, dims, &matrix->weights, error);
}

static fl_status read_bias(const fl_file *file, const layer_table *table, uint64_t layer, const char *suffix,
                           size_t panels, const float **bias, fl_error *error) {
    size_t size;
    const char *name = fl_field_string(table->tensor, layer, &size);
    const uint64_t dims[4] = {FL_PANEL, panels, 1, 1};
    return fl_file_weights(file, name, size, suffix, dims, bias, error);
}

static fl_status read_lstm(const fl_file *file, const layer_table *table, uint64_t layer, fl_lstm *lstm,
                           fl_error *error) {
    lstm->units = fl_field_u32(table->units, layer);
    lstm->groups = fl_round_up(lstm->units, FL_PANEL) / FL_PANEL;
    const size_t panels = lstm->groups * FL_GATES, inputs = fl_field_u32(table->units, layer - 1);
    fl_status status = read_matrix(file, table, layer, "x.weight", panels, inputs, &lstm->x, error);
    if (!status) status = read_matrix(file, table, layer, "h.weight", panels, lstm->units, &lstm->h, error);
    if (!status) status = read_bias(file, table, layer, "bias", panels, &lstm->bias, error);
    return status;
}

/* The embedding lies in rows of its own or, tied, is read out of the output matrix's panels. */
static fl_status read_embedding(fl_model *model, const layer_table *table, fl_error *error) {
    size_t size, output_size;
    const char *name = fl_field_string(table->tensor, 0, &size);
    const char *output = fl_field_string(table->tensor, table->count - 1, &output_size);
    if (size == output_size && memcmp(name, output, size) == 0) {
        if (model->output.inputs != model->embedding_size)
            return fl_fail(error, FL_ERROR_FORMAT,
                           "a tied embedding of size %u needs a last layer as wide, found %zu units",
                           model->embedding_size, model->output.inputs);
        return expect_text(table->layout, "lstm.layer.layout", 0, "panels16", error);
    }
    const uint64_t dims[4] = {model->embedding_size, model->vocab_size, 1, 1};
    const fl_status status = expect_text(table->layout, "lstm.layer.layout", 0, "rows", error);
    return status ? status : fl_file_weights(&model->file, name, size, "weight", dims, &model->embedding, error);
}

static fl_status read_layers(fl_model *model, fl_error *error) {
    layer_table table;
    fl_status status = read_table(&model->file, &table, error);
    for (uint64_t i = 0; !status && i < table.count; i++) status = check_layer(&table, i, error);
    if (status) return status;
    model->embedding_size = fl_field_u32(table.units, 0);
    model->vocab_size = fl_field_u32(table.units, table.count - 1);
    model->n_layers = (uint32_t)table.count - 2;
    model->layers = calloc(model->n_layers, sizeof *model->layers);
    if (!model->layers) return fl_fail(error, FL_ERROR_MEMORY, "no memory for %u layers", model->n_layers);
    for (uint32_t i = 0; !status && i < model->n_layers; i++)
        status = read_lstm(&model->file, &table, i + 1, &model->layers[i], error);
    const size_t panels = fl_round_up(model->vocab_size, FL_PANEL) / FL_PANEL;
    const size_t inputs = fl_field_u32(table.units, table.count - 2);
    if (!status)
        status = read_matrix(&model->file, &table, table.count - 1, "weight", panels, inputs, &model->output, error);
    if (!status) status = read_bias(&model->file, &table, table.count - 1, "bias", panels, &model->output_bias, error);
    return status ? status : read_embedding(model, &table, error);
}

/* An optional key that holds a token; -1 if there is none. */
static fl_status read_token(const fl_model *model, const char *key, int32_t *token, fl_error *error) {
    uint32_t value;
    *token = -1;
    if (!fl_file_field(&model->file, key)) return FL_OK;
    const fl_status status = fl_file_u32(&model->file, key, &value, error);
    if (status) return status;
    if (value >= model->vocab_size)
        return fl_fail(error, FL_ERROR_FORMAT, "key '%s': expected a token below %u, found %u", key, model->vocab_size,
                       value);
    *token = (int32_t)value;
    return FL_OK;
}

static fl_status read_header(const fl_file *file, fl_error *error) {
    const struct {
        const char *key, *expected;
    } texts[] = {{"general.architecture", "lstm"}, {"lstm.task", "lm"}, {"lstm.start.state", "zero"}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const fl_field *field = fl_file_field(file, texts[i].key);
        if (!field || field->type != FL_GGUF_STRING)
            return fl_fail(error, FL_ERROR_FORMAT, "key '%s': expected '%s', found %s", texts[i].key, texts[i].expected,
                           field ? "no string" : "none");
        size_t size;
        const char *text = fl_field_string(field, 0, &size);
        if (!fl_same_text(text, size, texts[i].expected))
            return fl_fail(error, FL_ERROR_FORMAT, "key '%s': expected '%s', found '%s'", texts[i].key,
                           texts[i].expected, fl_show(text, size).text);
    }
    uint32_t numerics = 0;
    const fl_status status = fl_file_u32(file, "lstm.numerics_version", &numerics, error);
    if (!status && numerics != FL_NUMERICS)
        return fl_fail(error, FL_ERROR_FORMAT, "key 'lstm.numerics_version': this engine computes version %d, found %u",
                       FL_NUMERICS, numerics);
    return status;
}

/* ---- store of gate rows ------------------------------------------------------------------------------ */

static fl_status make_store(fl_model *model, size_t bytes, fl_error *error) {
    const size_t row = model->layers[0].groups * FL_GATES * FL_PANEL;
    size_t capacity = bytes / (row * sizeof(float));
    if (capacity > model->vocab_size) capacity = model->vocab_size;
    if (capacity == 0) return FL_OK;
    fl_row_store *store = calloc(1, sizeof *store);
    if (store) {
        *store = (fl_row_store){.capacity = (uint32_t)capacity, .row_floats = row};
        store->slot = calloc(model->vocab_size, sizeof *store->slot);
        store->rows = fl_os_alloc(capacity * row * sizeof(float));
        model->store = store;
    }
    if (!store || !store->slot || !store->rows)
        return fl_fail(error, FL_ERROR_MEMORY, "no memory for a row cache of %zu bytes", bytes);
    return FL_OK;
}

static void free_store(fl_row_store *store) {
    if (!store) return;
    fl_os_free(store->rows, store->capacity * store->row_floats * sizeof(float));
    free((void *)store->slot);
    free(store);
}

/* ---- public ------------------------------------------------------------------------------------------ */

static fl_status build(fl_model *model, const fl_load_options *options, fl_error *error) {
    int32_t unknown; /* of no use here, but the file must not name a token that does not exist */
    fl_status status = read_header(&model->file, error);
    if (!status) status = read_layers(model, error);
    if (!status) status = read_token(model, "tokenizer.ggml.bos_token_id", &model->bos, error);
    if (!status) status = read_token(model, "tokenizer.ggml.eos_token_id", &model->eos, error);
    if (!status) status = read_token(model, "tokenizer.ggml.unknown_token_id", &unknown, error);
    if (!status) status = make_store(model, options->row_cache_bytes, error);
    return status;
}

/* Takes the mapping over. */
static fl_status create(fl_mapping mapping, const fl_load_options *options, fl_model **result, fl_error *error) {
    static const fl_load_options neutral = {0};
    const fl_kernels *kernels = NULL;
    if (!options) options = &neutral;
    fl_status status = fl_cpu_choose(options->isa, &kernels, error);
    fl_model *model = status ? NULL : calloc(1, sizeof *model);
    if (!model) {
        fl_os_unmap(&mapping);
        return status ? status : fl_fail(error, FL_ERROR_MEMORY, "no memory for a model");
    }
    model->kernels = kernels;
    status = fl_file_parse(mapping, &model->file, error);
    if (!status) status = build(model, options, error);
    if (status) {
        fl_model_close(model);
        return status;
    }
    *result = model;
    return FL_OK;
}

fl_status fl_model_open(const char *path, const fl_load_options *options, fl_model **model, fl_error *error) {
    fl_mapping mapping;
    const fl_status status = fl_os_map(path, &mapping, error);
    return status ? status : create(mapping, options, model, error);
}

fl_status fl_model_from_memory(const void *bytes, size_t size, const fl_load_options *options, fl_model **model,
                               fl_error *error) {
    fl_mapping mapping;
    const fl_status status = fl_os_copy(bytes, size, &mapping, error);
    return status ? status : create(mapping, options, model, error);
}

void fl_model_close(fl_model *model) {
    if (!model) return;
    free_store(model->store);
    free(model->layers);
    fl_file_close(&model->file);
    free(model);
}

void fl_model_get_info(const fl_model *model, fl_model_info *info) {
    const fl_row_store *store = model->store;
    *info = (fl_model_info){
        .vocab_size = model->vocab_size,
        .embedding_size = model->embedding_size,
        .layers = model->n_layers,
        .bos = model->bos,
        .eos = model->eos,
        .tied = !model->embedding,
        .file_bytes = model->file.mapping.size,
        .row_cache_bytes = store ? store->capacity * store->row_floats * sizeof(float) : 0,
        .isa = model->kernels->name,
    };
}

uint32_t fl_model_units(const fl_model *model, uint32_t layer) { return model->layers[layer].units; }

size_t fl_model_field_count(const fl_model *model) { return model->file.n_fields; }
void fl_model_field(const fl_model *model, size_t index, fl_field *field) { *field = model->file.fields[index]; }
size_t fl_model_tensor_count(const fl_model *model) { return model->file.n_tensors; }
void fl_model_tensor(const fl_model *model, size_t index, fl_tensor *tensor) { *tensor = model->file.tensors[index]; }

/* ---- test vector ------------------------------------------------------------------------------------- */

static float float_item(const fl_field *field, uint64_t n) {
    const uint32_t bits = fl_field_u32(field, n);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static fl_status read_test(const fl_model *model, const fl_field **tokens, const fl_field **logprobs, double *tolerance,
                           fl_error *error) {
    const fl_field *limit = fl_file_field(&model->file, "lstm.test.tolerance");
    const fl_field *given = fl_file_field(&model->file, "lstm.test.tokens");
    if (!given || !limit || limit->type != FL_GGUF_FLOAT32 || given->count < 2)
        return fl_fail(error, FL_ERROR_FORMAT, "the file has no test vector (keys 'lstm.test.*', at least two tokens)");
    fl_status status = fl_file_array(&model->file, "lstm.test.tokens", FL_GGUF_INT32, given->count, tokens, error);
    if (!status)
        status = fl_file_array(&model->file, "lstm.test.logprobs", FL_GGUF_FLOAT32, given->count - 1, logprobs, error);
    for (uint64_t i = 0; !status && i < given->count; i++)
        if (fl_field_u32(given, i) >= model->vocab_size)
            status = fl_fail(error, FL_ERROR_FORMAT, "key 'lstm.test.tokens': %d is not a token",
                             (int)fl_field_u32(given, i));
    if (status) return status;
    *tolerance = float_item(limit, 0);
    if (*tolerance > 0 && *tolerance <= 1) return FL_OK;
    return fl_fail(error, FL_ERROR_FORMAT, "key 'lstm.test.tolerance': expected above 0 and at most 1, found %g",
                   *tolerance);
}

fl_status fl_model_verify(const fl_model *model, double *largest, double *tolerance, fl_error *error) {
    const fl_field *tokens, *logprobs;
    fl_session *session;
    fl_status status = read_test(model, &tokens, &logprobs, tolerance, error);
    if (!status) status = fl_session_new(model, &session, error);
    if (status) return status;
    fenv_t caller;
    fl_fp_enter(&caller);
    *largest = 0;
    for (uint64_t i = 0; i < tokens->count; i++) {
        const int32_t token = (int32_t)fl_field_u32(tokens, i);
        float found;
        fl_score(session, &token, 1, &found);
        if (i == 0) continue; /* nothing comes before the first */
        const double difference = fabs((double)found - (double)float_item(logprobs, i - 1));
        if (difference > *largest || isnan(difference))
            *largest = difference; /* not a number is the worst, and stays */
    }
    fl_fp_leave(&caller);
    fl_session_free(session);
    return FL_OK;
}
