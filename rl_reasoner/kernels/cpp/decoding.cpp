// Fused operations of a pass over one new token of each row, for rl_reasoner.kernels.decoding.
//
// Values are fp32 or bfloat16 in memory (the suffix of a name) and fp32 in registers. Vectors are
// the compiler's own, 16 floats, whatever the processor has.
// Compiled by rl_reasoner.kernels.native on the machine that runs it.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

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

// ------------------------------------------------------------------------------------- the norm

template <class T>
static void norm_row(float* hidden, const T* delta, const float* weight, T* out, int width, float eps) {
    v16 squares = {};
    for (int i = 0; i < width; i += W) {
        int n = width - i;
        v16 x = load(hidden + i, n);
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
            v16 g = load(at, n);
            store(out + r * width + i, g / (1.0f + exponential(-g)) * load(at + width, n), n);
        }
}

// -------------------------------------------------------------------------------- the attention

struct Cache {  // keys or values of one layer: elements of (row or prompt, kv head, token, width)
    void* data;
    int64_t row, head, token;  // strides, in elements
};

struct Layer {
    Cache prompt_keys, prompt_values, own_keys, own_values;
    const float *query_norm, *key_norm;  // (dim) or null
    float eps, scale;
    int64_t heads, shared, dim, window;  // shared: heads of keys; window 0: none
    int64_t wide;                        // whether the cache holds fp32, else bfloat16
};

struct Step {
    int64_t rows, blocks;
    const int64_t* length;         // (rows) own tokens before the new one
    const int64_t* prompt;         // (rows) the row's prompt
    const int64_t* prompt_length;  // (prompts)
    const int64_t* order;          // (rows) rows sorted by prompt
    const int64_t* block;          // (blocks + 1) where blocks of rows of one prompt begin in `order`
    const float *cosine, *sine;    // (positions, dim)
    float* query;                  // (rows, heads, dim) scratch
    int64_t threads;
};

template <class T> static inline T* at(const Cache& c, int64_t row, int64_t head, int64_t token) {
    return (T*)c.data + row * c.row + head * c.head + token * c.token;
}

// Norm and rotation of one head, `dim` a multiple of 2.
static inline void rotated(
    const float* x, const float* weight, float eps, const float* cosine, const float* sine, int dim,
    float* out
) {
    float scale = 1.0f;
    if (weight) {
        v16 squares = {};
        for (int i = 0; i < dim; i += W) {
            v16 part = load(x + i, dim - i);
            squares += part * part;
        }
        scale = 1.0f / sqrtf(sum(squares) / dim + eps);
    }
    int half = dim / 2;
    for (int i = 0; i < half; i += W) {
        int n = half - i;
        v16 a = load(x + i, n) * scale, b = load(x + half + i, n) * scale;
        if (weight) {
            a *= load(weight + i, n);
            b *= load(weight + half + i, n);
        }
        store(out + i, a * load(cosine + i, n) - b * load(sine + i, n), n);
        store(out + half + i, b * load(cosine + half + i, n) + a * load(sine + half + i, n), n);
    }
}

template <class T> static inline void widen(const T* from, float* to, int64_t count) {
    for (int64_t i = 0; i < count; i += W) store(to + i, load(from + i, count - i), count - i);
}
template <class T> static inline void narrow(const float* from, T* to, int64_t count) {
    for (int64_t i = 0; i < count; i += W) store(to + i, load(from + i, count - i), count - i);
}

// Write the new token's keys and values, and its queries, scaled, to the scratch.
template <class T, class C>
static void place(const Layer& l, const Step& s, const T* qkv, int64_t r) {
    int64_t width = (l.heads + 2 * l.shared) * l.dim, dim = l.dim, time = s.length[r];
    int64_t position = s.prompt_length[s.prompt[r]] + time;
    const T* row = qkv + r * width;
    const float *cosine = s.cosine + position * dim, *sine = s.sine + position * dim;
    float given[dim], turned[dim];
    for (int64_t h = 0; h < l.heads + l.shared; h++) {
        bool query = h < l.heads;
        widen(row + h * dim, given, dim);
        rotated(given, query ? l.query_norm : l.key_norm, l.eps, cosine, sine, dim, turned);
        if (query) {
            float* to = s.query + (r * l.heads + h) * dim;
            for (int64_t i = 0; i < dim; i++) to[i] = turned[i] * l.scale;
        } else {
            narrow(turned, at<C>(l.own_keys, r, h - l.heads, time), dim);
        }
    }
    for (int64_t h = 0; h < l.shared; h++) {
        widen(row + (l.heads + l.shared + h) * dim, given, dim);
        narrow(given, at<C>(l.own_values, r, h, time), dim);
    }
}

