/* SPDX-License-Identifier: Apache-2.0
 *
 * What controls remember of a text: memory.c. */
#ifndef FL_MEMORY_H
#define FL_MEMORY_H

#include "internal.h"

struct fl_memory {
    uint32_t vocab_size, window; /* the last so many tokens count for penalties; 0: all */
    size_t n, room;              /* tokens remembered, and what there is room for */
    int32_t *tokens;             /* [room], the oldest first */
    uint8_t *written;            /* [room]: 1 if the model wrote it, 0 if it read it */
    float *surprises;            /* [room]: mirostat's mu after the token */
    uint32_t *before;            /* [room]: place + 1 of the same token before; 0: none */
    uint32_t *last;              /* [V]: place + 1 where a token occurs last; 0: nowhere */
    uint32_t *present, *times;   /* [V]: how often in the window, and how often of that written */
    int32_t *distinct;           /* tokens in the window, each once, in no order */
    uint32_t *spot;              /* [V]: where a token is among them */
    uint32_t n_distinct;
    uint8_t *longest; /* [V]: room for DRY; all zero */
    float surprise;   /* mirostat's mu; NAN: not begun */
};

/* The token that was drawn last is not added: mirostat's mu is again what it was before. */
void fl_memory_undraw(fl_memory *memory);

/* Whether the last tokens, all written, are a pattern of 1 … 64 tokens `times` times in a row. */
bool fl_memory_repeats(const fl_memory *memory, uint32_t times);

#endif
