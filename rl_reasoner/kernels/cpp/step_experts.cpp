// A few rows through a mixture of experts, for rl_reasoner.kernels.decoding.
// Compiled by rl_reasoner.kernels.native on the machine that runs it.

#include <vector>

#include "vectors.h"

namespace {

struct Experts {
    const void *gate_up, *down;  // laid out by `panels`: W gates and W others; 2 W columns
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

// N rows times one panel (inner, 2 W): 2 vectors a row
template <class T, int N>
static inline void panel(const float* const* rows, const T* weights, int64_t inner, vf out[][2]) {
    vf a[N][2] = {};
    for (int64_t i = 0; i < inner; i++) {
        vf x = load(weights + i * 2 * W), y = load(weights + i * 2 * W + W);
        for (int r = 0; r < N; r++) {
            a[r][0] += rows[r][i] * x;
            a[r][1] += rows[r][i] * y;
        }
    }
    for (int r = 0; r < N; r++) out[r][0] = a[r][0], out[r][1] = a[r][1];
}

template <class T, class F>
static void products(
    const float* const* rows, int64_t count, const T* weights, int64_t inner, F&& take
) {
    const int MANY = HELD / 2, SOME = HELD / 4;
    vf out[MANY][2];
    int64_t r = 0;
    for (; r + MANY <= count; r += MANY) {
        panel<T, MANY>(rows + r, weights, inner, out);
        for (int i = 0; i < MANY; i++) take(r + i, out[i]);
    }
    for (; r + SOME <= count; r += SOME) {
        panel<T, SOME>(rows + r, weights, inner, out);
        for (int i = 0; i < SOME; i++) take(r + i, out[i]);
    }
    for (; r < count; r++) {
        panel<T, 1>(rows + r, weights, inner, out);
        take(r, out[0]);
    }
}

// (rows, hidden), logits of the router (rows, experts) -> (rows, hidden), chosen (rows, k)
template <class T>
static void mixture(
    const Experts& e, const T* given, const T* logits, T* out, int64_t* chosen, int64_t rows, int threads
) {
    int64_t pairs = rows * e.chosen, hidden = e.hidden, inner = e.inner;
    int64_t wide = (inner + W - 1) / W, down = (hidden + 2 * W - 1) / (2 * W);
    std::vector<float> wider(rows * hidden), gates(pairs), middle(pairs * wide * W);
    std::vector<float> parts(pairs * down * 2 * W), scores(rows * e.count);
    widen(given, wider.data(), rows * hidden);
    widen(logits, scores.data(), rows * e.count);
    std::vector<int64_t> starts(e.count + 1), place(pairs), pair(pairs);
    for (int64_t r = 0; r < rows; r++)
        choose(scores.data() + r * e.count, e, chosen + r * e.chosen, gates.data() + r * e.chosen);
    for (int64_t p = 0; p < pairs; p++) starts[chosen[p] + 1]++;
    for (int64_t x = 0; x < e.count; x++) starts[x + 1] += starts[x];
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t p = 0; p < pairs; p++) pair[place[p] = next[chosen[p]]++] = p;
    std::vector<const float*> before(pairs), between(pairs);
    for (int64_t p = 0; p < pairs; p++) {
        before[p] = wider.data() + pair[p] / e.chosen * hidden;
        between[p] = middle.data() + p * wide * W;
    }
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t x = 0; x < e.count; x++)
            for (int64_t j = 0; j < wide; j++) {
                int64_t first = starts[x], count = starts[x + 1] - first;
                const T* weights = (const T*)e.gate_up + (x * wide + j) * hidden * 2 * W;
                products(before.data() + first, count, weights, hidden, [&](int64_t r, vf* sums) {
                    vf gate = sums[0] / (1.0f + exponential(-sums[0]));
                    store(middle.data() + (first + r) * wide * W + j * W, gate * sums[1]);
                });
            }
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t x = 0; x < e.count; x++)
            for (int64_t j = 0; j < down; j++) {
                int64_t first = starts[x], count = starts[x + 1] - first;
                const T* weights = (const T*)e.down + (x * down + j) * inner * 2 * W;
                products(between.data() + first, count, weights, inner, [&](int64_t r, vf* sums) {
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
