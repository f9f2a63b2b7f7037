/* SPDX-License-Identifier: Apache-2.0
 *
 * The network on a decoder's columns: step.c. */
#ifndef FL_STEP_H
#define FL_STEP_H

#include "kernels.h"

/* The caller's floating-point mode is set aside, and workers are borrowed, for one call. */
void fl_enter(fl_decoder *decoder, fenv_t *caller);
void fl_leave(fl_decoder *decoder, const fenv_t *caller);

/* Part `part` of `parts` of n things, cut at multiples of `unit`. */
void fl_slice(size_t n, size_t unit, uint32_t part, uint32_t parts, size_t *begin, size_t *end);

/* A state into a column (of `many`, or the only one) and back. */
void fl_load(fl_decoder *decoder, size_t column, bool many, const fl_state *state);
void fl_store(const fl_decoder *decoder, size_t column, fl_state *state);

/* Columns 0 … n-1 (of `many`, or the only one) read a token each. */
void fl_step(fl_decoder *decoder, const int32_t *tokens, size_t n, bool many);
/* rows[i] receives the gate row of tokens[i] of a layer that reads tokens of an embedding: one that is kept, or else
 * otherwise[i] or a new place in the store, which those that are missing are computed to, together. embedded: room for n of the
 * embedding's rows; vector: for one. */
void fl_gate_rows(fl_decoder *decoder, const fl_matrix *embedding, const fl_lstm *layer, const int32_t *tokens,
                  size_t n, const fl_columns *embedded, float *vector, float *const *otherwise, const float **rows);
/* What attention makes of the columns' new hidden values: the next that d->now names. */
void fl_attend(fl_decoder *decoder, size_t n, bool many);
/* Logits of the columns, or of a text's places, become those of a model that also copies its source's tokens. */
void fl_copy_tokens(fl_decoder *decoder, size_t n, bool many);
void fl_copy_text_tokens(fl_decoder *decoder, size_t n);
/* What the logits of a text's place need of the only column: attention's values, and what decides about copies. */
void fl_keep_place(fl_decoder *decoder, size_t place);
/* One layer alone, whose gates begin with `start`: from the hidden values that `now` names to the others. */
void fl_step_layer(fl_decoder *decoder, const fl_lstm *layer, fl_layer_room *room, size_t now, size_t n, bool many,
                   const float *const *start);
/* A whole matrix times n columns: out[j] = start[j] + matrix * column j. */
void fl_product(fl_decoder *decoder, const fl_matrix *matrix, const fl_columns *input, size_t n,
                const float *const *start, float *const *out);
/* logits[j] of the columns after what they have read. */
void fl_step_logits(fl_decoder *decoder, size_t n, bool many);
/* The same for the only column, and who wins the contest. */
fl_winner fl_step_winner(fl_decoder *decoder, const fl_contest *contest);

/* The next token of a request whose hidden values on top are given, as fl_sample would draw it from all logits, with most
 * of them proved not to matter: screen.c. team NULL: without its help. logits: room for them. */
int32_t fl_screen_draw(const fl_model *model, fl_team *team, fl_scratch *scratch, fl_request *request,
                       const fl_columns *input, float *logits);
/* The hidden values on top of a column, alone in its block; scratch: room for a copy. */
const fl_columns *fl_step_hidden(const fl_decoder *decoder, size_t column, bool many, const fl_scratch *scratch);

/* The only column reads n tokens. keep_top: fl_text_logits then gives logits[t] before token t, t < n. */
void fl_read(fl_decoder *decoder, const int32_t *tokens, size_t n, bool keep_top);
void fl_text_logits(fl_decoder *decoder, size_t n);

#endif
