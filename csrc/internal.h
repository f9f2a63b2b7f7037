/* SPDX-License-Identifier: Apache-2.0
 *
 * Private types of the core, in the order in which a model comes to life: file, weights, state, session. */
#ifndef FL_INTERNAL_H
#define FL_INTERNAL_H

#include "fastlm.h"
#include "threads.h"

#include <fenv.h>
#include <float.h>
#include <math.h>
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
    FL_PANEL = 16,        /* output rows that lie side by side in the file */
    FL_SPARE_BLOCKS = 4,  /* that a panel may have behind those of its inputs */
    FL_GATES = 4,         /* i, f, g, o */
    FL_ALIGN = 64,        /* bytes: a cache line, an AVX-512 register */
    FL_BLOCK = 64,        /* tokens that share one noise counter group: FL_PANEL lanes x 4 words */
    FL_WIDTH = 8,         /* columns (sequences, places of a text) whose values lie side by side */
    FL_MOST_COLUMNS = 64, /* that are computed at once */
};

/* Hidden values are multiplied by 127 and rounded where integer weights read them. */
#define FL_HIDDEN_UNITS 127.0f
#define FL_HIDDEN_STEP (1.0f / 127.0f)

/* How many parts of a size hold n things, and how many things they have room for. */
static inline size_t fl_parts(size_t n, size_t size) { return (n + size - 1) / size; }
static inline size_t fl_round_up(size_t n, size_t multiple) { return fl_parts(n, multiple) * multiple; }

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
/* Processors that this process may run on now. */
uint32_t fl_os_cores(void);
/* Those of them that share no core, and no more than the control groups grant. */
uint32_t fl_os_own_cores(void);
/* Linux: cores that a control group ("/a/b", below the mounted root) and all above it grant; UINT32_MAX: no limit. */
uint32_t fl_os_quota(const char *root, const char *group);

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
/* The tensor "prefix.suffix", or NULL. */
const fl_tensor *fl_file_tensor(const fl_file *file, const char *prefix, size_t prefix_size, const char *suffix);
/* Its bytes, if it is of exactly this type and these dimensions, and all its floats are finite and at most 2^40 in
 * size (docs/numerics.md: then nothing can overflow). */
fl_status fl_file_data(const fl_file *file, const char *prefix, size_t prefix_size, const char *suffix, uint32_t type,
                       const uint64_t dims[4], const void **data, fl_error *error);
/* The same for whole numbers from -127 to 127. */
fl_status fl_file_int8(const fl_file *file, const char *prefix, size_t prefix_size, const char *suffix,
                       const uint64_t dims[4], const void **data, fl_error *error);

enum { FL_GGUF_UINT32 = 4, FL_GGUF_INT32 = 5, FL_GGUF_FLOAT32 = 6, FL_GGUF_STRING = 8, FL_GGUF_ARRAY = 9 };
enum { FL_GGML_F32 = 0, FL_GGML_I8 = 24, FL_GGML_BF16 = 30 };

/* ---- weights: layers.c, model.c ---------------------------------------------------------------------------- */

typedef enum fl_dtype { FL_F32, FL_BF16, FL_INT8, FL_INT4 } fl_dtype;

/* Rows in panels of 16 (docs/format.md); an embedding of its own is in panels of one row. All in the mapping. */
typedef struct fl_matrix {
    fl_dtype dtype;
    const void *weights; /* f32 [panels][blocks][lanes], bf16 [panels][blocks][lanes][2], int8 and int4
                            [panels][blocks][lanes][4], low nibbles before high ones */
    const float *scale;  /* int8, int4: [panels][lanes] */
    int32_t *sums;       /* int8: of a row's weights, [panels][lanes]; owned; NULL for an embedding of its own */
    const int8_t *group; /* int4: [panels][K/64][lanes][2], a factor for every 32 weights */
    size_t panels;
    size_t inputs; /* K */
    size_t lanes;  /* FL_PANEL or 1 */
    size_t blocks; /* of a panel, each 1, 2, 4 or 8 inputs; there may be FL_SPARE_BLOCKS more than those of K */
} fl_matrix;

