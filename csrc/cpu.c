/* SPDX-License-Identifier: Apache-2.0
 *
 * Which instruction sets there are, which this machine has, and which one is used. The weakest processors with a level
 * of their own are x86-64 with AVX2 and FMA (since 2013) and AArch64 with the dot product (Armv8.4, and most cores since
 * 2018); every other one runs the plain C. */
#include "kernels.h"

#include <stdlib.h>
#ifdef FL_X86
#include <cpuid.h>
#endif
#if defined(FL_NEON) && defined(__linux__)
#include <sys/auxv.h>
#endif

static const fl_kernels *const levels[] = {
    &fl_kernels_scalar,
#ifdef FL_X86
    &fl_kernels_avx2,   &fl_kernels_avxvnni, &fl_kernels_avx512, &fl_kernels_avx512vnni,
#endif
#ifdef FL_NEON
    &fl_kernels_neon,
#endif
};

size_t fl_isa_count(void) { return sizeof levels / sizeof *levels; }

const char *fl_isa_name(size_t index) { return levels[index]->name; }

#ifdef FL_X86
/* The compiler's run-time support also asks the operating system whether it saves the wide registers; it does not
 * know AVX-VNNI by name everywhere. */
static bool has_avxvnni(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}

static bool has(const fl_kernels *level) {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"),
               avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return level == &fl_kernels_avx2         ? avx2
           : level == &fl_kernels_avxvnni    ? avx2 && has_avxvnni()
           : level == &fl_kernels_avx512     ? avx512
           : level == &fl_kernels_avx512vnni ? avx512 && __builtin_cpu_supports("avx512vnni")
                                             : false;
}
#elif defined(FL_NEON)
static bool has(const fl_kernels *level) {
    if (level != &fl_kernels_neon) return false;
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__)
    return true; /* every Mac of this kind has it */
#else
    return false; /* not asked: each system has its own way */
#endif
}
#else
static bool has(const fl_kernels *level) {
    (void)level;
    return false;
}
#endif

int fl_isa_supported(size_t index) { return index == 0 || has(levels[index]); }

typedef struct level_names {
    char text[64];
} level_names;

/* All levels of this build, or those that run here. */
static level_names name_levels(bool here) {
    level_names names = {""};
    for (size_t i = 0; i < fl_isa_count(); i++)
        if (!here || fl_isa_supported(i)) strcat(strcat(names.text, *names.text ? ", " : ""), levels[i]->name);
    return names;
}

/* A level that is asked for by name is used or refused, never replaced: a test that forces one must not pass
 * on another. */
fl_status fl_cpu_choose(const char *isa, const fl_kernels **kernels, fl_error *error) {
    const char *from = "isa";
    if (!isa) isa = getenv("FASTLM_ISA"), from = "FASTLM_ISA";
    if (!isa || !*isa) {
        for (size_t i = 0; i < fl_isa_count(); i++)
            if (fl_isa_supported(i)) *kernels = levels[i];
        return FL_OK;
    }
    for (size_t i = 0; i < fl_isa_count(); i++) {
        if (strcmp(isa, levels[i]->name) != 0) continue;
        if (!fl_isa_supported(i))
            return fl_fail(error, FL_ERROR_ARGUMENT, "%s=%s: this processor does not have it, it has %s", from, isa,
                           name_levels(true).text);
        *kernels = levels[i];
        return FL_OK;
    }
    return fl_fail(error, FL_ERROR_ARGUMENT, "%s=%.32s: unknown; this build has %s", from, isa,
                   name_levels(false).text);
}

fl_status fl_isa_choose(const char *isa, const char **name, fl_error *error) {
    const fl_kernels *kernels = NULL;
    const fl_status status = fl_cpu_choose(isa, &kernels, error);
    if (!status) *name = kernels->name;
    return status;
}

/* ---- threads ----------------------------------------------------------------------------------------- */

/* Bytes of weights a token for which a thread is worth its waiting: read in 2 µs or less, where the parts of a token wait
 * for one another for half a microsecond. */
enum { BYTES_A_THREAD = 1 << 18 };

static fl_status threads_of_environment(uint32_t *threads, fl_error *error) {
    const char *text = getenv("FASTLM_THREADS");
    if (!text || !*text) return FL_OK;
    char *end;
    const unsigned long value = strtoul(text, &end, 10);
    if (*end || value < 1 || value > FL_MOST_THREADS || *text < '0' || *text > '9')
        return fl_fail(error, FL_ERROR_ARGUMENT, "FASTLM_THREADS=%.32s: expected a number from 1 to %d", text,
                       FL_MOST_THREADS);
    *threads = (uint32_t)value;
    return FL_OK;
}

fl_status fl_cpu_threads(uint32_t asked, size_t bytes, uint32_t *threads, fl_error *error) {
    if (asked > FL_MOST_THREADS)
        return fl_fail(error, FL_ERROR_ARGUMENT, "threads=%u: expected 1 to %d", asked, FL_MOST_THREADS);
    const fl_status status = asked ? FL_OK : threads_of_environment(&asked, error);
    if (status) return status;
    const size_t wanted = asked ? asked : bytes / BYTES_A_THREAD, cores = asked ? fl_os_cores() : fl_os_own_cores();
    *threads = (uint32_t)(wanted < 1 ? 1 : wanted < cores ? wanted : cores);
    if (*threads > FL_MOST_THREADS) *threads = FL_MOST_THREADS;
    return FL_OK;
}
