// A few rows through a mixture of experts, for rl_reasoner.kernels.decoding.
// Compiled by rl_reasoner.kernels.native on the machine that runs it.

#include <vector>

#include "panels.h"

namespace {

struct Experts {
    const void *gate_up, *down;  // in panels: W gates and W others; 2 W outputs
    int64_t count, chosen, hidden, inner;
    int64_t normalised;  // whether the gates of a token's experts sum to 1
};

// softmax, the `k` largest (the first of equal ones), their shares
static void choose(const float* logits, const Experts& e, int64_t* chosen, float* gates) {
    float top = -INFINITY, total = 0.0f, kept = 0.0f;
    for (int64_t i = 0; i < e.count; i++) top = logits[i] > top ? logits[i] : top;
    for (int64_t i = 0; i < e.count; i++) total += expf(logits[i] - top);
    for (int64_t k = 0; k < e.chosen; k++) {
        int64_t best = -1;
        for (int64_t i = 0; i < e.count; i++) {
            bool taken = false;
            for (int64_t j = 0; j < k; j++) taken |= chosen[j] == i;
            if (!taken && (best < 0 || logits[i] > logits[best])) best = i;
        }
        chosen[k] = best;
        gates[k] = expf(logits[best] - top) / total;
        kept += gates[k];
    }
    if (e.normalised)
        for (int64_t k = 0; k < e.chosen; k++) gates[k] /= kept;
}

// (rows, hidden), logits of the router (rows, experts) -> (rows, hidden), chosen (rows, k)
template <class T>
static void mixture(
    const Experts& e, const T* given, const T* logits, T* out, int64_t* chosen, int64_t rows, int threads
) {
    int64_t pairs = rows * e.chosen, hidden = e.hidden, inner = e.inner;
    int64_t wide = (inner + W - 1) / W, down = (hidden + 2 * W - 1) / (2 * W);
    std::vector<T> sorted(pairs * hidden), middle(pairs * wide * W);
    std::vector<float> gates(pairs), parts(pairs * down * 2 * W), scores(rows * e.count);
    widen(logits, scores.data(), rows * e.count);
    std::vector<int64_t> starts(e.count + 1), place(pairs), pair(pairs);
    for (int64_t r = 0; r < rows; r++)
        choose(scores.data() + r * e.count, e, chosen + r * e.chosen, gates.data() + r * e.chosen);
    for (int64_t p = 0; p < pairs; p++) starts[chosen[p] + 1]++;
    for (int64_t x = 0; x < e.count; x++) starts[x + 1] += starts[x];
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t p = 0; p < pairs; p++) pair[place[p] = next[chosen[p]]++] = p;
    for (int64_t p = 0; p < pairs; p++)
        memcpy(sorted.data() + p * hidden, given + pair[p] / e.chosen * hidden, hidden * sizeof(T));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t x = 0; x < e.count; x++)
            for (int64_t j = 0; j < wide; j++) {
                int64_t first = starts[x], count = starts[x + 1] - first;
                const T* weights = (const T*)e.gate_up + (x * wide + j) * hidden * 2 * W;
                const T* from = sorted.data() + first * hidden;
                products(from, hidden, count, weights, hidden, [&](int64_t r, vf* sums) {
                    vf gate = sums[0] / (1.0f + exponential(-sums[0]));
                    store(middle.data() + (first + r) * wide * W + j * W, gate * sums[1]);
                });
            }
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t x = 0; x < e.count; x++)
            for (int64_t j = 0; j < down; j++) {
                int64_t first = starts[x], count = starts[x + 1] - first;
                const T* weights = (const T*)e.down + (x * down + j) * inner * 2 * W;
                const T* from = middle.data() + first * wide * W;
                products(from, wide * W, count, weights, inner, [&](int64_t r, vf* sums) {
                    float* to = parts.data() + (first + r) * down * 2 * W + j * 2 * W;
                    store(to, sums[0]);
                    store(to + W, sums[1]);
                });
            }
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < hidden; i += W) {
                vf total = {};
                for (int64_t k = 0; k < e.chosen; k++) {
                    int64_t p = r * e.chosen + k;
                    total += gates[p] * load(parts.data() + place[p] * down * 2 * W + i);
                }
                store(out + r * hidden + i, total, hidden - i);
            }
    }
}

}  // namespace

#define EXPORT(T, SUFFIX)                                                                              \
    void mixture_##SUFFIX(                                                                             \
        const Experts* experts, const T* given, const T* logits, T* out, int64_t* chosen, int64_t rows,\
        int threads                                                                                    \
    ) {                                                                                                \
        mixture<T>(*experts, given, logits, out, chosen, rows, threads);                               \
    }

extern "C" {
int64_t lanes() { return W; }  // how wide panels are
EXPORT(float, fp32)
EXPORT(bf16, bf16)
}
