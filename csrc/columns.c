/* SPDX-License-Identifier: Apache-2.0
 *
 * Inputs of products: columns of values, and the rows of an embedding that become such. */
#include "internal.h"

/* Rounded to the nearest whole number, halves to even: adding 1.5 * 2^23 leaves it in the low bits. */
static int8_t nearest(float x) {
    uint32_t bits;
    x += 12582912.0f;
    memcpy(&bits, &x, sizeof bits);
    return (int8_t)(bits & 255);
}

static float largest_size(const float *values, size_t n) {
    float largest = 0;
    for (size_t i = 0; i < n; i++) {
        const float size = values[i] < 0 ? -values[i] : values[i];
        largest = size > largest ? size : largest;
    }
    return largest;
}

/* Where a column begins: its values are `width` apart, its bytes lie four together, 4 * width from the next four. */
static size_t begin_of(const fl_columns *c, size_t column) { return column / c->width * c->padded * c->width; }

static void put_bytes(const fl_columns *c, size_t column, const float *values, float units) {
    int8_t *bytes = c->bytes + begin_of(c, column) + 4 * (column % c->width);
    int32_t *sums = c->sums + begin_of(c, column) / 32 + column % c->width;
    for (size_t k = 0; k < c->padded; sums += c->width) {
        *sums = 0;
        for (int four = 0; four < 8; four++, bytes += 4 * c->width)
            for (int i = 0; i < 4; i++, k++) *sums += bytes[i] = k < c->inputs ? nearest(values[k] * units) : 0;
    }
}

void fl_columns_put(const fl_columns *c, size_t column, const float *values, float step) {
    float units = FL_HIDDEN_UNITS;
    if (step == 0) {
        /* What is smaller than any weight of use counts as zero, so that nothing overflows here. */
        const float largest = largest_size(values, c->inputs);
        units = largest < 0x1p-100f ? 0 : 127.0f / largest;
        step = largest < 0x1p-100f ? 0 : largest / 127.0f;
    }
    c->steps[column] = step;
    if (c->bytes) put_bytes(c, column, values, units);
    if (!c->values) return;
    float *to = c->values + begin_of(c, column) + column % c->width;
    for (size_t k = 0; k < c->inputs; k++, to += c->width) *to = values[k];
}

void fl_columns_copy(const fl_columns *to, size_t column, const fl_columns *from, size_t begin, size_t end) {
    const size_t at = begin_of(to, column), j = column % to->width, width = to->width;
    for (size_t k = begin; to->values && k < end && k < from->inputs; k++)
        to->values[at + k * width + j] = from->values[k];
    if (!to->bytes) return;
    for (size_t k = begin; k < end; k += 4) memcpy(to->bytes + at + k * width + 4 * j, from->bytes + k, 4);
    for (size_t g = begin / 32; g < end / 32; g++) to->sums[at / 32 + g * width + j] = from->sums[g];
}

/* ---- rows -------------------------------------------------------------------------------------------- */

static float bf16_value(const uint16_t *weights, size_t at) {
    const uint32_t bits = (uint32_t)weights[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The number that weight k of a row is a scale's multiple of. */
static int int4_value(const fl_matrix *m, size_t panel, size_t lane, size_t k) {
    const size_t pairs = fl_parts(m->inputs, 64);
    const uint8_t byte = ((const uint8_t *)m->weights)[((panel * m->blocks + k / 8) * m->lanes + lane) * 4 + k % 4];
    const int factor = m->group[((panel * pairs + k / 64) * m->lanes + lane) * 2 + k / 32 % 2];
    return factor * ((k % 8 < 4 ? byte & 15 : byte >> 4) - 8);
}

void fl_matrix_row(const fl_matrix *m, size_t row, float *out) {
    const size_t K = m->inputs, lanes = m->lanes, panel = row / lanes, lane = row % lanes;
    for (size_t k = 0; k < K; k++) {
        switch (m->dtype) {
        case FL_F32: out[k] = ((const float *)m->weights)[(panel * m->blocks + k) * lanes + lane]; break;
        case FL_BF16: out[k] = bf16_value(m->weights, ((panel * m->blocks + k / 2) * lanes + lane) * 2 + k % 2); break;
        case FL_INT8:
            out[k] = m->scale[row] *
                     (float)((const int8_t *)m->weights)[((panel * m->blocks + k / 4) * lanes + lane) * 4 + k % 4];
            break;
        case FL_INT4: out[k] = m->scale[row] * (float)int4_value(m, panel, lane, k); break;
        }
    }
}
