// Drawing a token of each row, for rl_reasoner.kernels.decoding.
// Compiled by rl_reasoner.kernels.native on the machine that runs it.

#include <vector>

#include "vectors.h"

namespace {

static const int64_t PART = 1024;

// The token of one row by inversion, and its log-probability; `broken` and NaN without a distribution.
template <class T>
static void draw_row(
    const T* logits, int64_t size, float temperature, const float* uniform, int64_t broken, int64_t* token,
    float* logp, double* parts
) {
    float scale = 1.0f / temperature;
    vf most = splat(-INFINITY), nan = {};
    for (int64_t i = 0; i < size; i += W) {
        int n = size - i < W ? size - i : W;
        vf x = load(logits + i, n);
        if (n < W)
            for (int k = n; k < W; k++) x[k] = -INFINITY;
        nan += x != x ? splat(1.0f) : vf{};
        most = larger(x, most);
    }
    float top = largest(most);
    *token = broken;
    *logp = NAN;
    if (sum(nan) > 0 || !std::isfinite(top)) return;
    double total = 0.0;
    int64_t best = 0;
    bool found = false;
    for (int64_t start = 0, b = 0; start < size; start += PART, b++) {
        vf mass = {};
        int64_t end = start + PART < size ? start + PART : size;
        for (int64_t i = start; i < end; i += W) {
            int n = end - i < W ? end - i : W;
            vf x = exponential((load(logits + i, n) - top) * scale);
            if (n < W)
                for (int k = n; k < W; k++) x[k] = 0.0f;
            mass += x;
        }
        total += sum(mass);
        parts[b] = total;
    }
    if (uniform) {
        double wanted = *uniform * total, before = 0.0;
        for (int64_t start = 0, b = 0; start < size && !found; start += PART, b++) {
            if (parts[b] > wanted || start + PART >= size) {
                int64_t end = start + PART < size ? start + PART : size;
                for (int64_t i = start; i < end && !found; i += W) {
                    int n = end - i < W ? end - i : W;
                    vf x = exponential((load(logits + i, n) - top) * scale);
                    for (int k = 0; k < n && !found; k++) {
                        before += x[k];
                        if (x[k] > 0) best = i + k, found = before > wanted;
                    }
                }
                // sums in another order are rounded otherwise: then the part's last possible one
                found = true;
            } else {
                before = parts[b];
            }
        }
    } else {
        for (int64_t i = 0; i < size && !found; i++)
            if (load(logits + i, 1)[0] == top) best = i, found = true;
    }
    *token = best;
    *logp = (load(logits + best, 1)[0] - top) * scale - (float)std::log(total);
}

template <class T>
static void draw(
    const T* logits, int64_t rows, int64_t size, float temperature, const float* uniform, int64_t broken,
    int64_t* tokens, float* logps, int threads
) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * size > 16384)
    for (int64_t r = 0; r < rows; r++) {
        std::vector<double> parts((size + PART - 1) / PART);
        draw_row(
            logits + r * size, size, temperature, uniform ? uniform + r : nullptr, broken, tokens + r,
            logps + r, parts.data()
        );
    }
}

}  // namespace

#define EXPORT(T, SUFFIX)                                                                              \
    void draw_##SUFFIX(                                                                                \
        const T* logits, int64_t rows, int64_t size, float temperature, const float* uniform,          \
        int64_t broken, int64_t* tokens, float* logps, int threads                                     \
    ) {                                                                                                \
        draw<T>(logits, rows, size, temperature, uniform, broken, tokens, logps, threads);             \
    }

extern "C" {
EXPORT(float, fp32)
EXPORT(bf16, bf16)
}
