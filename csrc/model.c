/* SPDX-License-Identifier: Apache-2.0
 *
 * From a parsed file to a model: reads the layer table and points every matrix into the mapping. */
#include "kernels.h"

#include <stdio.h>
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
    if (!status && (units == 0 || units > limit))
        status = fl_fail(error, FL_ERROR_FORMAT, "key 'lstm.layer.units', layer %llu: expected 1 to %u, found %u",
                         (unsigned long long)layer, limit, units);
    return status;
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

/* `panels` panels of `lanes` rows of K inputs, in whichever dtype the file has them. One row's panel has no dimension
 * for its lane. */
static fl_status read_matrix(const fl_file *file, const char *name, size_t size, size_t lanes, size_t panels,
                             size_t inputs, fl_matrix *matrix, fl_error *error) {
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
    return status ? status : read_scale(file, name, size, scale, &matrix->scale, error);
}

/* Where whole numbers are multiplied, hidden values are too, in steps of 1/127. */
static fl_status check_step(const layer_table *table, uint64_t layer, bool whole, fl_error *error) {
    const uint32_t found = fl_field_u32(table->scale, layer);
    const float step = whole ? FL_HIDDEN_STEP : 0.0f;
    float given;
    memcpy(&given, &found, sizeof given);
    if (given == step) return FL_OK;
    return fl_fail(error, FL_ERROR_FORMAT, "key 'lstm.layer.scale', layer %llu: expected %g, found %g",
                   (unsigned long long)layer, (double)step, (double)given);
}

static fl_status read_bias(const fl_file *file, const layer_table *table, uint64_t layer, size_t panels,
                           const float **bias, fl_error *error) {
    size_t size;
    const char *name = fl_field_string(table->tensor, layer, &size);
    const uint64_t dims[4] = {FL_PANEL, panels, 1, 1};
    const void *data = NULL;
    const fl_status status = fl_file_data(file, name, size, "bias", FL_GGML_F32, dims, &data, error);
    *bias = data;
    return status;
}

static fl_status sum_rows(const fl_model *model, fl_matrix *matrix, fl_error *error) {
    if (matrix->dtype != FL_INT8) return FL_OK;
    matrix->sums = malloc(matrix->panels * matrix->lanes * sizeof *matrix->sums);
    if (!matrix->sums) return fl_fail(error, FL_ERROR_MEMORY, "no memory for %zu sums", matrix->panels * matrix->lanes);
    model->kernels->sum_rows(matrix, matrix->sums);
    return FL_OK;
}

/* Matrix "tensor.part" of a layer. */
static fl_status read_part(const fl_file *file, const layer_table *table, uint64_t layer, const char *part,
                           size_t panels, size_t inputs, fl_matrix *matrix, fl_error *error) {
    char name[256];
    size_t size;
    const char *tensor = fl_field_string(table->tensor, layer, &size);
    if (size > sizeof name - 4)
        return fl_fail(error, FL_ERROR_FORMAT, "key 'lstm.layer.tensor', layer %llu: a name of %zu bytes",
                       (unsigned long long)layer, size);
    memcpy(name, tensor, size);
    memcpy(name + size, part, 2);
    return read_matrix(file, name, size + 2, FL_PANEL, panels, inputs, matrix, error);
}

static fl_status read_lstm(const fl_file *file, const layer_table *table, uint64_t layer, fl_lstm *lstm,
                           fl_error *error) {
    lstm->units = fl_field_u32(table->units, layer);
    lstm->groups = fl_parts(lstm->units, FL_PANEL);
    const size_t panels = lstm->groups * FL_GATES, inputs = fl_field_u32(table->units, layer - 1);
    fl_status status = read_part(file, table, layer, ".x", panels, inputs, &lstm->x, error);
    if (!status) status = read_part(file, table, layer, ".h", panels, lstm->units, &lstm->h, error);
    if (!status) status = read_bias(file, table, layer, panels, &lstm->bias, error);
    return status ? status : check_step(table, layer, fl_reads_bytes(&lstm->x) || fl_reads_bytes(&lstm->h), error);
}

