/* SPDX-License-Identifier: Apache-2.0
 *
 * The vector vocabulary on AArch64's Advanced SIMD with the dot product: four lanes. vec_scalar.h says what each
 * word means. */
#include <arm_neon.h>

/* Not measured on a machine, but counted. A panel is four vectors, so 32 registers hold the sums of four panels for one
 * column, 16: enough chains for four fused multiply-adds a cycle, 4 long (Apple, Neoverse V); eight panels would take all
 * 32. They also hold a panel for four columns: 16 sums, 4 weights, 4 inputs. There at most 8 loads serve 16 products,
 * which two load units do while four multipliers work; two columns of three panels would be 14 loads for 24 products, and
 * read every weight from the cache twice as often. */
#define FL_LANES 4
#define FL_PANELS 4
#define FL_TILE 1
#define FL_COLUMNS 4
#define FL_NEAR_BYTES (1 << 19)

typedef float32x4_t vf;
typedef uint32x4_t vi;
typedef uint32x4_t vm;

FL_INLINE vf vf_load(const float *p) { return vld1q_f32(p); }
FL_INLINE void vf_store(float *p, vf a) { vst1q_f32(p, a); }
FL_INLINE vf vf_set(float a) { return vdupq_n_f32(a); }
FL_INLINE vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
FL_INLINE vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
FL_INLINE vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
FL_INLINE vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
FL_INLINE vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
/* The minimum instructions order -0 before +0 and treat NaN otherwise than the definition does. */
FL_INLINE vf vf_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
FL_INLINE vf vf_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

/* As bytes, since what lies there may be of any type. */
FL_INLINE vi vi_load(const void *p) { return vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)p)); }
FL_INLINE void vi_store(void *p, vi a) { vst1q_u8((uint8_t *)p, vreinterpretq_u8_u32(a)); }
FL_INLINE vi vi_set(uint32_t a) { return vdupq_n_u32(a); }
FL_INLINE vi vi_lanes(void) {
    const uint32_t lanes[FL_LANES] = {0, 1, 2, 3};
    return vld1q_u32(lanes);
}
FL_INLINE vi vi_add(vi a, vi b) { return vaddq_u32(a, b); }
FL_INLINE vi vi_sub(vi a, vi b) { return vsubq_u32(a, b); }
FL_INLINE vi vi_and(vi a, vi b) { return vandq_u32(a, b); }
FL_INLINE vi vi_xor(vi a, vi b) { return veorq_u32(a, b); }
#define vi_shl(a, n) vshlq_n_u32(a, n)
#define vi_shr(a, n) vshrq_n_u32(a, n)
#define vi_sar(a, n) vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(a), n))
FL_INLINE vi vi_mul_low(vi a, vi b) { return vmulq_u32(a, b); }
FL_INLINE vi vi_mul_high(vi a, vi b) {
    const uint64x2_t low = vmull_u32(vget_low_u32(a), vget_low_u32(b)), high = vmull_high_u32(a, b);
    return vuzp2q_u32(vreinterpretq_u32_u64(low), vreinterpretq_u32_u64(high));
}

FL_INLINE vf vf_from_int(vi a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
FL_INLINE vi vi_truncate(vf a) { return vreinterpretq_u32_s32(vcvtq_s32_f32(a)); }
FL_INLINE vi vi_bits(vf a) { return vreinterpretq_u32_f32(a); }
FL_INLINE vf vf_bits(vi a) { return vreinterpretq_f32_u32(a); }

FL_INLINE vm vf_greater(vf a, vf b) { return vcgtq_f32(a, b); }
FL_INLINE vm vf_equal(vf a, vf b) { return vceqq_f32(a, b); }
FL_INLINE vm vi_less(vi a, vi b) { return vcltq_s32(vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b)); }
FL_INLINE vm vi_equal(vi a, vi b) { return vceqq_u32(a, b); }
FL_INLINE vm vm_and(vm a, vm b) { return vandq_u32(a, b); }
FL_INLINE vm vm_or(vm a, vm b) { return vorrq_u32(a, b); }
FL_INLINE uint32_t vm_bits(vm m) {
    const uint32_t bits[FL_LANES] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(m, vld1q_u32(bits)));
}
FL_INLINE vf vf_select(vm m, vf yes, vf no) { return vbslq_f32(m, yes, no); }
FL_INLINE vi vi_select(vm m, vi yes, vi no) { return vbslq_u32(m, yes, no); }

