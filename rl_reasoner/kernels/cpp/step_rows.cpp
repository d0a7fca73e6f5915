// The RMS norm and the gated activation of a few rows, for rl_reasoner.kernels.decoding.
// Compiled by rl_reasoner.kernels.native on the machine that runs it.

#include "vectors.h"

namespace {

template <class T>
static void norm_row(float* hidden, const T* delta, const float* weight, T* out, int width, float eps) {
    vf squares = {};
    for (int i = 0; i < width; i += W) {
        int n = width - i;
        vf x = load(hidden + i, n);
        if (delta) {
            x += load(delta + i, n);
            store(hidden + i, x, n);
        }
        squares += x * x;
    }
    float scale = 1.0f / sqrtf(sum(squares) / width + eps);
    for (int i = 0; i < width; i += W) {
        int n = width - i;
        store(out + i, load(hidden + i, n) * scale * load(weight + i, n), n);
    }
}

template <class T>
static void norm(
    float* hidden, const T* delta, const float* weight, T* out, int64_t rows, int64_t width, float eps,
    int threads
) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * width > 16384)
    for (int64_t r = 0; r < rows; r++)
        norm_row(
            hidden + r * width, delta ? delta + r * width : nullptr, weight, out + r * width, width, eps
        );
}

// (rows, 2 * width), gates and then the rest -> (rows, width)
template <class T> static void gated(const T* given, T* out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * width > 8192)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i += W) {
            const T* at = given + 2 * r * width + i;
            int n = width - i < W ? width - i : W;
            vf g = load(at, n);
            store(out + r * width + i, g / (1.0f + exponential(-g)) * load(at + width, n), n);
        }
}

}  // namespace

#define EXPORT(T, SUFFIX)                                                                              \
    void norm_##SUFFIX(                                                                                \
        float* hidden, const T* delta, const float* weight, T* out, int64_t rows, int64_t width,       \
        float eps, int threads                                                                         \
    ) {                                                                                                \
        norm<T>(hidden, delta, weight, out, rows, width, eps, threads);                                \
    }                                                                                                  \
    void gated_##SUFFIX(const T* given, T* out, int64_t rows, int64_t width, int threads) {            \
        gated<T>(given, out, rows, width, threads);                                                    \
    }

extern "C" {
EXPORT(float, fp32)
EXPORT(bf16, bf16)
}
