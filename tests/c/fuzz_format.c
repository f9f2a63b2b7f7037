/* SPDX-License-Identifier: Apache-2.0
 *
 * Hostile model files. A file must load, and then everything must work, or be refused as a bad format: no
 * crash, no other error, no more memory than twice its size and 64 MB to load (besides the store of gate rows that the
 * caller asks for), nor 64 times its size and 64 MB to compute with a batch, and nothing kept after it is closed. Two
 * programs in one file:
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined csrc/(all).c tests/c/fuzz_format.c -Icsrc -lpthread -o fuzz
 *     cc -g -O1 -fsanitize=address,undefined -DFUZZ_MAIN csrc/(all).c tests/c/fuzz_format.c -Icsrc -lm -lpthread -o mutate
 *     ./mutate [--seed N] [--count N] [--corpus FOLDER]
 *
 * The first is a libFuzzer target; the second knows the format, aims at its numbers, and with --corpus writes
 * the valid files it starts from, which are good seeds for the first. */
#include "harness.h"
#include "tiny_model.h"

#include "fastlm.h"

#include <math.h>

enum { ROW_CACHE = 1 << 16 };
#define MEMORY_LIMIT(times, size) ((times) * (size) + ((size_t)64 << 20))

/* ---- use of a model that loads -------------------------------------------------------------------------- */

static uint32_t sum_bytes(const void *bytes, size_t size) {
    const uint8_t *p = bytes;
    uint32_t sum = 0;
    for (size_t i = 0; i < size; i++) sum += p[i];
    return sum;
}

/* Reads all that the file says of itself; arrays of strings as the header says they lie. */
static uint32_t read_index(const fl_model *model, const uint8_t *file) {
    uint32_t sum = 0;
    for (size_t i = 0; i < fl_model_field_count(model); i++) {
        fl_field field;
        fl_model_field(model, i, &field);
        sum += sum_bytes(field.key, field.key_size) + sum_bytes(field.data, field.data_size);
        const uint8_t *at = field.data;
        for (uint64_t n = 0; field.item_type == TINY_STRING && n < field.count; n++) {
            uint64_t size;
            memcpy(&size, at, 8);
            at += 8 + size;
        }
        if (field.item_type == TINY_STRING)
            check(at == field.data + field.data_size, "strings do not fill the value of key %zu", i);
    }
    for (size_t i = 0; i < fl_model_tensor_count(model); i++) {
        fl_tensor tensor;
        fl_model_tensor(model, i, &tensor);
        sum += sum_bytes(tensor.name, tensor.name_size) + sum_bytes(file + tensor.offset, tensor.size);
    }
    return sum;
}

enum { BATCH = 10, DRAWN = 3, TEXT = 35 }; /* more than a block of columns, and than is scored at once */

/* Room for a batch; each request points into it. */
typedef struct desk {
    fl_decoder *decoder;
    fl_source *sources[BATCH];
    fl_state *states[BATCH];
    int32_t text[TEXT], tokens[BATCH][DRAWN];
    float scores[TEXT], logprobs[BATCH][DRAWN];
} desk;

/* Sources of one token and more, and states that they begin. */
static bool read_sources(desk *d, uint32_t V, uint64_t *random) {
    int32_t tokens[TEXT];
    fl_source_text texts[BATCH];
    fl_error error;
    for (size_t i = 0; i < TEXT; i++) tokens[i] = (int32_t)below(random, V);
    for (size_t i = 0; i < BATCH; i++) texts[i] = (fl_source_text){tokens, 1 + below(random, TEXT)};
    if (fl_read_sources(d->decoder, texts, BATCH, d->sources, &error)) return false;
    for (size_t i = 0; i < BATCH; i++) fl_state_begin(d->states[i], d->sources[i]);
    return true;
}

static bool desk_open(desk *d, const fl_model *model, const fl_model_info *info, uint64_t *random) {
    fl_error error;
    if (fl_decoder_new(model, &d->decoder, &error)) return false;
    for (size_t i = 0; i < BATCH; i++)
        if (fl_state_new(model, &d->states[i], &error)) return false;
    for (size_t i = 0; i < TEXT; i++) d->text[i] = (int32_t)below(random, info->vocab_size);
    return !info->source_vocab_size || read_sources(d, info->source_vocab_size, random);
}