/* Of its weights: a block has 4 for each row of a panel, whatever the type. */
static inline size_t fl_matrix_bytes(const fl_matrix *m) { return m->panels * m->lanes * m->blocks * 4; }

/* Whether its products read whole numbers. */
static inline bool fl_reads_bytes(const fl_matrix *matrix) {
    return matrix->dtype == FL_INT8 || matrix->dtype == FL_INT4;
}

/* What proves of most rows of the output matrix that they lose, from a fraction of its bytes (docs/screening.md). Rows in
 * blocks of FL_BLOCK. All in the mapping, but for along.sums. */
typedef struct fl_screen {
    const float *mean, *spread, *gain; /* [K] */
    fl_matrix basis;                   /* f32: the directions, of K inputs, filled up to whole panels */
    fl_matrix along;                   /* int8: of a row's rest along each direction */
    const float *shift, *radius;       /* [blocks][FL_BLOCK] */
    const float *size;                 /* [planes][blocks][FL_BLOCK] */
    const uint8_t *bits;               /* [blocks][planes][pairs][2][FL_BLOCK], a row's byte where FL_PLACE says */
    size_t blocks, planes;
    size_t pairs; /* ⌈K / 16⌉, of bytes */
} fl_screen;

/* Where in 64 bytes the one of a row is: so that even and odd bytes of 32 are 16 rows in a row each. */
#define FL_PLACE(row) ((row) / 32 * 32 + (row) % 16 * 2 + (row) / 16 % 2)

enum {
    FL_TABLE_ZERO = 32, /* what stands for 0 in a table of bytes, of which four are added in 8 bits */
    FL_TABLE_MOST = 31,
    FL_MOST_SCREENED = 4096, /* inputs: so many tables are added in 16 bits */
    FL_MOST_PLANES = 4,
    FL_MOST_DIRECTIONS = 1024,
};

/* Gate rows (bias + input product of one token's embedding) of a layer that reads tokens, computed when a token is first seen
 * and kept. Append-only; a reader takes no lock. */
typedef struct fl_row_store {
    float *rows;             /* [capacity][4 * groups * 16] */
    _Atomic(uint32_t) *slot; /* [V]; 0: not kept, else 1 + index of the row */
    _Atomic(uint32_t) used;  /* rows handed out; may pass capacity, never by more than the threads there are */
    uint32_t capacity;
    size_t row_floats;
} fl_row_store;

/* One LSTM layer. Panels come in groups of four, the i, f, g and o gates of the same 16 units. */
typedef struct fl_lstm {
    fl_matrix x;         /* input product, 4 * groups panels */
    fl_matrix h;         /* recurrent product, 4 * groups panels */
    const float *bias;   /* [groups][FL_GATES][FL_PANEL], in the mapping */
    size_t groups;       /* ceil(units / 16) */
    uint32_t units;      /* H */
    fl_row_store *store; /* of a layer that reads tokens; NULL: none is kept */
} fl_lstm;

/* ---- sequence to sequence: what stands beside a decoder's layers ---- */

/* How a decoder layer's first state comes from the last one of an encoder layer, e = (h, c), forward before backward:
 * h = tanh(H e + b), c = C e + d; without matrices h and c are the encoder's. */
typedef struct fl_bridge {
    fl_matrix h, c; /* no panels: none */
    const float *h_bias, *c_bias;
    uint32_t from; /* encoder layer */
} fl_bridge;

typedef struct fl_encoder {
    fl_matrix embedding; /* of source tokens; may be the decoder's */
    uint32_t vocab_size;
    uint32_t embedding_size;
    uint32_t n_layers;
    fl_lstm *layers;    /* [n_layers][2]: forward and backward, the latter without units if there is none */
    fl_bridge *bridges; /* [decoder layers] */
} fl_encoder;

/* Values of an output of one of its layers. */
static inline size_t fl_encoder_width(const fl_encoder *e, uint32_t layer) {
    return (size_t)e->layers[2 * layer].units + e->layers[2 * layer + 1].units;
}

