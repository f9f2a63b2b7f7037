/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels, written once in the vocabulary of a vec_*.h that the including file has chosen, with FL_LEVEL
 * naming the instruction set. What is computed, to the last bit, is laid down in docs/numerics.md: a lane is
 * an output row, so the vector's width cannot change the order of any sum.
 *
 * Weights stream through once a token and are the whole cost of a large model; everything else here aims at
 * never waiting for anything but them: enough independent sums in flight to hide the latency of a fused
 * multiply-add, and the gates of 16 units finished in registers. */

enum { VECTORS = FL_PANEL / FL_LANES }; /* vectors in a panel */

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

/* sum[p][v] += weights of `panels` panels times input: k rising, one sum a row. `panels` is a constant where
 * this is inlined, so the sums live in registers. */
FL_INLINE void accumulate(vf *sum, const fl_matrix *matrix, size_t panel, const float *input, const int panels) {
    const size_t K = matrix->inputs, stride = K * FL_PANEL;
    const float *weights = matrix->weights + panel * stride;
    for (size_t k = 0; k < K; k++, weights += FL_PANEL) {
        const vf b = vf_set(input[k]);
        FL_UNROLL for (int p = 0; p < panels; p++) FL_UNROLL for (int v = 0; v < VECTORS; v++) sum[p * VECTORS + v] =
            vf_fma(vf_load(weights + (size_t)p * stride + v * FL_LANES), b, sum[p * VECTORS + v]);
    }
}

FL_INLINE void product_panels(const fl_matrix *matrix, size_t panel, const float *start, const float *input, float *out,
                              const int panels) {
    vf sum[FL_PANELS * VECTORS];
    FL_UNROLL for (int i = 0; i < panels * VECTORS; i++) sum[i] =
        vf_load(start + panel * FL_PANEL + (size_t)i * FL_LANES);
    accumulate(sum, matrix, panel, input, panels);
    FL_UNROLL for (int i = 0; i < panels * VECTORS; i++)
        vf_store(out + panel * FL_PANEL + (size_t)i * FL_LANES, sum[i]);
}

static void product(const fl_matrix *matrix, const float *start, const float *input, float *out) {
    size_t panel = 0;
    for (; panel + FL_PANELS <= matrix->panels; panel += FL_PANELS)
        product_panels(matrix, panel, start, input, out, FL_PANELS);
    switch (matrix->panels - panel) { /* the last few together: one alone would wait for its own sums */
#if FL_PANELS > 4
    case 7: product_panels(matrix, panel, start, input, out, 7); break;
    case 6: product_panels(matrix, panel, start, input, out, 6); break;
    case 5: product_panels(matrix, panel, start, input, out, 5); break;
    case 4: product_panels(matrix, panel, start, input, out, 4); break;
#endif
    case 3: product_panels(matrix, panel, start, input, out, 3); break;
    case 2: product_panels(matrix, panel, start, input, out, 2); break;
    case 1: product_panels(matrix, panel, start, input, out, 1); break;
    default: break;
    }
}

/* The gates of `groups` groups of 16 units and the cell's update, all in registers:
 * c = sigmoid(f) * c + sigmoid(i) * tanh(g), h = sigmoid(o) * tanh(c). */
FL_INLINE void cell_groups(const fl_lstm *layer, size_t group, const float *start, const float *x, const float *h,
                           float *h_new, float *c, const int groups) {
    vf sum[FL_PANELS * VECTORS];
    const size_t panel = group * FL_GATES;
    const int vectors = groups * FL_GATES * VECTORS;
    FL_UNROLL for (int i = 0; i < vectors; i++) sum[i] = vf_load(start + panel * FL_PANEL + (size_t)i * FL_LANES);
    if (x) accumulate(sum, &layer->x, panel, x, groups * FL_GATES);
    accumulate(sum, &layer->h, panel, h, groups * FL_GATES);
    FL_UNROLL for (int g = 0; g < groups; g++) {
        FL_UNROLL for (int v = 0; v < VECTORS; v++) {
            const vf *gate = sum + g * FL_GATES * VECTORS + v;
            const size_t at = (group + (size_t)g) * FL_PANEL + (size_t)v * FL_LANES;
            const vf in = vf_mul(sigmoid(gate[0]), hyperbolic_tangent(gate[2 * VECTORS]));
            const vf cell = vf_fma(sigmoid(gate[VECTORS]), vf_load(c + at), in);
            vf_store(c + at, cell);
            vf_store(h_new + at, vf_mul(sigmoid(gate[3 * VECTORS]), hyperbolic_tangent(cell)));
        }
    }
}

