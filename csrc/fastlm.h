/* SPDX-License-Identifier: Apache-2.0
 *
 * fastlm: LSTM language models on CPUs. The only public header of the C core.
 *
 * A model is immutable once loaded and may be used by many threads at once. A state and a decoder each belong to one
 * thread at a time and must be freed before their model is closed; any decoder of a model works on any of its
 * states. Only opening a model, creating a state or a decoder, verifying, reading sources and classifying can fail; the calls that compute validate
 * nothing that costs time per token, and their preconditions are stated. No call prints, exits or aborts.
 */
#ifndef FASTLM_H
#define FASTLM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Version of docs/numerics.md that is computed: which bits a model, a state or a seed gives. */
enum { FL_NUMERICS_VERSION = 1 };

typedef struct fl_model fl_model;
typedef struct fl_state fl_state;
typedef struct fl_decoder fl_decoder;

typedef enum fl_status {
    FL_OK = 0,
    FL_ERROR_FORMAT,   /* the bytes are not a model file that this version can run */
    FL_ERROR_OS,       /* the operating system refused; fl_error.os_code is errno */
    FL_ERROR_MEMORY,   /* out of memory */
    FL_ERROR_ARGUMENT, /* an argument is out of its range */
} fl_status;

typedef struct fl_error {
    fl_status status;
    int os_code;
    char message[512]; /* what, where, expected, found; NUL-terminated */
} fl_error;

/* ---- processor ---------------------------------------------------------------------------------- */

/* Number of instruction-set levels compiled in, slowest first, and the name of each ("scalar", "avx2", …);
 * index is below that number. */
size_t fl_isa_count(void);
const char *fl_isa_name(size_t index);
/* 1 if this processor and operating system can run the level, else 0. */
int fl_isa_supported(size_t index);
/* The level that a model would use: isa by name if it is not NULL, else the environment's FASTLM_ISA, else the
 * best supported. FL_ERROR_ARGUMENT if it is unknown or not supported. */
fl_status fl_isa_choose(const char *isa, const char **name, fl_error *error);

/* ---- model -------------------------------------------------------------------------------------- */

/* When a screen of the output matrix (docs/screening.md), if the file has one, is used. No token depends on it. */
typedef enum fl_screening {
    FL_SCREEN_USEFUL = 0, /* where it is faster */
    FL_SCREEN_NEVER,
    FL_SCREEN_ALWAYS,
    FL_SCREEN_CHECKED, /* always, and all that it says is compared with the whole matrix: slow */
} fl_screening;

typedef struct fl_load_options {
    const char *isa; /* as for fl_isa_choose */
    size_t
        row_cache_bytes; /* address space set aside for gate rows of each layer that reads tokens; 0: none are kept */
    uint32_t threads;    /* that share the work of a step, the caller among them, at most 64 and at most as many as the
                               process may run on; 0: the environment's FASTLM_THREADS, else as many as the model's size
                               and the machine make useful (a container's quota counts) */
    fl_screening screening;
} fl_load_options;

typedef struct fl_model_info {
    uint32_t vocab_size;     /* V: tokens are 0 … V-1 */
    uint32_t embedding_size; /* E */
    uint32_t layers;         /* L: LSTM layers */
    int32_t bos, eos;        /* -1: the file names none */
    int tied;                /* 1: the output matrix is the embedding */
    size_t file_bytes;
    size_t row_cache_bytes; /* what the stores of gate rows may grow to, all together */
    uint32_t threads;       /* at most, and never more than the processors that the process may run on */
    const char *isa;
    int screened;               /* 1: the file has a screen, and it is used */
    int attends;                /* 1: the model has attention */
    uint32_t source_vocab_size; /* of a sequence-to-sequence model; 0: no such model */
    uint32_t labels;            /* of a classifier; 0: no classifier */
    int bidirectional;          /* 1: a classifier that reads in both directions */
} fl_model_info;

/* Maps the file at path and validates all of it; the mapping lives as long as the model. options: NULL means all
 * zero, here and below. */
fl_status fl_model_open(const char *path, const fl_load_options *options, fl_model **model, fl_error *error);
/* The same from memory; the bytes are copied. */
fl_status fl_model_from_memory(const void *bytes, size_t size, const fl_load_options *options, fl_model **model,
                               fl_error *error);
void fl_model_close(fl_model *model); /* NULL is allowed */
void fl_model_get_info(const fl_model *model, fl_model_info *info);
uint32_t fl_model_units(const fl_model *model, uint32_t layer); /* H of one LSTM layer (in one direction), layer < L */

