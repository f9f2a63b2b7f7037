/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels, written once in the vocabulary of a vec_*.h that the including file has chosen, with FL_LEVEL
 * naming the instruction set. What is computed, to the last bit, is laid down in docs/numerics.md: a lane is
 * an output row, so the vector's width cannot change the order of any sum.
 *
 * Weights stream through once a token and are the whole cost of a large model; everything else here aims at
 * never waiting for anything but them: enough independent sums in flight to hide the latency of a fused
 * multiply-add, and a unit's update in registers. */

enum { VECTORS = FL_PANEL / FL_LANES }; /* vectors in a panel */

/* Sums of a tile: of FL_PANELS panels for one column, or of FL_TILE panels for FL_COLUMNS columns. */
#define FL_SUMS ((FL_PANELS > FL_TILE * FL_COLUMNS ? FL_PANELS : FL_TILE * FL_COLUMNS) * VECTORS)

/* ---- elementary functions: coefficients fitted for this file, errors in docs/numerics.md ------------ */

/* exp(x) = s + s * q with s a power of two and q = exp(r) - 1, |r| <= ln 2 / 2. x is taken as within
 * [-87, 88], so that s stays a normal number. Adding 1.5 * 2^23 rounds to the nearest whole number and
 * leaves it in the low bits, from where a shift makes it an exponent. */
FL_INLINE vf exp_parts(vf x, vf *s) {
    const vf magic = vf_set(12582912.0f);
    x = vf_min(vf_max(x, vf_set(-87.0f)), vf_set(88.0f));
    const vf t = vf_fma(x, vf_set(1.44269504f), magic);
    const vf n = vf_sub(t, magic);
    vf r = vf_fma(n, vf_set(-0.693359375f), x); /* ln 2 in two parts, the first exact in n's products */
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    vf p = vf_set(0.001387066557072103f);
    p = vf_fma(p, r, vf_set(0.008366262540221214f));
    p = vf_fma(p, r, vf_set(0.04166743531823158f));
    p = vf_fma(p, r, vf_set(0.1666654646396637f));
    p = vf_fma(p, r, vf_set(0.4999999701976776f));
    *s = vf_bits(vi_add(vi_shl(vi_bits(t), 23), vi_set(0x3F800000)));
    return vf_fma(vf_mul(r, r), p, r);
}

FL_INLINE vf exponential(vf x) {
    vf s;
    const vf q = exp_parts(x, &s);
    return vf_fma(s, q, s);
}

FL_INLINE vf sigmoid(vf x) {
    const vf one = vf_set(1.0f);
    return vf_div(one, vf_add(one, exponential(vf_sub(vf_set(0.0f), x))));
}

/* tanh|x| = -u / (2 + u) with u = exp(-2|x|) - 1, which loses nothing near zero; then the sign of x. */
FL_INLINE vf hyperbolic_tangent(vf x) {
    const vi sign = vi_and(vi_bits(x), vi_set(0x80000000));
    vf s;
    const vf q = exp_parts(vf_mul(vf_set(-2.0f), vf_bits(vi_xor(vi_bits(x), sign))), &s);
    const vf u = vf_fma(s, q, vf_sub(s, vf_set(1.0f)));
    const vf size = vf_div(vf_sub(vf_set(0.0f), u), vf_add(vf_set(2.0f), u));
    return vf_bits(vi_xor(vi_bits(size), sign));
}

/* log(2^e * (1 + f)), sqrt(1/2) <= 1 + f < sqrt(2). */
FL_INLINE vf log_polynomial(vf e, vf f) {
    vf p = vf_set(-0.0763646587729454f);
    p = vf_fma(p, f, vf_set(0.127642422914505f));
    p = vf_fma(p, f, vf_set(-0.13160544633865356f));
    p = vf_fma(p, f, vf_set(0.1420137584209442f));
    p = vf_fma(p, f, vf_set(-0.16623298823833466f));
    p = vf_fma(p, f, vf_set(0.2000124603509903f));
    p = vf_fma(p, f, vf_set(-0.250008225440979f));
    p = vf_fma(p, f, vf_set(0.3333333134651184f));
    vf y = vf_mul(vf_mul(f, f), vf_fma(p, f, vf_set(-0.5f)));
    y = vf_fma(e, vf_set(-2.12194440e-4f), y);
    return vf_fma(e, vf_set(0.693359375f), vf_add(y, f));
}

#define SQRT_HALF 0x3F3504F3 /* bits of sqrt(1/2) */

/* x positive and normal. */
FL_INLINE vf natural_log(vf x) {
    const vi e = vi_sar(vi_sub(vi_bits(x), vi_set(SQRT_HALF)), 23);
    const vf m = vf_bits(vi_sub(vi_bits(x), vi_shl(e, 23)));
    return log_polynomial(vf_from_int(e), vf_sub(m, vf_set(1.0f)));
}

/* ---- noise ------------------------------------------------------------------------------------------ */

/* Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). */
FL_INLINE void philox(vi first, const fl_noise *noise, vi word[4]) {
    const vi m0 = vi_set(0xD2511F53), m1 = vi_set(0xCD9E8D57);
    vi a = first, b = vi_set(noise->counter[0]), c = vi_set(noise->counter[1]), d = vi_set(noise->counter[2]);
    uint32_t k0 = noise->key[0], k1 = noise->key[1];
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
        const vi high0 = vi_mul_high(a, m0), low0 = vi_mul_low(a, m0);
        const vi high1 = vi_mul_high(c, m1), low1 = vi_mul_low(c, m1);
        a = vi_xor(vi_xor(high1, b), vi_set(k0));
        b = low1;
        c = vi_xor(vi_xor(high0, d), vi_set(k1));
        d = low0;
    }
    word[0] = a, word[1] = b, word[2] = c, word[3] = d;
}

/* Standard Gumbel noise -log(-log(1 - v)), v = (n + 1/2) / 2^32. Above one half n is replaced by its
 * complement, which gives 1 - v without rounding it to 1 or 0; below, log(1 - v) is taken from v itself. */
