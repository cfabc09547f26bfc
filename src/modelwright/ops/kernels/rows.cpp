// What is done to each row by itself, in one pass instead of torch's eight: root-mean-square norms and rotations.

#include <cmath>

#include "vectors.h"

namespace {

constexpr int64_t ENOUGH = 1 << 16;  // numbers for which threads are woken

template <typename X>
inline float rounded(float value) {
    X narrow;
    store(&narrow, value);
    return to_float(narrow);
}

// weight * x / rms(x), the quotient rounded to the type of x first unless `once`.
template <typename X>
void norm(const X* x, int64_t count, int64_t dim, const X* weight, float eps, bool once, X* y, int threads) {
#pragma omp parallel for num_threads(threads) if (count * dim >= ENOUGH && count > 1)
    for (int64_t m = 0; m < count; m++) {
        const X* row = x + m * dim;
        Floats squares = {};
        for (int64_t k = 0; k < dim; k += LANES) {
            Floats value = k + LANES <= dim ? load(row + k) : load_some(row + k, dim - k);
            squares += value * value;
        }
        const float scale = 1.0f / std::sqrt(sum(squares) / dim + eps);
        for (int64_t k = 0; k < dim; k++) {
            const float value = to_float(row[k]) * scale;
            store(y + m * dim + k, (once ? value : rounded<X>(value)) * to_float(weight[k]));
        }
    }
}

// Pairs of x [heads, tokens, dim] turned by the angles of their token; the result lies as [tokens, heads, dim]. A pair
// is (2i, 2i + 1) or (i, i + dim / 2); the result holds all first members, then all second ones.
template <typename X>
void rotate(const X* x, int64_t head_stride, int64_t token_stride, int64_t heads, int64_t tokens, int64_t dim,
            const float* cos, const float* sin, bool interleaved, X* y, int threads) {
    const int64_t half = dim / 2, step = interleaved ? 2 : 1, apart = interleaved ? 1 : half;
#pragma omp parallel for num_threads(threads) if (heads * tokens * dim >= ENOUGH && tokens > 1)
    for (int64_t t = 0; t < tokens; t++) {
        const float *c = cos + t * half, *s = sin + t * half;
        for (int64_t h = 0; h < heads; h++) {
            const X* from = x + h * head_stride + t * token_stride;
            X* to = y + (t * heads + h) * dim;
            for (int64_t i = 0; i < half; i++) {
                const float first = to_float(from[i * step]), second = to_float(from[i * step + apart]);
                store(to + i, first * c[i] - second * s[i]);
                store(to + half + i, second * c[i] + first * s[i]);
            }
        }
    }
}

}  // namespace

extern "C" {

void norm_rows(int32_t halves, const void* x, int64_t count, int64_t dim, const void* weight, float eps, int32_t once,
               void* y, int32_t threads) {
    if (halves) {
        norm(static_cast<const bf16*>(x), count, dim, static_cast<const bf16*>(weight), eps, once,
             static_cast<bf16*>(y), threads);
    } else {
        norm(static_cast<const float*>(x), count, dim, static_cast<const float*>(weight), eps, once,
             static_cast<float*>(y), threads);
    }
}

void rotate_rows(int32_t halves, const void* x, int64_t head_stride, int64_t token_stride, int64_t heads,
                 int64_t tokens, int64_t dim, const float* cos, const float* sin, int32_t interleaved, void* y,
                 int32_t threads) {
    if (halves) {
        rotate(static_cast<const bf16*>(x), head_stride, token_stride, heads, tokens, dim, cos, sin, interleaved,
               static_cast<bf16*>(y), threads);
    } else {
        rotate(static_cast<const float*>(x), head_stride, token_stride, heads, tokens, dim, cos, sin, interleaved,
               static_cast<float*>(y), threads);
    }
}
}