/* And of one of the last layer. */
static inline size_t fl_encoder_outputs(const fl_encoder *e) { return fl_encoder_width(e, e->n_layers - 1); }

/* Whether one of its layers also reads backwards, so that it must see all of a text. */
static inline bool fl_encoder_turns(const fl_encoder *e) {
    bool turns = false;
    for (uint32_t i = 0; i < e->n_layers; i++) turns = turns || e->layers[2 * i + 1].units;
    return turns;
}

/* Where a decoder looks at the source: scores of its places, by a product of the key of each place with the hidden
 * values on top (Luong et al. 2015) or by score · tanh(key + query) (Bahdanau et al. 2015); their softmax; the mean of the
 * encoder's outputs with these weights, the context; and tanh(C context + H hidden + b), which the output matrix reads. */
typedef struct fl_attention {
    fl_matrix key;   /* of an encoder output; no panels: it is its own key */
    fl_matrix query; /* additive */
    fl_matrix context, hidden;
    fl_matrix feed;                         /* of the values before, for the first layer's gates; no panels: none */
    const float *bias, *query_bias, *score; /* [panels][FL_PANEL] */
    const float *copy;      /* [panels][FL_PANEL]: how much less a token is copied than written; NULL: none is copied */
    const float *copy_bias; /* [1] */
    uint32_t units;
    bool additive;
} fl_attention;

/* ---- classifier: what stands between the last layer's outputs and those of the model ---- */

typedef enum fl_pool_kind { FL_POOL_LAST, FL_POOL_MEAN, FL_POOL_MAX, FL_POOL_ATTENTION, FL_POOL_CONCAT } fl_pool_kind;

/* How all places become one: by the last output in each direction, the mean, the largest of each value, the mean with weights
 * that are the softmax of score · tanh(key place + bias) (Yang et al. 2016), or the first, third and second side by side
 * (Howard & Ruder 2018). */
typedef struct fl_pooling {
    fl_pool_kind kind;
    fl_matrix key;             /* attention, and so the rest */
    const float *bias, *score; /* [panels][FL_PANEL] */
    uint32_t units;
} fl_pooling;

typedef struct fl_kernels fl_kernels;

/* Memory that lives as long as a model: the next piece. */
typedef struct fl_kept {
    struct fl_kept *next;
} fl_kept;

struct fl_model {
    fl_file file;
    fl_kept *kept;
    const fl_kernels *kernels;
    uint32_t vocab_size; /* V */
    uint32_t embedding_size;
    uint32_t n_layers;
    int32_t bos, eos;
    bool tied;           /* the embedding is the output matrix */
    fl_matrix embedding; /* V panels of one row, or the output matrix */
    fl_lstm *layers;
    fl_matrix output;
    const float *output_bias; /* [panels][FL_PANEL] in the mapping */
    fl_encoder *encoder;      /* NULL: a language model */
    fl_attention *attention;  /* NULL: none */
    fl_pooling *pooling; /* NULL: no classifier; else the encoder has all layers, n_layers is 0, and the output's rows
                                 are labels */
    uint32_t n_labels;
    fl_screen *screen;      /* NULL: none */
    bool screens;           /* whether it is used */
    double worth_screening; /* the largest share of rows that may be computed for its sake */
    bool checks_screen;     /* every bound against the logit */
    uint32_t threads;       /* that share a step, at most */
};

/* Zeroed memory that is freed with the model; NULL: none left. */
void *fl_keep(fl_model *model, size_t bytes);
/* What the layer table names, all of it in the mapping: layers.c. */
typedef enum fl_task { FL_TASK_LM, FL_TASK_SEQ2SEQ, FL_TASK_CLASSIFIER } fl_task;
fl_status fl_read_layers(fl_model *model, fl_task task, fl_error *error);
/* `panels` panels of `lanes` rows of K inputs, in whichever dtype the file has them. */
fl_status fl_read_matrix(fl_model *model, const char *name, size_t size, size_t lanes, size_t panels, size_t inputs,
                         fl_matrix *matrix, fl_error *error);

