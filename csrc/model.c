/* SPDX-License-Identifier: Apache-2.0
 *
 * From a file to a model, and what a model tells of itself. */
#include "kernels.h"

#include <stdio.h>
#include <stdlib.h>

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

static fl_status read_of_type(fl_model *model, const screen_file *f, const char *part, fl_dtype dtype, size_t panels,
                              size_t inputs, fl_matrix *matrix, fl_error *error) {
    char name[256];
    const int size = snprintf(name, sizeof name, "%.*s.%s", (int)f->size, f->name, part);
    const fl_status status = fl_read_matrix(model, name, (size_t)size, FL_PANEL, panels, inputs, matrix, error);
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

static fl_status read_screen_tensors(fl_model *model, const screen_file *f, fl_screen *s, fl_error *error) {
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
    if (!status) status = read_of_type(model, f, "basis", FL_F32, directions / FL_PANEL, K, &s->basis, error);
    if (!status)
        status = read_of_type(model, f, "along", FL_INT8, blocks * FL_BLOCK / FL_PANEL, directions, &s->along, error);
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
    const char *output = fl_field_string(tensors, tensors->count - 1, &size);
    screen_file f = {.file = &model->file};
    if (size > sizeof f.name - sizeof ".screen") return FL_OK;
    f.size = (size_t)snprintf(f.name, sizeof f.name, "%.*s.screen", (int)size, output);
    if (!fl_file_tensor(f.file, f.name, f.size, "bits")) return FL_OK;
    model->screen = fl_keep(model, sizeof *model->screen);
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

/* Which of `n` texts a key has. */
static fl_status expect_key(const fl_file *file, const char *key, const char *const *expected, size_t n, size_t *which,
                            fl_error *error) {
    const fl_field *field = fl_file_field(file, key);
    const bool is_text = field && field->type == FL_GGUF_STRING;
    size_t size = 0;
    const char *text = is_text ? fl_field_string(field, 0, &size) : "";
    for (*which = 0; *which < n; ++*which)
        if (is_text && fl_same_text(text, size, expected[*which])) return FL_OK;
    char wanted[64] = "", found[80];
    for (size_t i = 0, at = 0; i < n; i++)
        at += (size_t)snprintf(wanted + at, sizeof wanted - at, "%s'%s'", i ? " or " : "", expected[i]);
    snprintf(found, sizeof found, is_text ? "'%s'" : field ? "no string" : "none", fl_show(text, size).text);
    return fl_fail(error, FL_ERROR_FORMAT, "key '%s': expected %s, found %s", key, wanted, found);
}

static fl_status read_header(const fl_file *file, fl_task *task, fl_error *error) {
    static const char *const architectures[] = {"lstm"};
    static const char *const tasks[] = {
        [FL_TASK_LM] = "lm", [FL_TASK_SEQ2SEQ] = "seq2seq", [FL_TASK_CLASSIFIER] = "classifier"};
    static const char *const zero[] = {"zero"}, *const source[] = {"source"};
    size_t which;
    fl_status status = expect_key(file, "general.architecture", architectures, 1, &which, error);
    if (!status) status = expect_key(file, "lstm.task", tasks, sizeof tasks / sizeof *tasks, &which, error);
    *task = (fl_task)which;
    if (!status)
        status = expect_key(file, "lstm.start.state", *task == FL_TASK_SEQ2SEQ ? source : zero, 1, &which, error);
    if (status) return status;
    uint32_t numerics = 0;
    status = fl_file_u32(file, "lstm.numerics_version", &numerics, error);
    if (!status && numerics != FL_NUMERICS_VERSION)
        return fl_fail(error, FL_ERROR_FORMAT, "key 'lstm.numerics_version': this engine computes version %d, found %u",
                       FL_NUMERICS_VERSION, numerics);
    return status;
}

/* ---- stores of gate rows ------------------------------------------------------------------------------ */

static fl_status make_store(fl_model *model, fl_lstm *layer, uint32_t tokens, size_t bytes, fl_error *error) {
    const size_t row = layer->groups * FL_GATES * FL_PANEL;
    size_t capacity = row ? bytes / (row * sizeof(float)) : 0;
    /* A few more than there are tokens: threads that meet the same new token waste rows. */
    if (capacity > (size_t)tokens + FL_MOST_THREADS) capacity = (size_t)tokens + FL_MOST_THREADS;
    if (capacity == 0) return FL_OK;
    fl_row_store *store = fl_keep(model, sizeof *store);
    if (store) {
        *store = (fl_row_store){.capacity = (uint32_t)capacity, .row_floats = row};
        store->slot = fl_keep(model, tokens * sizeof *store->slot);
        store->rows = fl_os_alloc(capacity * row * sizeof(float));
        layer->store = store;
    }
    if (!store || !store->slot || !store->rows)
        return fl_fail(error, FL_ERROR_MEMORY, "no memory for a row cache of %zu bytes", bytes);
    return FL_OK;
}

/* Layers that read tokens: at most so many, each NULL if there is none. */
enum { READERS = 3 };

static void find_readers(const fl_model *model, fl_lstm *readers[READERS]) {
    fl_encoder *e = model->encoder;
    readers[0] = model->layers;
    for (int way = 0; way < 2; way++)
        readers[1 + way] = e && e->layers && e->layers[way].units ? &e->layers[way] : NULL;
}

static fl_status make_stores(fl_model *model, size_t bytes, fl_error *error) {
    fl_lstm *readers[READERS];
    fl_status status = FL_OK;
    find_readers(model, readers);
    for (int i = 0; !status && i < READERS; i++)
        if (readers[i])
            status = make_store(model, readers[i], i ? model->encoder->vocab_size : model->vocab_size, bytes, error);
    return status;
}

static size_t store_bytes(const fl_row_store *store) { return store->capacity * store->row_floats * sizeof(float); }

/* ---- size ---------------------------------------------------------------------------------------------- */

/* Of the weights that are read for every token; a classifier reads its output matrix once a text. */
static size_t streamed_bytes(const fl_model *model) {
    const fl_attention *a = model->attention;
    size_t bytes = model->pooling ? 0 : fl_matrix_bytes(&model->output);
    if (a) bytes += fl_matrix_bytes(&a->context) + fl_matrix_bytes(&a->hidden);
    if (a) bytes += fl_matrix_bytes(&a->query) + fl_matrix_bytes(&a->feed);
    for (uint32_t i = 0; i < model->n_layers; i++)
        bytes += fl_matrix_bytes(&model->layers[i].h) + (i ? fl_matrix_bytes(&model->layers[i].x) : 0);
    for (uint32_t i = 0; model->pooling && i < 2 * model->encoder->n_layers; i++) {
        const fl_lstm *layer = &model->encoder->layers[i];
        bytes += fl_matrix_bytes(&layer->h) + (i > 1 ? fl_matrix_bytes(&layer->x) : 0);
    }
    return bytes;
}

/* ---- memory ------------------------------------------------------------------------------------------- */

void *fl_keep(fl_model *model, size_t bytes) {
    fl_kept *piece = calloc(1, FL_ALIGN + bytes);
    if (!piece) return NULL;
    piece->next = model->kept;
    model->kept = piece;
    return (uint8_t *)piece + FL_ALIGN;
}

/* ---- public ------------------------------------------------------------------------------------------ */

static fl_status build(fl_model *model, const fl_load_options *options, fl_error *error) {
    int32_t unknown; /* of no use here, but the file must not name a token that does not exist */
    fl_task task = FL_TASK_LM;
    fl_status status = read_header(&model->file, &task, error);
    if (!status) status = fl_read_layers(model, task, error);
    const bool copies = model->attention && model->attention->copy; /* which changes logits after they are known */
    if (!status && !model->pooling && !copies) status = read_screen(model, options->screening, error);
    if (!status) status = read_token(model, "tokenizer.ggml.bos_token_id", &model->bos, error);
    if (!status) status = read_token(model, "tokenizer.ggml.eos_token_id", &model->eos, error);
    if (!status) status = read_token(model, "tokenizer.ggml.unknown_token_id", &unknown, error);
    if (!status) status = make_stores(model, options->row_cache_bytes, error);
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
    fl_lstm *readers[READERS];
    find_readers(model, readers);
    for (int i = 0; i < READERS; i++)
        if (readers[i] && readers[i]->store) fl_os_free(readers[i]->store->rows, store_bytes(readers[i]->store));
    for (fl_kept *piece = model->kept, *next; piece; piece = next) {
        next = piece->next;
        free(piece);
    }
    fl_file_close(&model->file);
    free(model);
}

void fl_model_get_info(const fl_model *model, fl_model_info *info) {
    fl_lstm *readers[READERS];
    size_t kept = 0;
    find_readers(model, readers);
    for (int i = 0; i < READERS; i++)
        if (readers[i] && readers[i]->store) kept += store_bytes(readers[i]->store);
    const fl_encoder *source = model->pooling ? NULL : model->encoder;
    *info = (fl_model_info){
        .vocab_size = model->vocab_size,
        .embedding_size = model->embedding_size,
        .layers = model->pooling ? model->encoder->n_layers : model->n_layers,
        .bos = model->bos,
        .eos = model->eos,
        .tied = model->tied,
        .file_bytes = model->file.mapping.size,
        .row_cache_bytes = kept,
        .threads = model->threads,
        .isa = model->kernels->name,
        .screened = model->screens,
        .attends = model->attention != NULL,
        .source_vocab_size = source ? source->vocab_size : 0,
        .labels = model->n_labels,
        .bidirectional = model->pooling && fl_encoder_turns(model->encoder),
    };
}

uint32_t fl_model_units(const fl_model *model, uint32_t layer) {
    return model->pooling ? model->encoder->layers[2 * layer].units : model->layers[layer].units;
}

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
    const uint64_t least = model->pooling ? 1 : 2; /* nothing comes before the first */
    if (!given || !limit || limit->type != FL_GGUF_FLOAT32 || given->count < least)
        return fl_fail(error, FL_ERROR_FORMAT, "the file has no test vector (keys 'lstm.test.*', at least %d tokens)",
                       (int)least);
    fl_status status = fl_file_array(&model->file, "lstm.test.tokens", FL_GGUF_INT32, given->count, tokens, error);
    const uint64_t expected = model->pooling ? model->n_labels : given->count - 1;
    if (!status) status = fl_file_array(&model->file, "lstm.test.logprobs", FL_GGUF_FLOAT32, expected, logprobs, error);
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

/* Token ids below a limit as a text, to be freed. */
static fl_status copy_tokens(const char *key, const fl_field *ids, uint32_t limit, fl_source_text *text,
                             fl_error *error) {
    if (ids->count < 1 || ids->count > FL_MOST_PLACES)
        return fl_fail(error, FL_ERROR_FORMAT, "key '%s': expected 1 to %d tokens", key, FL_MOST_PLACES);
    for (uint64_t i = 0; i < ids->count; i++)
        if (fl_field_u32(ids, i) >= limit)
            return fl_fail(error, FL_ERROR_FORMAT, "key '%s': %d is not a token", key, (int)fl_field_u32(ids, i));
    int32_t *copy = malloc(ids->count * sizeof *copy);
    if (!copy) return fl_fail(error, FL_ERROR_MEMORY, "no memory for %llu tokens", (unsigned long long)ids->count);
    for (uint64_t i = 0; i < ids->count; i++) copy[i] = (int32_t)fl_field_u32(ids, i);
    *text = (fl_source_text){copy, (size_t)ids->count};
    return FL_OK;
}

/* The source that the test vector's tokens are written for; NULL for a language model. */
static fl_status read_test_source(const fl_model *model, fl_decoder *decoder, fl_source **source, fl_error *error) {
    const char *key = "lstm.test.source";
    const fl_field *given = fl_file_field(&model->file, key), *ids = NULL;
    fl_source_text text = {0};
    *source = NULL;
    if (!model->encoder) return FL_OK;
    fl_status status = fl_file_array(&model->file, key, FL_GGUF_INT32, given ? given->count : 1, &ids, error);
    if (!status) status = copy_tokens(key, ids, model->encoder->vocab_size, &text, error);
    if (!status) status = fl_read_sources(decoder, &text, 1, source, error);
    free((void *)(uintptr_t)text.tokens);
    return status;
}

/* Not a number is the worst, and stays. Of log-probabilities so low that float32 has few digits behind the point the
 * difference counts in proportion. */
static void compare_with(const fl_field *expected, uint64_t n, float found, double *largest) {
    const double wanted = float_item(expected, n), scale = fmax(1, fabs(wanted) / 64);
    const double difference = fabs((double)found - wanted) / scale;
    if (difference > *largest || isnan(difference)) *largest = difference;
}

static fl_status verify_labels(const fl_model *model, fl_decoder *decoder, const fl_field *tokens,
                               const fl_field *logprobs, double *largest, fl_error *error) {
    fl_source_text text = {0};
    float *found = malloc(model->n_labels * sizeof *found);
    fl_status status = found ? FL_OK : fl_fail(error, FL_ERROR_MEMORY, "no memory for %u labels", model->n_labels);
    if (!status) status = copy_tokens("lstm.test.tokens", tokens, model->vocab_size, &text, error);
    const fl_text judged = {NULL, text.tokens, text.n, found};
    if (!status) status = fl_classify(decoder, &judged, 1, error);
    for (uint32_t i = 0; !status && i < model->n_labels; i++) compare_with(logprobs, i, found[i], largest);
    free((void *)(uintptr_t)text.tokens);
    free(found);
    return status;
}

static fl_status verify_tokens(const fl_model *model, fl_decoder *decoder, const fl_field *tokens,
                               const fl_field *logprobs, double *largest, fl_error *error) {
    fl_state *state = NULL;
    fl_source *source = NULL;
    fl_status status = read_test_source(model, decoder, &source, error);
    if (!status) status = fl_state_new(model, &state, error);
    if (!status && source) fl_state_begin(state, source);
    for (uint64_t i = 0; !status && i < tokens->count; i++) {
        const int32_t token = (int32_t)fl_field_u32(tokens, i);
        float found;
        fl_score(decoder, state, &token, 1, &found);
        if (i) compare_with(logprobs, i - 1, found, largest); /* nothing comes before the first */
    }
    fl_state_free(state);
    fl_source_free(source);
    return status;
}

fl_status fl_model_verify(const fl_model *model, double *largest, double *tolerance, fl_error *error) {
    const fl_field *tokens, *logprobs;
    fl_decoder *decoder = NULL;
    fenv_t caller;
    *largest = 0;
    fl_status status = read_test(model, &tokens, &logprobs, tolerance, error);
    if (!status) status = fl_decoder_new(model, &decoder, error);
    fl_fp_enter(&caller); /* differences are rounded, too */
    if (!status)
        status = (model->pooling ? verify_labels : verify_tokens)(model, decoder, tokens, logprobs, largest, error);
    fl_fp_leave(&caller);
    fl_decoder_free(decoder);
    return status;
}
