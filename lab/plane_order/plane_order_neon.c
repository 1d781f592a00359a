/* Codes (one byte per weight, in order) from five bit planes, NEON, one function
 * per order of bits inside a plane. Counted, not timed:
 *   aarch64-linux-gnu-gcc -O3 -c plane_order_neon.c, then disassemble.
 * With -DCHECK it is a program that compares each with a naive decoder. */
#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

/* Vector k: bits k (low nibble) and k + 4 (high nibble) of b3..b0. */
static inline void nibbles(const uint8x16_t b[5], uint8x16_t q[4]) {
    const uint8x16_t m5 = vdupq_n_u8(0x55), m3 = vdupq_n_u8(0x33);
    uint8x16_t e10 = vbslq_u8(m5, b[4], vshlq_n_u8(b[3], 1));
    uint8x16_t o10 = vbslq_u8(m5, vshrq_n_u8(b[4], 1), b[3]);
    uint8x16_t e32 = vbslq_u8(m5, b[2], vshlq_n_u8(b[1], 1));
    uint8x16_t o32 = vbslq_u8(m5, vshrq_n_u8(b[2], 1), b[1]);
    q[0] = vbslq_u8(m3, e10, vshlq_n_u8(e32, 2));
    q[2] = vbslq_u8(m3, vshrq_n_u8(e10, 2), e32);
    q[1] = vbslq_u8(m3, o10, vshlq_n_u8(o32, 2));
    q[3] = vbslq_u8(m3, vshrq_n_u8(o10, 2), o32);
}

/* Vector k: the codes at bit k of each byte. */
static inline void swar(const uint8x16_t b[5], uint8x16_t v[8]) {
    const uint8x16_t m = vdupq_n_u8(31);
    uint8x16_t q[4];
    nibbles(b, q);
    v[0] = vandq_u8(vsliq_n_u8(q[0], b[0], 4), m);
    v[1] = vandq_u8(vsliq_n_u8(q[1], vshrq_n_u8(b[0], 1), 4), m);
    v[2] = vandq_u8(vsliq_n_u8(q[2], vshrq_n_u8(b[0], 2), 4), m);
    v[3] = vandq_u8(vsliq_n_u8(q[3], vshrq_n_u8(b[0], 3), 4), m);
    /* High nibble: shift it down into the top plane already in place. */
    const uint8x16_t hi = vdupq_n_u8(0x10);
    v[4] = vsriq_n_u8(vandq_u8(b[0], hi), q[0], 4);
    v[5] = vsriq_n_u8(vandq_u8(vshrq_n_u8(b[0], 1), hi), q[1], 4);
    v[6] = vsriq_n_u8(vandq_u8(vshrq_n_u8(b[0], 2), hi), q[2], 4);
    v[7] = vsriq_n_u8(vshlq_n_u8(vshrq_n_u8(b[0], 7), 4), q[3], 4);
}

static inline void load(const uint8_t *p, size_t n, size_t at, uint8x16_t b[5]) {
    for (int i = 0; i < 5; i++) b[i] = vld1q_u8(p + i * n + at);
}

/* n: bytes per plane. */
void codes_t16(const uint8_t *p, size_t n, uint8_t *out) {
    for (size_t at = 0; at < n; at += 16) {
        uint8x16_t b[5], v[8];
        load(p, n, at, b);
        swar(b, v);
        for (int k = 0; k < 8; k++) vst1q_u8(out + 8 * at + 16 * k, v[k]);
    }
}

void codes_t32(const uint8_t *p, size_t n, uint8_t *out) {
    for (size_t at = 0; at < n; at += 32)
#pragma GCC unroll 2
        for (int h = 0; h < 32; h += 16) {
            uint8x16_t b[5], v[8];
            load(p, n, at + h, b);
            swar(b, v);
            for (int k = 0; k < 8; k++) vst1q_u8(out + 8 * at + 32 * k + h, v[k]);
        }
}

void codes_t64(const uint8_t *p, size_t n, uint8_t *out) {
    for (size_t at = 0; at < n; at += 64)
#pragma GCC unroll 4
        for (int h = 0; h < 64; h += 16) {
            uint8x16_t b[5], v[8];
            load(p, n, at + h, b);
            swar(b, v);
            for (int k = 0; k < 8; k++) vst1q_u8(out + 8 * at + 64 * k + h, v[k]);
        }
}

