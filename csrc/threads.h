/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads that share the work of a step: threads.c. */
#ifndef FL_THREADS_H
#define FL_THREADS_H

#include <stdbool.h>
#include <stdint.h>

enum { FL_MOST_THREADS = 64 };

/* Part `part` of `parts` of a piece of work. */
typedef void fl_work(void *context, uint32_t part, uint32_t parts);

typedef struct fl_worker fl_worker;

/* A caller and the workers that it has borrowed. */
typedef struct fl_team {
    uint32_t size;  /* with the caller */
    uint32_t cores; /* that this call may use; 0: the call wants no others */
    fl_worker *workers[FL_MOST_THREADS - 1];
    int64_t waited;       /* ns, in the current window, for parts of others that were late */
    int64_t window_begin; /* ns */
    int64_t alone_until;  /* ns: the machine was found busy */
    int64_t pause;        /* ns: how long for */
} fl_team;

/* Room in the pool for the workers of one more caller that wants so many threads, and less again. */
void fl_threads_reserve(uint32_t threads);
void fl_threads_release(uint32_t threads);

/* Borrows workers for a call; gives them back. */
void fl_team_begin(fl_team *team, uint32_t threads);
void fl_team_end(fl_team *team);
/* Between two tokens: gives workers back early if the machine turns out to be busy, or another call wants its share. */
void fl_team_pause(fl_team *team);
/* Runs all parts and returns when they are done. */
void fl_team_run(fl_team *team, fl_work *work, void *context);

#endif
