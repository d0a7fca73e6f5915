// Norms, rotations and gated layers of the training pass. Tensors are fp32, rows follow each other
// without gaps where no stride is given; a value that is not finite gives one.
// Compiled by rl_reasoner.kernels.native on the machine that runs it.

#include <algorithm>

#include "exponential.h"

namespace {

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

}  // namespace

extern "C" {

// y = x r w, r = 1 / sqrt(mean(x^2) + eps); x, y (rows, width), w (width), r (rows).
void rms_forward(const float* x, const float* w, float* y, float* r, long rows, long width,
                 float eps) {
#pragma omp parallel for
    for (long i = 0; i < rows; ++i) {
        const float* from = x + i * width;
        float* to = y + i * width;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (long j = 0; j < width; ++j) sum += from[j] * from[j];
        float scale = r[i] = 1.0f / std::sqrt(sum / width + eps);
#pragma omp simd
        for (long j = 0; j < width; ++j) to[j] = w[j] * (from[j] * scale);
    }
}

// The gradients of `rms_forward`; by_w (blocks, width) holds partial sums of 256 rows each.
void rms_backward(const float* by_y, const float* x, const float* w, const float* r, float* by_x,
                  float* by_w, long rows, long width) {
#pragma omp parallel for
    for (long block = 0; block < (rows + 255) / 256; ++block) {
        float* sums = by_w + block * width;
        std::fill(sums, sums + width, 0.0f);
        for (long i = block * 256; i < std::min(rows, block * 256 + 256); ++i) {
            const float *from = x + i * width, *grad = by_y + i * width;
            float* to = by_x + i * width;
            float scale = r[i], dot = 0.0f;
#pragma omp simd reduction(+ : dot)
            for (long j = 0; j < width; ++j) dot += grad[j] * w[j] * from[j];
            float back = dot * scale * scale * scale / width;
#pragma omp simd
            for (long j = 0; j < width; ++j) {
                sums[j] += grad[j] * (from[j] * scale);
                to[j] = grad[j] * w[j] * scale - from[j] * back;
            }
        }
    }
}

// h = silu(gate) up; all (rows, width).
void gated_forward(const float* gate, const float* up, float* h, long count) {
#pragma omp parallel for
    for (long block = 0; block < (count + 4095) / 4096; ++block) {
        long end = std::min(count, block * 4096 + 4096);
#pragma omp simd
        for (long i = block * 4096; i < end; ++i) h[i] = gate[i] * sigmoid(gate[i]) * up[i];
    }
}

// The gradients of `gated_forward`; h is computed again, in the place of by_h.
void gated_backward(float* by_h, const float* gate, const float* up, float* by_gate, float* by_up,
                    long count) {
#pragma omp parallel for
    for (long block = 0; block < (count + 4095) / 4096; ++block) {
        long end = std::min(count, block * 4096 + 4096);
#pragma omp simd
        for (long i = block * 4096; i < end; ++i) {
            float s = sigmoid(gate[i]), silu = gate[i] * s, grad = by_h[i];
            by_h[i] = silu * up[i];
            by_gate[i] = grad * up[i] * (s + silu * (1.0f - s));
            by_up[i] = grad * silu;
        }
    }
}

// An expert's rows: h = silu(gate) up w, of both (rows, 2 width), gate before up; w (rows),
// h (rows, width).
void expert_forward(const float* both, const float* w, float* h, long rows, long width) {
#pragma omp parallel for
    for (long i = 0; i < rows; ++i) {
        const float *gate = both + i * 2 * width, *up = gate + width;
        float *to = h + i * width, weight = w[i];
#pragma omp simd
        for (long j = 0; j < width; ++j) to[j] = gate[j] * sigmoid(gate[j]) * up[j] * weight;
    }
}

// The gradients of `expert_forward`; h is computed again, in the place of by_h.
void expert_backward(float* by_h, const float* both, const float* w, float* by_both, float* by_w,
                     long rows, long width) {
#pragma omp parallel for
    for (long i = 0; i < rows; ++i) {
        const float *gate = both + i * 2 * width, *up = gate + width;
        float *h = by_h + i * width, *by_gate = by_both + i * 2 * width, *by_up = by_gate + width;
        float weight = w[i], sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (long j = 0; j < width; ++j) {
            float s = sigmoid(gate[j]), silu = gate[j] * s, grad = h[j] * weight;
            sum += h[j] * (silu * up[j]);
            by_gate[j] = grad * up[j] * (s + silu * (1.0f - s));
            by_up[j] = grad * silu;
            h[j] = silu * up[j] * weight;
        }
        by_w[i] = sum;
    }
}

// Rotates the halves of each head by its token's angles; sign -1 turns back. x, y (tokens, heads,
// width) with `x_stride` between tokens of x; cos, sin (tokens, width), of which a half is read.
void rotate(const float* x, long x_stride, const float* cos, const float* sin, float* y,
            long tokens, long heads, long width, float sign) {
    long half = width / 2;
#pragma omp parallel for
    for (long t = 0; t < tokens; ++t) {
        const float *c = cos + t * width, *s = sin + t * width;
        for (long h = 0; h < heads; ++h) {
            const float* from = x + t * x_stride + h * width;
            float* to = y + (t * heads + h) * width;
#pragma omp simd
            for (long j = 0; j < half; ++j) {
                float one = from[j], other = from[j + half];
                to[j] = one * c[j] - sign * other * s[j];
                to[j + half] = other * c[j] + sign * one * s[j];
            }
        }
    }
}

}  // extern "C"
