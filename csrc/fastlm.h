/* SPDX-License-Identifier: Apache-2.0
 *
 * fastlm: LSTM language models on CPUs. The only public header of the C core.
 *
 * A model is immutable once loaded and may be used by many threads at once. A state and a decoder each belong to one
 * thread at a time and must be freed before their model is closed; any decoder of a model works on any of its
 * states. Only opening a model, creating a state or a decoder and verifying can fail; the calls that compute validate
 * nothing that costs time per token, and their preconditions are stated. No call prints, exits or aborts.
 */
#ifndef FASTLM_H
#define FASTLM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

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

typedef struct fl_load_options {
    const char *isa;        /* as for fl_isa_choose */
    size_t row_cache_bytes; /* address space set aside for first-layer gate rows; 0: none are kept */
    uint32_t threads; /* that share the work of a step, the caller among them, at most 64 and at most as many as the
                               process may run on; 0: the environment's FASTLM_THREADS, else as many as the model's size
                               and the machine make useful (a container's quota counts) */
} fl_load_options;

typedef struct fl_model_info {
    uint32_t vocab_size;     /* V: tokens are 0 … V-1 */
    uint32_t embedding_size; /* E */
    uint32_t layers;         /* L: LSTM layers */
    int32_t bos, eos;        /* -1: the file names none */
    int tied;                /* 1: the output matrix is the embedding */
    size_t file_bytes;
    size_t row_cache_bytes; /* what the store of gate rows may grow to */
    uint32_t threads;       /* at most, and never more than the processors that the process may run on */
    const char *isa;
} fl_model_info;

/* Maps the file at path and validates all of it; the mapping lives as long as the model. options: NULL means all
 * zero, here and below. */
fl_status fl_model_open(const char *path, const fl_load_options *options, fl_model **model, fl_error *error);
/* The same from memory; the bytes are copied. */
fl_status fl_model_from_memory(const void *bytes, size_t size, const fl_load_options *options, fl_model **model,
                               fl_error *error);
void fl_model_close(fl_model *model); /* NULL is allowed */
void fl_model_get_info(const fl_model *model, fl_model_info *info);
uint32_t fl_model_units(const fl_model *model, uint32_t layer); /* H of one LSTM layer, layer < L */

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
    size_t size;      /* bytes */
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

/* ---- state: a sequence's past --------------------------------------------------------------------- */

/* The state of a fresh network: all zero, position 0. */
fl_status fl_state_new(const fl_model *model, fl_state **state, fl_error *error);
void fl_state_free(fl_state *state); /* NULL is allowed */
/* Back to the state of a fresh network. */
void fl_state_reset(fl_state *state);
/* Makes a state that of another of the same model. */
void fl_state_copy(fl_state *state, const fl_state *from);
/* Tokens read since the last reset. */
uint64_t fl_state_position(const fl_state *state);

/* ---- decoder: the room to compute in --------------------------------------------------------------- */

fl_status fl_decoder_new(const fl_model *model, fl_decoder **decoder, fl_error *error);
void fl_decoder_free(fl_decoder *decoder); /* NULL is allowed */

/* Reads n tokens, each of which must be in 0 … V-1. */
void fl_feed(fl_decoder *decoder, fl_state *state, const int32_t *tokens, size_t n);
/* Logits of the next token, V floats, valid until the next call on this decoder. */
const float *fl_logits(fl_decoder *decoder, const fl_state *state);
/* Reads n tokens; logprobs[i] receives the natural log-probability of tokens[i] given all before it. */
void fl_score(fl_decoder *decoder, fl_state *state, const int32_t *tokens, size_t n, float *logprobs);

typedef struct fl_sampling {
    float temperature; /* ≥ 0 and finite; 0: the likeliest token, lowest id among equals */
    uint32_t top_k;    /* keep the k likeliest; 0: all */
    double top_p;      /* then keep the fewest whose share of what is left reaches p ≤ 1; 0: all */
    uint64_t seed;
    uint32_t index; /* which of the n samples of one prompt: each has its own noise */
} fl_sampling;

typedef enum fl_finish { FL_FINISH_LENGTH = 0, FL_FINISH_STOP } fl_finish;

/* One text to write on. */
typedef struct fl_request {
    fl_state *state;
    const int32_t *prompt; /* tokens in 0 … V-1 that are read first */
    size_t n_prompt;
    fl_sampling sampling;
    const int32_t *stop; /* a token found here ends the text and is not written */
    size_t n_stop;
    size_t max_tokens;
    int32_t *tokens;  /* receives up to max_tokens */
    float *logprobs;  /* NULL, or receives each one's natural log-probability under the full softmax, temperature 1 */
    size_t written;   /* result: number of tokens */
    fl_finish finish; /* result */
} fl_request;

/* Reads the prompts, then draws tokens for all requests side by side, each with a state of its own. A result does
 * not depend on the other requests. The last token written has not been read: to go on, pass it as the next call's
 * prompt. */
void fl_generate(fl_decoder *decoder, fl_request *requests, size_t n);

#ifdef __cplusplus
}
#endif
#endif
