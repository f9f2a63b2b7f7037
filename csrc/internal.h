/* SPDX-License-Identifier: Apache-2.0
 *
 * Private types of the core, in the order in which a model comes to life: file, weights, state, session. */
#ifndef FL_INTERNAL_H
#define FL_INTERNAL_H

#include "fastlm.h"

#include <fenv.h>
#include <float.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "model files are little-endian and used where they lie: this processor would have to swap them"
#endif

#if defined(__FAST_MATH__) || (defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0)
#error "every rounding is promised (docs/numerics.md): no -ffast-math, and no x87 arithmetic"
#endif

/* A product and a sum are fused exactly where the code says fma. GCC contracts on its own and ignores the
 * standard's pragma (docs/numerics.md), so each compiler is told in its own words. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

enum {
    FL_PANEL = 16,   /* output rows that lie side by side in the file */
    FL_GATES = 4,    /* i, f, g, o */
    FL_ALIGN = 64,   /* bytes: a cache line, an AVX-512 register */
    FL_BLOCK = 64,   /* tokens that share one noise counter group: FL_PANEL lanes x 4 words */
    FL_NUMERICS = 1, /* version of docs/numerics.md that this engine computes */
};

static inline size_t fl_round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/* ---- errors: error.c ----------------------------------------------------------------------------- */

fl_status fl_fail(fl_error *error, fl_status status, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 3, 4)))
#endif
    ;

/* What a file says, fit to be shown in a message: printable, and not longer than a line. */
typedef struct fl_shown {
    char text[65];
} fl_shown;

fl_shown fl_show(const char *text, size_t size);

/* ---- operating system: os.c ---------------------------------------------------------------------- */

typedef struct fl_mapping {
    const uint8_t *bytes;
    size_t size;
    bool mapped; /* else allocated */
} fl_mapping;

fl_status fl_os_map(const char *path, fl_mapping *mapping, fl_error *error);
fl_status fl_os_copy(const void *bytes, size_t size, fl_mapping *mapping, fl_error *error);
void fl_os_unmap(fl_mapping *mapping);
void *fl_os_alloc(size_t size); /* FL_ALIGN-aligned, zeroed, pages touched only when used; NULL: none left */
void fl_os_free(void *memory, size_t size);

/* ---- file: format.c ------------------------------------------------------------------------------ */

typedef struct fl_file {
    fl_mapping mapping;
    fl_field *fields; /* every key, pointing into the mapping */
    size_t n_fields;
    fl_tensor *tensors; /* every tensor; its bytes are inside the mapping, FL_ALIGN-aligned */
    size_t n_tensors;
} fl_file;

/* Takes the mapping over, also when it fails. */
fl_status fl_file_parse(fl_mapping mapping, fl_file *file, fl_error *error);
void fl_file_close(fl_file *file);

const fl_field *fl_file_field(const fl_file *file, const char *key);
fl_status fl_file_u32(const fl_file *file, const char *key, uint32_t *value, fl_error *error);
fl_status fl_file_array(const fl_file *file, const char *key, uint32_t item_type, uint64_t count,
                        const fl_field **field, fl_error *error);
/* The n-th string of an array of strings that fl_file_array has returned; not NUL-terminated. */
const char *fl_field_string(const fl_field *field, uint64_t n, size_t *size);
uint32_t fl_field_u32(const fl_field *field, uint64_t n); /* n-th of an array of 32-bit numbers, its bits */
bool fl_same_text(const char *text, size_t size, const char *expected);
/* An f32 tensor "prefix.suffix" of exactly these dimensions, all of whose values are finite and at most
 * 2^40 in size (docs/numerics.md: then nothing can overflow). */
fl_status fl_file_weights(const fl_file *file, const char *prefix, size_t prefix_size, const char *suffix,
                          const uint64_t dims[4], const float **weights, fl_error *error);

