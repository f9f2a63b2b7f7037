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

/* ---- weights ------------------------------------------------------------------------------------------ */

/* The reader admits no more inputs of int8 weights; other rows are shorter here. */
enum { MOST_INPUTS = 1 << 17 };

/* One row of a matrix: numbers, or whole numbers that are multiples of the row's scale. */
typedef struct plain_row {
    size_t inputs;
    bool whole;
    float scale;
    union {
        float real[MOST_INPUTS];
        int32_t number[MOST_INPUTS];
    } weight;
} plain_row;

/* Blocks of 64 bytes that the inputs of a panel of 16 rows need. */
static size_t blocks_needed(fl_dtype dtype, size_t K) {
    const size_t per[] = {[FL_F32] = 1, [FL_BF16] = 2, [FL_INT8] = 4, [FL_INT4] = 8};
    return (K + per[dtype] - 1) / per[dtype];
}

/* A panel is `blocks` blocks of `items` things for each of its rows: where those of a row begin. */
static size_t block_of(const fl_matrix *m, size_t row, size_t block, size_t blocks, size_t items) {
    return ((row / m->lanes * blocks + block) * m->lanes + row % m->lanes) * items;
}

static float bf16_weight(const fl_matrix *m, size_t row, size_t k) {
    const uint16_t *weights = m->weights;
    return float_of((uint32_t)weights[block_of(m, row, k / 2, m->blocks, 2) + k % 2] << 16);
}

static int int8_weight(const fl_matrix *m, size_t row, size_t k) {
    const int8_t *weights = m->weights;
    return weights[block_of(m, row, k / 4, m->blocks, 4) + k % 4];
}

/* A nibble less 8, times the factor of 32 inputs. */
static int int4_weight(const fl_matrix *m, size_t row, size_t k) {
    const uint8_t *weights = m->weights;
    const int byte = weights[block_of(m, row, k / 8, m->blocks, 4) + k % 4],
              factor = m->group[block_of(m, row, k / 64, (m->inputs + 63) / 64, 2) + k / 32 % 2];
    return factor * ((k / 4 % 2 ? byte >> 4 : byte & 15) - 8);
}

static void read_row(plain_row *out, const fl_matrix *m, size_t row) {
    out->inputs = m->inputs;
    out->whole = m->dtype == FL_INT8 || m->dtype == FL_INT4;
    out->scale = out->whole ? m->scale[row] : 1;
    for (size_t k = 0; k < m->inputs; k++) {
        switch (m->dtype) {
        case FL_F32: out->weight.real[k] = ((const float *)m->weights)[block_of(m, row, k, m->blocks, 1)]; break;
        case FL_BF16: out->weight.real[k] = bf16_weight(m, row, k); break;
        case FL_INT8: out->weight.number[k] = int8_weight(m, row, k); break;
        case FL_INT4: out->weight.number[k] = int4_weight(m, row, k); break;
        }
    }
}

/* As an embedding. */
static float row_value(const plain_row *row, size_t k) {
    return row->whole ? row->scale * (float)row->weight.number[k] : row->weight.real[k];
}

/* ---- inputs -------------------------------------------------------------------------------------------- */

/* The input of a product: what weights that are numbers meet, and what whole ones meet. */
typedef struct plain_input {
    const float *values;
    const int8_t *numbers; /* values in steps, rounded to the nearest, halves to even */
    float step;
} plain_input;

/* Step 1/127 for hidden values, which are within [-1, 1]; for an embedding (step 0) the largest becomes 127. */
static plain_input round_input(const float *values, int8_t *numbers, size_t K, float step) {
    float largest = 0, units = 127;
    for (size_t k = 0; k < K; k++) largest = fmaxf(largest, fabsf(values[k]));
    if (step == 0) {
        units = largest < 0x1p-100f ? 0 : 127 / largest;
        step = largest < 0x1p-100f ? 0 : largest / 127;
    }
    for (size_t k = 0; k < K; k++) numbers[k] = (int8_t)rintf(values[k] * units);
    return (plain_input){values, numbers, step};
}

/* ---- the network --------------------------------------------------------------------------------------- */

/* One sum a row. Numbers: inputs in rising order, each fused. Whole numbers: exactly, then scaled once. */
static float row_sum(float sum, const plain_row *row, const plain_input *in) {
    int64_t whole = 0;
    if (!row->whole) {
        for (size_t k = 0; k < row->inputs; k++) sum = fmaf(row->weight.real[k], in->values[k], sum);
        return sum;
    }
    for (size_t k = 0; k < row->inputs; k++) whole += row->weight.number[k] * in->numbers[k];
    return fmaf((float)whole, row->scale * in->step, sum);
}

static float matrix_sum(float sum, const fl_matrix *m, size_t row, const plain_input *in) {
    static plain_row weights;
    read_row(&weights, m, row);
    return row_sum(sum, &weights, in);
}

/* One unit's new c and h from its gates. */
static void unit_update(const float gate[4], float *h_new, float *c) {
    *c = fmaf(sigmoid(gate[1]), *c, sigmoid(gate[0]) * hyperbolic_tangent(gate[2]));
    *h_new = sigmoid(gate[3]) * hyperbolic_tangent(*c);
}

/* Where gate g of a unit stands in [groups][4][16]. */
static size_t gate_row(size_t unit, size_t g) { return (unit / 16 * 4 + g) * 16 + unit % 16; }