/* A key of the file with its value where it lies. Strings are UTF-8, here and in names. Arrays of strings are
 * stored as in GGUF: for each an 8-byte little-endian length, then that many bytes; the reader has checked them. */
typedef struct fl_field {
    const char *key;
    size_t key_size;
    uint32_t type;      /* GGUF value type */
    uint32_t item_type; /* arrays: type of an item */
    uint64_t count;     /* arrays: items; else 1 */
    const uint8_t *data;
    size_t data_size;
} fl_field;

typedef struct fl_tensor {
    const char *name;
    size_t name_size;
    uint32_t n_dims;
    uint64_t dims[4]; /* GGUF order: the first varies fastest; unused ones are 1 */
    uint32_t type;    /* GGML tensor type */
    uint64_t offset;  /* from the start of the file */
    const uint8_t *data;
    size_t size; /* bytes */
} fl_tensor;

/* Numbers of keys and tensors in the file; index is below them. */
size_t fl_model_field_count(const fl_model *model);
void fl_model_field(const fl_model *model, size_t index, fl_field *field);
size_t fl_model_tensor_count(const fl_model *model);
void fl_model_tensor(const fl_model *model, size_t index, fl_tensor *tensor);

/* Runs the file's test vector. *largest receives the largest difference of a log-probability (natural
 * logarithm) from the stored one, *tolerance the file's own limit, which is at most 1. FL_ERROR_FORMAT if the file
 * has none. */
fl_status fl_model_verify(const fl_model *model, double *largest, double *tolerance, fl_error *error);

/* ---- source: what a sequence-to-sequence model was given -------------------------------------------- */

/* A source that was read. Belongs to no thread: nothing changes it. It must be freed before its model is closed, and after
 * all states that it has begun. */
typedef struct fl_source fl_source;

/* Tokens of a source, each in 0 … source_vocab_size-1; n from 1 to 16 384. */
typedef struct fl_source_text {
    const int32_t *tokens;
    size_t n;
} fl_source_text;

/* Reads n sources; a result does not depend on the others. If one cannot be had, there are none. */
fl_status fl_read_sources(fl_decoder *decoder, const fl_source_text *texts, size_t n, fl_source **sources,
                          fl_error *error);
void fl_source_free(fl_source *source); /* NULL is allowed */
size_t fl_source_size(const fl_source *source);

/* ---- state: a sequence's past --------------------------------------------------------------------- */

/* The state of a fresh network: all zero, position 0. */
fl_status fl_state_new(const fl_model *model, fl_state **state, fl_error *error);
void fl_state_free(fl_state *state); /* NULL is allowed */
/* Back to the state of a fresh network, or to that which its source began. */
void fl_state_reset(fl_state *state);
/* Becomes the first state behind a source. Without one a sequence-to-sequence model's state sees nothing. */
void fl_state_begin(fl_state *state, const fl_source *source);
/* Makes a state that of another of the same model. */
void fl_state_copy(fl_state *state, const fl_state *from);
/* Tokens read since the last reset. */
uint64_t fl_state_position(const fl_state *state);
/* All of a state but its position, as numbers; and back. FL_ERROR_ARGUMENT, and nothing is changed, if these are not numbers
 * that a state can have. */
const float *fl_state_values(const fl_state *state, size_t *n);
fl_status fl_state_set(fl_state *state, const fl_model *model, uint64_t position, const float *values, fl_error *error);

/* ---- decoder: the room to compute in --------------------------------------------------------------- */

fl_status fl_decoder_new(const fl_model *model, fl_decoder **decoder, fl_error *error);
void fl_decoder_free(fl_decoder *decoder); /* NULL is allowed */

/* Reads n tokens, each of which must be in 0 … V-1. */
void fl_feed(fl_decoder *decoder, fl_state *state, const int32_t *tokens, size_t n);
/* Logits of the next token, V floats, valid until the next call on this decoder. */
const float *fl_logits(fl_decoder *decoder, const fl_state *state);
/* Natural log-probabilities of the next token: V of them. */
void fl_logprobs(fl_decoder *decoder, const fl_state *state, float *logprobs);
/* n states read a token each, side by side; [n][V] natural log-probabilities of what follows each. */
void fl_advance(fl_decoder *decoder, fl_state *const *states, const int32_t *tokens, size_t n, float *logprobs);

/* What may follow a state, for searches that need no more of it. */
typedef struct fl_branches {
    double ended, listed, unlisted; /* probability of all tokens with `ending`, and of others that are listed, or not */
    size_t n;                       /* so many of the others are listed, */
    int32_t *ids;                   /* [most], the likeliest first, */
    float *logprobs;                /* with their natural log-probabilities */
} fl_branches;

