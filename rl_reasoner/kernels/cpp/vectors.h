// Vectors of 16 floats, whatever the processor has, for the files that are named step_* and integer_rows.
//
// Values are fp32 or bfloat16 in memory and fp32 in registers.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

typedef float v16 __attribute__((vector_size(64)));
typedef float v16u __attribute__((vector_size(64), aligned(4)));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef uint32_t u16 __attribute__((vector_size(64)));
typedef uint16_t h16 __attribute__((vector_size(32)));
typedef uint16_t h16u __attribute__((vector_size(32), aligned(2)));

struct bf16 {
    uint16_t bits;
};

static const int W = 16;

static inline v16 load(const float* p) { return *(const v16u*)p; }
static inline v16 load(const bf16* p) {
    return (v16)(__builtin_convertvector(*(const h16u*)p, u16) << 16);
}
static inline void store(float* p, v16 x) { *(v16u*)p = x; }
static inline void store(bf16* p, v16 x) {
    u16 bits = (u16)x;
    u16 rounded = bits + 0x7fff + ((bits >> 16) & 1);
    u16 nan = (u16)(x != x);
    rounded = (rounded & ~nan) | (0x7fc00000u & nan);
    *(h16u*)p = __builtin_convertvector(rounded >> 16, h16);
}
template <class T> static inline v16 load(const T* p, int n) {
    if (n >= W) return load(p);
    T some[W] = {};
    memcpy(some, p, n * sizeof(T));
    return load(some);
}
template <class T> static inline void store(T* p, v16 x, int n) {
    if (n >= W) return store(p, x);
    T some[W];
    store(some, x);
    memcpy(p, some, n * sizeof(T));
}
static inline v16 splat(float x) { return x - v16{}; }

static inline v16 halves(v16 x, v16 y) {
    v16 lo = __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    v16 hi =
        __builtin_shufflevector(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    return lo + hi;
}
static inline v16 quarters(v16 x, v16 y) {
    v16 lo = __builtin_shufflevector(x, y, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    v16 hi =
        __builtin_shufflevector(x, y, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    return lo + hi;
}
static inline v16 pairs(v16 x, v16 y) {
    v16 lo = __builtin_shufflevector(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    v16 hi = __builtin_shufflevector(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return lo + hi;
}
static inline v16 singles(v16 x, v16 y) {
    v16 lo = __builtin_shufflevector(x, y, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    v16 hi = __builtin_shufflevector(x, y, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    return lo + hi;
}
// The sums of 16 vectors, in one.
static inline v16 sums(const v16* a) {
    v16 b[8], c[4];
    for (int i = 0; i < 8; i++) b[i] = singles(a[2 * i], a[2 * i + 1]);
    for (int i = 0; i < 4; i++) c[i] = pairs(b[2 * i], b[2 * i + 1]);
    return halves(quarters(c[0], c[1]), quarters(c[2], c[3]));
}
static inline float sum(v16 x) {
    v16 y = halves(x, x);
    y = quarters(y, y);
    return (y[0] + y[1]) + (y[2] + y[3]);
}
static inline v16 larger(v16 x, v16 y) { return x > y ? x : y; }
static inline float largest(v16 x) {
    float most = x[0];
    for (int i = 1; i < W; i++) most = x[i] > most ? x[i] : most;
    return most;
}

// e^x by Cephes' polynomial, to the last bit but one; 0 below -87, NaN stays NaN.
static inline v16 exponential(v16 x) {
    v16 given = x;
    x = x < -87.3f ? splat(-87.3f) : x;
    x = x > 88.3f ? splat(88.3f) : x;
    v16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    v16 whole = (x * 1.44269504088896341f + magic) - magic;
    v16 rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    v16 p = splat(1.9875691500e-4f);
    p = p * rest + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * rest * rest + rest + 1.0f;
    i16 power = (__builtin_convertvector(whole, i16) + 127) << 23;
    v16 out = p * (v16)power;
    out = given < -87.3f ? v16{} : out;
    return given != given ? given : out;
}

template <class T> static inline void widen(const T* from, float* to, int64_t count) {
    for (int64_t i = 0; i < count; i += W) store(to + i, load(from + i, count - i), count - i);
}
template <class T> static inline void narrow(const float* from, T* to, int64_t count) {
    for (int64_t i = 0; i < count; i += W) store(to + i, load(from + i, count - i), count - i);
}

}  // namespace
