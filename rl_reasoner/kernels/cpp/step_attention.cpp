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
        vf squares = {};
        for (int i = 0; i < dim; i += W) {
            vf part = load(x + i, dim - i);
            squares += part * part;
        }
        scale = 1.0f / sqrtf(sum(squares) / dim + eps);
    }
    int half = dim / 2;
    for (int i = 0; i < half; i += W) {
        int n = half - i;
        vf a = load(x + i, n) * scale, b = load(x + half + i, n) * scale;
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

static const int TILE = 32;  // tokens looked at together
static const int FEW = 4;    // queries that are scored one by one

struct Scratch {  // of a thread
    std::vector<float> tile, scores, outs, queries;
};

// `count` tokens of `dim` values as (count, padded) fp32: where they lie if that is how they lie,
// else a copy with zeros up to a multiple of W tokens.
template <class T>
static const float* tile_of(
    const T* from, int64_t* stride, int count, int dim, int padded, float* to
) {
    if (sizeof(T) == sizeof(float) && dim == padded && count % W == 0) return (const float*)from;
    int64_t given = *stride;
    *stride = padded;
    for (int t = 0; t < count; t++)
        for (int i = 0; i < padded; i += W)
            store(to + t * padded + i, load(from + t * given + i, dim - i));
    int rest = (W - count % W) % W;
    memset(to + count * padded, 0, rest * padded * sizeof(float));
    return to;
}

struct Soon {  // keys or values of a row that are read soon
    const Cache& cache;
    int64_t row, tokens;
};

// Ask for a tile of them: memory, not computing, is what attention waits for.
template <class T> static inline void fetch(const Soon& soon, int64_t head, int64_t first, int dim) {
    int64_t last = first + TILE < soon.tokens ? first + TILE : soon.tokens;
    for (int64_t t = first; t < last; t++) {
        const char* from = (const char*)at<T>(soon.cache, soon.row, head, t);
        for (size_t i = 0; i < dim * sizeof(T); i += 64) __builtin_prefetch(from + i);
    }
}

// N queries, W tokens with their values side by side, (padded, W).
template <int N>
static inline void score_some(
    const float* queries, const float* turned, int padded, float* scores, int64_t width
) {
    vf a[N] = {};
    int i = 0;
    do {  // there is always some: so the sums stay in registers
        vf x = load(turned + i * W);
        for (int q = 0; q < N; q++) a[q] += queries[q * padded + i] * x;
    } while (++i < padded);
    for (int q = 0; q < N; q++) store(scores + q * width, a[q]);
}

// One query, `count` tokens (at most W) where they lie: quicker than to turn them about for a few.
template <class T>
static inline void score_one(
    const float* query, const T* tokens, int64_t stride, int count, int dim, float* scores
) {
    vf a[W] = {};
    if (count == W) {
        for (int i = 0; i < dim; i += W) {
            vf x = load(query + i);
            for (int t = 0; t < W; t++) a[t] += x * load(tokens + t * stride + i, dim - i);
        }
    } else {
        for (int t = 0; t < count; t++)
            for (int i = 0; i < dim; i += W) a[t] += load(query + i) * load(tokens + t * stride + i, dim - i);
    }
    store(scores, sums(a));
}

// scores (queries, `width` apart) of tokens from the tile with `first` on, while others are fetched
template <class T>
static void score(
    const Cache& c, int64_t row, int64_t head, int64_t tokens, int64_t first, const float* queries,
    int count, int dim, float* scores, int64_t width, float* scratch, const Soon& values, const Soon& keys
) {
    int padded = (dim + W - 1) / W * W;
    float* turned = scratch + TILE * padded;
    for (int64_t t = first / TILE * TILE; t < tokens; t += TILE) {
        int n = tokens - t < TILE ? tokens - t : TILE;
        int64_t stride = c.token;
        fetch<T>(values, head, t, dim);
        fetch<T>(keys, head, t, dim);
        if (count <= FEW) {
            const T* tokens = at<T>(c, row, head, t);
            for (int u = 0; u < n; u += W)
                for (int q = 0; q < count; q++)
                    score_one(
                        queries + q * padded, tokens + u * stride, stride, n - u < W ? n - u : W, dim,
                        scores + q * width + t + u
                    );
            continue;
        }
        const float* tile = tile_of(at<T>(c, row, head, t), &stride, n, dim, padded, scratch);
        for (int u = 0; u < n; u += W) {
            const float* some = tile + u * stride;
            float* to = scores + t + u;
            for (int i = 0; i < padded; i += W) transpose(some + i, stride, turned + i * W);
            int q = 0;
            for (; q + HELD / 2 <= count; q += HELD / 2)
                score_some<HELD / 2>(queries + q * padded, turned, padded, to + q * width, width);
            for (; q + 2 <= count; q += 2)
                score_some<2>(queries + q * padded, turned, padded, to + q * width, width);
            for (; q < count; q++)
                score_some<1>(queries + q * padded, turned, padded, to + q * width, width);
        }
    }
}

template <class T, int N, int J>
static inline void mix_some(
    const float* weights, int64_t width, const T* tile, int64_t stride, int n, float* outs, int padded
) {
    const int P = N * J <= HELD / 4 ? 2 : 1;  // few sums wait for their last addition
    vf a[P][N][J] = {};
    for (int q = 0; q < N; q++)
        for (int j = 0; j < J; j++) a[0][q][j] = load(outs + q * padded + j * W);
    int t = 0;
    for (; t + P <= n; t += P)
        for (int p = 0; p < P; p++)
            for (int j = 0; j < J; j++) {
                vf x = load(tile + (t + p) * stride + j * W);
                for (int q = 0; q < N; q++) a[p][q][j] += weights[q * width + t + p] * x;
            }
    for (; t < n; t++)
        for (int j = 0; j < J; j++) {
            vf x = load(tile + t * stride + j * W);
            for (int q = 0; q < N; q++) a[0][q][j] += weights[q * width + t] * x;
        }
    for (int q = 0; q < N; q++)
        for (int j = 0; j < J; j++) {
            for (int p = 1; p < P; p++) a[0][q][j] += a[p][q][j];
            store(outs + q * padded + j * W, a[0][q][j]);
        }
}

template <class T, int J>
static inline void mix_columns(
    const float* weights, int64_t width, const T* tile, int64_t stride, int n, int count, float* outs,
    int padded
) {
    int q = 0;
    for (; q + HELD / J <= count; q += HELD / J)
        mix_some<T, HELD / J, J>(weights + q * width, width, tile, stride, n, outs + q * padded, padded);
    for (; q + 2 <= count; q += 2)
        mix_some<T, 2, J>(weights + q * width, width, tile, stride, n, outs + q * padded, padded);
    for (; q < count; q++)
        mix_some<T, 1, J>(weights + q * width, width, tile, stride, n, outs + q * padded, padded);
}

template <class T>
static inline void mix_tile(
    const float* weights, int64_t width, const T* tile, int64_t stride, int n, int count, float* outs,
    int padded
) {
    int i = 0;
    for (; i + 4 * W <= padded; i += 4 * W)
        mix_columns<T, 4>(weights, width, tile + i, stride, n, count, outs + i, padded);
    for (; i + 2 * W <= padded; i += 2 * W)
        mix_columns<T, 2>(weights, width, tile + i, stride, n, count, outs + i, padded);
    for (; i < padded; i += W)
        mix_columns<T, 1>(weights, width, tile + i, stride, n, count, outs + i, padded);
}

// outs (queries, padded) += weights times values
template <class T>
static void mix(
    const Cache& c, int64_t row, int64_t head, int64_t tokens, int64_t first, const float* weights,
    int64_t width, int count, int dim, float* outs, int padded, float* scratch
) {
    for (int64_t t = first / TILE * TILE; t < tokens; t += TILE) {
        int n = tokens - t < TILE ? tokens - t : TILE;
        int64_t stride = c.token;
        const T* from = at<T>(c, row, head, t);
        if (dim == padded) {
            mix_tile(weights + t, width, from, stride, n, count, outs, padded);
            continue;
        }
        const float* tile = tile_of(from, &stride, n, dim, padded, scratch);
        mix_tile(weights + t, width, tile, stride, n, count, outs, padded);
    }
}

// Softmax of `width` scores in place, but for the sum, which is returned.
static float soften(float* scores, int64_t width) {
    vf most = splat(-INFINITY);
    for (int64_t i = 0; i < width; i += W) most = larger(load(scores + i), most);
    float top = largest(most);
    vf total = {};
    for (int64_t i = 0; i < width; i += W) {
        vf x = exponential(load(scores + i) - top);
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
    int group = l.heads / l.shared, dim = l.dim, padded = (dim + W - 1) / W * W;
    int64_t prompt = s.prompt[rows[0]], before = s.prompt_length[prompt];
    int64_t edge = (before + TILE - 1) / TILE * TILE, longest = 0, queries = count * group;
    int64_t first = before;  // of the prompt's tokens that some row sees
    for (int64_t i = 0; i < count; i++) {
        int64_t own = s.length[rows[i]] + 1, unseen = l.window ? before + own - l.window : 0;
        longest = own > longest ? own : longest;
        first = unseen < first ? (unseen < 0 ? 0 : unseen) : first;
    }
    int64_t width = edge + (longest + TILE - 1) / TILE * TILE;
    scratch.tile.resize((TILE + W) * padded);
    scratch.scores.assign(queries * width, -INFINITY);
    scratch.outs.assign(queries * padded, 0.0f);
    scratch.queries.assign(queries * padded, 0.0f);
    float *tile = scratch.tile.data(), *scores = scratch.scores.data(), *outs = scratch.outs.data();
    float* query = scratch.queries.data();
    std::vector<float> totals(queries);
    for (int64_t q = 0; q < queries; q++) {
        const float* from = s.query + (rows[q / group] * l.heads + head * group + q % group) * dim;
        memcpy(query + q * padded, from, dim * sizeof(float));
    }
    score<C>(
        l.prompt_keys, prompt, head, before, first, query, queries, dim, scores, width, tile,
        Soon{l.prompt_values, prompt, before}, Soon{l.own_keys, rows[0], s.length[rows[0]] + 1}
    );
    for (int64_t i = 0; i < count; i++) {
        int64_t r = rows[i], own = s.length[r] + 1, unseen = l.window ? before + own - l.window : 0;
        int64_t begin = unseen > before ? unseen - before : 0;
        int64_t then = i + 1 < count ? rows[i + 1] : r, more = i + 1 < count ? s.length[then] + 1 : 0;
        score<C>(
            l.own_keys, r, head, own, begin, query + i * group * padded, group, dim,
            scores + i * group * width + edge, width, tile, Soon{l.own_values, r, own},
            Soon{l.own_keys, then, more}
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