/* The same, but of what follows only this is told. tokens NULL: nothing is read. ending: [V], 1 or 0. */
void fl_follow(fl_decoder *decoder, fl_state *const *states, const int32_t *tokens, size_t n, const uint8_t *ending,
               uint32_t most, fl_branches *branches);
/* Reads n tokens; logprobs[i] receives the natural log-probability of tokens[i] given all before it. */
void fl_score(fl_decoder *decoder, fl_state *state, const int32_t *tokens, size_t n, float *logprobs);

/* Reads n tokens, with a state that a source has begun, of a model with attention: weights[i] receives, of every place of the
 * source, how much of it the token behind tokens[i] is written from. [n][places]; a row adds up to 1. */
void fl_align(fl_decoder *decoder, fl_state *state, const int32_t *tokens, size_t n, float *weights);

/* What fl_score is given; fl_classify has other logprobs, and the state may be NULL. */
typedef struct fl_text {
    fl_state *state;
    const int32_t *tokens;
    size_t n;
    float *logprobs;
} fl_text;

/* The same for many texts side by side, each with a state of its own: faster where there are several. */
void fl_score_texts(fl_decoder *decoder, const fl_text *texts, size_t n);

/* ---- classifier ---------------------------------------------------------------------------------------- */

/* Reads texts, n of each from 1 to 16 384, each from where its state stands (NULL: from the beginning), which then stands
 * behind it; logprobs[labels] receives the natural log-probabilities of the labels. A result does not depend on the other
 * texts. All states must differ; FL_ERROR_ARGUMENT if there is one of a model that also reads backwards. After an error
 * some texts, and their states, may have been read, and the rest are as they were. Nothing but this, fl_model_verify, and what makes, copies, resets and
 * frees states and decoders, and tells a state's position, may be called for a classifier. */
fl_status fl_classify(fl_decoder *decoder, const fl_text *texts, size_t n, fl_error *error);

/* ---- memory: what a decoder remembers of a text -------------------------------------------------------- */

/* Penalties, bans of repetitions and mirostat look back at a text. Its memory belongs to one thread at a time. */
typedef struct fl_memory fl_memory;

/* window: the last so many tokens count for the penalties; 0: all. The memory is empty, and mirostat not begun. */
fl_status fl_memory_new(const fl_model *model, uint32_t window, fl_memory **memory, fl_error *error);
void fl_memory_free(fl_memory *memory); /* NULL is allowed */
/* Makes room for so many more tokens; the calls below and fl_generate need it, and do not look. */
fl_status fl_memory_reserve(fl_memory *memory, size_t more, fl_error *error);
/* Makes a memory that of another of the same model and window. */
fl_status fl_memory_copy(fl_memory *memory, const fl_memory *from, fl_error *error);
/* Adds tokens that were read (written 0) or that the model wrote (1), each in 0 … V-1. */
void fl_memory_add(fl_memory *memory, const int32_t *tokens, size_t n, int written);
/* Forgets all but the first n tokens, n at most as many as there are. */
void fl_memory_rewind(fl_memory *memory, size_t n);
size_t fl_memory_size(const fl_memory *memory);
/* All tokens, and for each whether it was written; valid until the next change. */
const int32_t *fl_memory_tokens(const fl_memory *memory);
const uint8_t *fl_memory_written(const fl_memory *memory);
/* And the surprise that mirostat allowed after it (its mu, in bits); NaN before mirostat's first token. */
const float *fl_memory_surprises(const fl_memory *memory);
void fl_memory_set_surprises(fl_memory *memory, const float *surprises);

/* ---- the next token ---------------------------------------------------------------------------------- */

/* Steps from logits to the set of tokens of which one is drawn. Each sees what those before it have left; none but the
 * first three changes a logit, and they come before all others. docs/options.md defines them. */
typedef enum fl_control {
    FL_NO_CONTROL = 0, /* ends a list of steps */
    FL_LOGIT_BIAS,
    FL_PENALTIES,   /* repetition, frequency, presence; needs a memory */
    FL_DRY,         /* needs a memory */
    FL_TEMPERATURE, /* what follows sees logits / temperature; the draw always does */
    FL_TOP_N_SIGMA,
    FL_TOP_K,
    FL_TOP_P,
    FL_MIN_P,
    FL_TYPICAL_P,
    FL_EPSILON_CUTOFF,
    FL_ETA_CUTOFF,
    FL_XTC,
    FL_MIROSTAT, /* needs a memory */
    FL_CONTROLS,
} fl_control;