FL_INLINE vf gumbel(vi n) {
    const vi upper = vi_sar(n, 31);
    const vf t = vf_mul(vf_add(vf_from_int(vi_xor(n, upper)), vf_set(0.5f)), vf_set(0x1p-32f));
    const vf w = vf_select(vi_equal(upper, vi_set(0)), vf_sub(vf_set(1.0f), t), t); /* 1 - v */
    const vi e = vi_sar(vi_sub(vi_bits(w), vi_set(SQRT_HALF)), 23);
    const vf m = vf_bits(vi_sub(vi_bits(w), vi_shl(e, 23)));
    const vf f = vf_select(vi_equal(e, vi_set(0)), vf_sub(vf_set(0.0f), t), vf_sub(m, vf_set(1.0f)));
    const vf exponential_draw = vf_sub(vf_set(0.0f), log_polynomial(vf_from_int(e), f));
    return vf_sub(vf_set(0.0f), natural_log(exponential_draw));
}

/* ---- products --------------------------------------------------------------------------------------- */

/* FL_COLUMNS or fewer columns of one block of the input, ready for a tile of panels. */
typedef struct block {
    const float *values;     /* [K][width] */
    const int8_t *bytes;     /* [K / 4][width][4] */
    const int32_t *sums;     /* [K / 32][width] */
    const float *steps;      /* [width] */
    int32_t total[FL_WIDTH]; /* of all bytes of a column, for int8 and more than one */
} block;

static block block_at(const fl_matrix *matrix, const fl_columns *input, size_t column) {
    const size_t width = input->width, b = column / width, at = column % width, K = input->padded;
    block found = {.steps = input->steps + b * width + at};
    if (!fl_reads_bytes(matrix)) {
        found.values = input->values + b * K * width + at;
        return found;
    }
    found.bytes = input->bytes + b * K * width + 4 * at;
    found.sums = input->sums + b * K / 32 * width + at;
    for (size_t g = 0; matrix->dtype == FL_INT8 && width > 1 && g < K / 32; g++)
        for (size_t j = 0; j < FL_COLUMNS && at + j < width; j++) found.total[j] += found.sums[g * width + j];
    return found;
}

#if FL_LANES > 1
#define EACH(i, n) FL_UNROLL for (int i = 0; i < (n); i++)
#else /* nothing lives in registers, and code would fill pages */
#define EACH(i, n) for (int i = 0; i < (n); i++)
#endif

/* Inputs for one column, whose weights come straight from memory; a sum must begin with vi_begin_alone(sums of the rows'
 * weights). A level may define FL_ALONE and have a better way. */
#if !defined(FL_ALONE)
typedef vx va;
FL_INLINE va va_set(const int8_t *bytes) { return vx_set(bytes); }
FL_INLINE vi vi_begin_alone(const int32_t *row_sums) {
    (void)row_sums;
    return vi_set(0);
}
FL_INLINE void vi_dot_alone(vi *sum, const int8_t *weights, va x) { vi_dot(sum, vi_load(weights), x); }
#endif

/* Distance of one input from the next. */
FL_INLINE size_t width_of(const int columns) { return columns == 1 ? 1 : FL_WIDTH; }

/* While a tile meets many columns, the memory rests: the weights of the next tile are asked for, `distance` bytes on.
 * (batch 8, int8, 32 MB: 1.5 ms without, 0.73 with. One column is bound by memory anyway, and loses.) */
FL_INLINE void fetch_ahead(const void *weights, size_t distance, const int columns) {
    if (columns > 1) FL_PREFETCH((const char *)weights + distance);
}

/* What follows makes rows[column][16 panel + lane], the tile's rows of each column, from[column][...] plus the tile's
 * weights times the block's columns. from may be rows. `panels` and `columns` are constants where these are inlined, so
 * the sums of a column's vectors, sum[column * panels * VECTORS + vector], live in registers. */

FL_INLINE void load_rows(vf *sum, const float *const *from, const int panels, const int columns) {
    EACH(j, columns) EACH(i, panels * VECTORS) sum[j * panels * VECTORS + i] = vf_load(from[j] + i * FL_LANES);
}

FL_INLINE void store_rows(const vf *sum, float *const *rows, const int panels, const int columns) {
    EACH(j, columns) EACH(i, panels * VECTORS) vf_store(rows[j] + i * FL_LANES, sum[j * panels * VECTORS + i]);
}

/* k rising, one fused multiply-add each. */
FL_INLINE void add_f32(const fl_matrix *matrix, size_t panel, const block *in, const float *const *from,
                       float *const *rows, const int panels, const int columns) {
    const size_t K = matrix->inputs, stride = matrix->blocks * FL_PANEL;
    const float *weights = (const float *)matrix->weights + panel * stride, *x = in->values;
    vf sum[FL_SUMS];
    load_rows(sum, from, panels, columns);
    for (size_t k = 0; k < K; k++, weights += FL_PANEL, x += width_of(columns)) {
        vf w[FL_PANELS * VECTORS];
        EACH(p, panels) EACH(v, VECTORS) w[p * VECTORS + v] = vf_load(weights + (size_t)p * stride + v * FL_LANES);
        EACH(p, panels) fetch_ahead(weights + (size_t)p * stride, (size_t)panels * stride * 4, columns);
        EACH(j, columns) {
            const vf b = vf_set(x[j]);
            EACH(i, panels * VECTORS) sum[j * panels * VECTORS + i] = vf_fma(w[i], b, sum[j * panels * VECTORS + i]);
        }
    }
    store_rows(sum, rows, panels, columns);
}

