/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads: teams, many callers at once, forks, fewer cores than asked for; no system call and no allocation for a
 * token. Build it with -fsanitize=thread too:
 *
 *     cc -O2 csrc/(all).c tests/c/check_threads.c -Icsrc -lm -pthread -o check && ./check [--seed N] */
#include "harness.h"
#include "internal.h"
#include "tiny_model.h"

#include <pthread.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#if defined(__SANITIZE_THREAD__)
/* A child that starts threads of its own is what is tested. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) { return "die_after_fork=0"; }
#endif

enum { TEXTS = 12, TOKENS = 40, CALLERS = 4 };

static const tiny_shape shapes[] = {
    {.vocab = 700, .embedding = 40, .layers = 2, .units = {130, 77}, .alignment = 64, .scale = 3, .output_scale = 3},
    {.vocab = 333,
     .embedding = 64,
     .layers = 3,
     .units = {64, 96, 64},
     .x_dtype = {AS_INT8, AS_INT4, AS_BF16},
     .h_dtype = {AS_INT4, AS_INT8, AS_INT8},
     .output_dtype = AS_INT8,
     .embedding_dtype = AS_INT8,
     .alignment = 64,
     .scale = 3,
     .output_scale = 3},
};

static fl_model *open_model(const tiny_model *file, uint32_t threads) {
    const fl_load_options options = {.row_cache_bytes = 1 << 16, .threads = threads};
    fl_model *model;
    fl_error error;
    if (fl_model_from_memory(file->bytes, file->size, &options, &model, &error)) {
        printf("a valid model does not load: %s\n", error.message);
        exit(2);
    }
    return model;
}

/* Texts with prompts, samplings and lengths of their own, written side by side. */
typedef struct texts {
    int32_t prompt[TEXTS][70], tokens[TEXTS][TOKENS];
    float logprobs[TEXTS][TOKENS];
    size_t written[TEXTS];
    fl_sampling sampling[TEXTS];
    fl_request requests[TEXTS];
} texts;

static void write_texts(const fl_model *model, texts *t, size_t first, size_t count) {
    fl_decoder *decoder;
    fl_error error;
    uint64_t random = 7;
    if (fl_decoder_new(model, &decoder, &error)) exit(2);
    for (size_t i = 0; i < TEXTS; i++) {
        fl_request *r = &t->requests[i];
        *r = (fl_request){.prompt = t->prompt[i], .n_prompt = 1 + below(&random, 69), .tokens = t->tokens[i]};
        for (size_t j = 0; j < r->n_prompt; j++) t->prompt[i][j] = (int32_t)below(&random, model->vocab_size);
        t->sampling[i] = (fl_sampling){.temperature = (float)(i % 3) * 0.5f, .steps = {FL_TEMPERATURE}};
        t->sampling[i].steps[1] = i % 4 == 1 ? FL_TOP_K : i % 5 == 2 ? FL_TOP_P : FL_NO_CONTROL;
        t->sampling[i].top_k = 9, t->sampling[i].top_p = 0.9;
        r->sampling = &t->sampling[i];
        r->seed = i;
        r->max_tokens = 1 + below(&random, TOKENS - 1);
        r->logprobs = i % 2 ? t->logprobs[i] : NULL;
        if (i < first || i >= first + count) continue;
        if (fl_state_new(model, &r->state, &error)) exit(2);
    }
    fl_generate(decoder, t->requests + first, count, 0);
    for (size_t i = first; i < first + count; i++) {
        t->written[i] = t->requests[i].written;
        fl_state_free(t->requests[i].state);
    }
    fl_decoder_free(decoder);
}

static bool same_texts(const texts *a, const texts *b) {
    return memcmp(a->written, b->written, sizeof a->written) == 0 &&
           memcmp(a->tokens, b->tokens, sizeof a->tokens) == 0 &&
           memcmp(a->logprobs, b->logprobs, sizeof a->logprobs) == 0;
}

/* ---- many callers -------------------------------------------------------------------------------------- */

typedef struct caller {
    const fl_model *model;
    texts *found; /* all of them, or one after the other */
    bool together;
} caller;

static void *run_caller(void *argument) {
    const caller *c = argument;
    if (c->together) write_texts(c->model, c->found, 0, TEXTS);
    for (size_t i = 0; !c->together && i < TEXTS; i++) write_texts(c->model, c->found, i, 1);
    return NULL;
}

static void check_callers(const tiny_model *file, const texts *expected) {
    fl_model *models[2] = {open_model(file, 2), open_model(file, 2)}; /* callers share them */
    static texts found[CALLERS];
    caller callers[CALLERS];
    pthread_t threads[CALLERS];
    memset(found, 0, sizeof found);
    for (size_t i = 0; i < CALLERS; i++) {
        callers[i] = (caller){models[i / 2], &found[i], i % 2};
        if (pthread_create(&threads[i], NULL, run_caller, &callers[i])) exit(2);
    }
    for (size_t i = 0; i < CALLERS; i++) pthread_join(threads[i], NULL);
    for (size_t i = 0; i < CALLERS; i++) check(same_texts(&found[i], expected), "caller %zu wrote other texts", i);
    fl_model_close(models[0]);
    fl_model_close(models[1]);
}