/* ---- index of a corpus -------------------------------------------------------------------------- */

/* Which runs of tokens stand in a corpus, exactly (docs/format.md, "The index of a corpus"). Immutable; any number of
 * threads may ask it. */
typedef struct fl_index fl_index;

/* The data must be aligned to 8 bytes and outlive the index. */
fl_status fl_index_open(const void *data, size_t size, fl_index **index, fl_error *error);
void fl_index_free(fl_index *index); /* NULL is allowed */
size_t fl_index_vocab_size(const fl_index *index);
uint64_t fl_index_tokens(const fl_index *index);
/* How often n ≥ 1 tokens stand there in a row; what blocks share is counted in each. */
uint64_t fl_index_count(const fl_index *index, const int32_t *tokens, size_t n);
/* For each of n tokens: how many tokens, it and those before it, stand there in a row at most. */
void fl_index_longest(const fl_index *index, const int32_t *tokens, size_t n, uint32_t *lengths);

/* ---- drawing ------------------------------------------------------------------------------------ */

/* How a text is drawn. All zero: greedy. A field counts only if its step is among the steps; arrays belong to the caller. */
typedef struct fl_sampling {
    float temperature;          /* 0 to 2^60; 0: the likeliest token, lowest id among equals, and no restricting step */
    uint8_t steps[FL_CONTROLS]; /* those that act, in order */

    const int32_t *bias_ids; /* each once */
    const float *biases;     /* finite, or minus infinity */
    size_t n_biases;
    float repetition_penalty, frequency_penalty, presence_penalty; /* neutral: 1, 0, 0 */
    float dry_multiplier, dry_base;
    uint32_t dry_allowed_length, dry_window; /* in tokens; window 0: all */
    const uint8_t *dry_breakers;             /* [V]: 1 for tokens across which nothing is repeated; NULL: none */

    float top_n_sigma;
    uint32_t top_k; /* ≥ 1 */
    double top_p;   /* above 0, at most 1 */
    float min_p;    /* above 0, at most 1, and so the next three */
    double typical_p;
    float epsilon_cutoff, eta_cutoff;
    float xtc_probability, xtc_threshold;
    float mirostat_tau, mirostat_eta; /* in bits */

    /* Tokens that may not come. */
    uint32_t no_repeat_ngram_size; /* 0: any may; needs a memory */
    const int32_t *bad_words;      /* one after the other, */
    const size_t *bad_ends;        /* [n_bad_words]: where each ends; longer ones than 1 need a memory */
    size_t n_bad_words;
    const fl_index *corpus; /* NULL, or of a corpus of which no more than */
    uint32_t most_copied;   /* ≥ 1 tokens in a row may be written; needs a memory */

    /* Contrastive decoding: (1 + beta) * logit - beta * the logit of a second model with the same vocabulary, for tokens
     * that the first gives at least alpha times the probability of its likeliest. */
    fl_decoder *amateur; /* NULL: none */
    float contrast_alpha, contrast_beta;

    /* When a text ends. */
    const int32_t *stop; /* a token found here ends the text and is not written */
    size_t n_stop;
    const uint8_t *pauses; /* [V]: 1 for a token after which the call shall return; NULL: none */
    uint32_t
        stop_repeats; /* the text ends when a pattern of 1 … 64 tokens was written so often; 0: never; needs a memory */
} fl_sampling;

typedef enum fl_finish {
    FL_FINISH_LENGTH = 0,
    FL_FINISH_STOP,
    FL_FINISH_PAUSE,
    FL_FINISH_REPETITION,
    FL_FINISH_UNSATISFIABLE, /* no token was left */
    FL_FINISH_DEADLINE,
} fl_finish;