static const int TILE = 32;  // tokens brought to fp32 at a time

struct Scratch {  // of a thread
    std::vector<float> tile, scores, outs;
};

// `count` tokens of `dim` values as (TILE, padded) fp32, zeros where there are none.
template <class T>
static const float* tile_of(const T* from, int64_t stride, int count, int dim, int padded, float* to) {
    for (int t = 0; t < TILE; t++) {
        if (t >= count) {
            memset(to + t * padded, 0, padded * sizeof(float));
            continue;
        }
        for (int i = 0; i < padded; i += W) store(to + t * padded + i, load(from + t * stride + i, dim - i));
    }
    return to;
}

// Ask for tokens that are read soon: memory, not computing, is what attention waits for.
template <class T>
static inline void fetch(const Cache& c, int64_t row, int64_t head, int64_t first, int64_t last, int dim) {
    for (int64_t t = first; t < last; t++) {
        const char* from = (const char*)at<T>(c, row, head, t);
        for (size_t i = 0; i < dim * sizeof(T); i += 64) __builtin_prefetch(from + i);
    }
}

// scores (queries, `width` apart) of tokens from the tile with `first` on; `next`: what is read then
template <class T>
static void score(
    const Cache& c, const Cache& next, int64_t row, int64_t head, int64_t tokens, int64_t first,
    const float* const* queries, int count, int dim, float* scores, int64_t width, float* scratch
) {
    int padded = (dim + W - 1) / W * W;
    for (int64_t t = first / TILE * TILE; t < tokens; t += TILE) {
        int n = tokens - t < TILE ? tokens - t : TILE;
        int64_t end = t + 2 * TILE < tokens ? t + 2 * TILE : tokens;
        fetch<T>(c, row, head, t + TILE, end, dim);
        fetch<T>(next, row, head, t, t + n, dim);
        const float* tile = tile_of(at<T>(c, row, head, t), c.token, n, dim, padded, scratch);
        for (int q = 0; q < count; q++)
            for (int u = 0; u < n; u += W) {
                v16 a[W] = {};
                for (int i = 0; i < padded; i += W) {
                    v16 x = load(queries[q] + i, dim - i);
                    for (int k = 0; k < W; k++) a[k] += x * load(tile + (u + k) * padded + i);
                }
                store(scores + q * width + t + u, sums(a));
            }
    }
}

template <int N>
static inline void mix_some(
    const float* weights, int64_t width, const float* tile, int padded, int n, float* outs, int i
) {
    v16 a[N][4];
    for (int q = 0; q < N; q++)
        for (int j = 0; j < 4; j++) a[q][j] = load(outs + q * padded + i + j * W);
    for (int t = 0; t < n; t++)
        for (int j = 0; j < 4; j++) {
            v16 x = load(tile + t * padded + i + j * W);
            for (int q = 0; q < N; q++) a[q][j] += weights[q * width + t] * x;
        }
    for (int q = 0; q < N; q++)
        for (int j = 0; j < 4; j++) store(outs + q * padded + i + j * W, a[q][j]);
}

// outs (queries, padded to 64) += weights times values
template <class T>
static void mix(
    const Cache& c, int64_t row, int64_t head, int64_t tokens, int64_t first, const float* weights,
    int64_t width, int count, int dim, float* outs, int padded, float* scratch
) {
    for (int64_t t = first / TILE * TILE; t < tokens; t += TILE) {
        int n = tokens - t < TILE ? tokens - t : TILE;
        const T* from = at<T>(c, row, head, t);
        for (int u = 0; u < n; u++)
            for (int i = 0; i < dim; i += W)
                store(scratch + u * padded + i, load(from + u * c.token + i, dim - i));
        for (int i = 0; i < padded; i += 4 * W) {
            int q = 0;
            for (; q + 4 <= count; q += 4)
                mix_some<4>(weights + q * width + t, width, scratch, padded, n, outs + q * padded, i);
            for (; q < count; q++)
                mix_some<1>(weights + q * width + t, width, scratch, padded, n, outs + q * padded, i);
        }
    }
}