static fl_status read_output(fl_model *model, const layer_table *table, fl_error *error) {
    const uint64_t layer = table->count - 1;
    const size_t panels = fl_parts(model->vocab_size, FL_PANEL);
    size_t size;
    const char *name = fl_field_string(table->tensor, layer, &size);
    const size_t inputs = fl_field_u32(table->units, layer - 1);
    fl_status status = read_matrix(&model->file, name, size, FL_PANEL, panels, inputs, &model->output, error);
    if (!status) status = read_bias(&model->file, table, layer, panels, &model->output_bias, error);
    return status ? status : check_step(table, layer, fl_reads_bytes(&model->output), error);
}

/* The embedding lies in rows of its own or, tied, is read out of the output matrix's panels. */
static fl_status read_embedding(fl_model *model, const layer_table *table, fl_error *error) {
    size_t size, output_size;
    const char *name = fl_field_string(table->tensor, 0, &size);
    const char *output = fl_field_string(table->tensor, table->count - 1, &output_size);
    fl_status status = check_step(table, 0, false, error);
    if (status) return status;
    model->tied = size == output_size && memcmp(name, output, size) == 0;
    model->embedding = model->output;
    if (model->tied && model->output.inputs != model->embedding_size)
        return fl_fail(error, FL_ERROR_FORMAT,
                       "a tied embedding of size %u needs a last layer as wide, found %zu units", model->embedding_size,
                       model->output.inputs);
    status = expect_text(table->layout, "lstm.layer.layout", 0, model->tied ? "panels16" : "rows", error);
    if (status || model->tied) return status;
    return read_matrix(&model->file, name, size, 1, model->vocab_size, model->embedding_size, &model->embedding, error);
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
    for (uint32_t i = 0; !status && i < model->n_layers; i++) {
        status = read_lstm(&model->file, &table, i + 1, &model->layers[i], error);
        if (!status) status = sum_rows(model, &model->layers[i].x, error);
        if (!status) status = sum_rows(model, &model->layers[i].h, error);
    }
    if (!status) status = read_output(model, &table, error);
    if (!status) status = sum_rows(model, &model->output, error);
    return status ? status : read_embedding(model, &table, error);
}

/* ---- screen ------------------------------------------------------------------------------------------ */

/* The tensors of a screen that is being read, and their common name. */
typedef struct screen_file {
    const fl_file *file;
    char name[240];
    size_t size;
} screen_file;

/* Numbers from `least` to `most`: far more than a screen's maker gives, but with them nothing can overflow. */
static fl_status read_numbers(const screen_file *f, const char *part, const uint64_t dims[4], float least, float most,
                              const float **numbers, fl_error *error) {
    const void *data = NULL;
    const fl_status status = fl_file_data(f->file, f->name, f->size, part, FL_GGML_F32, dims, &data, error);
    *numbers = data;
    for (uint64_t i = 0; !status && i < dims[0] * dims[1] * dims[2]; i++)
        if (!((*numbers)[i] >= least && (*numbers)[i] <= most))
            return fl_fail(error, FL_ERROR_FORMAT, "tensor '%s.%s': expected numbers from %g to %g, found %g",
                           fl_show(f->name, f->size).text, part, (double)least, (double)most, (double)(*numbers)[i]);
    return status;
}

static fl_status read_of_type(const screen_file *f, const char *part, fl_dtype dtype, size_t panels, size_t inputs,
                              fl_matrix *matrix, fl_error *error) {
    char name[256];
    const int size = snprintf(name, sizeof name, "%.*s.%s", (int)f->size, f->name, part);
    const fl_status status = read_matrix(f->file, name, (size_t)size, FL_PANEL, panels, inputs, matrix, error);
    if (status || matrix->dtype == dtype) return status;
    return fl_fail(error, FL_ERROR_FORMAT, "tensor '%s.weight': expected it in %s", fl_show(name, (size_t)size).text,
                   dtype == FL_F32 ? "f32" : "int8");
}

