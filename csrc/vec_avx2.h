/* SPDX-License-Identifier: Apache-2.0
 *
 * The vector vocabulary on AVX2 and FMA, with FL_VNNI also AVX-VNNI: eight lanes. vec_scalar.h says what each
 * word means. */
#include <immintrin.h>

#define FL_LANES 8
#define FL_PANELS 4 /* 8 sums in 16 registers: enough chains for two fused multiply-adds a cycle, 4 long */
#define FL_TILE 1   /* 8 sums, 2 weights, 1 input */
#define FL_COLUMNS 4
#ifdef FL_VNNI
#define FL_NEAR_BYTES (1 << 19)
#else
#define FL_NEAR_BYTES 0 /* inputs are prepared for a product, which must serve many panels */
#endif

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
FL_INLINE uint32_t vm_bits(vm m) { return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(m)); }
FL_INLINE vf vf_select(vm m, vf yes, vf no) { return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(m)); }
FL_INLINE vi vi_select(vm m, vi yes, vi no) { return _mm256_blendv_epi8(no, yes, m); }

#ifdef FL_VNNI
/* dpbusd multiplies unsigned by signed bytes: weights are lifted by 128, and the sum begins below by as much. */
typedef __m256i vx;
/* Written as an instruction: through the intrinsic, GCC 12 moves every sum out of its register and back (half the
 * speed with many columns). */
FL_INLINE void add_dot(vi *sum, vi weights, vi x) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(*sum) : "x"(weights), "x"(x));
}
FL_INLINE vx vx_set(const int8_t *bytes) {
    int32_t word;
    memcpy(&word, bytes, sizeof word);
    return _mm256_set1_epi32(word);
}
FL_INLINE vi vi_dot_start(int32_t total) { return _mm256_set1_epi32(-128 * total); }
FL_INLINE void vi_dot(vi *sum, vi weights, vx x) {
    add_dot(sum, _mm256_xor_si256(weights, _mm256_set1_epi8((char)0x80)), x);
}

/* One column: the inputs are lifted instead, so that the instruction itself reads the weights, which keeps more of them on
 * the way (45 MB: a fifth faster). */
#define FL_ALONE
typedef __m256i va;
FL_INLINE va va_set(const int8_t *bytes) { return _mm256_xor_si256(vx_set(bytes), _mm256_set1_epi8((char)0x80)); }
FL_INLINE vi vi_begin_alone(const int32_t *row_sums) {
    return _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(vi_load(row_sums), 7));
}
FL_INLINE void vi_dot_alone(vi *sum, const int8_t *weights, va x) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(*sum) : "x"(x), "m"(*(const __m256i_u *)(const void *)weights));
}