enum { FL_GGUF_UINT32 = 4, FL_GGUF_INT32 = 5, FL_GGUF_FLOAT32 = 6, FL_GGUF_STRING = 8, FL_GGUF_ARRAY = 9 };
enum { FL_GGML_F32 = 0 };

/* ---- weights: model.c ---------------------------------------------------------------------------- */

/* Rows in panels of 16: weights[panel][k][lane] belongs to row 16 * panel + lane and input k. */
typedef struct fl_matrix {
    const float *weights; /* [panels][inputs][FL_PANEL], in the mapping */
    size_t panels;
    size_t inputs; /* K */
} fl_matrix;

/* One LSTM layer. Panels come in groups of four, the i, f, g and o gates of the same 16 units. */
typedef struct fl_lstm {
    fl_matrix x;       /* input product, 4 * groups panels */
    fl_matrix h;       /* recurrent product, 4 * groups panels */
    const float *bias; /* [groups][FL_GATES][FL_PANEL], in the mapping */
    size_t groups;     /* ceil(units / 16) */
    uint32_t units;    /* H */
} fl_lstm;

/* First-layer gate rows (bias + input product of one token's embedding), computed when a token is first seen
 * and kept. Append-only; a reader takes no lock. */
typedef struct fl_row_store {
    float *rows;             /* [capacity][4 * groups * 16] */
    _Atomic(uint32_t) *slot; /* [V]; 0: not kept, else 1 + index of the row */
    _Atomic(uint32_t) used;  /* rows handed out; may pass capacity, never by more than the threads there are */
    uint32_t capacity;
    size_t row_floats;
} fl_row_store;

typedef struct fl_kernels fl_kernels;

struct fl_model {
    fl_file file;
    const fl_kernels *kernels;
    uint32_t vocab_size; /* V */
    uint32_t embedding_size;
    uint32_t n_layers;
    int32_t bos, eos;
    const float *embedding; /* [V][E] in the mapping; NULL: tied, rows of the output matrix are used */
    fl_lstm *layers;
    fl_matrix output;
    const float *output_bias; /* [panels][FL_PANEL] in the mapping */
    fl_row_store *store;
};

/* ---- state and session: generate.c --------------------------------------------------------------- */

/* The network's whole past. One block of memory; h of every layer twice, since a step reads the old one while
 * it writes the new one. */
typedef struct fl_state {
    uint64_t position; /* tokens read since the reset */
    float *memory;     /* for each layer: h [2][16 * groups], c [16 * groups] */
    size_t floats;
} fl_state;

/* A token that may win: ordered by falling logit, then by rising id. */
typedef struct fl_candidate {
    uint64_t order; /* upper half: the logit, so coded that smaller is likelier; lower half: the id */
    uint64_t mass;  /* what it weighs: 1, or its share of the probability in 2^-30 of the likeliest token's */
} fl_candidate;

struct fl_session {
    const fl_model *model;
    fl_state state;
    float *logits;            /* [V rounded up to FL_BLOCK]; beyond V: minus infinity */
    float *row;               /* first-layer gate row that the store had no room for */
    float *embedding;         /* one embedding, when it is not contiguous in the file */
    fl_candidate *candidates; /* [V] */
    float *kept_logits;       /* [V rounded up to FL_PANEL] */
    int32_t *kept_ids;        /* [V rounded up to FL_PANEL] */
    uint32_t *kept_mass;      /* [V rounded up to FL_PANEL] */
    size_t bytes;             /* of the one allocation that holds all of this */
};

/* sample.c: the next token from the session's logits. */
int32_t fl_sample(fl_session *session, const fl_sampling *sampling);
/* sample.c: natural log-probability of one token under the full softmax. */
float fl_logprob(const fl_session *session, int32_t token);

/* The caller's floating-point mode (rounding, flush-to-zero, traps) is set aside while we compute. */
static inline void fl_fp_enter(fenv_t *caller) {
    fegetenv(caller);
    fesetenv(FE_DFL_ENV);
}
static inline void fl_fp_leave(const fenv_t *caller) { fesetenv(caller); }

#endif