/* ---- teams --------------------------------------------------------------------------------------------- */

/* Calls at the same time share the cores, those under way from their next token on. */
static void check_shares(void) {
    const uint32_t cores = fl_os_cores() < 4 ? fl_os_cores() : 4, half = (cores + 1) / 2;
    static fl_team first, second;
    now("shares of two callers on %u cores", cores);
    fl_threads_reserve(cores);
    fl_threads_reserve(cores);
    fl_team_begin(&first, cores);
    check(first.size == cores, "alone: %u threads", first.size);
    first.cores = cores; /* as if there were no more */
    fl_team_begin(&second, cores);
    check(cores > 3 || second.size == 1, "before the first has shared: %u threads", second.size);
    fl_team_pause(&first);
    check(first.size == half, "first, after a token: %u threads", first.size);
    fl_team_end(&second);
    fl_team_pause(&first);
    fl_team_end(&first);
    fl_team_begin(&first, cores);
    check(first.size == cores, "alone again: %u threads", first.size);
    fl_team_end(&first);
    fl_threads_release(cores);
    fl_threads_release(cores);
}

static void sleep_at_second(void *context, uint32_t part, uint32_t parts) {
    (void)parts;
    if (part == 1) nanosleep(context, NULL);
}

/* A part that is late again and again, as on a machine that does other things: the caller goes on alone, and tries
 * again later. */
static void check_busy(void) {
    static fl_team team;
    struct timespec late = {0, 2000000};
    if (fl_os_cores() < 2) return;
    now("a busy machine");
    fl_threads_reserve(2);
    fl_team_begin(&team, 2);
    check(team.size == 2, "%u threads", team.size);
    for (int i = 0; i < 10 && team.size == 2; i++) {
        fl_team_run(&team, sleep_at_second, &late);
        fl_team_pause(&team);
    }
    check(team.size == 1, "still waits");
    fl_team_end(&team);
    fl_team_begin(&team, 2);
    check(team.size == 1, "has forgotten at once");
    fl_team_end(&team);
    nanosleep(&(struct timespec){0, 50000000}, NULL);
    fl_team_begin(&team, 2);
    check(team.size == 2, "never tries again");
    fl_team_end(&team);
    fl_threads_release(2);
}

/* ---- control groups ------------------------------------------------------------------------------------ */

static void put_file(const char *root, const char *name, const char *text) {
    char path[200];
    snprintf(path, sizeof path, "%s%s", root, name);
    FILE *file = fopen(path, "w");
    if (!file || fputs(text, file) < 0 || fclose(file)) exit(2);
}

/* What the groups of containers look like, in both versions of the interface. */
static void check_quota(void) {
    char root[] = "/tmp/groups-XXXXXX", command[100];
    if (!mkdtemp(root)) exit(2);
    snprintf(command, sizeof command, "mkdir -p %s/new/inner %s/old/inner", root, root);
    if (system(command)) exit(2);
    now("quota of a control group");
    check(fl_os_quota(root, "/new/inner") == UINT32_MAX, "no file");
    put_file(root, "/new/inner/cpu.max", "max 100000\n");
    check(fl_os_quota(root, "/new/inner") == UINT32_MAX, "max");
    put_file(root, "/new/cpu.max", "250000 100000\n");
    check(fl_os_quota(root, "/new/inner") == 3, "two and a half cores, of the group above");
    put_file(root, "/new/inner/cpu.max", "50000 100000\n");
    check(fl_os_quota(root, "/new/inner") == 1, "half a core");
    check(fl_os_quota(root, "/new") == 3, "the group above itself");
    put_file(root, "/old/cpu.cfs_quota_us", "-1\n");
    put_file(root, "/old/inner/cpu.cfs_quota_us", "200000\n");
    put_file(root, "/old/inner/cpu.cfs_period_us", "100000\n");
    check(fl_os_quota(root, "/old/inner") == 2, "two cores, first version");
    check(fl_os_quota(root, "/old") == UINT32_MAX, "no limit, first version");
    snprintf(command, sizeof command, "rm -r %s", root);
    check(system(command) == 0, "cannot remove %s", root);
}

/* ---- processes ----------------------------------------------------------------------------------------- */

/* Runs in a child; returns whether it ended well. */
static bool in_child(bool (*run)(const tiny_model *file, const texts *expected, void *extra), const tiny_model *file,
                     const texts *expected, void *extra) {
    int status = 0;
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) _exit(run(file, expected, extra) ? 0 : 1);
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool writes_the_same(const tiny_model *file, const texts *expected, void *model) {
    static texts found;
    (void)file;
    memset(&found, 0, sizeof found);
    write_texts(model, &found, 0, TEXTS);
    return same_texts(&found, expected);
}