/* ---- inputs of products: columns.c --------------------------------------------------------------- */

/* Vectors of K values, as floats and as bytes, in blocks of `width` columns side by side: 1, or FL_WIDTH so that
 * a loaded weight meets many columns. A block starts after `padded` * width values (and bytes) of the one before. */
typedef struct fl_columns {
    float *values; /* [blocks][padded][width]; from K on anything. NULL: no product reads floats */
    int8_t *bytes; /* [blocks][padded / 4][width][4]: values / step, rounded; from K on zero. NULL: none reads bytes */
    int32_t *sums; /* [blocks][padded / 32][width]: of 32 bytes each */
    float *steps;  /* [blocks][width] */
    size_t inputs; /* K */
    size_t padded; /* K rounded up to 64 */
    size_t width;
} fl_columns;

/* Room for one column, and for several side by side, of a matrix's inputs; freed as one block. NULL: none left. */
void *fl_columns_new(const fl_matrix *matrix, size_t columns, fl_columns found[2]);
/* Writes a column. step: of its bytes; 0: so that the largest value becomes 127. */
void fl_columns_put(const fl_columns *columns, size_t column, const float *values, float step);
/* Copies the only column of hidden values (whose steps are all alike), inputs begin … end-1, multiples of 32. */
void fl_columns_copy(const fl_columns *to, size_t column, const fl_columns *from, size_t begin, size_t end);
/* A row of a matrix, as floats: out[K]. */
void fl_matrix_row(const fl_matrix *matrix, size_t row, float *out);

/* ---- screens of the output matrix: screen.c ---------------------------------------------------------- */

/* What a screen needs to know of an input. */
typedef struct fl_view {
    fl_columns column;    /* a copy of the input, as the output matrix reads it, if it stands among others */
    fl_columns standard;  /* less the mean, times the spread: y */
    fl_columns along;     /* of y along the directions, as bytes */
    float *input;         /* [K]: x */
    float *values;        /* [16 pairs]: less the mean, times the gain */
    float *directions;    /* [padded directions]: of y along them, as floats */
    uint8_t *tables;      /* [pairs][4][16] */
    float *lower, *upper; /* [blocks][FL_BLOCK]: bounds of logits */
    float *keys;          /* [blocks][FL_BLOCK]: upper ones of keys */
    float step;           /* of the tables */
    float table_error;    /* at most, of all tables together, for each unit of a row's size */
    float distance;       /* times a row's radius: how far the rest may reach */
    float rounding;       /* of all floats, in parts of the result */
} fl_view;

/* ---- state and decoder: decoder.c ---------------------------------------------------------------- */

/* A source that was read: what attention looks at. Positions side by side in panels, whose inputs are a key's values; and
 * values side by side, whose inputs are the positions. */
struct fl_source {
    size_t n; /* positions */
    fl_matrix keys, values;
    const float *start;    /* of a state, as its memory */
    const int32_t *tokens; /* [n]; NULL if none is copied, and so the next */
    const uint32_t *first; /* [n]: where the same token is for the first time */
    float memory[];
};

/* One sequence's whole past: for each layer h [16 * groups], then c [16 * groups]; then what attention gave [16 * panels], or
 * what a classifier's pooling has. */
struct fl_state {
    uint64_t position; /* tokens read since the reset */
    size_t floats;
    const fl_source *source; /* NULL: none */
    float memory[];
};

/* A token that may win: ordered by falling logit, then by rising id. */
typedef struct fl_candidate {
    uint64_t order; /* upper half: the logit, so coded that smaller is likelier; lower half: the id */
    uint64_t mass;  /* what it weighs: 1, or its share of the probability in 2^-30 of the likeliest token's */
} fl_candidate;

/* Of a set of tokens: what they weigh, and how many they are. */
typedef struct fl_weight {
    uint64_t mass;
    size_t count;
} fl_weight;

/* Of a state's memory. */
size_t fl_state_floats(const fl_model *model);
/* What of it a classifier's pooling has, behind h and c of each layer: classifier.c. */
size_t fl_pool_floats(const fl_model *model);

