/* SPDX-License-Identifier: Apache-2.0
 *
 * The vector vocabulary on AVX-512 (F, BW, DQ, VL), with FL_VNNI also VNNI: sixteen lanes. vec_scalar.h says what
 * each word means. */
#include <immintrin.h>

#define FL_LANES 16
#define FL_PANELS 8 /* 8 sums: enough chains for two fused multiply-adds a cycle, 4 long */
#define FL_TILE 3   /* 24 sums, 3 weights, 1 input in 32 registers */
#define FL_COLUMNS 8
#ifdef FL_VNNI
#define FL_NEAR_BYTES (1 << 19)
#else
#define FL_NEAR_BYTES 0 /* inputs are prepared for a product, which must serve many panels */
#endif

typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 vm;

FL_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
FL_INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
FL_INLINE vf vf_set(float a) { return _mm512_set1_ps(a); }
FL_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
FL_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
FL_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
FL_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
FL_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
FL_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
FL_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }

FL_INLINE vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
FL_INLINE void vi_store(void *p, vi a) { _mm512_storeu_si512(p, a); }
FL_INLINE vi vi_set(uint32_t a) { return _mm512_set1_epi32((int)a); }
FL_INLINE vi vi_lanes(void) { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
FL_INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
FL_INLINE vi vi_sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
FL_INLINE vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
FL_INLINE vi vi_xor(vi a, vi b) { return _mm512_xor_si512(a, b); }
#define vi_shl(a, n) _mm512_slli_epi32(a, n)
#define vi_shr(a, n) _mm512_srli_epi32(a, n)
#define vi_sar(a, n) _mm512_srai_epi32(a, n)
FL_INLINE vi vi_mul_low(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
FL_INLINE vi vi_mul_high(vi a, vi b) { /* the multiplier takes even lanes only */
    const __m512i even = _mm512_mul_epu32(a, b);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
    return _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
}

FL_INLINE vf vf_from_int(vi a) { return _mm512_cvtepi32_ps(a); }
FL_INLINE vi vi_truncate(vf a) { return _mm512_cvttps_epi32(a); }
FL_INLINE vi vi_bits(vf a) { return _mm512_castps_si512(a); }
FL_INLINE vf vf_bits(vi a) { return _mm512_castsi512_ps(a); }

FL_INLINE vm vf_greater(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
FL_INLINE vm vf_equal(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
FL_INLINE vm vi_less(vi a, vi b) { return _mm512_cmplt_epi32_mask(a, b); }
FL_INLINE vm vi_equal(vi a, vi b) { return _mm512_cmpeq_epi32_mask(a, b); }
FL_INLINE vm vm_and(vm a, vm b) { return (vm)(a & b); }
FL_INLINE vm vm_or(vm a, vm b) { return (vm)(a | b); }
FL_INLINE uint32_t vm_bits(vm m) { return m; }
FL_INLINE vf vf_select(vm m, vf yes, vf no) { return _mm512_mask_blend_ps(m, no, yes); }
#define FL_COMPRESS 1 /* lanes of a mask to the front */
FL_INLINE vf vf_compress(vm m, vf a) { return _mm512_maskz_compress_ps(m, a); }
FL_INLINE vi vi_compress(vm m, vi a) { return _mm512_maskz_compress_epi32(m, a); }
FL_INLINE size_t vm_count(vm m) { return (size_t)__builtin_popcount(m); }
FL_INLINE vi vi_select(vm m, vi yes, vi no) { return _mm512_mask_blend_epi32(m, no, yes); }

#ifdef FL_VNNI
/* dpbusd multiplies unsigned by signed bytes: weights are lifted by 128, and the sum begins below by as much. */
typedef __m512i vx;
/* Written as an instruction: through the intrinsic, GCC 12 moves every sum out of its register and back (half the
 * speed with many columns). */
FL_INLINE void add_dot(vi *sum, vi weights, vi x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(weights), "v"(x));
}
FL_INLINE vx vx_set(const int8_t *bytes) {
    int32_t word;
    memcpy(&word, bytes, sizeof word);
    return _mm512_set1_epi32(word);
}
FL_INLINE vi vi_dot_start(int32_t total) { return _mm512_set1_epi32(-128 * total); }
FL_INLINE void vi_dot(vi *sum, vi weights, vx x) {
    add_dot(sum, _mm512_xor_si512(weights, _mm512_set1_epi8((char)0x80)), x);
}

/* One column: the inputs are lifted instead, so that the instruction itself reads the weights, which keeps more of them on
 * the way (45 MB: a fifth faster). */
#define FL_ALONE
typedef __m512i va;
FL_INLINE va va_set(const int8_t *bytes) { return _mm512_xor_si512(vx_set(bytes), _mm512_set1_epi8((char)0x80)); }
FL_INLINE vi vi_begin_alone(const int32_t *row_sums) {
    return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(vi_load(row_sums), 7));
}
FL_INLINE void vi_dot_alone(vi *sum, const int8_t *weights, va x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(x), "m"(*(const __m512i_u *)(const void *)weights));
}

/* The high nibbles stay where they are, 16 times too large. */
typedef struct vn {
    vi low, high;
} vn;
FL_INLINE vn vn_zero(void) { return (vn){_mm512_setzero_si512(), _mm512_setzero_si512()}; }
FL_INLINE void vn_dot(vn *sum, vi weights, vx low, vx high) {
    const vi mask = _mm512_set1_epi8(15);
    add_dot(&sum->low, _mm512_and_si512(weights, mask), low);
    add_dot(&sum->high, _mm512_andnot_si512(mask, weights), high);
}
FL_INLINE vi vn_total(vn sum) { return _mm512_add_epi32(sum.low, _mm512_srai_epi32(sum.high, 4)); }
FL_INLINE void vi_dot_pair(vi *sum, vi pairs, vi factors) { *sum = _mm512_dpwssd_epi32(*sum, pairs, factors); }
#else
/* maddubs multiplies unsigned by signed bytes and adds two products in 16 bits: the inputs' sign goes over to the
 * weights, and 2 * 127 * 127 fits. */
typedef struct vx {
    vi x, size;
    __mmask64 negative;
} vx;
FL_INLINE vx vx_set(const int8_t *bytes) {
    int32_t word;
    memcpy(&word, bytes, sizeof word);
    const vi x = _mm512_set1_epi32(word);
    return (vx){x, _mm512_abs_epi8(x), _mm512_movepi8_mask(x)};
}
FL_INLINE vi vi_dot_start(int32_t total) {
    (void)total;
    return _mm512_setzero_si512();
}
FL_INLINE void vi_dot(vi *sum, vi weights, vx x) {
    const vi turned = _mm512_mask_sub_epi8(weights, x.negative, _mm512_setzero_si512(), weights);
    const vi two = _mm512_maddubs_epi16(x.size, turned);
    *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(two, _mm512_set1_epi16(1)));
}