static void desk_close(desk *d) {
    for (size_t i = 0; i < BATCH; i++) fl_state_free(d->states[i]);
    for (size_t i = 0; i < BATCH; i++) fl_source_free(d->sources[i]);
    fl_decoder_free(d->decoder);
}

/* Requests of every kind, side by side; the first alone once more. Log-probabilities are at most a rounding above 0,
 * tokens are tokens. */
static void compute_batch(desk *d, const fl_model_info *info, uint64_t *random) {
    static const fl_sampling samplings[] = {{0},
                                            {.temperature = 1},
                                            {.temperature = 0.7f, .steps = {FL_TEMPERATURE, FL_TOP_K}, .top_k = 3},
                                            {.temperature = 1.2f,

                                             .steps = {FL_TYPICAL_P, FL_XTC},
                                             .typical_p = 0.8,
                                             .xtc_probability = 1,
                                             .xtc_threshold = 0.01f}};
    fl_sampling stopping[4];
    fl_request requests[BATCH];
    const size_t n = 1 + below(random, BATCH);
    const bool screened = below(random, 2); /* if there is a screen; log-probabilities need all logits */
    for (size_t i = 0; i < 4; i++) {
        stopping[i] = samplings[i];
        stopping[i].stop = &info->eos, stopping[i].n_stop = 1;
    }
    for (size_t i = 0; i < n; i++)
        requests[i] = (fl_request){.state = d->states[i],
                                   .prompt = d->text,
                                   .n_prompt = below(random, 12),
                                   .sampling = &stopping[i % 4],
                                   .seed = i % 4,
                                   .max_tokens = below(random, DRAWN + 1),
                                   .tokens = d->tokens[i],
                                   .logprobs = screened ? NULL : d->logprobs[i]};
    fl_generate(d->decoder, requests, n, 0);
    for (size_t i = 0; i < n; i++)
        for (size_t t = 0; t < requests[i].written; t++)
            check(d->tokens[i][t] >= 0 && (uint32_t)d->tokens[i][t] < info->vocab_size &&
                      (screened || d->logprobs[i][t] <= 1e-4f),
                  "token %d, %g", d->tokens[i][t], (double)d->logprobs[i][t]);
    int32_t again[DRAWN];
    fl_state_reset(d->states[0]);
    fl_request alone = requests[0];
    alone.tokens = again;
    fl_generate(d->decoder, &alone, 1, 0);
    if (screened && info->screened) return; /* a screen that lies rules out what the whole matrix would choose */
    check(alone.written == requests[0].written && memcmp(again, d->tokens[0], 4 * alone.written) == 0,
          "alone another text than in a batch of %zu", n);
}

/* Texts side by side, and each alone from a state, if the model has any. */
static void compute_labels(const fl_model *model, const fl_model_info *info, uint64_t random) {
    int32_t tokens[TEXT];
    float *logprobs = malloc((BATCH + 1) * info->labels * sizeof *logprobs), *alone = logprobs + BATCH * info->labels;
    fl_text texts[BATCH];
    fl_decoder *decoder = NULL;
    fl_state *state = NULL;
    fl_error error;
    for (size_t i = 0; i < TEXT; i++) tokens[i] = (int32_t)below(&random, info->vocab_size);
    for (size_t i = 0; i < BATCH; i++)
        texts[i] = (fl_text){NULL, tokens, 1 + below(&random, TEXT), logprobs + i * info->labels};
    const bool ready = logprobs && !fl_decoder_new(model, &decoder, &error) && !fl_state_new(model, &state, &error);
    check(ready && !fl_classify(decoder, texts, BATCH, &error), "texts are not judged");
    for (size_t i = 0; ready && i < BATCH; i++) {
        for (uint32_t n = 0; n < info->labels; n++)
            check(logprobs[i * info->labels + n] <= 1e-4f, "label %u is %g", n, (double)texts[i].logprobs[n]);
        fl_text one = texts[i];
        fl_state_reset(state);
        one.logprobs = alone, one.state = info->bidirectional ? NULL : state;
        if (!info->bidirectional && one.n > 1) { /* in two pieces */
            one.n = 1;
            fl_classify(decoder, &one, 1, &error);
            one.tokens++, one.n = texts[i].n - 1;
        }
        check(!fl_classify(decoder, &one, 1, &error), "a text is not judged");
        check(memcmp(alone, texts[i].logprobs, info->labels * sizeof *alone) == 0, "alone other labels");
    }
    fl_state_free(state);
    fl_decoder_free(decoder);
    free(logprobs);
}

