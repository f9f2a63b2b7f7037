/* SPDX-License-Identifier: Apache-2.0
 *
 * Buffers that lie against a page that faults, before them or behind them, with canaries on the open side. */
#ifndef ARENA_H
#define ARENA_H

#include "harness.h"

typedef struct arena {
    uint8_t *begin, *end;
} arena;

static arena arena_new(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), inside = (bytes + page - 1) / page * page;
    uint8_t *memory = mmap(NULL, inside + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory + page, inside, PROT_READ | PROT_WRITE)) {
        printf("no memory for a guarded buffer of %zu bytes\n", bytes);
        exit(2);
    }
    return (arena){memory + page, memory + page + inside};
}

enum { CANARY = 64 };

/* Room for `bytes` bytes at one end of the arena; what lies on its other side is filled with a pattern. */
static void *arena_place(arena a, size_t bytes, bool at_end) {
    uint8_t *place = at_end ? a.end - bytes : a.begin;
    uint8_t *open_side = at_end ? place - CANARY : place + bytes;
    if (open_side >= a.begin && open_side + CANARY <= a.end) memset(open_side, 0xA5, CANARY);
    return place;
}

/* Whether nothing was written on the open side. */
static bool arena_intact(arena a, const void *place, size_t bytes) {
    const uint8_t *p = place;
    const uint8_t *open_side = p + bytes == a.end ? p - CANARY : p + bytes;
    if (open_side < a.begin || open_side + CANARY > a.end) return true;
    for (int i = 0; i < CANARY; i++)
        if (open_side[i] != 0xA5) return false;
    return true;
}

#endif