/* As f32; a lane holds the weights of two k, whose 16 bits are the upper half of a float. */
FL_INLINE void add_bf16(const fl_matrix *matrix, size_t panel, const block *in, const float *const *from,
                        float *const *rows, const int panels, const int columns) {
    const size_t K = matrix->inputs, stride = matrix->blocks * FL_PANEL;
    const uint32_t *weights = (const uint32_t *)matrix->weights + panel * stride;
    const float *x = in->values;
    vf sum[FL_SUMS];
    load_rows(sum, from, panels, columns);
    for (size_t k = 0; k < K; k += 2, weights += FL_PANEL, x += 2 * width_of(columns)) {
        vi w[FL_PANELS * VECTORS];
        EACH(p, panels) EACH(v, VECTORS) w[p * VECTORS + v] = vi_load(weights + (size_t)p * stride + v * FL_LANES);
        EACH(p, panels) fetch_ahead(weights + (size_t)p * stride, (size_t)panels * stride * 4, columns);
        EACH(j, columns) {
            const vf b = vf_set(x[j]);
            EACH(i, panels * VECTORS)
            sum[j * panels * VECTORS + i] = vf_fma(vf_bits(vi_shl(w[i], 16)), b, sum[j * panels * VECTORS + i]);
        }
        if (k + 1 == K) break;
        EACH(j, columns) {
            const vf b = vf_set(x[width_of(columns) + (size_t)j]);
            EACH(i, panels * VECTORS)
            sum[j * panels * VECTORS + i] =
                vf_fma(vf_bits(vi_and(w[i], vi_set(0xFFFF0000))), b, sum[j * panels * VECTORS + i]);
        }
    }
    store_rows(sum, rows, panels, columns);
}

/* rows = from + scale of the row * step of the column * whole number. */
FL_INLINE void add_scaled(const vi *whole, const fl_matrix *matrix, size_t panel, const block *in,
                          const float *const *from, float *const *rows, const int panels, const int columns) {
    const float *scales = matrix->scale + panel * FL_PANEL;
    EACH(i, panels * VECTORS) {
        const vf scale = vf_load(scales + i * FL_LANES);
        EACH(j, columns) {
            const vf number = vf_from_int(whole[j * panels * VECTORS + i]), start = vf_load(from[j] + i * FL_LANES);
            vf_store(rows[j] + i * FL_LANES, vf_fma(number, vf_mul(scale, vf_set(in->steps[j])), start));
        }
    }
}

FL_INLINE void add_int8(const fl_matrix *matrix, size_t panel, const block *in, const float *const *from,
                        float *const *rows, const int panels, const int columns) {
    const size_t blocks = fl_parts(matrix->inputs, 4), stride = matrix->blocks * 4 * FL_PANEL;
    const int8_t *weights = (const int8_t *)matrix->weights + panel * stride, *x = in->bytes;
    const int32_t *sums = matrix->sums + panel * FL_PANEL;
    vi dot[FL_SUMS];
    EACH(j, columns)
    EACH(i, panels * VECTORS)
    dot[j * panels * VECTORS + i] = columns == 1 ? vi_begin_alone(sums + i * FL_LANES) : vi_dot_start(in->total[j]);
    for (size_t k = 0; k < blocks; k++, weights += 4 * FL_PANEL, x += 4 * width_of(columns)) {
        if (columns == 1) {
            const va b = va_set(x);
            EACH(p, panels)
            EACH(v, VECTORS) vi_dot_alone(&dot[p * VECTORS + v], weights + (size_t)p * stride + 4 * v * FL_LANES, b);
            continue;
        }
        vi w[FL_PANELS * VECTORS];
        EACH(p, panels) EACH(v, VECTORS) w[p * VECTORS + v] = vi_load(weights + (size_t)p * stride + 4 * v * FL_LANES);
        EACH(p, panels) fetch_ahead(weights + (size_t)p * stride, (size_t)panels * stride, columns);
        EACH(j, columns) {
            const vx b = vx_set(x + 4 * j);
            EACH(i, panels * VECTORS) vi_dot(&dot[j * panels * VECTORS + i], w[i], b);
        }
    }
    add_scaled(dot, matrix, panel, in, from, rows, panels, columns);
}

/* The same for `panels` panels, one after the other, and one column, with the sums side by side along k: whole numbers may
 * be added in any order. Memory is read from front to back, which suits the second-level cache (a matrix of 256 KB: 10 to
 * 25 % faster) and no level beyond it (5 MB: 12 % slower). */
static FL_NOINLINE void add_int8_near(const fl_matrix *matrix, size_t panel, size_t panels, const block *in,
                                      const float *start, float *out) {
    enum { ALONG = VECTORS > 2 ? 2 : 4 };
    const size_t blocks = fl_parts(matrix->inputs, 4), stride = matrix->blocks * 4 * FL_PANEL;
    vi whole[FL_PANELS * VECTORS];
    for (size_t p = 0; p < panels; p++) {
        const int8_t *weights = (const int8_t *)matrix->weights + (panel + p) * stride, *x = in->bytes;
        const int32_t *sums = matrix->sums + (panel + p) * FL_PANEL;
        vi dot[ALONG * VECTORS];
        EACH(i, ALONG * VECTORS) dot[i] = i < VECTORS ? vi_begin_alone(sums + i * FL_LANES) : vi_set(0);
        size_t k = 0;
        for (; k + ALONG <= blocks; k += ALONG, weights += ALONG * 4 * FL_PANEL, x += ALONG * 4) EACH(a, ALONG) {
                const va b = va_set(x + 4 * a);
                EACH(v, VECTORS) vi_dot_alone(&dot[a * VECTORS + v], weights + 4 * (a * FL_PANEL + v * FL_LANES), b);
            }
        for (; k < blocks; k++, weights += 4 * FL_PANEL, x += 4)
            EACH(v, VECTORS) vi_dot_alone(&dot[v], weights + 4 * v * FL_LANES, va_set(x));
        EACH(i, (ALONG - 1) * VECTORS) dot[i % VECTORS] = vi_add(dot[i % VECTORS], dot[i + VECTORS]);
        EACH(v, VECTORS) whole[p * VECTORS + (size_t)v] = dot[v];
    }
    for (size_t i = 0; i < panels * VECTORS; i++) {
        const size_t row = panel * FL_PANEL + i * FL_LANES;
        const vf scale = vf_mul(vf_load(matrix->scale + row), vf_set(in->steps[0]));
        vf_store(out + row, vf_fma(vf_from_int(whole[i]), scale, vf_load(start + row)));
    }
}

