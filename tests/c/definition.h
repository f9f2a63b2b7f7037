/* SPDX-License-Identifier: Apache-2.0
 *
 * What is computed, to the last bit (docs/numerics.md), as plainly as it can be written: what every kernel and
 * the whole engine are compared with. The elementary functions are static in the kernels' template, so the
 * template is compiled once more here, with one lane. */
#ifndef DEFINITION_H
#define DEFINITION_H

#include "kernels.h"
#include "vec_scalar.h"
#define FL_LEVEL reference
#include "kernels_template.h"

static float float_of(uint32_t bits) { return vf_bits(bits); }

/* One sum a row, inputs in rising order, each fused. */
static float row_sum(float sum, const fl_matrix *m, size_t row, const float *input) {
    const float *weights = m->weights + row / 16 * m->inputs * 16 + row % 16;
    for (size_t k = 0; k < m->inputs; k++) sum = fmaf(weights[16 * k], input[k], sum);
    return sum;
}

/* One step of one unit; start: [groups][4][16], x may be NULL. */
static void unit_step(const fl_lstm *layer, size_t unit, const float *start, const float *x, const float *h,
                      float *h_new, float *c) {
    float gate[4];
    for (size_t g = 0; g < 4; g++) {
        const size_t row = (unit / 16 * 4 + g) * 16 + unit % 16;
        gate[g] = x ? row_sum(start[row], &layer->x, row, x) : start[row];
        gate[g] = row_sum(gate[g], &layer->h, row, h);
    }
    *c = fmaf(sigmoid(gate[1]), *c, sigmoid(gate[0]) * hyperbolic_tangent(gate[2]));
    *h_new = sigmoid(gate[3]) * hyperbolic_tangent(*c);
}

/* Logits after n tokens from a fresh network; no layer is wider than MOST_UNITS. */
enum { MOST_UNITS = 720, MOST_LAYERS = 4 };

static void naive_logits(const fl_model *m, const int32_t *tokens, size_t n, float *logits) {
    static float h[MOST_LAYERS][MOST_UNITS], c[MOST_LAYERS][MOST_UNITS], next[MOST_UNITS], x[MOST_UNITS];
    const size_t E = m->embedding_size;
    memset(h, 0, sizeof h);
    memset(c, 0, sizeof c);
    for (size_t t = 0; t < n; t++) {
        const size_t id = (size_t)tokens[t];
        const float *in = x;
        for (size_t k = 0; k < E; k++)
            x[k] = m->embedding ? m->embedding[id * E + k] : m->output.weights[(id / 16 * E + k) * 16 + id % 16];
        for (uint32_t i = 0; i < m->n_layers; in = h[i++]) {
            for (size_t unit = 0; unit < m->layers[i].units; unit++)
                unit_step(&m->layers[i], unit, m->layers[i].bias, in, h[i], &next[unit], &c[i][unit]);
            memcpy(h[i], next, sizeof next);
        }
    }
    for (size_t v = 0; v < m->vocab_size; v++)
        logits[v] = row_sum(m->output_bias[v], &m->output, v, h[m->n_layers - 1]);
}

/* A token's noise. */
static float noise_at(uint32_t id, const fl_noise *noise) {
    vi word[4];
    philox(id / 64 * 16 + id % 16, noise, word);
    return gumbel(word[id / 16 % 4]);
}

/* The token with the largest key, among equals the lowest id. */
static int32_t naive_choose(const float *logits, const int32_t *ids, size_t n, float temperature,
                            const fl_noise *noise) {
    float best = -INFINITY;
    int32_t winner = INT32_MAX;
    for (size_t i = 0; i < n; i++) {
        const int32_t id = ids ? ids[i] : (int32_t)i;
        const float key = temperature == 0 ? logits[i] : fmaf(temperature, noise_at((uint32_t)id, noise), logits[i]);
        if (key > best || (key == best && id < winner)) best = key, winner = id;
    }
    return winner;
}

#endif
