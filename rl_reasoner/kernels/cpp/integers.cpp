// Products of fp32 matrices from products of integers.
//
// Each row of a factor is q1 + q2 / 254 + q3 / 254^2 times its largest number / 127, with integers
// of 8 bits: as exact as fp32's 24. Products of integers are summed without any rounding; of the
// nine pairs of slices the six that matter are multiplied. The Ozaki scheme (Ootomo, Ozaki, Yokota
// 2024, arXiv 2306.11975) on the tiles of a processor with AMX.
// Compiled by rl_reasoner.kernels.native on the machine that runs it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#if defined(__AMX_INT8__) && defined(__AVX512BW__) && defined(__linux__)
#define SLICED_PRODUCTS 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifdef SLICED_PRODUCTS
namespace {

constexpr long ROWS = 16, DEPTH = 64, TILE = ROWS * DEPTH, SLICES = 3;
constexpr long DEEP = 256, WIDE = 2048, HIGH = 256;  // of a block that stays in the caches
constexpr float BASE = 254.0f;

inline long up_to(long n, long by) { return (n + by - 1) / by * by; }

inline __mmask16 first(long n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1; }

struct alignas(64) TileShapes {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

void use_tiles() {
    TileShapes shapes{};
    shapes.palette = 1;
    for (int i = 0; i < 8; ++i) {
        shapes.bytes[i] = 64;
        shapes.rows[i] = 16;
    }
    _tile_loadconfig(&shapes);
}

void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; ++j) {
            t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; ++j) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    }
}

// 16 numbers, scaled to -127..127, as three slices.
inline void slice(__m512 v, __m512i q[SLICES]) {
    for (int s = 0; s < SLICES; ++s) {
        q[s] = _mm512_cvtps_epi32(v);
        v = _mm512_mul_ps(_mm512_sub_ps(v, _mm512_cvtepi32_ps(q[s])), _mm512_set1_ps(BASE));
    }
}

void store(int8_t* out, __m512i tile[SLICES][16], bool turned) {
    for (int s = 0; s < SLICES; ++s) {
        if (turned) transpose(tile[s]);
        for (int r = 0; r < 16; ++r) _mm512_store_si512(out + s * TILE + r * 64, tile[s][r]);
    }
}

// The scale of rows whose largest magnitudes are `top`, and what to multiply them with; not a
// number where one of a row is not finite (`spoilt` is not zero), zero where all are next to it.
void scales(__m512 top, __m512 spoilt, float* scale, float* inverse) {
    __mmask16 fine = _mm512_cmp_ps_mask(spoilt, _mm512_setzero_ps(), _CMP_EQ_OQ);
    __mmask16 some = _mm512_cmp_ps_mask(top, _mm512_set1_ps(1e-35f), _CMP_GT_OQ) & fine;
    __m512 most = _mm512_set1_ps(127.0f);
    __m512 unit = _mm512_maskz_div_ps(some, top, most);
    _mm512_storeu_ps(scale, _mm512_mask_blend_ps(fine, _mm512_set1_ps(NAN), unit));
    _mm512_storeu_ps(inverse, _mm512_maskz_div_ps(some, most, top));
}

// Up to 16 rows of `depth` contiguous numbers -> for each 64 of them three tiles.
void pack_rows(const float* x, long rows, long depth, long stride, bool turned, int8_t* out,
               float* scale) {
    float tops[16] = {}, spoils[16] = {}, inverse[16];
    for (long r = 0; r < rows; ++r) {
        __m512 top = _mm512_setzero_ps(), spoilt = top;
        for (long k = 0; k < depth; k += 16) {
            __m512 v = _mm512_maskz_loadu_ps(first(depth - k), x + r * stride + k);
            top = _mm512_max_ps(top, _mm512_abs_ps(v));
            spoilt = _mm512_fmadd_ps(v, _mm512_setzero_ps(), spoilt);
        }
        tops[r] = _mm512_reduce_max_ps(top);
        spoils[r] = _mm512_reduce_add_ps(spoilt);
    }
    scales(_mm512_loadu_ps(tops), _mm512_loadu_ps(spoils), scale, inverse);
    alignas(64) __m512i tile[SLICES][16] = {};
    for (long k = 0; k < depth; k += DEPTH, out += SLICES * TILE) {
        for (long r = 0; r < 16; ++r)
            for (int c = 0; c < 4; ++c) {
                __m512i q[SLICES];
                __mmask16 mask = r < rows ? first(depth - k - 16 * c) : 0;
                __m512 v = _mm512_maskz_loadu_ps(mask, x + r * stride + k + 16 * c);
                slice(_mm512_mul_ps(v, _mm512_set1_ps(inverse[r])), q);
                for (int s = 0; s < SLICES; ++s)
                    _mm_store_si128(reinterpret_cast<__m128i*>(&tile[s][r]) + c,
                                    _mm512_cvtepi32_epi8(q[s]));
            }
        store(out, tile, turned);
    }
}

