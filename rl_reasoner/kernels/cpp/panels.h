// Products of a few rows with weights laid out in panels of 2 W outputs, for the files named step_*:
// (outputs, inputs) as (outputs / 2 W, inputs, 2 W), zeros behind. Rows in bfloat16 go with weights
// in which two inputs lie side by side, (outputs / 2 W, inputs / 2, 2 W, 2).

#pragma once

#include <vector>

#include "vectors.h"

namespace {

static const int MANY = HELD * 3 / 4;  // rows that one panel is multiplied with at once
static const int64_t DEEP = 1024;      // the most inputs that are gone through at once

// How many inputs lie side by side, and `total` with the products of W outputs by so many added.
template <class T> static constexpr int64_t TOGETHER = sizeof(T) == sizeof(bf16) ? 2 : 1;
static inline vf add(vf total, const float* weights, const float* row) {
    return total + *row * load(weights);
}
static inline vf add(vf total, const bf16* weights, const bf16* pair) {
#ifdef __AVX512BF16__
    int32_t both;
    memcpy(&both, pair, sizeof(both));
    return (vf)_mm512_dpbf16_ps(
        (__m512)total, (__m512bh)_mm512_loadu_si512(weights), (__m512bh)_mm512_set1_epi32(both));
#else
    vu bits;
    memcpy(&bits, weights, sizeof(bits));
    return total + value(pair[0]) * (vf)(bits << 16) + value(pair[1]) * (vf)(bits & 0xffff0000u);
#endif
}

// N rows, `stride` apart, times one panel: 2 vectors a row. A sum waits for its last addition, so
// few rows are summed up in parts.
template <int N, class T>
static inline void panel(const T* rows, int64_t stride, const T* weights, int64_t inner, vf out[][2]) {
    const int P = N <= HELD / 8 ? 2 : 1;
    const int64_t S = TOGETHER<T>;
    vf a[P][N][2] = {};
    int64_t i = 0;
    for (; i + P * S <= inner; i += P * S)
        for (int p = 0; p < P; p++)
            for (int r = 0; r < N; r++)
                for (int v = 0; v < 2; v++) {
                    int64_t at = i + p * S;
                    a[p][r][v] = add(a[p][r][v], weights + (2 * at + v * S) * W, rows + r * stride + at);
                }
    for (; i < inner; i += S)
        for (int r = 0; r < N; r++)
            for (int v = 0; v < 2; v++)
                a[0][r][v] = add(a[0][r][v], weights + (2 * i + v * S) * W, rows + r * stride + i);
    for (int r = 0; r < N; r++)
        for (int v = 0; v < 2; v++) {
            out[r][v] = a[0][r][v];
            for (int p = 1; p < P; p++) out[r][v] += a[p][r][v];
        }
}

template <int N, class T>
static inline void some(int64_t n, const T* rows, int64_t stride, const T* weights, int64_t inner, vf out[][2]) {
    if (n == N) return panel<N>(rows, stride, weights, inner, out);
    if constexpr (N > 1) some<N - 1>(n, rows, stride, weights, inner, out);
}

// `count` rows times one panel; `take(row, vectors)` gets each row's two. Parts are of like size, and
// of a long panel's inputs so many are gone through at once as stay in the inner caches.
template <class T, class F>
static void products(
    const T* rows, int64_t stride, int64_t count, const T* weights, int64_t inner, F&& take
) {
    static thread_local std::vector<float> before;  // the sums so far
    if (inner > DEEP) before.resize(count * 2 * W);
    vf out[MANY][2];
    int64_t turns = (inner + DEEP - 1) / DEEP, deep = turns > 1 ? (inner / turns + 1) / 2 * 2 : inner;
    for (int64_t at = 0; at < inner; at += deep) {
        bool last = at + deep >= inner;
        int64_t now = last ? inner - at : deep, r = 0;
        for (int64_t parts = (count + MANY - 1) / MANY; parts; parts--) {
            int64_t n = (count - r + parts - 1) / parts;
            some<MANY>(n, rows + r * stride + at, stride, weights + at * 2 * W, now, out);
            for (int64_t i = 0; i < n; i++, r++) {
                float* sums = before.data() + r * 2 * W;
                for (int v = 0; v < 2 && at; v++) out[i][v] += load(sums + v * W);
                for (int v = 0; v < 2 && !last; v++) store(sums + v * W, out[i][v]);
                if (last) take(r, out[i]);
            }
        }
    }
}

}  // namespace