static void compute(const fl_model *model, const fl_model_info *info, uint64_t random) {
    desk d = {0};
    if (info->labels) {
        compute_labels(model, info, random);
        return;
    }
    if (desk_open(&d, model, info, &random)) {
        fl_feed(d.decoder, d.states[0], d.text, 1 + below(&random, 12));
        const float *logits = fl_logits(d.decoder, d.states[0]);
        for (uint32_t i = 0; i < info->vocab_size; i++)
            check(isfinite(logits[i]), "logit %u is %g", i, (double)logits[i]);
        const size_t n = below(&random, TEXT + 1);
        fl_score(d.decoder, d.states[0], d.text, n, d.scores);
        for (size_t i = 0; i < n; i++) check(d.scores[i] <= 1e-4f, "score %g", (double)d.scores[i]);
        fl_state_reset(d.states[0]);
        compute_batch(&d, info, &random);
    } else {
        check(false, "no state or decoder");
    }
    desk_close(&d);
}

static volatile uint32_t sink;

static void use(const fl_model *model, const uint8_t *file, uint64_t random) {
    fl_model_info info;
    fl_error error;
    double largest, tolerance;
    fl_model_get_info(model, &info);
    sink = read_index(model, file);
    for (uint32_t i = 0; i < info.layers; i++) sink += fl_model_units(model, i);
    const fl_status status = fl_model_verify(model, &largest, &tolerance, &error);
    check(status == FL_OK || status == FL_ERROR_FORMAT, "verify: status %d: %s", status, error.message);
    compute(model, &info, random);
}

/* ---- one file -------------------------------------------------------------------------------------------- */

/* A message must be there, end, and be fit for a terminal: the file may try to smuggle in control characters. */
static void check_message(const fl_error *error) {
    size_t n = 0;
    while (n < sizeof error->message && error->message[n] >= 32 && error->message[n] < 127) n++;
    check(n > 0 && n < sizeof error->message && error->message[n] == 0, "the message is not clean: '%.100s'",
          error->message);
}

/* Whether the bytes load; all that must hold is checked. */
static bool try_bytes(const uint8_t *bytes, size_t size, uint64_t random) {
    const size_t level = below(&random, fl_isa_count()), cache = below(&random, 2) * ROW_CACHE;
    const fl_load_options options = {
        .isa = fl_isa_name(fl_isa_supported(level) ? level : 0), .row_cache_bytes = cache, .threads = 1};
    const int64_t mapped = watch.mapped;
    fl_model *model = NULL;
    fl_error error = {0};
    watch_begin();
    const fl_status status = fl_model_from_memory(bytes, size, &options, &model, &error);
    check(watch.bytes <= MEMORY_LIMIT(2, size) + cache, "%zu bytes of memory for a file of %zu", watch.bytes, size);
    if (status == FL_OK) use(model, bytes, random);
    fl_model_close(model);
    watch_end();
    check(watch.bytes <= MEMORY_LIMIT(64, size) + cache, "%zu bytes to compute with a file of %zu", watch.bytes, size);
    check(watch.mapped == mapped, "%lld bytes are still mapped", (long long)(watch.mapped - mapped));
    check(status == FL_OK || status == FL_ERROR_FORMAT, "status %d: %s", status, error.message);
    if (status) check_message(&error);
    return status == FL_OK;
}

#if !defined(FUZZ_MAIN)

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    now("this input");
    try_bytes(bytes, size, sum_bytes(bytes, size));
    if (failed) abort();
    return 0;
}

#else

#include "mutations.h"

/* ---- campaigns -------------------------------------------------------------------------------------------- */

enum { MODELS = 22 };

static size_t loaded, refused, opened;
static char temporary[] = "/tmp/fuzz_format_XXXXXX";