// Softmax of `width` scores in place, but for the sum, which is returned.
static float soften(float* scores, int64_t width) {
    v16 most = splat(-INFINITY);
    for (int64_t i = 0; i < width; i += W) most = larger(load(scores + i), most);
    float top = largest(most);
    v16 total = {};
    for (int64_t i = 0; i < width; i += W) {
        v16 x = exponential(load(scores + i) - top);
        store(scores + i, x);
        total += x;
    }
    return sum(total);
}

template <class T, class C>
static void block_head(
    const Layer& l, const Step& s, int64_t block, int64_t head, T* out, Scratch& scratch
) {
    const int64_t *rows = s.order + s.block[block], count = s.block[block + 1] - s.block[block];
    int group = l.heads / l.shared, dim = l.dim, padded = (dim + 4 * W - 1) / (4 * W) * (4 * W);
    int64_t prompt = s.prompt[rows[0]], before = s.prompt_length[prompt];
    int64_t edge = (before + TILE - 1) / TILE * TILE, longest = 0, queries = count * group;
    int64_t first = before;  // of the prompt's tokens that some row sees
    for (int64_t i = 0; i < count; i++) {
        int64_t own = s.length[rows[i]] + 1, unseen = l.window ? before + own - l.window : 0;
        longest = own > longest ? own : longest;
        first = unseen < first ? (unseen < 0 ? 0 : unseen) : first;
    }
    int64_t width = edge + (longest + TILE - 1) / TILE * TILE;
    fetch<C>(l.own_keys, rows[0], head, 0, TILE < longest ? TILE : longest, dim);
    scratch.tile.resize(TILE * padded);
    scratch.scores.assign(queries * width, -INFINITY);
    scratch.outs.assign(queries * padded, 0.0f);
    float *tile = scratch.tile.data(), *scores = scratch.scores.data(), *outs = scratch.outs.data();
    std::vector<const float*> query(queries);
    std::vector<float> totals(queries);
    for (int64_t q = 0; q < queries; q++)
        query[q] = s.query + (rows[q / group] * l.heads + head * group + q % group) * dim;
    score<C>(
        l.prompt_keys, l.prompt_values, prompt, head, before, first, query.data(), queries, dim, scores,
        width, tile
    );
    for (int64_t i = 0; i < count; i++) {
        int64_t r = rows[i], own = s.length[r] + 1, unseen = l.window ? before + own - l.window : 0;
        int64_t begin = unseen > before ? unseen - before : 0;
        if (i + 1 < count)
            fetch<C>(l.own_keys, rows[i + 1], head, 0, TILE < longest ? TILE : longest, dim);
        score<C>(
            l.own_keys, l.own_values, r, head, own, begin, query.data() + i * group, group, dim,
            scores + i * group * width + edge, width, tile
        );
        for (int64_t q = i * group; q < (i + 1) * group; q++) {
            float* line = scores + q * width;
            for (int64_t t = before; t < edge; t++) line[t] = -INFINITY;
            for (int64_t t = edge + own; t < width; t++) line[t] = -INFINITY;
            for (int64_t t = 0; t < unseen && t < before; t++) line[t] = -INFINITY;
            for (int64_t t = 0; t < begin; t++) line[edge + t] = -INFINITY;
            totals[q] = soften(line, width);
        }
    }
    mix<C>(l.prompt_values, prompt, head, before, first, scores, width, queries, dim, outs, padded, tile);
    for (int64_t i = 0; i < count; i++) {
        int64_t r = rows[i], own = s.length[r] + 1, unseen = l.window ? before + own - l.window : 0;
        mix<C>(
            l.own_values, r, head, own, unseen > before ? unseen - before : 0,
            scores + i * group * width + edge, width, group, dim, outs + i * group * padded, padded, tile
        );
        for (int64_t q = i * group; q < (i + 1) * group; q++) {
            float *line = outs + q * padded, share = 1.0f / totals[q];
            for (int j = 0; j < padded; j++) line[j] *= share;
            narrow(line, out + (r * l.heads + head * group + q % group) * dim, dim);
        }
    }
}

// (rows, (heads + 2 shared) * dim) queries, keys, values -> (rows, heads * dim)
template <class T, class C> static void attend(const Layer& l, const Step& s, const T* qkv, T* out) {
#pragma omp parallel num_threads(s.threads) if (s.threads > 1)
    {
        static thread_local Scratch scratch;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < s.rows; r++) place<T, C>(l, s, qkv, r);
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t b = 0; b < s.blocks; b++)
            for (int64_t h = 0; h < l.shared; h++) block_head<T, C>(l, s, b, h, out, scratch);
    }
}