/* Four bytes in a register's first part, from where the instruction takes them for every lane. */
typedef float vx;
FL_INLINE vx vx_set(const int8_t *bytes) {
    vx x;
    memcpy(&x, bytes, sizeof x);
    return x;
}
FL_INLINE vi vi_dot_start(int32_t total) {
    (void)total;
    return vdupq_n_u32(0);
}
/* Written as an instruction: through the intrinsic, GCC 12 moves every sum out of its register and back, and clang
 * before 16 hides it unless a whole file is compiled for it. */
FL_INLINE void vi_dot(vi *sum, vi weights, vx x) {
    __asm__("sdot %0.4s, %1.16b, %2.4b[0]" : "+w"(*sum) : "w"(weights), "w"(x));
}

/* Nibbles fit signed bytes, so one sum takes both. */
typedef vi vn;
FL_INLINE vn vn_zero(void) { return vdupq_n_u32(0); }
FL_INLINE void vn_dot(vn *sum, vi weights, vx low, vx high) {
    const uint8x16_t bytes = vreinterpretq_u8_u32(weights);
    vi_dot(sum, vreinterpretq_u32_u8(vandq_u8(bytes, vdupq_n_u8(15))), low);
    vi_dot(sum, vreinterpretq_u32_u8(vshrq_n_u8(bytes, 4)), high);
}
FL_INLINE vi vn_total(vn sum) { return sum; }

FL_INLINE vi vi_pair(vi first, vi second) { return vsliq_n_u32(first, second, 16); }
FL_INLINE void vi_dot_pair(vi *sum, vi pairs, vi factors) {
    const int16x8_t a = vreinterpretq_s16_u32(pairs), b = vreinterpretq_s16_u32(factors);
    const int32x4_t low = vmull_s16(vget_low_s16(a), vget_low_s16(b)), high = vmull_high_s16(a, b);
    *sum = vaddq_u32(*sum, vreinterpretq_u32_s32(vpaddq_s32(low, high)));
}
FL_INLINE vi vi_load_factors(const int8_t *p) { return vreinterpretq_u32_s16(vmovl_s8(vld1_s8(p))); }

FL_INLINE void vi_store_bytes(int8_t *p, vi a) {
    const uint16x4_t words = vmovn_u32(a);
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(words, words));
    const uint32_t word = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
    memcpy(p, &word, sizeof word);
}

/* Four nibbles' entries are added as bytes, then the bytes of even and of odd places in 16 bits each. */
FL_INLINE uint8x16_t look_up_two(const uint8_t *tables, uint8x16_t byte) {
    const uint8x16_t low = vqtbl1q_u8(vld1q_u8(tables), vandq_u8(byte, vdupq_n_u8(15)));
    return vaddq_u8(low, vqtbl1q_u8(vld1q_u8(tables + 16), vshrq_n_u8(byte, 4)));
}
FL_INLINE void look_up(const uint8_t *bits, const uint8_t *tables, size_t pairs, uint16_t *sums) {
    uint16x8_t even[4], odd[4];
    for (int i = 0; i < 4; i++) even[i] = odd[i] = vdupq_n_u16(0);
    for (size_t pair = 0; pair < pairs; pair++, tables += 64, bits += 2 * FL_BLOCK)
        for (int i = 0; i < 4; i++) {
            const uint8x16_t first = look_up_two(tables, vld1q_u8(bits + 16 * i));
            const uint8x16_t second = look_up_two(tables + 32, vld1q_u8(bits + FL_BLOCK + 16 * i));
            const uint16x8_t four = vreinterpretq_u16_u8(vaddq_u8(first, second));
            even[i] = vaddq_u16(even[i], vandq_u16(four, vdupq_n_u16(255)));
            odd[i] = vaddq_u16(odd[i], vshrq_n_u16(four, 8));
        }
    for (int i = 0; i < 4; i++) {
        vst1q_u16(sums + 32 * (i / 2) + 8 * (i % 2), even[i]);
        vst1q_u16(sums + 32 * (i / 2) + 16 + 8 * (i % 2), odd[i]);
    }
}
FL_INLINE vi vi_load_short(const uint16_t *p) { return vmovl_u16(vld1_u16(p)); }

typedef uint64x2_t vsum;
FL_INLINE vsum vsum_zero(void) { return vdupq_n_u64(0); }
FL_INLINE vsum vsum_add(vsum s, vi a) { return vpadalq_u32(s, a); }
FL_INLINE uint64_t vsum_total(vsum s) { return vaddvq_u64(s); }