/* Sum of one group of 32 inputs, `blocks` (at most 4) blocks of 8, times values that were lifted by 8. */
FL_INLINE void int4_group(vi *group, const int8_t *weights, size_t stride, const block *in, size_t g, size_t blocks,
                          const int panels, const int columns) {
    vn dot[FL_SUMS];
    EACH(i, columns * panels * VECTORS) dot[i] = vn_zero();
    const int8_t *x = in->bytes + 32 * g * width_of(columns);
    weights += 4 * g * 4 * FL_PANEL;
    for (size_t k = 0; k < blocks; k++, weights += 4 * FL_PANEL, x += 8 * width_of(columns)) {
        vi w[FL_PANELS * VECTORS];
        EACH(p, panels) EACH(v, VECTORS) w[p * VECTORS + v] = vi_load(weights + (size_t)p * stride + 4 * v * FL_LANES);
        EACH(p, panels) fetch_ahead(weights + (size_t)p * stride, (size_t)panels * stride, columns);
        EACH(j, columns) {
            const vx low = vx_set(x + 4 * j), high = vx_set(x + 4 * width_of(columns) + 4 * j);
            EACH(i, panels * VECTORS) vn_dot(&dot[j * panels * VECTORS + i], w[i], low, high);
        }
    }
    EACH(j, columns) {
        const vi lifted = vi_set((uint32_t)(8 * in->sums[g * width_of(columns) + (size_t)j]));
        EACH(i, panels * VECTORS)
        group[j * panels * VECTORS + i] = vi_sub(vn_total(dot[j * panels * VECTORS + i]), lifted);
    }
}

/* Two groups at a time: their sums fit 16 bits each, and one instruction multiplies both by their factors. */
FL_INLINE void add_int4(const fl_matrix *matrix, size_t panel, const block *in, const float *const *from,
                        float *const *rows, const int panels, const int columns) {
    const size_t blocks = fl_parts(matrix->inputs, 8), stride = matrix->blocks * 4 * FL_PANEL;
    const size_t pairs = fl_parts(blocks, 8);
    const int8_t *weights = (const int8_t *)matrix->weights + panel * stride;
    const int8_t *factors = matrix->group + panel * pairs * 2 * FL_PANEL;
    vi total[FL_SUMS];
    EACH(i, columns * panels * VECTORS) total[i] = vi_set(0);
    for (size_t pair = 0; pair < pairs; pair++) {
        const size_t left = blocks - 8 * pair;
        vi first[FL_SUMS], second[FL_SUMS];
        if (left >= 8) {
            int4_group(first, weights, stride, in, 2 * pair, 4, panels, columns);
            int4_group(second, weights, stride, in, 2 * pair + 1, 4, panels, columns);
        } else {
            int4_group(first, weights, stride, in, 2 * pair, left < 4 ? left : 4, panels, columns);
            int4_group(second, weights, stride, in, 2 * pair + 1, left < 4 ? 0 : left - 4, panels, columns);
        }
        EACH(p, panels) EACH(v, VECTORS) {
            const vi factor = vi_load_factors(factors + (((size_t)p * pairs + pair) * FL_PANEL + v * FL_LANES) * 2);
            EACH(j, columns) {
                const int i = (j * panels + p) * VECTORS + v;
                vi_dot_pair(&total[i], vi_pair(first[i], second[i]), factor);
            }
        }
    }
    add_scaled(total, matrix, panel, in, from, rows, panels, columns);
}

/* Every tile is a function of its own: in one large function compilers lose the registers. */
typedef void add_tile(const fl_matrix *matrix, size_t panel, const block *in, const float *const *from,
                      float *const *rows);

#define TILE(name, dtype, panels, columns)                                                                             \
    static FL_NOINLINE void add_##dtype##_##name(const fl_matrix *matrix, size_t panel, const block *in,               \
                                                 const float *const *from, float *const *rows) {                       \
        add_##dtype(matrix, panel, in, from, rows, panels, columns);                                                   \
    }
#if FL_PANELS == 8
#define TILES(dtype)                                                                                                   \
    TILE(1, dtype, 1, 1)                                                                                               \
    TILE(2, dtype, 2, 1)                                                                                               \
    TILE(3, dtype, 3, 1)                                                                                               \
    TILE(4, dtype, 4, 1)                                                                                               \
    TILE(5, dtype, 5, 1)                                                                                               \
    TILE(6, dtype, 6, 1)                                                                                               \
    TILE(7, dtype, 7, 1)                                                                                               \
    TILE(8, dtype, 8, 1)