// The same of rows that lie side by side, `stride` between the numbers of one.
void pack_columns(const float* x, long rows, long depth, long stride, bool turned, int8_t* out,
                  float* scale) {
    __mmask16 mask = first(rows);
    __m512 top = _mm512_setzero_ps(), spoilt = top;
    for (long k = 0; k < depth; ++k) {
        __m512 v = _mm512_maskz_loadu_ps(mask, x + k * stride);
        top = _mm512_max_ps(top, _mm512_abs_ps(v));
        spoilt = _mm512_fmadd_ps(v, _mm512_setzero_ps(), spoilt);
    }
    float inverses[16];
    scales(top, spoilt, scale, inverses);
    const __m512 inverse = _mm512_loadu_ps(inverses);
    alignas(64) __m512i tile[SLICES][16];
    for (long k = 0; k < depth; k += DEPTH, out += SLICES * TILE) {
        for (int r = 0; r < 16; ++r) {
            __m512i words[SLICES] = {};
            for (int c = 0; c < 4 && k + 4 * r + c < depth; ++c) {
                __m512i q[SLICES];
                __m512 v = _mm512_maskz_loadu_ps(mask, x + (k + 4 * r + c) * stride);
                slice(_mm512_mul_ps(v, inverse), q);
                for (int s = 0; s < SLICES; ++s) {
                    __m512i byte = _mm512_and_si512(q[s], _mm512_set1_epi32(255));
                    words[s] = _mm512_or_si512(words[s], _mm512_slli_epi32(byte, 8 * c));
                }
            }
            for (int s = 0; s < SLICES; ++s) tile[s][r] = words[s];
        }
        store(out, tile, turned);
    }
}

// Memory that a thread keeps from one product to the next: the system fills new pages with zeros.
struct Scratch {
    void* place = nullptr;
    size_t size = 0;

    template <typename Number>
    Number* of(long count) {
        const size_t wanted = (count * sizeof(Number) + 63) / 64 * 64;
        if (wanted > size) {
            std::free(place);
            place = std::aligned_alloc(64, size = wanted);
        }
        return static_cast<Number*>(place);
    }
    ~Scratch() { std::free(place); }
};

thread_local Scratch column_scratch, column_scale_scratch, row_scratch;

struct Factor {  // (rows, depth), one of the two strides is 1
    const float* x;
    long row_stride, depth_stride;

    // 16 rows from `row` on, tiles as a product's left factor takes them, or as the right one does
    void pack(long row, long rows, long at, long depth, bool right, int8_t* out,
              float* scale) const {
        const float* from = x + row * row_stride + at * depth_stride;
        if (depth_stride == 1)
            pack_rows(from, rows, depth, row_stride, right, out, scale);
        else
            pack_columns(from, rows, depth, depth_stride, !right, out, scale);
    }
};

// Adds slice `one` of two row tiles times slice `other` of two column tiles to the tiles 0 to 3.
inline void add_pair(const int8_t* left, const int8_t* right, long panel, long count, int one,
                     int other) {
    left += one * TILE;
    right += other * TILE;
    for (long k = 0; k < count; ++k, left += SLICES * TILE, right += SLICES * TILE) {
        _tile_loadd(4, left, 64);
        _tile_loadd(6, right, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, right + panel, 64);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, left + panel, 64);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
}