/* The same through a file, which must end in the same way. */
static void try_file(const victim *v, bool loads) {
    FILE *file = fopen(temporary, "wb");
    if (!file || fwrite(v->bytes, 1, v->size, file) != v->size || fclose(file)) {
        printf("cannot write %s\n", temporary);
        exit(2);
    }
    const fl_load_options options = {.row_cache_bytes = ROW_CACHE, .threads = 1};
    const int64_t mapped = watch.mapped;
    fl_model *model = NULL;
    fl_error error = {0};
    const fl_status status = fl_model_open(temporary, &options, &model, &error);
    check(status == (loads ? FL_OK : FL_ERROR_FORMAT), "as a file: status %d: %s", status, error.message);
    if (model) use(model, v->bytes, v->size);
    fl_model_close(model);
    check(watch.mapped == mapped, "%lld bytes of a file are still mapped", (long long)(watch.mapped - mapped));
    opened++;
}

static bool try_victim(const victim *v) {
    uint8_t *exact = malloc(v->size ? v->size : 1); /* so that the sanitizer sees a read behind it */
    memcpy(exact, v->bytes, v->size);
    const bool loads = try_bytes(exact, v->size, v->size + loaded + refused);
    free(exact);
    *(loads ? &loaded : &refused) += 1;
    if ((loaded + refused) % 16 == 0) try_file(v, loads);
    return loads;
}

/* Every length, as far as the budget reaches. */
static void try_truncations(victim *v, const tiny_model *model, size_t which, size_t budget, uint64_t *random) {
    const size_t stride = 1 + model->size / budget;
    for (size_t size = below(random, stride); size < model->size; size += stride) {
        restore(v, model);
        v->size = size;
        now("model %zu cut to %zu of %zu bytes", which, size, model->size);
        check(!try_victim(v), "loads");
    }
}

/* Every number of the header, every evil value. */
static void try_numbers(victim *v, const tiny_model *model, size_t which, size_t budget, uint64_t *random) {
    const size_t all = model->spot_count * EVIL_NUMBERS, stride = 1 + all / budget;
    for (size_t i = below(random, stride); i < all; i += stride) {
        restore(v, model);
        set_spot(v, i / EVIL_NUMBERS, i % EVIL_NUMBERS);
        now("model %zu, number at byte %zu, evil value %zu", which, model->spots[i / EVIL_NUMBERS].at,
            i % EVIL_NUMBERS);
        try_victim(v);
    }
}

/* Values that are refused, and the largest and smallest that are not, in their bits. Scales have no sign. */
typedef struct special {
    uint32_t bits;
    bool allowed, allowed_as_scale;
} special;

static const special specials_f32[] = {
    {0x7FC00000, false, false}, {0xFFC00001, false, false}, {0x7F800001, false, false}, {0x7F800000, false, false},
    {0xFF800000, false, false}, {0x7F7FFFFF, false, false}, {0x53800001, false, false}, {0xD3800001, false, false},
    {0x53800000, true, true},   {0xD3800000, true, false},  {0x00000001, true, true},   {0x80000000, true, true},
    {0x80000001, true, false},  {0x007FFFFF, true, true}};
static const special specials_bf16[] = {{0x7FC0, false, false}, {0xFF81, false, false}, {0x7F80, false, false},
                                        {0xFF80, false, false}, {0x5381, false, false}, {0xD381, false, false},
                                        {0x5380, true, false},  {0xD380, true, false},  {0x0001, true, false},
                                        {0x8000, true, false}};
static const special specials_unit[] = {
    {0x7FC00000, false, false}, {0x7F800000, false, false}, {0x3F800001, false, false}, {0xBF800001, false, false},
    {0x3F800000, true, false},  {0x80000000, true, false},  {0x00000001, true, false}};
static const special specials_byte[] = {{0x80, false, false}, {0x81, true, false}, {0x7F, true, false}};

static const struct {
    const special *list;
    size_t n;
} specials[TINY_KINDS] = {
    [OF_F32] = {specials_f32, sizeof specials_f32 / sizeof(special)},
    [OF_SCALES] = {specials_f32, sizeof specials_f32 / sizeof(special)},
    [OF_UNITS] = {specials_unit, sizeof specials_unit / sizeof(special)},
    [OF_BF16] = {specials_bf16, sizeof specials_bf16 / sizeof(special)},
    [OF_INT8] = {specials_byte, sizeof specials_byte / sizeof(special)},
    [OF_ANY_BYTES] = {specials_byte, sizeof specials_byte / sizeof(special)},
};

