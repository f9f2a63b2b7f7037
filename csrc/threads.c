/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads that share the work of a step. One pool serves the whole process: a call borrows workers that nobody else
 * uses, at most as many as its model wants, and runs with what it gets, since no result depends on the number. Work is
 * always cut in the same way, so that a worker finds its rows of a matrix in its own cache. Workers spin between the
 * parts of a token and park when nothing comes. */
#if !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE /* signal masks under -std=c11 */
#endif
#include "threads.h"
#include "internal.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() (void)0
#endif

enum {
    SPIN_NS = 200 * 1000,        /* before parking: longer than a caller takes between two calls for a token */
    LATE_NS = 500 * 1000,        /* of waiting for a part: more than a slower core is behind, so it was interrupted */
    WINDOW_NS = 5 * 1000 * 1000, /* over which waiting is judged */
    STACK = 1 << 19,
};

struct fl_worker {
    /* Written by whoever has borrowed the worker, then published by `go`. */
    _Alignas(FL_ALIGN) fl_work *work;
    void *context;
    uint32_t part, parts;
    _Atomic(uint32_t) go;                      /* number of the work to do */
    _Alignas(FL_ALIGN) _Atomic(uint32_t) done; /* number of the work that is done */
    _Atomic(bool) borrowed, parked;
    pthread_mutex_t mutex; /* for parking */
    pthread_cond_t wake;
};

