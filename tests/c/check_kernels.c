/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests and times every kernel on every level that this processor has, in the manner of dav1d's checkasm:
 *
 *     cc -O3 csrc/(all).c tests/c/check_kernels.c -Icsrc -lm -lpthread -o check && ./check [--seed N] [--quick | --brief] [--bench]
 *
 * A level must give the bits of the definition in definition.h, in buffers that end or begin at a page that faults.
 * --quick takes a sample, another one with every seed, --brief a small one, for emulated processors; --exhaustive every float; --fingerprint looks only at what a
 * numerics version promises. */
#include "harness.h" /* first: it asks the C library for all that it has */

#include "bench_kernels.h"
#include "check_attention.h"
#include "check_choices.h"
#include "check_elementary.h"
#include "check_model.h"
#include "check_products.h"
#include "check_screens.h"

static void check_all(uint64_t *random, uint32_t stride) {
    make_arenas();
    printf("levels:");
    for (size_t i = 0; i < fl_isa_count(); i++)
        printf(" %s%s", fl_isa_name(i), fl_isa_supported(i) ? "" : " (not here)");
    printf("\n");
    check_elementary(stride);
    check_activations(share > 1 ? 65521 : 1021, random);
    check_logarithms(share > 1 ? 65521 : 251);
    check_all_columns(random);
    check_all_rows(random);
    check_slices();
    check_products(random);
    check_largest_sums(random);
    check_updates(random);
    check_activate(random);
    check_compare(random);
    check_choices(random);
    check_collections(random);
    check_masses(random);
    check_weights(random);
    check_screens(random);
    check_models(random);
}

int main(int count, char **arguments) {
    uint64_t seed = clock_seed();
    uint32_t stride = 257;
    bool measure = false, fingerprints = false;
    const char *only = NULL;
    static const char usage[] =
        "usage: %s [--seed N] [--quick | --brief | --exhaustive | --fingerprint | --bench [--only PART_OF_A_NAME]]\n";
    for (int i = 1; i < count; i++) {
        if (strcmp(arguments[i], "--seed") == 0 && i + 1 < count)
            seed = strtoull(arguments[++i], NULL, 0);
        else if (strcmp(arguments[i], "--quick") == 0)
            share = 10, stride = 16381;
        else if (strcmp(arguments[i], "--brief") == 0)
            share = 80, stride = 65521;
        else if (strcmp(arguments[i], "--exhaustive") == 0)
            stride = 1;
        else if (strcmp(arguments[i], "--fingerprint") == 0)
            fingerprints = true;
        else if (strcmp(arguments[i], "--bench") == 0)
            measure = true;
        else if (strcmp(arguments[i], "--only") == 0 && i + 1 < count)
            only = arguments[++i];
        else
            return fprintf(stderr, usage, *arguments), 2;
    }
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ); /* a run that hangs still shows what has failed */
    printf("seed %llu\n", (unsigned long long)seed);
    catch_faults();
    uint64_t random = seed;
    if (measure)
        bench(&random, only);
    else if (fingerprints)
        check_fingerprint(), check_model_fingerprint();
    else
        check_all(&random, stride);
    return report(seed);
}