/* At the first, the last or another value of every tensor, also where it only fills up. */
static void try_weights(victim *v, const tiny_model *model, size_t which, uint64_t *random) {
    for (size_t t = 0; t < model->tensor_count; t++) {
        const tiny_record *r = &model->tensors[t];
        const size_t item = tiny_item_size(r->kind), count = r->data_size / item;
        for (size_t w = 0; w < specials[r->kind].n; w++) {
            const special s = specials[r->kind].list[w];
            const size_t places[] = {0, count - 1, below(random, count)};
            const bool allowed = r->kind == OF_ANY_BYTES || (r->kind == OF_SCALES ? s.allowed_as_scale : s.allowed);
            restore(v, model);
            memcpy(v->bytes + r->data + item * places[below(random, 3)], &s.bits, item);
            now("model %zu, a value of tensor %zu with bits %08x", which, t, s.bits);
            check(try_victim(v) == allowed, "%s", allowed ? "refused" : "loads");
        }
    }
}

/* Every tensor missing, of every type, with every two dimensions exchanged. A small matrix without its factors may be
 * another that makes sense, and so may rows of another type; all else is refused. */
static void try_tensors(victim *v, const tiny_model *model, size_t which) {
    static const uint32_t types[] = {0, 24, 30, 1};
    for (size_t t = 0; t < model->tensor_count; t++) {
        const tiny_record *r = &model->tensors[t];
        restore(v, model);
        drop(v, r, TENSORS_AT);
        now("model %zu without tensor %zu", which, t);
        check(!try_victim(v) || r->optional || (r->kind == OF_ANY_BYTES && !r->weight), "loads");
        for (size_t i = 0; i < 4; i++) {
            restore(v, model);
            change_type(v, r, types[i]);
            now("model %zu, tensor %zu of type %u", which, t, types[i]);
            check(!try_victim(v) || r->weight || types[i] == tiny_type(r->kind), "loads");
        }
        for (size_t a = 0; a < 4; a++)
            for (size_t b = 0; b < a; b++) {
                restore(v, model);
                now("model %zu, dimensions %zu and %zu of tensor %zu exchanged", which, a, b, t);
                const bool other = swap_dims(v, r, a, b), loads = try_victim(v);
                check(loads != other, "%s", loads ? "loads" : "refused");
            }
    }
}

static void try_random(victim *v, tiny_model *const *models, size_t count, uint64_t *random) {
    for (size_t i = 0; i < count; i++) {
        const uint64_t state = *random;
        const size_t which = below(random, MODELS);
        restore(v, models[which]);
        now("model %zu, mutation %zu (random state %llu)", which, i, (unsigned long long)state);
        mutate(v, random);
        try_victim(v);
    }
}

/* ---- the models that it starts from ------------------------------------------------------------------------ */

