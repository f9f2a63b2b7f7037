/* SPDX-License-Identifier: Apache-2.0
 *
 * The vector vocabulary with one lane: the definition. vf is a float, vi its 32 bits, vm a truth value. */
#include <string.h>

#define FL_LANES 1
#define FL_PANELS 4  /* panels in flight for one column: with one lane, any number does */
#define FL_TILE 1    /* panels in flight for FL_COLUMNS columns */
#define FL_COLUMNS 4 /* columns in flight */
#define FL_NEAR_BYTES                                                                                                  \
    (1 << 19) /* an int8 matrix that stays in the second-level cache is read front to back; 0: never */

typedef float vf;
typedef uint32_t vi;
typedef bool vm;

FL_INLINE vf vf_load(const float *p) { return *p; }
FL_INLINE void vf_store(float *p, vf a) { *p = a; }
FL_INLINE vf vf_set(float a) { return a; }
FL_INLINE vf vf_add(vf a, vf b) { return a + b; }
FL_INLINE vf vf_sub(vf a, vf b) { return a - b; }
FL_INLINE vf vf_mul(vf a, vf b) { return a * b; }
FL_INLINE vf vf_div(vf a, vf b) { return a / b; }
FL_INLINE vf vf_fma(vf a, vf b, vf c) { return fmaf(a, b, c); } /* a * b + c, rounded once */
FL_INLINE vf vf_min(vf a, vf b) { return a < b ? a : b; }
FL_INLINE vf vf_max(vf a, vf b) { return a > b ? a : b; }

FL_INLINE vi vi_load(const void *p) {
    vi a;
    memcpy(&a, p, sizeof a);
    return a;
}
FL_INLINE void vi_store(void *p, vi a) { memcpy(p, &a, sizeof a); }
FL_INLINE vi vi_set(uint32_t a) { return a; }
FL_INLINE vi vi_lanes(void) { return 0; } /* 0, 1, … */
FL_INLINE vi vi_add(vi a, vi b) { return a + b; }
FL_INLINE vi vi_sub(vi a, vi b) { return a - b; }
FL_INLINE vi vi_and(vi a, vi b) { return a & b; }
FL_INLINE vi vi_xor(vi a, vi b) { return a ^ b; }
#define vi_shl(a, n) ((vi)((a) << (n)))
#define vi_shr(a, n) ((vi)((a) >> (n)))
#define vi_sar(a, n) ((vi)((int32_t)(a) >> (n)))
FL_INLINE vi vi_mul_low(vi a, vi b) { return a * b; }
FL_INLINE vi vi_mul_high(vi a, vi b) { return (vi)(((uint64_t)a * b) >> 32); }

FL_INLINE vf vf_from_int(vi a) { return (float)(int32_t)a; }
FL_INLINE vi vi_truncate(vf a) { return (vi)(int32_t)a; }
FL_INLINE vi vi_bits(vf a) { return vi_load(&a); }
FL_INLINE vf vf_bits(vi a) {
    vf x;
    memcpy(&x, &a, sizeof x);
    return x;
}

FL_INLINE vm vf_greater(vf a, vf b) { return a > b; }
FL_INLINE vm vf_equal(vf a, vf b) { return a == b; }
FL_INLINE vm vi_less(vi a, vi b) { return (int32_t)a < (int32_t)b; }
FL_INLINE vm vi_equal(vi a, vi b) { return a == b; }
FL_INLINE vm vm_and(vm a, vm b) { return a && b; }
FL_INLINE vm vm_or(vm a, vm b) { return a || b; }
FL_INLINE uint32_t vm_bits(vm m) { return m; } /* lane i is bit i */
FL_INLINE vf vf_select(vm m, vf yes, vf no) { return m ? yes : no; }
FL_INLINE vi vi_select(vm m, vi yes, vi no) { return m ? yes : no; }

/* Four inputs as signed bytes, the same in every lane, ready to meet weights. */
typedef struct vx {
    int8_t bytes[4];
} vx;
FL_INLINE vx vx_set(const int8_t *bytes) {
    vx x;
    memcpy(&x, bytes, sizeof x);
    return x;
}

/* sum + the lane's four signed bytes times the inputs; a sum must begin with vi_dot_start(total of all inputs). */
FL_INLINE vi vi_dot_start(int32_t total) {
    (void)total;
    return 0;
}
FL_INLINE void vi_dot(vi *sum, vi weights, vx x) {
    for (int i = 0; i < 4; i++) *sum += (vi)((int8_t)(weights >> 8 * i) * x.bytes[i]);
}

/* Sum of the lane's low and high nibbles, 0 to 15, times low and high inputs; of at most 32 products. */
typedef vi vn;
FL_INLINE vn vn_zero(void) { return 0; }
FL_INLINE void vn_dot(vn *sum, vi weights, vx low, vx high) {
    for (int i = 0; i < 4; i++) {
        *sum += (vi)((int32_t)(weights >> 8 * i & 15) * low.bytes[i]);
        *sum += (vi)((int32_t)(weights >> (8 * i + 4) & 15) * high.bytes[i]);
    }
}
FL_INLINE vi vn_total(vn sum) { return sum; }

/* Pairs of 16-bit numbers: the low halves of two; sum + pairs times factors; two bytes a lane made wide. */
FL_INLINE vi vi_pair(vi first, vi second) { return (first & 0xFFFF) | second << 16; }
FL_INLINE void vi_dot_pair(vi *sum, vi pairs, vi factors) {
    *sum += (vi)((int16_t)pairs * (int16_t)factors) + (vi)((int16_t)(pairs >> 16) * (int16_t)(factors >> 16));
}
FL_INLINE vi vi_load_factors(const int8_t *p) { return vi_pair((vi)p[0], (vi)p[1]); }

FL_INLINE void vi_store_bytes(int8_t *p, vi a) { *p = (int8_t)a; } /* each lane's low byte */

/* For a block of rows, sums[row] = what the tables, four of 16 bytes for each pair, hold under the row's nibbles: the low
 * and the high one of its byte, in the pair's first 64 bytes and then in its second. Where a row's byte is: FL_PLACE. Sums
 * of all must fit 16 bits, and four of them 8. */
FL_INLINE void look_up(const uint8_t *bits, const uint8_t *tables, size_t pairs, uint16_t *sums) {
    for (size_t row = 0; row < FL_BLOCK; row++) sums[row] = 0;
    for (size_t pair = 0; pair < pairs; pair++, tables += 64)
        for (size_t half = 0; half < 2; half++, bits += FL_BLOCK)
            for (size_t row = 0; row < FL_BLOCK; row++) {
                const uint8_t byte = bits[FL_PLACE(row)];
                sums[row] =
                    (uint16_t)(sums[row] + tables[32 * half + (byte & 15)] + tables[32 * half + 16 + (byte >> 4)]);
            }
}
FL_INLINE vi vi_load_short(const uint16_t *p) { return *p; } /* 16 bits a lane made wide */

typedef uint64_t vsum; /* sum of unsigned 32-bit lanes without overflow */
FL_INLINE vsum vsum_zero(void) { return 0; }
FL_INLINE vsum vsum_add(vsum s, vi a) { return s + a; }
FL_INLINE uint64_t vsum_total(vsum s) { return s; }
