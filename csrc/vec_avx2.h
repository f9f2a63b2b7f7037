/* SPDX-License-Identifier: Apache-2.0
 *
 * The vector vocabulary on AVX2 and FMA: eight lanes. vec_scalar.h says what each word means. */
#include <immintrin.h>

#define FL_LANES 8
#define FL_PANELS 4 /* 8 sums in 16 registers: enough chains for two fused multiply-adds a cycle, 4 long */

typedef __m256 vf;
typedef __m256i vi;
typedef __m256i vm;

FL_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
FL_INLINE void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
FL_INLINE vf vf_set(float a) { return _mm256_set1_ps(a); }
FL_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
FL_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
FL_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
FL_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
FL_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
FL_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
FL_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }

FL_INLINE vi vi_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
FL_INLINE void vi_store(void *p, vi a) { _mm256_storeu_si256((__m256i *)p, a); }
FL_INLINE vi vi_set(uint32_t a) { return _mm256_set1_epi32((int)a); }
FL_INLINE vi vi_lanes(void) { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
FL_INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
FL_INLINE vi vi_sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
FL_INLINE vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
FL_INLINE vi vi_xor(vi a, vi b) { return _mm256_xor_si256(a, b); }
#define vi_shl(a, n) _mm256_slli_epi32(a, n)
#define vi_shr(a, n) _mm256_srli_epi32(a, n)
#define vi_sar(a, n) _mm256_srai_epi32(a, n)
FL_INLINE vi vi_mul_low(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
FL_INLINE vi vi_mul_high(vi a, vi b) { /* the multiplier takes even lanes only */
    const __m256i even = _mm256_mul_epu32(a, b);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
    return _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
}

FL_INLINE vf vf_from_int(vi a) { return _mm256_cvtepi32_ps(a); }
FL_INLINE vi vi_truncate(vf a) { return _mm256_cvttps_epi32(a); }
FL_INLINE vi vi_bits(vf a) { return _mm256_castps_si256(a); }
FL_INLINE vf vf_bits(vi a) { return _mm256_castsi256_ps(a); }

FL_INLINE vm vf_greater(vf a, vf b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
FL_INLINE vm vf_equal(vf a, vf b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
FL_INLINE vm vi_less(vi a, vi b) { return _mm256_cmpgt_epi32(b, a); }
FL_INLINE vm vi_equal(vi a, vi b) { return _mm256_cmpeq_epi32(a, b); }
FL_INLINE vm vm_and(vm a, vm b) { return _mm256_and_si256(a, b); }
FL_INLINE vm vm_or(vm a, vm b) { return _mm256_or_si256(a, b); }
FL_INLINE vf vf_select(vm m, vf yes, vf no) { return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(m)); }
FL_INLINE vi vi_select(vm m, vi yes, vi no) { return _mm256_blendv_epi8(no, yes, m); }

typedef __m256i vsum;
FL_INLINE vsum vsum_zero(void) { return _mm256_setzero_si256(); }
FL_INLINE vsum vsum_add(vsum s, vi a) {
    s = _mm256_add_epi64(s, _mm256_cvtepu32_epi64(_mm256_castsi256_si128(a)));
    return _mm256_add_epi64(s, _mm256_cvtepu32_epi64(_mm256_extracti128_si256(a, 1)));
}
FL_INLINE uint64_t vsum_total(vsum s) {
    uint64_t lanes[4];
    _mm256_storeu_si256((__m256i *)lanes, s);
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}