/* How many planes and directions there are, which the tensors' dimensions tell. */
static fl_status measure_screen(const screen_file *f, size_t inputs, size_t *planes, size_t *directions,
                                fl_error *error) {
    const fl_tensor *bits = fl_file_tensor(f->file, f->name, f->size, "bits");
    const fl_tensor *basis = fl_file_tensor(f->file, f->name, f->size, "basis.weight");
    const uint64_t panels = basis ? basis->dims[2] : 0;
    *planes = (size_t)bits->dims[2], *directions = (size_t)panels * FL_PANEL;
    if (inputs > FL_MOST_SCREENED)
        return fl_fail(error, FL_ERROR_FORMAT, "a screen is of at most %d inputs, found %zu", FL_MOST_SCREENED, inputs);
    if (bits->dims[2] < 1 || bits->dims[2] > FL_MOST_PLANES)
        return fl_fail(error, FL_ERROR_FORMAT, "tensor '%s.bits': expected 1 to %d planes, found %llu",
                       fl_show(f->name, f->size).text, FL_MOST_PLANES, (unsigned long long)bits->dims[2]);
    if (panels < 1 || panels > FL_MOST_DIRECTIONS / FL_PANEL)
        return fl_fail(error, FL_ERROR_FORMAT, "tensor '%s.basis.weight': expected 1 to %d panels, found %llu",
                       fl_show(f->name, f->size).text, FL_MOST_DIRECTIONS / FL_PANEL, (unsigned long long)panels);
    return FL_OK;
}

static fl_status read_screen_tensors(const fl_model *model, const screen_file *f, fl_screen *s, fl_error *error) {
    const size_t K = model->output.inputs, blocks = fl_parts(model->vocab_size, FL_BLOCK);
    size_t directions = 0;
    fl_status status = measure_screen(f, K, &s->planes, &directions, error);
    if (status) return status;
    s->blocks = blocks, s->pairs = fl_parts(K, 16);
    const uint64_t inputs[4] = {K, 1, 1, 1}, rows[4] = {FL_BLOCK, blocks, 1, 1};
    const uint64_t sizes[4] = {FL_BLOCK, blocks, s->planes, 1}, bits[4] = {2 * FL_BLOCK, s->pairs, s->planes, blocks};
    const void *data = NULL;
    const float most = 0x1p40f;
    status = read_numbers(f, "mean", inputs, -1, 1, &s->mean, error);
    if (!status) status = read_numbers(f, "spread", inputs, 0, 1, &s->spread, error);
    if (!status) status = read_numbers(f, "gain", inputs, 0, 1, &s->gain, error);
    if (!status) status = read_of_type(f, "basis", FL_F32, directions / FL_PANEL, K, &s->basis, error);
    if (!status) status = read_of_type(f, "along", FL_INT8, blocks * FL_BLOCK / FL_PANEL, directions, &s->along, error);
    if (!status) status = sum_rows(model, &s->along, error);
    if (!status) status = read_numbers(f, "shift", rows, -most, most, &s->shift, error);
    if (!status) status = read_numbers(f, "radius", rows, 0, most, &s->radius, error);
    if (!status) status = read_numbers(f, "size", sizes, 0, most, &s->size, error);
    if (!status) status = fl_file_data(f->file, f->name, f->size, "bits", FL_GGML_I8, bits, &data, error);
    s->bits = data;
    return status;
}

/* What share of the rows of an output matrix of whole numbers, or of real ones, may be computed for a screen's sake, so that
 * it saves time: bounds cost 0.25 or 0.1 of what all rows would, and panels one by one more than in a row. */
#define WORTH_WHOLE 0.4
#define WORTH_REAL 0.7

/* The output matrix's screen, if there is one and it is of use. */
static fl_status read_screen(fl_model *model, fl_screening screening, fl_error *error) {
    size_t size;
    const fl_field *tensors = fl_file_field(&model->file, "lstm.layer.tensor");
    const char *output = fl_field_string(tensors, model->n_layers + 1, &size);
    screen_file f = {.file = &model->file};
    if (size > sizeof f.name - sizeof ".screen") return FL_OK;
    f.size = (size_t)snprintf(f.name, sizeof f.name, "%.*s.screen", (int)size, output);
    if (!fl_file_tensor(f.file, f.name, f.size, "bits")) return FL_OK;
    model->screen = calloc(1, sizeof *model->screen);
    if (!model->screen) return fl_fail(error, FL_ERROR_MEMORY, "no memory for a screen");
    const fl_status status = read_screen_tensors(model, &f, model->screen, error);
    if (status) return status;
    model->checks_screen = screening == FL_SCREEN_CHECKED;
    model->screens = screening != FL_SCREEN_NEVER;
    model->worth_screening = screening != FL_SCREEN_USEFUL    ? 2
                             : fl_reads_bytes(&model->output) ? WORTH_WHOLE
                                                              : WORTH_REAL;
    return FL_OK;
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
    if (!status && numerics != FL_NUMERICS_VERSION)
        return fl_fail(error, FL_ERROR_FORMAT, "key 'lstm.numerics_version': this engine computes version %d, found %u",
                       FL_NUMERICS_VERSION, numerics);
    return status;
}