/* 16 products of at most 15 * 127 fit 16 bits. */
typedef vi vn;
FL_INLINE vn vn_zero(void) { return _mm512_setzero_si512(); }
FL_INLINE void vn_dot(vn *sum, vi weights, vx low, vx high) {
    const vi mask = _mm512_set1_epi8(15), upper = _mm512_and_si512(_mm512_srli_epi16(weights, 4), mask);
    *sum = _mm512_add_epi16(*sum, _mm512_maddubs_epi16(_mm512_and_si512(weights, mask), low.x));
    *sum = _mm512_add_epi16(*sum, _mm512_maddubs_epi16(upper, high.x));
}
FL_INLINE vi vn_total(vn sum) { return _mm512_madd_epi16(sum, _mm512_set1_epi16(1)); }
FL_INLINE void vi_dot_pair(vi *sum, vi pairs, vi factors) {
    *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(pairs, factors));
}
#endif
FL_INLINE vi vi_pair(vi first, vi second) {
    return _mm512_mask_blend_epi16(0xAAAAAAAA, first, _mm512_slli_epi32(second, 16));
}
FL_INLINE vi vi_load_factors(const int8_t *p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p)); }
FL_INLINE void vi_store_bytes(int8_t *p, vi a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a)); }

/* Four nibbles' entries are added as bytes, then the bytes of even and of odd places in 16 bits each. */
FL_INLINE __m512i look_up_one(const uint8_t *table, __m512i nibbles) {
    const __m512i entries = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)table));
    return _mm512_shuffle_epi8(entries, _mm512_and_si512(nibbles, _mm512_set1_epi8(15)));
}
FL_INLINE void look_up(const uint8_t *bits, const uint8_t *tables, size_t pairs, uint16_t *sums) {
    __m512i even = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
    for (size_t pair = 0; pair < pairs; pair++, tables += 64, bits += 2 * FL_BLOCK) {
        const __m512i first = vi_load(bits), second = vi_load(bits + FL_BLOCK);
        const __m512i a = look_up_one(tables, first), b = look_up_one(tables + 16, _mm512_srli_epi16(first, 4));
        const __m512i c = look_up_one(tables + 32, second), d = look_up_one(tables + 48, _mm512_srli_epi16(second, 4));
        const __m512i four = _mm512_add_epi8(_mm512_add_epi8(a, b), _mm512_add_epi8(c, d));
        even = _mm512_add_epi16(even, _mm512_and_si512(four, _mm512_set1_epi16(255)));
        odd = _mm512_add_epi16(odd, _mm512_srli_epi16(four, 8));
    }
    _mm256_storeu_si256((__m256i *)(void *)sums, _mm512_castsi512_si256(even));
    _mm256_storeu_si256((__m256i *)(void *)(sums + 16), _mm512_castsi512_si256(odd));
    _mm256_storeu_si256((__m256i *)(void *)(sums + 32), _mm512_extracti64x4_epi64(even, 1));
    _mm256_storeu_si256((__m256i *)(void *)(sums + 48), _mm512_extracti64x4_epi64(odd, 1));
}
FL_INLINE vi vi_load_short(const uint16_t *p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

typedef __m512i vsum;
FL_INLINE vsum vsum_zero(void) { return _mm512_setzero_si512(); }
FL_INLINE vsum vsum_add(vsum s, vi a) {
    s = _mm512_add_epi64(s, _mm512_cvtepu32_epi64(_mm512_castsi512_si256(a)));
    return _mm512_add_epi64(s, _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(a, 1)));
}
FL_INLINE uint64_t vsum_total(vsum s) {
    uint64_t lanes[8], total = 0;
    _mm512_storeu_si512(lanes, s);
    for (int i = 0; i < 8; i++) total += lanes[i];
    return total;
}
