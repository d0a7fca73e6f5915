// Attention of rows that share prefixes (rl_reasoner.kernels.prefix_attention), a key head at a
// time: the scores of some queries with all their keys lie in the inner cache and are passed over
// once.
// Compiled by rl_reasoner.kernels.native on the machine that runs it.

#include <algorithm>
#include <cstdlib>

#include "exponential.h"

namespace {

#ifdef __AVX512F__
constexpr long LANES = 16;
#else
constexpr long LANES = 8;
#endif
typedef float Lanes __attribute__((vector_size(LANES * 4), aligned(4)));
constexpr long QUERIES = 32, PAD = 32;  // queries at a time; keys are filled up to multiples

inline long padded(long n) { return (n + PAD - 1) / PAD * PAD; }

inline Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }

struct Matrix {
    const float* x;
    long row, column;  // strides
};

// c (M, 2 LANES or LANES) (+)= a (M, depth) b (depth, ...)
template <int M, int W>
inline void tile_product(const float* a, long row, long column, const float* b, long b_row,
                         float* c, long c_row, long depth, bool add) {
    Lanes sums[M][W] = {};
    for (long k = 0; k < depth; ++k) {
        Lanes right[W];
        for (int w = 0; w < W; ++w) right[w] = load(b + k * b_row + w * LANES);
        for (int i = 0; i < M; ++i)
            for (int w = 0; w < W; ++w) sums[i][w] += a[i * row + k * column] * right[w];
    }
    for (int i = 0; i < M; ++i)
        for (int w = 0; w < W; ++w) {
            Lanes* to = reinterpret_cast<Lanes*>(c + i * c_row + w * LANES);
            *to = add ? *to + sums[i][w] : sums[i][w];
        }
}

// c (m, n) (+)= a (m, depth) b (depth, n); n is a multiple of LANES
void small_product(Matrix a, const float* b, long b_row, float* c, long c_row, long m, long n,
                   long depth, bool add) {
    for (long j = 0; j < n;) {
        bool two = j + 2 * LANES <= n;
        for (long i = 0; i < m;) {
            const float* from = a.x + i * a.row;
            float* to = c + i * c_row + j;
            bool eight = i + 8 <= m;
            if (eight && two)
                tile_product<8, 2>(from, a.row, a.column, b + j, b_row, to, c_row, depth, add);
            else if (eight)
                tile_product<8, 1>(from, a.row, a.column, b + j, b_row, to, c_row, depth, add);
            else if (two)
                tile_product<1, 2>(from, a.row, a.column, b + j, b_row, to, c_row, depth, add);
            else
                tile_product<1, 1>(from, a.row, a.column, b + j, b_row, to, c_row, depth, add);
            i += eight ? 8 : 1;
        }
        j += two ? 2 * LANES : LANES;
    }
}

struct Heads {  // (tokens, heads, width), strides between tokens and heads
    float* x;
    long token, head;

    float* at(long t, long h) const { return x + t * token + h * head; }
};

struct Buffer {
    float* x;

    explicit Buffer(long count)
        : x(static_cast<float*>(std::aligned_alloc(64, (count + 16) * 4 / 64 * 64 + 64))) {}
    ~Buffer() { std::free(x); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
};

// Keys or values of `count` tokens from `place` on: as rows, and turned, (width, stride). Zero behind
// them up to where products read: what a longer row left there may be no number.
void gather(const Heads& from, long start, long count, long head, long width, long place,
            float* rows, float* turned, long stride) {
    for (long t = 0; t < count; ++t) {
        const float* x = from.at(start + t, head);
        if (rows) std::copy(x, x + width, rows + (place + t) * width);
        if (turned)
            for (long e = 0; e < width; ++e) turned[e * stride + place + t] = x[e];
    }
    const long end = place + count, most = padded(end);
    if (rows) std::fill(rows + end * width, rows + most * width, 0.0f);
    if (turned)
        for (long e = 0; e < width; ++e)
            std::fill(turned + e * stride + end, turned + e * stride + most, 0.0f);
}

// What the queries of one row, or of a prefix, attend to: `shared` keys and their own.
struct Unit {
    long start, count, shared;
};

// e^(scores scale - shift) of the keys that each query sees, zero behind them.
inline void weigh(float* scores, long seen, long stride, float scale, float shift) {
#pragma omp simd
    for (long j = 0; j < seen; ++j) scores[j] = exponential(scores[j] * scale - shift);
    std::fill(scores + seen, scores + stride, 0.0f);
}

struct Attention {
    Heads query, key, value, out;
    float* sums;  // (heads, tokens): log of the sums
    long tokens, width, group;
    float scale;

