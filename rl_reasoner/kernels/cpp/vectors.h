// Vectors of floats as wide as the machine's, for the files that are named step_* and integer_rows.
// Wider ones would do, but compilers take them apart by way of memory.
//
// Values are fp32 or bfloat16 in memory and fp32 in registers.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

// W: floats of a vector; HELD: vectors that a loop may sum up in registers
#if defined(__AVX512F__)
static const int W = 16, HELD = 16;
#elif defined(__AVX__)
static const int W = 8, HELD = 8;
#elif defined(__aarch64__)
static const int W = 4, HELD = 16;
#else
static const int W = 4, HELD = 8;
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef float vfu __attribute__((vector_size(4 * W), aligned(4)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));
typedef uint16_t vhu __attribute__((vector_size(2 * W), aligned(2)));

struct bf16 {
    uint16_t bits;
};

static inline vf load(const float* p) { return *(const vfu*)p; }
static inline vf load(const bf16* p) {
    return (vf)(__builtin_convertvector(*(const vhu*)p, vu) << 16);
}
static inline void store(float* p, vf x) { *(vfu*)p = x; }
static inline void store(bf16* p, vf x) {
    vu bits = (vu)x;
    vu rounded = bits + 0x7fff + ((bits >> 16) & 1);
    vu nan = (vu)(x != x);
    rounded = (rounded & ~nan) | (0x7fc00000u & nan);
    *(vhu*)p = __builtin_convertvector(rounded >> 16, vh);
}
template <class T> static inline vf load(const T* p, int n) {
    if (n >= W) return load(p);
    T some[W] = {};
    memcpy(some, p, n * sizeof(T));
    return load(some);
}
template <class T> static inline void store(T* p, vf x, int n) {
    if (n >= W) return store(p, x);
    T some[W];
    store(some, x);
    memcpy(p, some, n * sizeof(T));
}
#ifdef __AVX512F__  // a copy of some bytes would be a call
template <> inline vf load(const float* p, int n) {
    return n >= W ? load(p) : (vf)_mm512_maskz_loadu_ps((1u << n) - 1, p);
}
template <> inline void store(float* p, vf x, int n) {
    if (n >= W) return store(p, x);
    _mm512_mask_storeu_ps(p, (1u << n) - 1, (__m512)x);
}
#endif
static inline float value(bf16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float whole;
    memcpy(&whole, &bits, sizeof(whole));
    return whole;
}
static inline vf splat(float x) { return x - vf{}; }

// W rows of W values, `stride` apart, as W columns.
#if defined(__AVX512F__)
static inline void transpose(const float* from, int64_t stride, float* to) {
    vf a[W], b[W];
    for (int i = 0; i < W; i++) a[i] = load(from + i * stride);
    for (int i = 0; i < W; i += 2) {  // pairs of neighbours
        b[i] = __builtin_shufflevector(
            a[i], a[i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
        b[i + 1] = __builtin_shufflevector(
            a[i], a[i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    }
    for (int i = 0; i < W; i += 4)  // of two
        for (int j = 0; j < 2; j++) {
            vf x = b[i + j], y = b[i + j + 2];
            a[i + j] = __builtin_shufflevector(
                x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
            a[i + j + 2] = __builtin_shufflevector(
                x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        }
    for (int i = 0; i < W; i += 8)  // of four
        for (int j = 0; j < 4; j++) {
            vf x = a[i + j], y = a[i + j + 4];
            b[i + j] = __builtin_shufflevector(
                x, y, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
            b[i + j + 4] = __builtin_shufflevector(
                x, y, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
        }
    for (int j = 0; j < 8; j++) {  // of eight
        vf x = b[j], y = b[j + 8];
        store(to + j * W,
            __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23));
        store(to + (j + 8) * W,
            __builtin_shufflevector(
                x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31));
    }
}
// The sums of W vectors: pairs of neighbours are added up, then of two, of four, of eight.
static inline vf sums(const vf* x) {
    vf a[8], b[4];
    for (int i = 0; i < 8; i++)
        a[i] = __builtin_shufflevector(
                   x[2 * i], x[2 * i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
               __builtin_shufflevector(
                   x[2 * i], x[2 * i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    for (int i = 0; i < 4; i++)
        b[i] = __builtin_shufflevector(
                   a[2 * i], a[2 * i + 1], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               __builtin_shufflevector(
                   a[2 * i], a[2 * i + 1], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    for (int i = 0; i < 2; i++)
        a[i] = __builtin_shufflevector(
                   b[2 * i], b[2 * i + 1], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               __builtin_shufflevector(
                   b[2 * i], b[2 * i + 1], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    return __builtin_shufflevector(
               a[0], a[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(
               a[0], a[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
#else
static inline void transpose(const float* from, int64_t stride, float* to) {
    for (int i = 0; i < W; i++)
        for (int j = 0; j < W; j++) to[j * W + i] = from[i * stride + j];
}
static inline vf sums(const vf* x) {
    vf turned[W], total = {};
    transpose((const float*)x, W, (float*)turned);
    for (int i = 0; i < W; i++) total += turned[i];
    return total;
}
#endif
static inline float sum(vf x) {
    float some[W];
    store(some, x);
    for (int n = W / 2; n; n /= 2)
        for (int i = 0; i < n; i++) some[i] += some[i + n];
    return some[0];
}
static inline vf larger(vf x, vf y) { return x > y ? x : y; }
static inline float largest(vf x) {
    float most = x[0];
    for (int i = 1; i < W; i++) most = x[i] > most ? x[i] : most;
    return most;
}

// e^x by Cephes' polynomial, to the last bit but one; 0 below -87, NaN stays NaN.
static inline vf exponential(vf x) {
    vf given = x;
    x = x < -87.3f ? splat(-87.3f) : x;
    x = x > 88.3f ? splat(88.3f) : x;
    vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    vf whole = (x * 1.44269504088896341f + magic) - magic;
    vf rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * rest + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * rest * rest + rest + 1.0f;
    vi power = (__builtin_convertvector(whole, vi) + 127) << 23;
    vf out = p * (vf)power;
    out = given < -87.3f ? vf{} : out;
    return given != given ? given : out;
}

template <class T> static inline void widen(const T* from, float* to, int64_t count) {
    for (int64_t i = 0; i < count; i += W) store(to + i, load(from + i, count - i), count - i);
}
template <class T> static inline void narrow(const float* from, T* to, int64_t count) {
    for (int64_t i = 0; i < count; i += W) store(to + i, load(from + i, count - i), count - i);
}

}  // namespace