// All pairs whose places add up to `order`: (32, 32) sums.
inline void add_order(const int8_t* left, const int8_t* right, long panel, long count, int order,
                      int32_t* sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int one = 0; one <= order; ++one) add_pair(left, right, panel, count, one, order - one);
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    _tile_stored(2, sums + 512, 128);
    _tile_stored(3, sums + 528, 128);
}

void block(const int8_t* left, const int8_t* right, long count, const float* rows,
           const float* columns, float* out, long stride, long m, long n, bool add) {
    alignas(64) int32_t sums[SLICES][1024];
    for (int order = SLICES - 1; order >= 0; --order)
        add_order(left, right, count * SLICES * TILE, count, order, sums[order]);
    const __m512 by = _mm512_set1_ps(1.0f / BASE);
    for (long r = 0; r < m; ++r)
        for (long c = 0; c < n; c += 16) {
            __m512 v = _mm512_setzero_ps();
            for (int order = SLICES - 1; order >= 0; --order)
                v = _mm512_fmadd_ps(
                    v, by, _mm512_cvtepi32_ps(_mm512_load_si512(sums[order] + r * 32 + c)));
            __m512 scale = _mm512_mul_ps(_mm512_set1_ps(rows[r]), _mm512_loadu_ps(columns + c));
            float* to = out + r * stride + c;
            __mmask16 mask = first(n - c);
            __m512 before = add ? _mm512_maskz_loadu_ps(mask, to) : _mm512_setzero_ps();
            _mm512_mask_storeu_ps(to, mask, _mm512_fmadd_ps(v, scale, before));
        }
}

}  // namespace
#endif

extern "C" {

// Whether this processor and system let `sliced_product` run.
int can_slice() {
#ifdef SLICED_PRODUCTS
    constexpr int ask = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, ask, tile_data) == 0;
#else
    return 0;
#endif
}

// out (m, n) (+)= a (m, k) b (n, k)^T; strides in numbers, one of each factor's two is 1.
int sliced_product(const float* a, long a_row, long a_depth, const float* b, long b_row,
                   long b_depth, float* out, long stride, long m, long n, long k, int add) {
#ifdef SLICED_PRODUCTS
    const Factor left{a, a_row, a_depth}, right{b, b_row, b_depth};
    const long parts = std::max(1L, (k + DEEP - 1) / DEEP);
    const long deep = up_to((k + parts - 1) / parts, DEPTH), wide = std::min(up_to(n, 32), WIDE);
    const long most = deep / DEPTH * SLICES * TILE;
    auto* columns = column_scratch.of<int8_t>(wide / 16 * most);
    auto* column_scales = column_scale_scratch.of<float>(wide);
#pragma omp parallel
    {
        use_tiles();
        auto* rows = row_scratch.of<int8_t>(HIGH / 16 * most);
        alignas(64) float row_scales[HIGH];
        for (long at = 0; at < k; at += deep) {
            const long depth = std::min(deep, k - at), count = up_to(depth, DEPTH) / DEPTH;
            const long panel = count * SLICES * TILE;
            for (long j0 = 0; j0 < n; j0 += wide) {
                const long across = std::min(wide, n - j0);
#pragma omp for
                for (long j = 0; j < up_to(across, 32); j += 16)
                    right.pack(j0 + j, std::min(16L, across - j), at, depth, true,
                               columns + j / 16 * panel, column_scales + j);
#pragma omp for
                for (long i0 = 0; i0 < m; i0 += HIGH) {
                    const long down = std::min(HIGH, m - i0);
                    for (long i = 0; i < up_to(down, 32); i += 16)
                        left.pack(i0 + i, std::min(16L, down - i), at, depth, false,
                                  rows + i / 16 * panel, row_scales + i);
                    for (long i = 0; i < down; i += 32)
                        for (long j = 0; j < across; j += 32)
                            block(rows + i / 16 * panel, columns + j / 16 * panel, count,
                                  row_scales + i, column_scales + j,
                                  out + (i0 + i) * stride + j0 + j, stride,
                                  std::min(32L, down - i), std::min(32L, across - j),
                                  add || at > 0);
                }
            }
        }
        _tile_release();
    }
    return 1;
#else
    return 0;
#endif
}

}  // extern "C"
