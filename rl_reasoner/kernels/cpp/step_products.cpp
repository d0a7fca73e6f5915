// A few rows through a linear layer, for rl_reasoner.kernels.panel_weight.
// Compiled by rl_reasoner.kernels.native on the machine that runs it.

#include "panels.h"

namespace {

// rows (count, inner) -> out (count, outer), with `bias` (outer) or null
template <class T>
static void layer(
    const T* rows, const T* weights, const float* bias, T* out, int64_t count, int64_t inner,
    int64_t outer, int threads
) {
    int64_t panels = (outer + 2 * W - 1) / (2 * W), line = 64 / sizeof(T), stride = inner;
    static thread_local std::vector<T> moved;
    if (count > 1 && inner % (64 * line) == 0) {  // rows 4 KiB apart get into each other's way
        stride = inner + line;
        moved.resize(count * stride);
        for (int64_t r = 0; r < count; r++)
            memcpy(moved.data() + r * stride, rows + r * inner, inner * sizeof(T));
        rows = moved.data();
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && panels > 1)
    for (int64_t j = 0; j < panels; j++)
        products(rows, stride, count, weights + j * inner * 2 * W, inner, [&](int64_t r, vf* sums) {
            for (int64_t v = 0, at = j * 2 * W; v < 2 && at < outer; v++, at += W) {
                vf sum = bias ? sums[v] + load(bias + at, outer - at) : sums[v];
                store(out + r * outer + at, sum, outer - at);
            }
        });
}

}  // namespace

#define EXPORT(T, SUFFIX)                                                                              \
    void layer_##SUFFIX(                                                                               \
        const T* rows, const T* weights, const float* bias, T* out, int64_t count, int64_t inner,      \
        int64_t outer, int threads                                                                     \
    ) {                                                                                                \
        layer<T>(rows, weights, bias, out, count, inner, outer, threads);                              \
    }

extern "C" {
EXPORT(float, fp32)
EXPORT(bf16, bf16)
}