#define ONE_COLUMN(dtype)                                                                                              \
    {add_##dtype##_1, add_##dtype##_2, add_##dtype##_3, add_##dtype##_4,                                               \
     add_##dtype##_5, add_##dtype##_6, add_##dtype##_7, add_##dtype##_8}
#else
#define TILES(dtype)                                                                                                   \
    TILE(1, dtype, 1, 1)                                                                                               \
    TILE(2, dtype, 2, 1)                                                                                               \
    TILE(3, dtype, 3, 1)                                                                                               \
    TILE(4, dtype, 4, 1)
#define ONE_COLUMN(dtype) {add_##dtype##_1, add_##dtype##_2, add_##dtype##_3, add_##dtype##_4}
#endif
TILES(f32)
TILES(bf16)
TILES(int8)
TILES(int4)
/* Several columns: as many as are there, in steps of a quarter of FL_COLUMNS, and no fewer than two. */
#define SOME_COLUMNS(i) (FL_COLUMNS * (i) / 4 < 2 ? 2 : FL_COLUMNS * (i) / 4)
#define MANY(dtype, width, panels)                                                                                     \
    TILE(width##_1, dtype, panels, SOME_COLUMNS(1))                                                                    \
    TILE(width##_2, dtype, panels, SOME_COLUMNS(2))                                                                    \
    TILE(width##_3, dtype, panels, SOME_COLUMNS(3))                                                                    \
    TILE(width##_4, dtype, panels, SOME_COLUMNS(4))
#define MANY_COLUMNS(dtype, width)                                                                                     \
    {add_##dtype##_##width##_1, add_##dtype##_##width##_2, add_##dtype##_##width##_3, add_##dtype##_##width##_4}
MANY(f32, narrow, 1)
MANY(bf16, narrow, 1)
MANY(int8, narrow, 1)
MANY(int4, narrow, 1)
#if FL_TILE > 1 /* but for int4, which has two sums on the way to one, and no room for a larger tile */
MANY(f32, wide, FL_TILE)
MANY(bf16, wide, FL_TILE)
MANY(int8, wide, FL_TILE)
#define NARROW_AND_WIDE(dtype) {MANY_COLUMNS(dtype, narrow), MANY_COLUMNS(dtype, wide)}
#else
#define NARROW_AND_WIDE(dtype)                                                                                         \
    {                                                                                                                  \
        MANY_COLUMNS(dtype, narrow), { NULL }                                                                          \
    }
#endif

static add_tile *const one_column[][FL_PANELS] = {[FL_F32] = ONE_COLUMN(f32),
                                                  [FL_BF16] = ONE_COLUMN(bf16),
                                                  [FL_INT8] = ONE_COLUMN(int8),
                                                  [FL_INT4] = ONE_COLUMN(int4)};
static add_tile *const many_columns[][2][4] = {[FL_F32] = NARROW_AND_WIDE(f32),
                                               [FL_BF16] = NARROW_AND_WIDE(bf16),
                                               [FL_INT8] = NARROW_AND_WIDE(int8),
                                               [FL_INT4] = {MANY_COLUMNS(int4, narrow), {NULL}}};

/* The last few panels go together: one alone would wait for its own sums. */
static void product_column(const fl_matrix *matrix, size_t begin, size_t end, const block *in, const float *start,
                           float *out) {
    const bool near = matrix->dtype == FL_INT8 && matrix->panels * FL_PANEL * matrix->inputs <= FL_NEAR_BYTES;
    for (size_t panel = begin, step; panel < end; panel += step) {
        const float *from = start + panel * FL_PANEL;
        float *row = out + panel * FL_PANEL;
        step = end - panel < FL_PANELS ? end - panel : FL_PANELS;
        if (near)
            add_int8_near(matrix, panel, step, in, start, out);
        else
            one_column[matrix->dtype][step - 1](matrix, panel, in, &from, &row);
    }
}

/* Columns that a tile meets together: of one block of the input. */
typedef struct some {
    size_t first, n;
    block in;
} some;

/* Of each block of the input as few, and as alike, as can be: 5 columns as 3 and 2, since those that are not there cost as
 * much. Returns how many. */
static size_t share_columns(const fl_matrix *matrix, const fl_columns *input, size_t n, some *all) {
    size_t count = 0;
    for (size_t begin = 0; begin < n; begin += FL_WIDTH) {
        const size_t here = n - begin < FL_WIDTH ? n - begin : FL_WIDTH, parts = fl_parts(here, FL_COLUMNS);
        for (size_t i = 0, first = 0; i < parts; i++) {
            const size_t live = fl_parts(here - first, parts - i);
            all[count++] = (some){begin + first, live, block_at(matrix, input, begin + first)};
            first += live;
        }
    }
    return count;
}

/* One tile for all columns; what it computes for columns that are not there goes nowhere. */
static void product_tile(const fl_matrix *matrix, size_t panel, size_t panels, const some *all, size_t count,
                         const float *const *start, float *const *out) {
    float nowhere[FL_TILE * FL_PANEL] = {0}, *rows[FL_COLUMNS];
    const float *from[FL_COLUMNS];
    add_tile *const *add = many_columns[matrix->dtype][panels > 1];
    for (const some *s = all; s < all + count; s++) {
        for (size_t j = 0; j < FL_COLUMNS; j++) {
            from[j] = j < s->n ? start[s->first + j] + panel * FL_PANEL : nowhere;
            rows[j] = j < s->n ? out[s->first + j] + panel * FL_PANEL : nowhere;
        }
        add[fl_parts(4 * s->n, FL_COLUMNS) - 1](matrix, panel, &s->in, from, rows);
    }
}

/* A tile's weights stay in the cache while all columns pass. */
static void product(const fl_matrix *matrix, size_t begin, size_t end, const fl_columns *input, size_t n,
                    const float *const *start, float *const *out) {
    if (input->width == 1) {
        const block one = block_at(matrix, input, 0);
        product_column(matrix, begin, end, &one, *start, *out);
        return;
    }
    _Static_assert(FL_WIDTH % FL_COLUMNS == 0, "parts of a block would be more");
    some all[FL_MOST_COLUMNS / FL_COLUMNS];
    const size_t count = share_columns(matrix, input, n, all);
    const size_t most = many_columns[matrix->dtype][1][0] ? FL_TILE : 1;
    for (size_t panel = begin, step; panel < end; panel += step) {
        step = end - panel < most ? 1 : most;
        product_tile(matrix, panel, step, all, count, start, out);
    }
}

static void sum_rows(const fl_matrix *matrix, int32_t *sums) {
    static const int8_t ones[4] = {1, 1, 1, 1};
    const size_t blocks = fl_parts(matrix->inputs, 4);
    for (size_t panel = 0; panel < matrix->panels; panel++) {
        const int8_t *weights = (const int8_t *)matrix->weights + panel * matrix->blocks * 4 * FL_PANEL;
        vi dot[VECTORS];
        EACH(v, VECTORS) dot[v] = vi_dot_start((int32_t)(4 * blocks));
        for (size_t k = 0; k < blocks; k++, weights += 4 * FL_PANEL)
            EACH(v, VECTORS) vi_dot(&dot[v], vi_load(weights + 4 * v * FL_LANES), vx_set(ones));
        EACH(v, VECTORS) vi_store(sums + panel * FL_PANEL + (size_t)v * FL_LANES, dot[v]);
    }
}

/* ---- the cell --------------------------------------------------------------------------------------- */

/* 16 units' update: c = sigmoid(f) * c + sigmoid(i) * tanh(g), h = sigmoid(o) * tanh(c). */
FL_INLINE void update_units(const vf *gate, float *c, vf *h) {
    EACH(v, VECTORS) {
        const vf in = vf_mul(sigmoid(gate[v]), hyperbolic_tangent(gate[2 * VECTORS + v]));
        const vf cell = vf_fma(sigmoid(gate[VECTORS + v]), vf_load(c + v * FL_LANES), in);
        vf_store(c + v * FL_LANES, cell);
        h[v] = vf_mul(sigmoid(gate[3 * VECTORS + v]), hyperbolic_tangent(cell));
    }
}

/* round(127 h), halves to even, in the low byte. */
FL_INLINE vi quantised(vf h) {
    const vf magic = vf_set(12582912.0f); /* 1.5 * 2^23, as in exp_parts */
    return vi_bits(vf_add(vf_mul(h, vf_set(FL_HIDDEN_UNITS)), magic));
}

/* What the next products want to know besides the bytes. What pads a layer's units is cleared: products of bytes
 * read whole words. */
static void finish_bytes(const fl_columns *h, size_t block, size_t begin, size_t end) {
    const size_t width = h->width, first = begin * FL_PANEL, last = fl_round_up(end * FL_PANEL, 32);
    int8_t *bytes = h->bytes + block * h->padded * width;
    int32_t *sums = h->sums + block * h->padded / 32 * width;
    for (size_t k = h->inputs; k < end * FL_PANEL; k++)
        for (size_t j = 0; j < width; j++) bytes[(k / 4 * width + j) * 4 + k % 4] = 0;
    for (size_t g = first / 32; g < last / 32; g++)
        for (size_t j = 0; j < width; j++) {
            int32_t sum = 0;
            for (size_t k = 0; k < 8; k++)
                for (size_t i = 0; i < 4; i++) sum += bytes[((8 * g + k) * width + j) * 4 + i];
            sums[g * width + j] = sum;
        }
}

/* 16 units of one column, to where products read them. */
FL_INLINE void put_units(const fl_columns *h_new, size_t column, size_t unit, const vf *value) {
    const size_t width = h_new->width, j = column % width, at = (column / width * h_new->padded + unit) * width;
    float values[FL_PANEL];
    int8_t bytes[FL_PANEL];
    EACH(v, VECTORS) vf_store(values + v * FL_LANES, value[v]);
    for (size_t k = 0; h_new->values && k < FL_PANEL; k++) h_new->values[at + k * width + j] = values[k];
    if (!h_new->bytes) return;
    EACH(v, VECTORS) vi_store_bytes(bytes + v * FL_LANES, quantised(value[v]));
    for (size_t k = 0; k < FL_PANEL; k += 4) memcpy(h_new->bytes + at + k * width + 4 * j, bytes + k, 4);
}

/* The same for the only column. */
FL_INLINE void put_units_alone(const fl_columns *h_new, size_t unit, const vf *value) {
    EACH(v, VECTORS) {
        if (h_new->values) vf_store(h_new->values + unit + v * FL_LANES, value[v]);
        if (h_new->bytes) vi_store_bytes(h_new->bytes + unit + v * FL_LANES, quantised(value[v]));
    }
}

FL_INLINE void give_units(const fl_columns *h_new, size_t column, size_t unit, const vf *value, float *h) {
    EACH(v, VECTORS) vf_store(h + unit + v * FL_LANES, value[v]);
    if (h_new->width == 1)
        put_units_alone(h_new, unit, value);
    else
        put_units(h_new, column, unit, value);
}

static void update(size_t begin, size_t end, size_t n, const float *const *gates, const fl_columns *h_new,
                   float *const *h, float *const *c) {
    for (size_t j = 0; j < n; j++) {
        for (size_t group = begin; group < end; group++) {
            vf gate[FL_GATES * VECTORS], value[VECTORS];
            const float *from = gates[j] + group * FL_GATES * FL_PANEL;
            EACH(i, FL_GATES * VECTORS) gate[i] = vf_load(from + i * FL_LANES);
            update_units(gate, c[j] + group * FL_PANEL, value);
            give_units(h_new, j, group * FL_PANEL, value, h[j]);
        }
    }
    for (size_t b = 0; h_new->bytes && b * h_new->width < n; b++) finish_bytes(h_new, b, begin, end);
}

static void activate(size_t begin, size_t end, size_t n, const float *const *in, const fl_columns *h_new,
                     float *const *h) {
    for (size_t j = 0; j < n; j++) {
        for (size_t panel = begin; panel < end; panel++) {
            vf value[VECTORS];
            EACH(v, VECTORS) value[v] = hyperbolic_tangent(vf_load(in[j] + panel * FL_PANEL + v * FL_LANES));
            give_units(h_new, j, panel * FL_PANEL, value, h[j]);
        }
    }
    for (size_t b = 0; h_new->bytes && b * h_new->width < n; b++) finish_bytes(h_new, b, begin, end);
}

static void compare(const fl_matrix *keys, const float *query, const float *score, float *out) {
    for (size_t panel = 0; panel < keys->panels; panel++, out += FL_PANEL) {
        const float *row = (const float *)keys->weights + panel * keys->blocks * FL_PANEL;
        vf sum[VECTORS];
        EACH(v, VECTORS) sum[v] = vf_set(0.0f);
        for (size_t k = 0; k < keys->inputs; k++, row += FL_PANEL) {
            const vf q = vf_set(query[k]), s = vf_set(score[k]);
            EACH(v, VECTORS)
            sum[v] = vf_fma(s, hyperbolic_tangent(vf_add(vf_load(row + v * FL_LANES), q)), sum[v]);
        }
        EACH(v, VECTORS) vf_store(out + v * FL_LANES, sum[v]);
    }
}

/* ---- screens ------------------------------------------------------------------------------------------ */

/* A group's table: under the bits b the sum of its four values, each with a minus where its bit is 0, in steps. */
static void make_tables(const float *values, size_t groups, float steps, uint8_t *tables) {
    vf sign[4][VECTORS];
    EACH(i, 4) EACH(v, VECTORS) {
        const vi b = vi_add(vi_set((uint32_t)(v * FL_LANES)), vi_lanes());
        sign[i][v] = vf_select(vi_equal(vi_and(b, vi_set(1u << i)), vi_set(0)), vf_set(-1.0f), vf_set(1.0f));
    }
    for (size_t g = 0; g < groups; g++, values += 4, tables += 16) EACH(v, VECTORS) {
            vf sum = vf_mul(sign[0][v], vf_set(values[0]));
            for (int i = 1; i < 4; i++) sum = vf_fma(sign[i][v], vf_set(values[i]), sum);
            const vf rounded = vf_fma(sum, vf_set(steps), vf_set(12582912.0f + FL_TABLE_ZERO)); /* as in exp_parts */
            vi_store_bytes((int8_t *)tables + v * FL_LANES, vi_bits(rounded));
        }
}

static void bound(const fl_screen *screen, const fl_view *view, size_t begin, size_t end, float *lower, float *upper) {
    const vi zero = vi_set((uint32_t)(4 * screen->pairs * FL_TABLE_ZERO));
    const vi size_bits = vi_set(0x7FFFFFFF);
    for (size_t block = begin; block < end; block++) {
        const size_t at = block * FL_BLOCK;
        vf middle[FL_BLOCK / FL_LANES], size[FL_BLOCK / FL_LANES];
        EACH(i, FL_BLOCK / FL_LANES) middle[i] = vf_load(lower + at + i * FL_LANES), size[i] = vf_set(0.0f);
        for (size_t plane = 0; plane < screen->planes; plane++) {
            const float *sizes = screen->size + plane * screen->blocks * FL_BLOCK + at;
            uint16_t sums[FL_BLOCK];
            look_up(screen->bits + (block * screen->planes + plane) * screen->pairs * 2 * FL_BLOCK, view->tables,
                    screen->pairs, sums);
            EACH(i, FL_BLOCK / FL_LANES) {
                const vf one = vf_load(sizes + i * FL_LANES);
                const vf whole = vf_from_int(vi_sub(vi_load_short(sums + i * FL_LANES), zero));
                middle[i] = vf_fma(whole, vf_mul(one, vf_set(view->step)), middle[i]);
                size[i] = vf_add(size[i], one);
            }
        }
        EACH(i, FL_BLOCK / FL_LANES) {
            const vf radius = vf_load(screen->radius + at + i * FL_LANES);
            const vf magnitude = vf_bits(vi_and(vi_bits(middle[i]), size_bits));
            vf error = vf_mul(vf_set(view->rounding), magnitude);
            error = vf_fma(size[i], vf_set(view->table_error), error);
            error = vf_fma(radius, vf_set(view->distance), error);
            vf_store(lower + at + i * FL_LANES, vf_sub(middle[i], error));
            vf_store(upper + at + i * FL_LANES, vf_add(middle[i], error));
        }
    }
}

/* ---- the next token --------------------------------------------------------------------------------- */

FL_INLINE size_t lowest_bit(uint32_t bits) {
#if defined(__GNUC__)
    return (size_t)__builtin_ctz(bits);
#else
    size_t n = 0;
    for (; !(bits & 1); bits >>= 1) n++;
    return n;
#endif
}

/* The best so far in every lane: the larger key, among equals the lower id. */
typedef struct winner {
    vf key;
    vi id;
} winner;

FL_INLINE void challenge(winner *best, vf key, vi id) {
    const vm wins = vm_or(vf_greater(key, best->key), vm_and(vf_equal(key, best->key), vi_less(id, best->id)));
    best->key = vf_select(wins, key, best->key);
    best->id = vi_select(wins, id, best->id);
}

FL_INLINE vi ids_from(size_t first) { return vi_add(vi_set((uint32_t)first), vi_lanes()); }

/* Four chains, since each comparison waits for the one before it. */
FL_INLINE void challenge_greedy(winner *best, const float *logits, size_t begin, size_t end) {
    winner chain[4] = {*best, *best, *best, *best};
    for (size_t at = begin; at < end; at += FL_BLOCK)
        for (size_t v = 0; v < FL_BLOCK / FL_LANES; v += 4) EACH(i, 4) {
                const size_t id = at + (v + (size_t)i) * FL_LANES;
                challenge(&chain[i], vf_load(logits + id), ids_from(id));
            }
    EACH(i, 4) challenge(best, chain[i].key, chain[i].id);
}

/* Whether no token of a block is in the set: then its noise, which costs the most here, is not needed. */
FL_INLINE bool is_empty(const float *logits) {
    vf largest = vf_load(logits);
    for (size_t at = FL_LANES; at < FL_BLOCK; at += FL_LANES) largest = vf_max(largest, vf_load(logits + at));
    return !vm_bits(vf_greater(largest, vf_set(-INFINITY)));
}

/* Token 64 b + 16 j + l has word j of the counter that starts with 16 b + l, so that 16 lanes of the
 * generator make the noise of 64 tokens in a row, in order. */
FL_INLINE void challenge_all(winner *best, const float *logits, size_t begin, size_t end, float temperature,
                             const fl_noise *noise) {
    const vf t = vf_set(temperature);
    for (size_t block = begin / FL_BLOCK; block * FL_BLOCK < end; block++) {
        if (is_empty(logits + block * FL_BLOCK)) continue;
        for (size_t v = 0; v < VECTORS; v++) {
            vi word[4];
            philox(ids_from(block * FL_PANEL + v * FL_LANES), noise, word);
            for (size_t j = 0; j < 4; j++) {
                const size_t at = block * FL_BLOCK + j * FL_PANEL + v * FL_LANES;
                challenge(best, vf_fma(t, gumbel(word[j]), vf_load(logits + at)), ids_from(at));
            }
        }
    }
}

FL_INLINE void challenge_listed(winner *best, const float *logits, const int32_t *ids, size_t n, float temperature,
                                const fl_noise *noise) {
    const vf t = vf_set(temperature);
    for (size_t at = 0; at < n; at += FL_LANES) {
        const vi id = vi_load(ids + at);
        vf key = vf_load(logits + at);
        if (temperature != 0.0f) {
            vi word[4];
            philox(vi_add(vi_shl(vi_shr(id, 6), 4), vi_and(id, vi_set(15))), noise, word);
            const vi j = vi_and(vi_shr(id, 4), vi_set(3));
            vi n32 = word[3];
            for (uint32_t i = 0; i < 3; i++) n32 = vi_select(vi_equal(j, vi_set(i)), word[i], n32);
            key = vf_fma(t, gumbel(n32), key);
        }
        challenge(best, key, id);
    }
}

/* The best of all lanes, if it is better. */
static void settle(const winner *best, fl_winner *found) {
    float key[FL_LANES];
    int32_t id[FL_LANES];
    vf_store(key, best->key);
    vi_store(id, best->id);
    for (int i = 0; i < FL_LANES; i++) *found = fl_better(*found, (fl_winner){key[i], id[i]});
}

/* Rounding keeps bounds in order. */
static void contend(fl_winner *found, const float *lower, const float *upper, size_t begin, size_t end,
                    float temperature, const fl_noise *noise, float *keys) {
    const vf t = vf_set(temperature);
    winner best = {vf_set(found->key), vi_set((uint32_t)found->id)};
    if (temperature == 0.0f) {
        challenge_greedy(&best, lower, begin, end);
        memcpy(keys + begin, upper + begin, (end - begin) * sizeof *keys);
        settle(&best, found);
        return;
    }
    for (size_t block = begin / FL_BLOCK; block * FL_BLOCK < end; block++)
        for (size_t v = 0; v < VECTORS; v++) {
            vi word[4];
            philox(ids_from(block * FL_PANEL + v * FL_LANES), noise, word);
            for (size_t j = 0; j < 4; j++) {
                const size_t at = block * FL_BLOCK + j * FL_PANEL + v * FL_LANES;
                const vf g = gumbel(word[j]);
                challenge(&best, vf_fma(t, g, vf_load(lower + at)), ids_from(at));
                vf_store(keys + at, vf_fma(t, g, vf_load(upper + at)));
            }
        }
    settle(&best, found);
}

static void choose(fl_winner *found, const float *logits, const int32_t *ids, size_t begin, size_t end,
                   float temperature, const fl_noise *noise) {
    winner best = {vf_set(found->key), vi_set((uint32_t)found->id)};
    if (ids)
        challenge_listed(&best, logits + begin, ids + begin, end - begin, temperature, noise);
    else if (temperature == 0.0f)
        challenge_greedy(&best, logits, begin, end);
    else
        challenge_all(&best, logits, begin, end, temperature, noise);
    settle(&best, found);
}

FL_INLINE vm at_least(vf x, vf floor) { return vm_or(vf_greater(x, floor), vf_equal(x, floor)); }

static size_t collect(const float *logits, size_t n, float floor, float ceiling, int32_t *ids, float *kept) {
    size_t count = 0;
    for (size_t at = 0; at < n; at += FL_LANES) {
        const vf x = vf_load(logits + at);
        uint32_t bits = vm_bits(vm_and(at_least(x, vf_set(floor)), vf_greater(vf_set(ceiling), x)));
        if (n - at < FL_LANES) bits &= (1u << (n - at)) - 1;
#ifdef FL_COMPRESS
        vf_store(kept + count, vf_compress((vm)bits, x));
        vi_store(ids + count, vi_compress((vm)bits, ids_from(at)));
        count += vm_count((vm)bits);
#else
        for (; bits; bits &= bits - 1) {
            const size_t id = at + lowest_bit(bits);
            ids[count] = (int32_t)id;
            kept[count++] = logits[id];
        }
#endif
    }
    return count;
}

static fl_weight weigh(const float *logits, const uint32_t *mass, size_t n, float floor) {
    vsum sum = vsum_zero();
    vi count = vi_set(0);
    for (size_t at = 0; at < n; at += FL_LANES) {
        const vm in = at_least(vf_load(logits + at), vf_set(floor));
        if (mass) sum = vsum_add(sum, vi_select(in, vi_load(mass + at), vi_set(0)));
        count = vi_add(count, vi_select(in, vi_set(1), vi_set(0)));
    }
    const size_t tokens = (size_t)vsum_total(vsum_add(vsum_zero(), count));
    return (fl_weight){mass ? vsum_total(sum) : tokens, tokens};
}

static uint64_t mass(const float *logits, size_t n, float largest, float scale, uint32_t *out) {
    vsum sum = vsum_zero();
    for (size_t at = 0; at < n; at += FL_LANES) {
        const vf x = vf_mul(vf_sub(vf_load(logits + at), vf_set(largest)), vf_set(scale));
        const vi term = vi_truncate(vf_fma(exponential(x), vf_set(FL_MASS_ONE), vf_set(0.5f)));
        if (out) vi_store(out + at, term);
        sum = vsum_add(sum, term);
    }
    return vsum_total(sum);
}

static float logarithm(float x) {
    float out[FL_LANES];
    vf_store(out, natural_log(vf_set(x)));
    return out[0];
}

static uint32_t random_word(const fl_noise *noise) {
    uint32_t out[FL_LANES];
    vi word[4];
    philox(vi_set(0), noise, word);
    vi_store(out, word[0]);
    return out[0];
}

#define FL_TABLE2(level) fl_kernels_##level
#define FL_TABLE(level) FL_TABLE2(level)
#define FL_TEXT2(level) #level
#define FL_TEXT(level) FL_TEXT2(level)
const fl_kernels FL_TABLE(FL_LEVEL) = {FL_TEXT(FL_LEVEL), sum_rows,    product, update,    activate,
                                       compare,           make_tables, bound,   contend,   choose,
                                       collect,           weigh,       mass,    logarithm, random_word};