static tiny_model *valid_model(size_t which) {
    static const tiny_shape shapes[MODELS] = {
        {.vocab = 1, .embedding = 1, .layers = 1, .units = {1}},
        {.vocab = 7, .embedding = 3, .layers = 1, .units = {5}, .test = true},
        {.vocab = 20,
         .embedding = 6,
         .layers = 2,
         .units = {3, 6},
         .tied = true,
         .text = true,
         .test = true,
         .scale = 2,
         .output_scale = 3},
        {.vocab = 5, .embedding = 2, .layers = 3, .units = {2, 17, 1}, .text = true, .alignment = 192},
        {.vocab = 17, .embedding = 4, .layers = 1, .units = {4}, .tied = true, .test = true, .scale = 40},
        {.vocab = 33, .embedding = 1, .layers = 2, .units = {1, 2}, .text = true, .test = true, .scale = 0x1p40f},
        {.vocab = 9,
         .embedding = 6,
         .layers = 1,
         .units = {5},
         .embedding_dtype = AS_BF16,
         .x_dtype = {AS_BF16},
         .h_dtype = {AS_BF16},
         .output_dtype = AS_BF16,
         .test = true,
         .scale = 0x1p40f,
         .output_scale = 3},
        {.vocab = 18,
         .embedding = 5,
         .layers = 1,
         .units = {33},
         .embedding_dtype = AS_INT8,
         .x_dtype = {AS_INT8},
         .h_dtype = {AS_INT8},
         .output_dtype = AS_INT8,
         .text = true},
        {.vocab = 7,
         .embedding = 66,
         .layers = 1,
         .units = {9},
         .embedding_dtype = AS_INT4,
         .x_dtype = {AS_INT4},
         .h_dtype = {AS_INT4},
         .output_dtype = AS_INT4,
         .test = true},
        {.vocab = 19,
         .embedding = 3,
         .layers = 2,
         .units = {2, 3},
         .tied = true,
         .x_dtype = {AS_INT4, AS_BF16},
         .h_dtype = {AS_F32, AS_INT4},
         .output_dtype = AS_INT4,
         .scale = 4,
         .output_scale = 0x1p40f},
        {.vocab = 3,
         .embedding = 34,
         .layers = 1,
         .units = {34},
         .tied = true,
         .x_dtype = {AS_F32},
         .h_dtype = {AS_INT8},
         .output_dtype = AS_INT8,
         .test = true,
         .scale = 0x1p40f},
        {.vocab = 4,
         .embedding = 4,
         .layers = 3,
         .units = {1, 2, 3},
         .embedding_dtype = AS_INT4,
         .x_dtype = {AS_INT8, AS_F32, AS_INT4},
         .h_dtype = {AS_BF16, AS_F32, AS_INT8},
         .output_dtype = AS_BF16,
         .spread = true,
         .alignment = 128},
        {.vocab = 65, .embedding = 3, .layers = 1, .units = {5}, .planes = 1, .test = true},
        {.vocab = 17,
         .embedding = 6,
         .layers = 1,
         .units = {33},
         .output_dtype = AS_INT8,
         .planes = 2,
         .scale = 4,
         .output_scale = 0x1p40f},
        {.vocab = 9, .embedding = 3, .layers = 2, .units = {5, 5}, .encoder = 2, .encoder_units = {5, 5}, .test = true},
        {.vocab = 9,
         .embedding = 6,
         .layers = 2,
         .units = {7, 18},
         .encoder = 1,
         .encoder_units = {17},
         .source_vocab = 5,
         .both_ways = true,
         .bridge = true,
         .key = true,
         .feed = true,
         .attention = 6,
         .copy = true,
         .tied = true,
         .test = true},
        {.vocab = 20,
         .embedding = 4,
         .layers = 1,
         .units = {33},
         .encoder = 2,
         .encoder_units = {3, 20},
         .both_ways = true,
         .bridge = true,
         .additive = true,
         .feed = true,
         .attention = 19,
         .copy = true,
         .x_dtype = {AS_INT8},
         .h_dtype = {AS_INT8},
         .output_dtype = AS_INT8,
         .encoder_dtype = AS_INT8,
         .attention_dtype = AS_INT8,
         .text = true,
         .scale = 4},
        {.vocab = 3,
         .embedding = 2,
         .layers = 1,
         .units = {4},
         .encoder = 1,
         .encoder_units = {4},
         .source_vocab = 70,
         .attention = 1,
         .encoder_dtype = AS_INT4,
         .attention_dtype = AS_BF16,
         .output_dtype = AS_BF16,
         .scale = 0x1p40f},
        {.vocab = 7,
         .embedding = 3,
         .encoder = 2,
         .encoder_units = {5, 18},
         .labels = 3,
         .pooling = "pooling.attention",
         .attention = 17,
         .test = true},
        {.vocab = 7,
         .embedding = 5,
         .encoder = 1,
         .encoder_units = {5},
         .both_ways = true,
         .labels = 17,
         .pooling = "pooling.concat",
         .encoder_dtype = AS_INT8,
         .embedding_dtype = AS_INT8,
         .output_dtype = AS_BF16,
         .text = true},
        {.vocab = 3,
         .embedding = 2,
         .encoder = 1,
         .encoder_units = {20},
         .labels = 1,
         .pooling = "pooling.attention",
         .attention = 3,
         .attention_dtype = AS_INT4,
         .scale = 0x1p40f,
         .test = true},
        {.vocab = 3, .embedding = 2, .encoder = 1, .encoder_units = {4}, .labels = 2, .pooling = "pooling.last"},
    };
    return tiny_new(&shapes[which]);
}