/* ---- store of gate rows ------------------------------------------------------------------------------ */

static fl_status make_store(fl_model *model, size_t bytes, fl_error *error) {
    const size_t row = model->layers[0].groups * FL_GATES * FL_PANEL;
    size_t capacity = bytes / (row * sizeof(float));
    /* A few more than there are tokens: threads that meet the same new token waste rows. */
    if (capacity > (size_t)model->vocab_size + FL_MOST_THREADS) capacity = (size_t)model->vocab_size + FL_MOST_THREADS;
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

/* ---- size ---------------------------------------------------------------------------------------------- */

/* Of the weights that are read for every token. */
static size_t streamed_bytes(const fl_model *model) {
    size_t bytes = fl_matrix_bytes(&model->output);
    for (uint32_t i = 0; i < model->n_layers; i++)
        bytes += fl_matrix_bytes(&model->layers[i].h) + (i ? fl_matrix_bytes(&model->layers[i].x) : 0);
    return bytes;
}

/* ---- public ------------------------------------------------------------------------------------------ */

static fl_status build(fl_model *model, const fl_load_options *options, fl_error *error) {
    int32_t unknown; /* of no use here, but the file must not name a token that does not exist */
    fl_status status = read_header(&model->file, error);
    if (!status) status = read_layers(model, error);
    if (!status) status = read_screen(model, options->screening, error);
    if (!status) status = read_token(model, "tokenizer.ggml.bos_token_id", &model->bos, error);
    if (!status) status = read_token(model, "tokenizer.ggml.eos_token_id", &model->eos, error);
    if (!status) status = read_token(model, "tokenizer.ggml.unknown_token_id", &unknown, error);
    if (!status) status = make_store(model, options->row_cache_bytes, error);
    if (!status) status = fl_cpu_threads(options->threads, streamed_bytes(model), &model->threads, error);
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
    for (uint32_t i = 0; model->layers && i < model->n_layers; i++) {
        free(model->layers[i].x.sums);
        free(model->layers[i].h.sums);
    }
    free(model->output.sums);
    if (model->screen) free(model->screen->along.sums);
    free(model->screen);
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
        .tied = model->tied,
        .file_bytes = model->file.mapping.size,
        .row_cache_bytes = store ? store->capacity * store->row_floats * sizeof(float) : 0,
        .threads = model->threads,
        .isa = model->kernels->name,
        .screened = model->screens,
    };
}

uint32_t fl_model_units(const fl_model *model, uint32_t layer) { return model->layers[layer].units; }

size_t fl_model_field_count(const fl_model *model) { return model->file.n_fields; }
void fl_model_field(const fl_model *model, size_t index, fl_field *field) { *field = model->file.fields[index]; }
size_t fl_model_tensor_count(const fl_model *model) { return model->file.n_tensors; }
void fl_model_tensor(const fl_model *model, size_t index, fl_tensor *tensor) {
    *tensor = model->file.tensors[index];
    tensor->data = model->file.mapping.bytes + tensor->offset;
}

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
    fl_decoder *decoder = NULL;
    fl_state *state = NULL;
    fl_status status = read_test(model, &tokens, &logprobs, tolerance, error);
    if (!status) status = fl_decoder_new(model, &decoder, error);
    if (!status) status = fl_state_new(model, &state, error);
    fenv_t caller;
    fl_fp_enter(&caller);
    *largest = 0;
    for (uint64_t i = 0; !status && i < tokens->count; i++) {
        const int32_t token = (int32_t)fl_field_u32(tokens, i);
        float found;
        fl_score(decoder, state, &token, 1, &found);
        if (i == 0) continue; /* nothing comes before the first */
        const double difference = fabs((double)found - (double)float_item(logprobs, i - 1));
        if (difference > *largest || isnan(difference))
            *largest = difference; /* not a number is the worst, and stays */
    }
    fl_fp_leave(&caller);
    fl_state_free(state);
    fl_decoder_free(decoder);
    return status;
}