static struct {
    fl_worker workers[FL_MOST_THREADS - 1];
    _Atomic(uint32_t) count; /* that run */
    _Atomic(uint32_t) teams; /* calls under way that want workers */
    uint32_t wanted;         /* by all decoders together */
    pthread_mutex_t mutex;   /* of growing */
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static int64_t nanoseconds(void) { return (int64_t)fl_clock(); }

/* ---- workers ----------------------------------------------------------------------------------------- */

static void park(fl_worker *w, uint32_t seen) {
    pthread_mutex_lock(&w->mutex);
    atomic_store(&w->parked, true); /* before looking again, as the other side publishes before it looks here */
    while (atomic_load(&w->go) == seen) pthread_cond_wait(&w->wake, &w->mutex);
    atomic_store(&w->parked, false);
    pthread_mutex_unlock(&w->mutex);
}

/* Looks at the clock now and then only. */
static void wait_for_work(fl_worker *w, uint32_t seen) {
    int64_t begin = 0;
    for (uint32_t spins = 1; atomic_load_explicit(&w->go, memory_order_acquire) == seen; spins++) {
        PAUSE();
        if (spins % 256) continue;
        const int64_t now = nanoseconds();
        if (!begin) begin = now;
        if (now - begin > SPIN_NS) park(w, seen);
    }
}

static void *run_worker(void *argument) {
    fl_worker *w = argument;
    fesetenv(FE_DFL_ENV); /* a new thread has its creator's floating-point mode */
    for (uint32_t seen = 0;; seen++) {
        wait_for_work(w, seen);
        w->work(w->context, w->part, w->parts);
        atomic_store_explicit(&w->done, seen + 1, memory_order_release);
    }
    return NULL;
}

static bool start(fl_worker *w) {
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;
    *w = (fl_worker){.mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};
    if (pthread_attr_init(&attributes)) return false;
    pthread_attr_setstacksize(&attributes, STACK);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all); /* signals belong to the caller's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&thread, &attributes, run_worker, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return !failed;
}

/* ---- pool -------------------------------------------------------------------------------------------- */

/* A child has none of its parent's threads; whatever they were doing is forgotten. */
static void forget(void) {
    atomic_store(&pool.count, 0);
    atomic_store(&pool.teams, 0);
    pthread_mutex_init(&pool.mutex, NULL);
}

static void forget_in_children(void) { pthread_atfork(NULL, NULL, forget); }

/* Starts threads until there are enough for all decoders, or one for every other core. If the system refuses one, there
 * are fewer. */
static void grow(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    const uint32_t cores = fl_os_cores();
    pthread_once(&once, forget_in_children);
    pthread_mutex_lock(&pool.mutex);
    uint32_t count = atomic_load(&pool.count);
    const uint32_t most = cores < FL_MOST_THREADS ? cores : FL_MOST_THREADS;
    while (count < pool.wanted && count + 1 < most && start(&pool.workers[count])) atomic_store(&pool.count, ++count);
    pthread_mutex_unlock(&pool.mutex);
}

void fl_threads_reserve(uint32_t threads) {
    if (threads < 2) return;
    pthread_mutex_lock(&pool.mutex);
    pool.wanted += threads - 1;
    pthread_mutex_unlock(&pool.mutex);
    grow();
}

void fl_threads_release(uint32_t threads) {
    if (threads < 2) return;
    pthread_mutex_lock(&pool.mutex);
    pool.wanted -= threads - 1;
    pthread_mutex_unlock(&pool.mutex);
}

/* ---- team -------------------------------------------------------------------------------------------- */

/* After waiting for its parts for a quarter of a window the team knows that other programs want the cores: it works alone
 * for a while, twice as long every time. */
static bool machine_is_busy(fl_team *team, int64_t now) {
    if (now < team->alone_until) return true;
    if (now - team->window_begin < WINDOW_NS) return false;
    if (team->window_begin && team->waited * 4 > now - team->window_begin) {
        team->pause = team->pause ? 2 * team->pause : 4 * WINDOW_NS;
        if (team->pause > 200 * WINDOW_NS) team->pause = 200 * WINDOW_NS;
        team->alone_until = now + team->pause;
        team->waited = team->window_begin = 0;
        return true;
    }
    team->pause = 0;
    team->waited = 0;
    team->window_begin = now;
    return false;
}

/* Calls that run at the same time share the cores, or the first would have all workers and the others none. */
static uint32_t fair_size(const fl_team *team) {
    const uint32_t teams = atomic_load_explicit(&pool.teams, memory_order_relaxed);
    return teams > 1 ? (uint32_t)fl_parts(team->cores, teams) : team->cores;
}

static void give_back(fl_team *team, uint32_t size) {
    while (team->size > size) atomic_store(&team->workers[--team->size - 1]->borrowed, false);
}

void fl_team_begin(fl_team *team, uint32_t threads) {
    team->size = 1;
    team->cores = threads < 2 ? 0 : fl_os_cores();
    if (!team->cores) return;
    atomic_fetch_add(&pool.teams, 1);
    const uint32_t fair = fair_size(team), limit = fair < threads ? fair : threads;
    if (limit < 2 || machine_is_busy(team, nanoseconds())) return;
    if (atomic_load(&pool.count) + 1 < limit) grow(); /* in a child, or where fewer cores were allowed before */
    const uint32_t count = atomic_load(&pool.count);
    for (uint32_t i = 0; i < count && team->size < limit; i++) {
        bool free = false;
        if (atomic_compare_exchange_strong(&pool.workers[i].borrowed, &free, true))
            team->workers[team->size++ - 1] = &pool.workers[i];
    }
}

void fl_team_end(fl_team *team) {
    give_back(team, 1);
    if (team->cores) atomic_fetch_sub(&pool.teams, 1);
}

void fl_team_pause(fl_team *team) {
    if (team->size < 2) return;
    give_back(team, team->waited && machine_is_busy(team, nanoseconds()) ? 1 : fair_size(team));
}

static void give(fl_worker *w, fl_work *work, void *context, uint32_t part, uint32_t parts) {
    w->work = work, w->context = context, w->part = part, w->parts = parts;
    atomic_store(&w->go, atomic_load_explicit(&w->go, memory_order_relaxed) + 1);
    if (!atomic_load(&w->parked)) return;
    pthread_mutex_lock(&w->mutex);
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->mutex);
}

/* Returns how long it took if that was long. */
static int64_t wait_for(const fl_worker *w) {
    const uint32_t number = atomic_load_explicit(&w->go, memory_order_relaxed);
    int64_t begin = 0, now = 0;
    for (uint32_t spins = 1; atomic_load_explicit(&w->done, memory_order_acquire) != number; spins++) {
        PAUSE();
        if (spins % 256) continue;
        now = nanoseconds();
        if (!begin) begin = now;
        if (now - begin > LATE_NS) sched_yield();
    }
    return now - begin > LATE_NS ? now - begin : 0;
}

void fl_team_run(fl_team *team, fl_work *work, void *context) {
    const uint32_t parts = team->size;
    for (uint32_t i = 1; i < parts; i++) give(team->workers[i - 1], work, context, i, parts);
    work(context, 0, parts);
    for (uint32_t i = 1; i < parts; i++) team->waited += wait_for(team->workers[i - 1]);
}