/* Valid ones load, from disk too; one that contradicts itself does not. */
static void try_valid(victim *v, tiny_model *const *models) {
    for (size_t i = 0; i < MODELS; i++) {
        restore(v, models[i]);
        now("valid model %zu", i);
        const bool loads = try_victim(v);
        check(loads, "refused");
        try_file(v, loads);
    }
    tiny_model *wrong = tiny_new(&(tiny_shape){.vocab = 5, .embedding = 3, .layers = 1, .units = {4}, .tied = true});
    restore(v, wrong);
    now("a tied embedding that is not as wide as the last layer");
    check(!try_victim(v), "loads");
    tiny_free(wrong);
}

/* The most inputs whose whole sums fit 32 bits (docs/numerics.md), and one more. */
static void try_limits(void) {
    static const struct {
        tiny_dtype dtype;
        uint32_t inputs;
    } most[] = {{AS_INT8, 1 << 17}, {AS_INT4, 1 << 14}};
    for (size_t i = 0; i < 4; i++) {
        tiny_shape shape = {.vocab = 1, .layers = 1, .units = {1}};
        shape.embedding = most[i / 2].inputs + i % 2;
        shape.x_dtype[0] = most[i / 2].dtype;
        tiny_model *file = tiny_new(&shape);
        fl_model *model = NULL;
        fl_error error;
        now("%s, %u inputs", dtype_names[shape.x_dtype[0]], shape.embedding);
        const fl_status status = fl_model_from_memory(file->bytes, file->size, NULL, &model, &error);
        check(status == (i % 2 ? FL_ERROR_FORMAT : FL_OK), "status %d", status);
        fl_model_close(model);
        tiny_free(file);
    }
}

static void write_corpus(const char *folder, tiny_model *const *models) {
    for (size_t i = 0; i < MODELS; i++) {
        char path[1000];
        snprintf(path, sizeof path, "%s/valid_%zu.gguf", folder, i);
        FILE *file = fopen(path, "wb");
        if (!file || fwrite(models[i]->bytes, 1, models[i]->size, file) != models[i]->size || fclose(file)) {
            printf("cannot write %s\n", path);
            exit(2);
        }
    }
}

/* About a fifth of the budget for truncations, two fifths for numbers, the rest at random. */
static void campaign(tiny_model *const *models, size_t count, uint64_t *random) {
    victim v = {.room = 1 << 16};
    for (size_t i = 0; i < MODELS; i++)
        if (v.room < 2 * models[i]->size) v.room = 2 * models[i]->size;
    v.bytes = malloc(v.room);
    if (!v.bytes) exit(2);
    const int handle = mkstemp(temporary);
    if (handle < 0) exit(2);
    close(handle);
    try_valid(&v, models);
    try_limits();
    for (size_t i = 0; i < MODELS; i++) {
        try_truncations(&v, models[i], i, 1 + count / 5 / MODELS, random);
        try_numbers(&v, models[i], i, 1 + 2 * count / 5 / MODELS, random);
        try_weights(&v, models[i], i, random);
        try_tensors(&v, models[i], i);
    }
    const size_t done = loaded + refused;
    try_random(&v, models, done < count ? count - done : 0, random);
    unlink(temporary);
    free(v.bytes);
}

int main(int argc, char **argv) {
    uint64_t seed = clock_seed();
    size_t count = 100000;
    const char *corpus = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
            seed = strtoull(argv[++i], NULL, 0);
        else if (strcmp(argv[i], "--count") == 0 && i + 1 < argc)
            count = (size_t)strtoull(argv[++i], NULL, 0);
        else if (strcmp(argv[i], "--corpus") == 0 && i + 1 < argc)
            corpus = argv[++i];
        else
            return fprintf(stderr, "usage: %s [--seed N] [--count N] [--corpus FOLDER]\n", *argv), 2;
    }
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ); /* a run that hangs still shows what has failed */
    printf("seed %llu\n", (unsigned long long)seed);
    catch_faults();
    uint64_t random = seed;
    tiny_model *models[MODELS];
    for (size_t i = 0; i < MODELS; i++) models[i] = valid_model(i);
    if (corpus)
        write_corpus(corpus, models);
    else
        campaign(models, count, &random);
    for (size_t i = 0; i < MODELS; i++) tiny_free(models[i]);
    printf("%zu files: %zu loaded, %zu refused; %zu of them opened from disk too\n", loaded + refused, loaded, refused,
           opened);
    return report(seed);
}

#endif