/* One step of one unit; start: [groups][4][16], x may be NULL. */
static void unit_step(const fl_lstm *layer, size_t unit, const float *start, const plain_input *x, const plain_input *h,
                      float *h_new, float *c) {
    float gate[4];
    for (size_t g = 0; g < 4; g++) {
        const size_t row = gate_row(unit, g);
        gate[g] = x ? matrix_sum(start[row], &layer->x, row, x) : start[row];
        gate[g] = matrix_sum(gate[g], &layer->h, row, h);
    }
    unit_update(gate, h_new, c);
}

/* No layer is wider. */
enum { MOST_UNITS = 720, MOST_LAYERS = 4 };

/* One layer's past, and its h as the next product reads it. */
typedef struct plain_layer {
    float h[MOST_UNITS], c[MOST_UNITS];
    int8_t numbers[MOST_UNITS];
    plain_input input;
} plain_layer;

static void layer_step(plain_layer *past, const fl_lstm *layer, const plain_input *x) {
    static float next[MOST_UNITS];
    for (size_t unit = 0; unit < layer->units; unit++)
        unit_step(layer, unit, layer->bias, x, &past->input, &next[unit], &past->c[unit]);
    memcpy(past->h, next, layer->units * sizeof *next);
    past->input = round_input(past->h, past->numbers, layer->units, 1.0f / 127);
}

static plain_input embed(const fl_model *m, int32_t token) {
    static plain_row row;
    static float values[MOST_UNITS];
    static int8_t numbers[MOST_UNITS];
    read_row(&row, &m->embedding, (size_t)token);
    for (size_t k = 0; k < m->embedding_size; k++) values[k] = row_value(&row, k);
    return round_input(values, numbers, m->embedding_size, 0);
}

/* Logits after n tokens from a fresh network. */
static void naive_logits(const fl_model *m, const int32_t *tokens, size_t n, float *logits) {
    static plain_layer layers[MOST_LAYERS];
    memset(layers, 0, sizeof layers);
    for (uint32_t i = 0; i < m->n_layers; i++)
        layers[i].input = round_input(layers[i].h, layers[i].numbers, m->layers[i].units, 1.0f / 127);
    for (size_t t = 0; t < n; t++) {
        plain_input x = embed(m, tokens[t]);
        for (uint32_t i = 0; i < m->n_layers; i++) {
            layer_step(&layers[i], &m->layers[i], &x);
            x = layers[i].input;
        }
    }
    for (size_t v = 0; v < m->vocab_size; v++)
        logits[v] = matrix_sum(m->output_bias[v], &m->output, v, &layers[m->n_layers - 1].input);
}

/* ---- screens ------------------------------------------------------------------------------------------- */

/* What a table of four values holds under the bits b. */
static uint8_t table_entry(const float *values, unsigned b, float steps) {
    float sum = b & 1 ? values[0] : -values[0];
    for (unsigned i = 1; i < 4; i++) sum = fmaf(b >> i & 1 ? 1.0f : -1.0f, values[i], sum);
    return (uint8_t)(FL_TABLE_ZERO + (int)rintf(sum * steps));
}

/* The signs of a row's inputs 8 octet … 8 octet + 7, as bits. */
static uint8_t sign_octet(const fl_screen *s, size_t row, size_t plane, size_t octet) {
    const size_t block = row / FL_BLOCK, in_block = row % FL_BLOCK;
    const size_t place = in_block / 32 * 32 + in_block % 16 * 2 + in_block / 16 % 2;
    return s->bits[((block * s->planes + plane) * s->pairs * 2 + octet) * FL_BLOCK + place];
}

/* Bounds of a row's logit, given its product along the directions. */
static void naive_bound(const fl_screen *s, const fl_view *v, size_t row, float *lower, float *upper) {
    const size_t rows = s->blocks * FL_BLOCK;
    float middle = *lower, size = 0;
    for (size_t plane = 0; plane < s->planes; plane++) {
        int whole = 0;
        for (size_t octet = 0; octet < 2 * s->pairs; octet++) {
            const uint8_t bits = sign_octet(s, row, plane, octet);
            whole += v->tables[32 * octet + (bits & 15)] + v->tables[32 * octet + 16 + (bits >> 4)] - 2 * FL_TABLE_ZERO;
        }
        middle = fmaf((float)whole, s->size[plane * rows + row] * v->step, middle);
        size += s->size[plane * rows + row];
    }
    const float error = fmaf(s->radius[row], v->distance, fmaf(size, v->table_error, v->rounding * fabsf(middle)));
    *lower = middle - error, *upper = middle + error;
}

/* ---- the draw ------------------------------------------------------------------------------------------ */

/* A token's noise. */
static float noise_at(uint32_t id, const fl_noise *noise) {
    vi word[4];
    philox(id / 64 * 16 + id % 16, noise, word);
    return gumbel(word[id / 16 % 4]);
}

/* The token with the largest key, among equals the lowest id. */
static fl_winner naive_choose(const float *logits, const int32_t *ids, size_t n, float temperature,
                              const fl_noise *noise) {
    fl_winner best = FL_NO_WINNER;
    for (size_t i = 0; i < n; i++) {
        const int32_t id = ids ? ids[i] : (int32_t)i;
        const float key = temperature == 0 ? logits[i] : fmaf(temperature, noise_at((uint32_t)id, noise), logits[i]);
        if (key > best.key || (key == best.key && id < best.id)) best = (fl_winner){key, id};
    }
    return best;
}

#endif