    void forward(const Unit& unit, long head, const float* keys, const float* values, long stride,
                 float* scores) const {
        for (long i = 0; i < unit.count; i += QUERIES) {
            const long m = std::min(QUERIES, unit.count - i);
            const long n = padded(unit.shared + i + m), t = unit.start + i;
            small_product({query.at(t, head), query.token, 1}, keys, stride, scores, stride, m, n,
                          width, false);
            float totals[QUERIES];
            for (long r = 0; r < m; ++r) {
                float *row = scores + r * stride, most = -INFINITY, total = 0.0f;
                const long seen = unit.shared + i + r + 1;
#pragma omp simd reduction(max : most)
                for (long j = 0; j < seen; ++j) most = row[j] > most ? row[j] : most;
                weigh(row, seen, n, scale, most * scale);
#pragma omp simd reduction(+ : total)
                for (long j = 0; j < seen; ++j) total += row[j];
                sums[head * tokens + t + r] = most * scale + std::log(total);
                totals[r] = 1.0f / total;
            }
            small_product({scores, stride, 1}, values, width, out.at(t, head), out.token, m, width,
                          n, false);
            for (long r = 0; r < m; ++r)
                for (long e = 0; e < width; ++e) out.at(t + r, head)[e] *= totals[r];
        }
    }

    // Adds to by_keys and by_values (keys, width), and writes the queries' gradient.
    void backward(const Unit& unit, long head, const Heads& grad, const Heads& by_query,
                  const float* keys, const float* turned_keys, const float* turned_values,
                  long stride, float* scores, float* changes, float* by_keys,
                  float* by_values) const {
        for (long i = 0; i < unit.count; i += QUERIES) {
            const long m = std::min(QUERIES, unit.count - i);
            const long n = padded(unit.shared + i + m), t = unit.start + i;
            const Matrix queries{query.at(t, head), query.token, 1};
            small_product(queries, turned_keys, stride, scores, stride, m, n, width, false);
            small_product({grad.at(t, head), grad.token, 1}, turned_values, stride, changes, stride,
                          m, n, width, false);
            for (long r = 0; r < m; ++r) {
                float *row = scores + r * stride, *change = changes + r * stride, dot = 0.0f;
                weigh(row, unit.shared + i + r + 1, n, scale, sums[head * tokens + t + r]);
                const float *g = grad.at(t + r, head), *o = out.at(t + r, head);
                for (long e = 0; e < width; ++e) dot += g[e] * o[e];
#pragma omp simd
                for (long j = 0; j < n; ++j) change[j] = row[j] * (change[j] - dot) * scale;
            }
            small_product({changes, stride, 1}, keys, width, by_query.at(t, head), by_query.token,
                          m, width, n, false);
            small_product({changes, 1, stride}, queries.x, query.token, by_keys, width, n, width, m,
                          true);
            small_product({scores, 1, stride}, grad.at(t, head), grad.token, by_values, width, n,
                          width, m, true);
        }
    }
};

// The units of a segment (start, prefix, rows, then each row's length): its prefix and its rows.
struct Segment {
    long start, prefix, rows;
    const long* lengths;

    long longest() const {
        return rows ? *std::max_element(lengths, lengths + rows) : 0;
    }
    long size() const { return 3 + rows; }
};

Segment segment_at(const long* told) { return {told[0], told[1], told[2], told + 3}; }

}  // namespace