/* One text to write on. */
typedef struct fl_request {
    fl_state *state;
    fl_state *amateur; /* of sampling->amateur's model; NULL if there is none */
    fl_memory *memory; /* NULL if nothing needs it; tokens that are written are added, what is read the caller adds */
    const int32_t *prompt; /* tokens in 0 … V-1 that are read first */
    size_t n_prompt;       /* becomes 0 if time was up before it was read */
    const fl_sampling *sampling;
    uint64_t seed;
    uint32_t index;          /* which of the n samples of one prompt: each has its own noise */
    const uint32_t *allowed; /* bit t % 32 of word t / 32: token t may come; NULL: all may */
    size_t min_tokens;       /* before so many are written in this call, no token of `stop` comes */
    size_t max_tokens;
    uint32_t alternatives; /* also report the so many likeliest tokens at each place, at most V */
    int32_t *tokens;       /* receives up to max_tokens */
    float *logprobs; /* NULL, or receives each one's natural log-probability under the full softmax, temperature 1,
                              of what the model said before any control */
    int32_t *alternative_ids; /* [max_tokens][alternatives], the likeliest first, and their log-probabilities */
    float *alternative_logprobs;
    /* For fl_expand. */
    const int32_t *asked; /* further tokens whose log-probabilities are wanted */
    size_t n_asked;
    float *asked_logprobs; /* receives them; minus infinity where a token may not come */
    float *keys;           /* [alternatives], or NULL: the alternatives are drawn instead, see there */
    size_t written;        /* result: number of tokens */
    fl_finish finish;      /* result */
    int32_t ended_by;      /* result: the token of `stop` that ended the text; -1: none did */
    /* Of a text's screening so far: 0 before its first call, and each call adds to them. They tell whether it is worth it
     * to go on. */
    size_t screened; /* tokens that were drawn with a screen, */
    size_t finished; /* rows that it could not rule out, over all of them, */
    size_t computed; /* rows that were computed for their sake, */
    size_t wrong;    /* and, where this is checked, bounds that did not hold and tokens that differed */
} fl_request;

/* Reads the prompts, then draws tokens for all requests side by side, each with a state of its own. A result does
 * not depend on the other requests. The last token written has not been read: to go on, pass it as the next call's
 * prompt. All requests have an amateur of one decoder, or none has one. deadline: on fl_clock, after which no further token
 * is begun (finish FL_FINISH_DEADLINE); 0: none. */
void fl_generate(fl_decoder *decoder, fl_request *requests, size_t n, uint64_t deadline);
/* For searches: reads the prompts and reports each request's `alternatives` likeliest next tokens with their natural
 * log-probabilities. Bans and steps that change logits act on log-probabilities, which are not made to add up to 1
 * again (as in Hugging Face's beam search); where fewer tokens may come, the rest are -1. Writes nothing; max_tokens is 1.
 *
 * With `keys` the alternatives are drawn without replacement from what fl_generate would draw one from: the first is its
 * token. Their log-probabilities are those with which they are drawn, and keys are these plus Gumbel noise, by which
 * they are ordered (Kool et al. 2019). The temperature is above 0. */
void fl_expand(fl_decoder *decoder, fl_request *requests, size_t n);
/* Nanoseconds of a clock that only goes forward. */
uint64_t fl_clock(void);

/* Writes one token of a request, as fl_generate would, from logits of the caller's (V floats, not NaN, below infinity),
 * after fl_logits of its state, which log-probabilities are of. Reads nothing. */
void fl_draw(fl_decoder *decoder, const float *logits, fl_request *request);
/* After fl_logits: the tokens that fl_generate would draw from, in no order, with their logits, which
 * controls may have changed. ids and logits have room for V. Returns how many. */
size_t fl_candidates(fl_decoder *decoder, const fl_request *request, int32_t *ids, float *logits);

/* ---- compression ------------------------------------------------------------------------------------- */

/* A range coder on a model's probabilities. What follows the same calls with the same model reads what was written, on
 * every machine (docs/format.md). */
typedef struct fl_coder fl_coder;

/* bytes NULL: writes; else reads them (a copy). */
fl_status fl_coder_new(const void *bytes, size_t size, fl_coder **coder, fl_error *error);
void fl_coder_free(fl_coder *coder); /* NULL is allowed */
/* Writes tokens as the model expects them after the state, which reads them. escapes: 1 if there may be an escape among
 * them, here or later; the reader must say the same. */
void fl_encode(fl_decoder *decoder, fl_state *state, fl_coder *coder, const int32_t *tokens, size_t n, int escapes);
/* Something that is no token follows. */
void fl_encode_escape(fl_decoder *decoder, const fl_state *state, fl_coder *coder);
/* A number below 2^bits, bits at most 16, each as likely. */
void fl_encode_bits(fl_coder *coder, uint32_t value, int bits);
/* What was written, after which nothing may be. */
fl_status fl_coder_finish(fl_coder *coder, const uint8_t **bytes, size_t *size, fl_error *error);
/* Reads up to n tokens, fewer before an escape (which is then read) or where the bytes are at an end. */
size_t fl_decode(fl_decoder *decoder, fl_state *state, fl_coder *coder, int32_t *tokens, size_t n, int escapes);
uint32_t fl_decode_bits(fl_coder *coder, int bits);
/* 1 if more was read than anybody has written. */
int fl_coder_is_past_end(const fl_coder *coder);

#ifdef __cplusplus
}
#endif
#endif