/* What one thread needs to choose a token. */
typedef struct fl_scratch {
    fl_candidate *candidates; /* [V] */
    uint32_t *mass;           /* [V rounded up to FL_PANEL], of every token */
    float *kept_logits;       /* [V rounded up to FL_PANEL + FL_PANEL], and so the next two */
    int32_t *kept_ids;
    uint32_t *kept_mass;
    float *changed; /* [V rounded up to FL_BLOCK]: logits that controls have changed */
    float *values;  /* [V rounded up to FL_BLOCK]: what tokens are ordered by, if not by their logits */
    fl_view view;   /* if the model has a screen */
} fl_scratch;

/* One layer of all columns. Each h twice, since a step reads the old one while it writes the new one. */
typedef struct fl_layer_room {
    fl_columns one[2];         /* h of the only column, as products read it */
    fl_columns many[2];        /* h of columns in blocks of FL_WIDTH */
    fl_columns text;           /* h of the places of a text */
    float *h[FL_MOST_COLUMNS]; /* of each column, as its state has it: [16 * groups] */
    float *c[FL_MOST_COLUMNS];
} fl_layer_room;

/* Places of a source, at most: their weights lie in a decoder, for each column; and of a classifier's text at once. */
enum { FL_MOST_PLACES = 1 << 14 };

/* What attention makes of all columns. */
typedef struct fl_attention_room {
    fl_layer_room given;                      /* what the output matrix reads; no c */
    fl_columns context[2];                    /* of one, of many */
    const fl_source *source[FL_MOST_COLUMNS]; /* of each column */
    float *weights[FL_MOST_COLUMNS];          /* [FL_MOST_PLACES]: of the source's places */
    uint32_t *mass[FL_MOST_COLUMNS];          /* the same before they are divided by their sum */
    float *hidden[FL_MOST_COLUMNS];           /* if tokens are copied: of a text's places, what is on top, */
    float *given_text[FL_MOST_COLUMNS];       /* and what attention makes of it */
} fl_attention_room;

/* The room to compute in; what it holds between calls is of no meaning. One block of memory, of which only what is used
 * is ever touched. */
struct fl_decoder {
    const fl_model *model;
    fl_layer_room *layers;
    size_t now;                     /* which of each pair of h is current */
    fl_columns embedded[2];         /* embeddings of tokens whose gate rows are not kept: of one, of many */
    float *vector;                  /* one embedding */
    float *rows[FL_MOST_COLUMNS];   /* gate rows that the store had no room for */
    float *gates[FL_MOST_COLUMNS];  /* gate inputs of a column, [4 * 16 * most groups] */
    float *logits[FL_MOST_COLUMNS]; /* [V rounded up to FL_BLOCK]; beyond V: minus infinity */
    fl_scratch *scratch;            /* [threads] */
    fl_attention_room *attention;   /* NULL: none */
    fl_layer_room *encoder;         /* [2 * its layers], for one direction after the other; NULL: none */
    fl_columns source_embedded[2];  /* as embedded, of what the encoder reads */
    fl_team team;
    size_t bytes; /* of the one allocation that holds all of this */
};

/* ---- the next token: sample.c -------------------------------------------------------------------- */

/* Where the noise of one drawn token comes from; the token's id completes the counter. */
typedef struct fl_noise {
    uint32_t key[2];     /* the seed */
    uint32_t counter[3]; /* position (low word), sample index, purpose and position (high bits) */
} fl_noise;

/* The token that wins so far: the larger key, among equals the lower id. */
typedef struct fl_winner {
    float key;
    int32_t id;
} fl_winner;

#define FL_NO_WINNER ((fl_winner){-INFINITY, INT32_MAX})

static inline fl_winner fl_better(fl_winner a, fl_winner b) {
    return b.key > a.key || (b.key == a.key && b.id < a.id) ? b : a;
}

/* What is looked for among all tokens, while the logits appear: the token itself if no step restricts the set, else the
 * largest logit. */