// ---------------------------------------------------------------------------------- the experts

struct Experts {
    const void *gate_up, *down;  // laid out by `panels`: 16 gates and 16 others; 32 columns
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

// N rows times one panel (inner, 32): 2 vectors a row
template <class T, int N>
static inline void panel(const float* const* rows, const T* weights, int64_t inner, v16 out[][2]) {
    v16 a[N][2] = {};
    for (int64_t i = 0; i < inner; i++) {
        v16 x = load(weights + i * 2 * W), y = load(weights + i * 2 * W + W);
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
    v16 out[8][2];
    int64_t r = 0;
    for (; r + 8 <= count; r += 8) {
        panel<T, 8>(rows + r, weights, inner, out);
        for (int i = 0; i < 8; i++) take(r + i, out[i]);
    }
    for (; r + 4 <= count; r += 4) {
        panel<T, 4>(rows + r, weights, inner, out);
        for (int i = 0; i < 4; i++) take(r + i, out[i]);
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
                products(before.data() + first, count, weights, hidden, [&](int64_t r, v16* sums) {
                    v16 gate = sums[0] / (1.0f + exponential(-sums[0]));
                    store(middle.data() + (first + r) * wide * W + j * W, gate * sums[1]);
                });
            }
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t x = 0; x < e.count; x++)
            for (int64_t j = 0; j < down; j++) {
                int64_t first = starts[x], count = starts[x + 1] - first;
                const T* weights = (const T*)e.down + (x * down + j) * inner * 2 * W;
                products(between.data() + first, count, weights, inner, [&](int64_t r, v16* sums) {
                    float* to = parts.data() + (first + r) * down * 2 * W + j * 2 * W;
                    store(to, sums[0]);
                    store(to + W, sums[1]);
                });
            }
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < hidden; i += W) {
                v16 total = {};
                for (int64_t k = 0; k < e.chosen; k++) {
                    int64_t p = r * e.chosen + k;
                    total += gates[p] * load(parts.data() + place[p] * down * 2 * W + i);
                }
                store(out + r * hidden + i, total, hidden - i);
            }
    }
}

// ---------------------------------------------------------------------------------- the drawing

static const int64_t PART = 1024;

// The token of one row by inversion, and its log-probability; `broken` and NaN without a distribution.
template <class T>
static void draw_row(
    const T* logits, int64_t size, float temperature, const float* uniform, int64_t broken, int64_t* token,
    float* logp, double* parts
) {
    float scale = 1.0f / temperature;
    v16 most = splat(-INFINITY), nan = {};
    for (int64_t i = 0; i < size; i += W) {
        int n = size - i < W ? size - i : W;
        v16 x = load(logits + i, n);
        if (n < W)
            for (int k = n; k < W; k++) x[k] = -INFINITY;
        nan += x != x ? splat(1.0f) : v16{};
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
        v16 mass = {};
        int64_t end = start + PART < size ? start + PART : size;
        for (int64_t i = start; i < end; i += W) {
            int n = end - i < W ? end - i : W;
            v16 x = exponential((load(logits + i, n) - top) * scale);
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
                    v16 x = exponential((load(logits + i, n) - top) * scale);
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
    void norm_##SUFFIX(                                                                                \
        float* hidden, const T* delta, const float* weight, T* out, int64_t rows, int64_t width,       \
        float eps, int threads                                                                         \
    ) {                                                                                                \
        norm<T>(hidden, delta, weight, out, rows, width, eps, threads);                                \
    }                                                                                                  \
    void gated_##SUFFIX(const T* given, T* out, int64_t rows, int64_t width, int threads) {            \
        gated<T>(given, out, rows, width, threads);                                                    \
    }                                                                                                  \
    void attend_##SUFFIX(const Layer* layer, const Step* step, const T* qkv, T* out) {                 \
        if (layer->wide)                                                                               \
            attend<T, float>(*layer, *step, qkv, out);                                                 \
        else                                                                                           \
            attend<T, bf16>(*layer, *step, qkv, out);                                                  \
    }                                                                                                  \
    void mixture_##SUFFIX(                                                                             \
        const Experts* experts, const T* given, const T* logits, T* out, int64_t* chosen, int64_t rows, \
        int threads                                                                                    \
    ) {                                                                                                \
        mixture<T>(*experts, given, logits, out, chosen, rows, threads);                               \
    }                                                                                                  \
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