static void check_fork(const tiny_model *file, const texts *expected) {
    fl_model *model = open_model(file, 2);
    static texts found;
    memset(&found, 0, sizeof found);
    write_texts(model, &found, 0, TEXTS); /* the pool has its threads now */
    check(in_child(writes_the_same, file, expected, model), "a child with its parent's model writes other texts");
    write_texts(model, &found, 0, TEXTS);
    check(same_texts(&found, expected), "the parent writes other texts after a fork");
    fl_model_close(model);
}

static bool sees_one_core(const tiny_model *file, const texts *expected, void *extra) {
    cpu_set_t one, mine;
    (void)extra;
    if (sched_getaffinity(0, sizeof mine, &mine)) return false;
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && !CPU_COUNT(&one); cpu++)
        if (CPU_ISSET(cpu, &mine)) CPU_SET(cpu, &one);
    fl_model *before = open_model(file, 2); /* which learns of it only when it is used */
    if (sched_setaffinity(0, sizeof one, &one)) return false;
    fl_model *after = open_model(file, 2);
    fl_team team = {0};
    fl_team_begin(&team, 2);
    const bool alone = team.size == 1 && after->threads == 1;
    fl_team_end(&team);
    return alone && writes_the_same(file, expected, before) && writes_the_same(file, expected, after);
}

/* ---- nothing from the system ---------------------------------------------------------------------------- */

#if defined(__linux__) && !defined(__SANITIZE_THREAD__)
/* The child stops itself before and after what is counted. */
static void count_in_child(const fl_model *model, size_t tokens) {
    static int32_t drawn[4096];
    fl_decoder *decoder;
    fl_state *state;
    fl_error error;
    int32_t prompt = 1;
    if (fl_decoder_new(model, &decoder, &error) || fl_state_new(model, &state, &error)) _exit(2);
    fl_request request = {.state = state, .prompt = &prompt, .n_prompt = 1, .tokens = drawn, .max_tokens = 64};
    const fl_sampling sampling = {.temperature = 0.8f, .steps = {FL_TEMPERATURE, FL_TOP_P}, .top_p = 0.9};
    request.sampling = &sampling;
    fl_generate(decoder, &request, 1, 0); /* memory is touched, workers run */
    request.max_tokens = tokens;
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    raise(SIGSTOP);
    watch_begin();
    fl_generate(decoder, &request, 1, 0);
    const size_t taken = watch_end();
    raise(SIGSTOP);
    _exit(taken ? 3 : 0);
}

/* System calls of the calling thread while it writes so many tokens; -1: not to be had here. */
static long count_calls(const fl_model *model, size_t tokens) {
    int status = 0;
    long calls = 0;
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) count_in_child(model, tokens);
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) return -1;
    for (;; calls++) {
        if (ptrace(PTRACE_SYSCALL, child, NULL, NULL) || waitpid(child, &status, 0) != child) return -1;
        if (!WIFSTOPPED(status)) return -1;
        if (WSTOPSIG(status) == SIGSTOP) break;
    }
    ptrace(PTRACE_CONT, child, NULL, NULL);
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "allocates while writing (status %d)", status);
    return calls;
}

/* A call costs a few; a token may cost none, but that a worker, when the machine is busy, parks and is woken. */
static void check_system_calls(const tiny_model *file) {
    for (uint32_t threads = 1; threads <= 2; threads++) {
        fl_model *model = open_model(file, threads);
        const long few = count_calls(model, 16), many = count_calls(model, 4000);
        if (few < 0 || many < 0)
            printf("not checked here: system calls of %u threads\n", threads);
        else
            check(many - few <= (threads == 1 ? 0 : 400), "%u threads: %ld system calls for 16 tokens, %ld for 4000",
                  threads, few, many);
        fl_model_close(model);
    }
}
#else
static void check_system_calls(const tiny_model *file) {
    (void)file;
    printf("not checked here: system calls\n");
}
#endif

/* ---- main ---------------------------------------------------------------------------------------------- */

int main(int count, char **arguments) {
    uint64_t seed = clock_seed();
    if (count == 3 && strcmp(arguments[1], "--seed") == 0) seed = strtoull(arguments[2], NULL, 0);
    catch_faults();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        static texts expected;
        tiny_shape shape = shapes[i];
        shape.seed = seed + i;
        tiny_model *file = tiny_new(&shape);
        fl_model *alone = open_model(file, 1);
        now("shape %zu", i);
        memset(&expected, 0, sizeof expected);
        for (size_t j = 0; j < TEXTS; j++) write_texts(alone, &expected, j, 1);
        fl_model_close(alone);
        for (int round = 0; round < 3; round++) check_callers(file, &expected);
        check_fork(file, &expected);
        check(in_child(sees_one_core, file, &expected, NULL), "a process that may use one core uses more");
        check_system_calls(file);
        tiny_free(file);
    }
    check_shares();
    check_busy();
    check_quota();
    return report(seed);
}