typedef struct fl_contest {
    float temperature;
    fl_noise noise;
} fl_contest;

fl_contest fl_contest_of(const fl_request *request);
/* The draw itself, from whatever is left. */
fl_contest fl_draw_of(const fl_request *request);
/* Whether controls change logits, so that a contest cannot be held while they appear. */
bool fl_changes(const fl_request *request);
/* The next token of a request, given its logits and the contest's winner, which counts only if nothing changes logits.
 * amateur: logits of the second model, or NULL. A negative number if no token may come. */
int32_t fl_sample(const fl_model *model, const fl_scratch *scratch, const fl_request *request, const float *logits,
                  const float *amateur, const fl_winner *first);
/* Of the same tokens, which would be drawn from: fl_candidates. */
size_t fl_restrict(const fl_model *model, const fl_scratch *scratch, const fl_request *request, const float *logits,
                   const float *amateur, int32_t *ids, float *kept);
/* Whether a token can be drawn from a screen's bounds: its steps, the first that restricts above all, do not ask how
 * large all probabilities are. */
bool fl_screens(const fl_model *model, const fl_request *request);
/* Whether nothing changes logits or restricts the set. */
bool fl_is_contest(const fl_request *request);
/* Whether who wins among all tokens is asked whether it is in the set, of which bounds tell too little: a share of all. */
bool fl_is_asked(const fl_model *model, const fl_request *request);
/* Whether it surely is: logits are exact for all tokens that may be likelier, and at most minus infinity else. */
bool fl_admits(const fl_model *model, const fl_scratch *scratch, const fl_request *request, const float *logits,
               int32_t token);
/* What the bound in `keys` of a token that may matter reaches, given bounds of all logits, which are changed as controls
 * change logits. */
float fl_screen_floor(const fl_model *model, const fl_scratch *scratch, const fl_request *request, const fl_view *view);
/* How many rows are worth computing before that. */
uint32_t fl_sharp_rows(const fl_model *model, const fl_request *request);
/* Lists, in scratch->kept_ids, the n tokens of the largest values, [V rounded up to FL_BLOCK]; returns how many. */
size_t fl_top(const fl_model *model, const fl_scratch *scratch, const float *values, uint32_t n);
/* The winner among all tokens. */
fl_winner fl_win(const fl_model *model, const float *logits, const fl_contest *contest);
/* Natural log-probability of one token under the full softmax. */
float fl_logprob(const fl_model *model, const float *logits, int32_t token);
/* That of every token. */
void fl_log_softmax(const fl_model *model, const float *logits, float *logprobs);
/* What a search for words may go on with: fl_follow, which says where ids and log-probabilities go. */
void fl_branch(const fl_model *model, const fl_scratch *scratch, const float *logits, const uint8_t *ending,
               uint32_t most, fl_branches *branches);
/* What a search for texts may go on with: fl_expand. */
void fl_successors(const fl_model *model, const fl_scratch *scratch, const fl_request *request, const float *logits);
/* The n likeliest tokens, and their natural log-probabilities. */
void fl_likeliest(const fl_model *model, const fl_scratch *scratch, const float *logits, uint32_t n, int32_t *ids,
                  float *logprobs);

/* ---- logits that are changed: controls.c ------------------------------------------------------------- */

/* Bans: tokens that may not come become minus infinity. */
bool fl_bans(const fl_request *request);
/* What follows n tokens anywhere in the corpus may not come. */
void fl_index_ban(const fl_index *index, const int32_t *tokens, size_t n, float *logits, size_t vocab_size);
void fl_ban(const fl_request *request, size_t V, float *logits);
/* One of the steps that change logits. */
void fl_change(fl_control step, const fl_request *request, float *logits);

/* The caller's floating-point mode (rounding, flush-to-zero, traps) is set aside while we compute. */
static inline void fl_fp_enter(fenv_t *caller) {
    fegetenv(caller);
    fesetenv(FE_DFL_ENV);
}
static inline void fl_fp_leave(const fenv_t *caller) { fesetenv(caller); }

#endif