static void cell(const fl_lstm *layer, const float *start, const float *x, const float *h, float *h_new, float *c) {
    enum { GROUPS = FL_PANELS / FL_GATES };
    size_t group = 0;
    for (; group + GROUPS <= layer->groups; group += GROUPS) cell_groups(layer, group, start, x, h, h_new, c, GROUPS);
    for (; group < layer->groups; group++) cell_groups(layer, group, start, x, h, h_new, c, 1);
}

/* ---- the next token --------------------------------------------------------------------------------- */

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

static int32_t final_winner(winner best) {
    float key[FL_LANES];
    int32_t id[FL_LANES];
    vf_store(key, best.key);
    vi_store(id, best.id);
    int w = 0;
    for (int i = 1; i < FL_LANES; i++)
        if (key[i] > key[w] || (key[i] == key[w] && id[i] < id[w])) w = i;
    return id[w];
}

static void challenge_greedy(winner *best, const float *logits, const int32_t *ids, size_t n) {
    for (size_t at = 0; at < n; at += FL_LANES) {
        const vi id = ids ? vi_load(ids + at) : vi_add(vi_set((uint32_t)at), vi_lanes());
        challenge(best, vf_load(logits + at), id);
    }
}

/* Token 64 b + 16 j + l has word j of the counter that starts with 16 b + l, so that 16 lanes of the
 * generator make the noise of 64 tokens in a row, in order. */
static void challenge_all(winner *best, const float *logits, size_t n, float temperature, const fl_noise *noise) {
    const vf t = vf_set(temperature);
    for (size_t block = 0; block * FL_BLOCK < n; block++) {
        for (size_t v = 0; v < VECTORS; v++) {
            vi word[4];
            philox(vi_add(vi_set((uint32_t)(block * FL_PANEL + v * FL_LANES)), vi_lanes()), noise, word);
            for (size_t j = 0; j < 4; j++) {
                const size_t at = block * FL_BLOCK + j * FL_PANEL + v * FL_LANES;
                const vf key = vf_fma(t, gumbel(word[j]), vf_load(logits + at));
                challenge(best, key, vi_add(vi_set((uint32_t)at), vi_lanes()));
            }
        }
    }
}

static void challenge_listed(winner *best, const float *logits, const int32_t *ids, size_t n, float temperature,
                             const fl_noise *noise) {
    const vf t = vf_set(temperature);
    for (size_t at = 0; at < n; at += FL_LANES) {
        const vi id = vi_load(ids + at);
        vi word[4];
        philox(vi_add(vi_shl(vi_shr(id, 6), 4), vi_and(id, vi_set(15))), noise, word);
        const vi j = vi_and(vi_shr(id, 4), vi_set(3));
        vi n32 = word[3];
        for (uint32_t i = 0; i < 3; i++) n32 = vi_select(vi_equal(j, vi_set(i)), word[i], n32);
        challenge(best, vf_fma(t, gumbel(n32), vf_load(logits + at)), id);
    }
}

static int32_t choose(const float *logits, const int32_t *ids, size_t n, float temperature, const fl_noise *noise) {
    winner best = {vf_set(-INFINITY), vi_set(INT32_MAX)};
    if (temperature == 0.0f)
        challenge_greedy(&best, logits, ids, n);
    else if (ids)
        challenge_listed(&best, logits, ids, n, temperature, noise);
    else
        challenge_all(&best, logits, n, temperature, noise);
    return final_winner(best);
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

#define FL_TABLE2(level) fl_kernels_##level
#define FL_TABLE(level) FL_TABLE2(level)
#define FL_TEXT2(level) #level
#define FL_TEXT(level) FL_TEXT2(level)
const fl_kernels FL_TABLE(FL_LEVEL) = {FL_TEXT(FL_LEVEL), product, cell, choose, mass, logarithm};
