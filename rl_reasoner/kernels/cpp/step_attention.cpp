// Attention of one new token of each row, from the buffers of its cache, for
// rl_reasoner.kernels.decoding: rows of one prompt attend to it together.
// Compiled by rl_reasoner.kernels.native on the machine that runs it.

#include <vector>

#include "vectors.h"

namespace {

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

}  // namespace

#define EXPORT(T, SUFFIX)                                                                              \
    void attend_##SUFFIX(const Layer* layer, const Step* step, const T* qkv, T* out) {                 \
        if (layer->wide)                                                                               \
            attend<T, float>(*layer, *step, qkv, out);                                                 \
        else                                                                                           \
            attend<T, bf16>(*layer, *step, qkv, out);                                                  \
    }

extern "C" {
EXPORT(float, fp32)
EXPORT(bf16, bf16)
}
