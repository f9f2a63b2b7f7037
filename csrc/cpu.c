/* SPDX-License-Identifier: Apache-2.0
 *
 * Which instruction sets there are, which this machine has, and which one is used. */
#include "kernels.h"

#include <stdlib.h>

static const fl_kernels *const levels[] = {
    &fl_kernels_scalar,
#ifdef FL_X86
    &fl_kernels_avx2,
    &fl_kernels_avx512,
#endif
};

size_t fl_isa_count(void) { return sizeof levels / sizeof *levels; }

const char *fl_isa_name(size_t index) { return levels[index]->name; }

int fl_isa_supported(size_t index) {
#ifdef FL_X86
    /* The compiler's run-time support also asks the operating system whether it saves the wide registers. */
    __builtin_cpu_init();
    if (levels[index] == &fl_kernels_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (levels[index] == &fl_kernels_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return index == 0;
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
            return fl_fail(error, FL_ERROR_ARGUMENT, "%s=%s: this processor does not have it", from, isa);
        *kernels = levels[i];
        return FL_OK;
    }
    char known[64] = "";
    for (size_t i = 0; i < fl_isa_count(); i++) strcat(strcat(known, i ? ", " : ""), levels[i]->name);
    return fl_fail(error, FL_ERROR_ARGUMENT, "%s=%.32s: unknown; this build has %s", from, isa, known);
}

fl_status fl_isa_choose(const char *isa, const char **name, fl_error *error) {
    const fl_kernels *kernels = NULL;
    const fl_status status = fl_cpu_choose(isa, &kernels, error);
    if (!status) *name = kernels->name;
    return status;
}