/* Natural order: swar, then the bytes of 8 vectors interleaved with zips. */
void codes_n64_zip(const uint8_t *p, size_t n, uint8_t *out) {
    for (size_t at = 0; at < n; at += 16) {
        uint8x16_t b[5], v[8];
        load(p, n, at, b);
        swar(b, v);
        uint16x8_t w[8];
        for (int k = 0; k < 4; k++) {
            w[k] = vreinterpretq_u16_u8(vzip1q_u8(v[2 * k], v[2 * k + 1]));
            w[k + 4] = vreinterpretq_u16_u8(vzip2q_u8(v[2 * k], v[2 * k + 1]));
        }
        for (int h = 0; h < 2; h++) {
            const uint16x8_t *s = w + 4 * h;
            uint32x4_t a0 = vreinterpretq_u32_u16(vzip1q_u16(s[0], s[1]));
            uint32x4_t a1 = vreinterpretq_u32_u16(vzip2q_u16(s[0], s[1]));
            uint32x4_t c0 = vreinterpretq_u32_u16(vzip1q_u16(s[2], s[3]));
            uint32x4_t c1 = vreinterpretq_u32_u16(vzip2q_u16(s[2], s[3]));
            uint8_t *o = out + 8 * at + 64 * h;
            vst1q_u8(o, vreinterpretq_u8_u32(vzip1q_u32(a0, c0)));
            vst1q_u8(o + 16, vreinterpretq_u8_u32(vzip2q_u32(a0, c0)));
            vst1q_u8(o + 32, vreinterpretq_u8_u32(vzip1q_u32(a1, c1)));
            vst1q_u8(o + 48, vreinterpretq_u8_u32(vzip2q_u32(a1, c1)));
        }
    }
}

/* Natural order: swar, one level of zips, then interleaving 4-way stores of
 * 16-bit pieces (few instructions, but st4 is several micro-operations). */
void codes_n64_st4(const uint8_t *p, size_t n, uint8_t *out) {
    for (size_t at = 0; at < n; at += 16) {
        uint8x16_t b[5], v[8];
        load(p, n, at, b);
        swar(b, v);
        uint16x8x4_t lo, hi;
        for (int k = 0; k < 4; k++) {
            lo.val[k] = vreinterpretq_u16_u8(vzip1q_u8(v[2 * k], v[2 * k + 1]));
            hi.val[k] = vreinterpretq_u16_u8(vzip2q_u8(v[2 * k], v[2 * k + 1]));
        }
        vst4q_u16((uint16_t *)(out + 8 * at), lo);
        vst4q_u16((uint16_t *)(out + 8 * at + 64), hi);
    }
}

/* Natural order: replicate bytes, test one bit per byte, insert. */
void codes_n64_test(const uint8_t *p, size_t n, uint8_t *out) {
    const uint8x16_t bits = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    for (size_t at = 0; at < n; at += 16) {
        uint8x16_t b[5];
        load(p, n, at, b);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            uint8x16_t rep = vcombine_u8(vdup_n_u8(2 * i), vdup_n_u8(2 * i + 1));
            uint8x16_t v = vdupq_n_u8(0);
            for (int j = 0; j < 5; j++) {
                uint8x16_t t = vtstq_u8(vqtbl1q_u8(b[j], rep), bits);
                v = j ? vsliq_n_u8(t, v, 1) : t;
                /* sli keeps bit 0 of t and shifts the earlier bits above it. */
            }
            vst1q_u8(out + 8 * at + 16 * i, vandq_u8(v, vdupq_n_u8(31)));
        }
    }
}

#ifdef CHECK
#include <stdio.h>
#include <stdlib.h>
#define N 1024
static uint8_t planes[5 * N], got[8 * N];
static int check(const char *name, int w, void (*f)(const uint8_t *, size_t, uint8_t *)) {
    f(planes, N, got);
    for (int i = 0; i < 8 * N; i++) {
        int byte = w ? i / (8 * w) * w + i % w : i / 8, bit = w ? i / w % 8 : i % 8, c = 0;
        for (int p = 0; p < 5; p++) c = c << 1 | (planes[p * N + byte] >> bit & 1);
        if (got[i] != c) return printf("%s: weight %d is %d, not %d\n", name, i, got[i], c), 1;
    }
    return printf("%s agrees\n", name), 0;
}
int main(void) {
    for (int i = 0; i < 5 * N; i++) planes[i] = rand() >> 7;
    return check("t16", 16, codes_t16) | check("t32", 32, codes_t32) | check("t64", 64, codes_t64) |
           check("n64_zip", 0, codes_n64_zip) | check("n64_st4", 0, codes_n64_st4) |
           check("n64_test", 0, codes_n64_test);
}
#endif
