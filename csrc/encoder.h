/* SPDX-License-Identifier: Apache-2.0
 *
 * Texts that are read as a whole: many of them side by side, each to the bits that it would have alone. */
#ifndef FL_ENCODER_H
#define FL_ENCODER_H

#include "step.h"

/* Texts that are read together, the longest first, and what one layer makes of them. Places of all of them lie one after the
 * other. */
typedef struct fl_reading {
    fl_decoder *decoder;
    size_t n;      /* texts */
    size_t places; /* of all of them */
    const fl_source_text *given;
    fl_state *const *states; /* of those given, where they go on from; NULL: from the beginning, and so each NULL */
    size_t order[FL_MOST_COLUMNS];  /* which of those given */
    size_t length[FL_MOST_COLUMNS]; /* of each, and so the next */
    size_t first[FL_MOST_COLUMNS];  /* its first place */
    float *ends[FL_MOST_COLUMNS];   /* h, then c of every layer, forward before backward */
    float *values[2];               /* [places][width of a layer]: what layers read and write in turns */
    float *gates;                   /* [places][4 * 16 * most groups] */
    const float **rows;             /* [places]: gates before the recurrent product, which may be kept elsewhere */
    int32_t *tokens;                /* [places] */
    float *block;                   /* that holds all of this */
} fl_reading;

/* How many of n texts are read together: memory grows with their places. */
size_t fl_read_together(const fl_source_text *texts, size_t n);
/* Reads `given`: values[0] is then [places][width] of the last layer's outputs. The block must be freed, also after an error. */
fl_status fl_read_places(fl_reading *reading, fl_error *error);
/* out[i] = start + matrix * values[i], n rows of the given lengths. step: as for fl_columns_put. */
fl_status fl_multiply_rows(fl_decoder *decoder, const fl_matrix *matrix, size_t n, const float *values, size_t width,
                           const float *start, float step, float *out, size_t row, fl_error *error);
/* Rows [n][row] become the lanes of a matrix with a row for each place. */
void fl_fill_keys(const fl_matrix *keys, const float *rows, size_t row, size_t n);
/* States that go on become those behind what was read. */
void fl_keep_states(const fl_reading *reading);

/* Of h and c of each layer that reads forwards, which a classifier's state keeps. */
size_t fl_encoder_floats(const fl_encoder *encoder);

#endif
