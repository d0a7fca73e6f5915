// Rows of fp32 as two integers of 8 bits a number, and what is made of their products, for
// rl_reasoner.kernels.integer_weights. Compiled by rl_reasoner.kernels.native.

#include "vectors.h"

namespace {

typedef uint8_t vb __attribute__((vector_size(W)));
typedef uint8_t vbu __attribute__((vector_size(W), aligned(1)));

static const float LEAST = 1e-30f;      // a row of smaller numbers counts as zeros
static const float WHOLE = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer

static inline vf rounded(vf x) { return (x + WHOLE) - WHOLE; }

static inline void put(uint8_t* p, vf x, int n) {
    vb bytes = __builtin_convertvector(__builtin_convertvector(x + 128.0f, vi), vb);
    if (n >= W)
        *(vbu*)p = bytes;
    else
        memcpy(p, &bytes, n);
}

static void slice_row(const float* x, uint8_t* first, uint8_t* second, float* scale, int64_t width) {
    vf largest = {}, spoilt = {};
    for (int64_t i = 0; i < width; i += W) {
        vf v = load(x + i, width - i < W ? width - i : W);
        vf size = v < 0.0f ? -v : v;
        largest = size > largest ? size : largest;
        spoilt += v * 0.0f;  // not a number where v is none, or infinite
    }
    float most = 0.0f;
    for (int i = 0; i < W; i++) most = largest[i] > most ? largest[i] : most;
    float bad = sum(spoilt);
    bool empty = most < LEAST || bad != bad;
    float inverse = empty ? 0.0f : 127.0f / most;
    *scale = bad != bad ? bad : empty ? 0.0f : most / 127.0f;
    for (int64_t i = 0; i < width; i += W) {
        int n = width - i < W ? width - i : W;
        vf v = empty ? vf{} : load(x + i, n) * inverse;
        vf whole = rounded(v);
        put(first + i, whole, n);
        put(second + i, rounded((v - whole) * 254.0f), n);
    }
}

}  // namespace

extern "C" {

// x (rows, width) -> slices (2, rows, width), 128 for zero, and scale (rows,): each number is scale
// times (first + second / 254).
void slice_rows(
    const float* x, uint8_t* slices, float* scale, int64_t rows, int64_t width, int64_t threads
) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * width > 16384)
    for (int64_t r = 0; r < rows; r++)
        slice_row(x + r * width, slices + r * width, slices + (rows + r) * width, scale + r, width);
}

// products (2, rows, width) of both slices -> out, of rows `apart` numbers apart:
// scale * (first + second / 254) + bias.
void join_products(
    const float* products, const float* scale, const float* bias, float* out, int64_t apart, int64_t rows,
    int64_t width, int64_t threads
) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * width > 16384)
    for (int64_t r = 0; r < rows; r++) {
        const float* first = products + r * width;
        const float* second = products + (rows + r) * width;
        for (int64_t i = 0; i < width; i += W) {
            int n = width - i < W ? width - i : W;
            vf y = (load(first + i, n) + load(second + i, n) * (1.0f / 254.0f)) * scale[r];
            store(out + r * apart + i, bias ? y + load(bias + i, n) : y, n);
        }
    }
}
}