/* The high nibbles stay where they are, 16 times too large. */
typedef struct vn {
    vi low, high;
} vn;
FL_INLINE vn vn_zero(void) { return (vn){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
FL_INLINE void vn_dot(vn *sum, vi weights, vx low, vx high) {
    const vi mask = _mm256_set1_epi8(15);
    add_dot(&sum->low, _mm256_and_si256(weights, mask), low);
    add_dot(&sum->high, _mm256_andnot_si256(mask, weights), high);
}
FL_INLINE vi vn_total(vn sum) { return _mm256_add_epi32(sum.low, _mm256_srai_epi32(sum.high, 4)); }
FL_INLINE void vi_dot_pair(vi *sum, vi pairs, vi factors) { *sum = _mm256_dpwssd_avx_epi32(*sum, pairs, factors); }
#else
/* maddubs multiplies unsigned by signed bytes and adds two products in 16 bits: the inputs' sign goes over to the
 * weights, and 2 * 127 * 127 fits. */
typedef struct vx {
    vi x, size;
} vx;
FL_INLINE vx vx_set(const int8_t *bytes) {
    int32_t word;
    memcpy(&word, bytes, sizeof word);
    const vi x = _mm256_set1_epi32(word);
    return (vx){x, _mm256_abs_epi8(x)};
}
FL_INLINE vi vi_dot_start(int32_t total) {
    (void)total;
    return _mm256_setzero_si256();
}
/* The last step is written as an instruction: else GCC 12 keeps two of eight sums in memory and moves the others from
 * register to register (beams of a translation: 5 % slower). */
FL_INLINE void vi_dot(vi *sum, vi weights, vx x) {
    const vi two = _mm256_maddubs_epi16(x.size, _mm256_sign_epi8(weights, x.x));
    const vi four = _mm256_madd_epi16(two, _mm256_set1_epi16(1));
    __asm__("vpaddd %1, %0, %0" : "+x"(*sum) : "x"(four));
}

/* 16 products of at most 15 * 127 fit 16 bits. */
typedef vi vn;
FL_INLINE vn vn_zero(void) { return _mm256_setzero_si256(); }
FL_INLINE void vn_dot(vn *sum, vi weights, vx low, vx high) {
    const vi mask = _mm256_set1_epi8(15), upper = _mm256_and_si256(_mm256_srli_epi16(weights, 4), mask);
    *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(_mm256_and_si256(weights, mask), low.x));
    *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(upper, high.x));
}
FL_INLINE vi vn_total(vn sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
FL_INLINE void vi_dot_pair(vi *sum, vi pairs, vi factors) {
    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, factors));
}
#endif
FL_INLINE vi vi_pair(vi first, vi second) { return _mm256_blend_epi16(first, _mm256_slli_epi32(second, 16), 0xAA); }
FL_INLINE vi vi_load_factors(const int8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }
FL_INLINE void vi_store_bytes(int8_t *p, vi a) {
    a = _mm256_srai_epi32(_mm256_slli_epi32(a, 24), 24); /* the packs saturate */
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(words, words));
}

/* Four nibbles' entries are added as bytes, then the bytes of even and of odd places in 16 bits each. */
FL_INLINE __m256i look_up_four(const uint8_t *bits, const __m256i *tables) {
    const __m256i mask = _mm256_set1_epi8(15), first = vi_load(bits), second = vi_load(bits + FL_BLOCK);
    const __m256i a = _mm256_shuffle_epi8(tables[0], _mm256_and_si256(first, mask));
    const __m256i b = _mm256_shuffle_epi8(tables[1], _mm256_and_si256(_mm256_srli_epi16(first, 4), mask));
    const __m256i c = _mm256_shuffle_epi8(tables[2], _mm256_and_si256(second, mask));
    const __m256i d = _mm256_shuffle_epi8(tables[3], _mm256_and_si256(_mm256_srli_epi16(second, 4), mask));
    return _mm256_add_epi8(_mm256_add_epi8(a, b), _mm256_add_epi8(c, d));
}
FL_INLINE void look_up(const uint8_t *bits, const uint8_t *tables, size_t pairs, uint16_t *sums) {
    const __m256i even = _mm256_set1_epi16(255);
    __m256i sum[4];
    for (int i = 0; i < 4; i++) sum[i] = _mm256_setzero_si256();
    for (size_t pair = 0; pair < pairs; pair++, tables += 64, bits += 2 * FL_BLOCK) {
        __m256i table[4];
        for (int i = 0; i < 4; i++)
            table[i] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(tables + 16 * i)));
        for (int i = 0; i < 4; i += 2) {
            const __m256i four = look_up_four(bits + 16 * i, table);
            sum[i] = _mm256_add_epi16(sum[i], _mm256_and_si256(four, even));
            sum[i + 1] = _mm256_add_epi16(sum[i + 1], _mm256_srli_epi16(four, 8));
        }
    }
    for (int i = 0; i < 4; i++) vi_store(sums + 16 * i, sum[i]);
}
FL_INLINE vi vi_load_short(const uint16_t *p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}

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