extern "C" {

// query, out (tokens, heads, width), key, value (tokens, heads / group, width), each with its two
// strides; sums (heads, tokens). `told` holds `count` segments, one after the other.
void attention_forward(float* q, long qt, long qh, float* k, long kt, long kh, float* v, long vt,
                       long vh, float* o, long ot, long oh, float* sums, long tokens, long heads,
                       long group, long width, float scale, const long* told, long count) {
    const Attention all{{q, qt, qh}, {k, kt, kh}, {v, vt, vh}, {o, ot, oh}, sums,
                        tokens,      width,       group,       scale};
    for (long s = 0; s < count; ++s) {
        const Segment segment = segment_at(told);
        told += segment.size();
        const long most = padded(std::max(segment.prefix + segment.longest(), segment.prefix));
#pragma omp parallel for schedule(dynamic)
        for (long head = 0; head < heads / group; ++head) {
            Buffer keys(width * most), values(most * width), scores(QUERIES * most);
            std::fill(keys.x, keys.x + width * most, 0.0f);
            std::fill(values.x, values.x + most * width, 0.0f);
            const long first = segment.start, prefix = segment.prefix;
            gather(all.key, first, prefix, head, width, 0, nullptr, keys.x, most);
            gather(all.value, first, prefix, head, width, 0, values.x, nullptr, most);
            for (long h = head * group; prefix && h < (head + 1) * group; ++h)
                all.forward({first, prefix, 0}, h, keys.x, values.x, most, scores.x);
            long start = first + prefix;
            for (long row = 0; row < segment.rows; start += segment.lengths[row++]) {
                const long length = segment.lengths[row];
                gather(all.key, start, length, head, width, prefix, nullptr, keys.x, most);
                gather(all.value, start, length, head, width, prefix, values.x, nullptr, most);
                for (long h = head * group; h < (head + 1) * group; ++h)
                    all.forward({start, length, prefix}, h, keys.x, values.x, most, scores.x);
            }
        }
    }
}

// The gradients of `attention_forward`: grad as out, by_query as query, by_key and by_value as key.
void attention_backward(float* q, long qt, long qh, float* k, long kt, long kh, float* v, long vt,
                        long vh, float* o, long ot, long oh, float* sums, float* g, long gt,
                        long gh, float* bq, float* bk, float* bv, long tokens, long heads,
                        long group, long width, float scale, const long* told, long count) {
    const Attention all{{q, qt, qh}, {k, kt, kh}, {v, vt, vh}, {o, ot, oh}, sums,
                        tokens,      width,       group,       scale};
    const long few = heads / group;
    const Heads grad{g, gt, gh}, by_query{bq, heads * width, width};
    const Heads by_key{bk, few * width, width}, by_value{bv, few * width, width};
    for (long s = 0; s < count; ++s) {
        const Segment segment = segment_at(told);
        told += segment.size();
        const long most = padded(std::max(segment.prefix + segment.longest(), segment.prefix));
#pragma omp parallel for schedule(dynamic)
        for (long head = 0; head < few; ++head) {
            const long size = most * width;
            Buffer keys(size), turned_keys(size), turned_values(size);
            Buffer by_keys(size), by_values(size), scores(QUERIES * most), changes(QUERIES * most);
            for (float* x : {keys.x, turned_keys.x, turned_values.x, by_keys.x, by_values.x})
                std::fill(x, x + size, 0.0f);
            const long first = segment.start, prefix = segment.prefix;
            auto one = [&](const Unit& unit) {
                gather(all.key, unit.start, unit.count, head, width, unit.shared, keys.x,
                       turned_keys.x, most);
                gather(all.value, unit.start, unit.count, head, width, unit.shared, nullptr,
                       turned_values.x, most);
                for (long h = head * group; h < (head + 1) * group; ++h)
                    all.backward(unit, h, grad, by_query, keys.x, turned_keys.x, turned_values.x,
                                 most, scores.x, changes.x, by_keys.x, by_values.x);
            };
            auto write = [&](long start, long from, long length) {
                for (long t = 0; t < length; ++t) {
                    const float *x = by_keys.x + (from + t) * width;
                    const float *y = by_values.x + (from + t) * width;
                    std::copy(x, x + width, by_key.at(start + t, head));
                    std::copy(y, y + width, by_value.at(start + t, head));
                }
            };
            one({first, prefix, 0});
            long start = first + prefix;
            for (long row = 0; row < segment.rows; start += segment.lengths[row++]) {
                const long length = segment.lengths[row];
                std::fill(by_keys.x + prefix * width, by_keys.x + size, 0.0f);
                std::fill(by_values.x + prefix * width, by_values.x + size, 0.0f);
                one({start, length, prefix});
                write(start, prefix, length);
            }
            write(first, 0, prefix);
        }
    }
}

}  // extern "C"
