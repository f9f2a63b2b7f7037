/* SPDX-License-Identifier: Apache-2.0
 *
 * The vector vocabulary with one lane: the definition. vf is a float, vi its 32 bits, vm a truth value. */
#include <string.h>

#define FL_LANES 1
#define FL_PANELS 4 /* panels in flight: with one lane, any number does */

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
FL_INLINE vf vf_select(vm m, vf yes, vf no) { return m ? yes : no; }
FL_INLINE vi vi_select(vm m, vi yes, vi no) { return m ? yes : no; }

typedef uint64_t vsum; /* sum of unsigned 32-bit lanes without overflow */
FL_INLINE vsum vsum_zero(void) { return 0; }
FL_INLINE vsum vsum_add(vsum s, vi a) { return s + a; }
FL_INLINE uint64_t vsum_total(vsum s) { return s; }
