// What is done to each row by itself, in one pass where torch takes several: root-mean-square norms, rotations, gated
// activations and the scores of experts.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "vectors.h"

namespace {

template <typename X>
inline float rounded(float value) {
    X narrow;
    store(&narrow, value);
    return to_float(narrow);
}

// weight * x / rms(x), the quotient rounded to the type of x first unless `once`.
template <typename X>
void norm(const X* x, int64_t count, int64_t dim, const X* weight, float eps, bool once, X* y, int threads) {
#pragma omp parallel for num_threads(threads) if (count * dim >= ENOUGH_NUMBERS_IN_ROWS && count > 1)
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
// is (2i, 2i + 1) or (i, i + dim / 2); the result holds all first members, then all second ones. As torch does, every
// number is rounded to the type of the tables on the way.
template <typename X, typename T>
void rotate(const X* x, int64_t head_stride, int64_t token_stride, int64_t heads, int64_t tokens, int64_t dim,
            const T* cos, const T* sin, bool interleaved, X* y, int threads) {
    const int64_t half = dim / 2, step = interleaved ? 2 : 1, apart = interleaved ? 1 : half;
#pragma omp parallel for num_threads(threads) if (heads * tokens * dim >= ENOUGH_NUMBERS_IN_ROWS && tokens > 1)
    for (int64_t t = 0; t < tokens; t++) {
        const T *cosines = cos + t * half, *sines = sin + t * half;
        for (int64_t h = 0; h < heads; h++) {
            const X* from = x + h * head_stride + t * token_stride;
            X* to = y + (t * heads + h) * dim;
            for (int64_t i = 0; i < half; i++) {
                const float first = rounded<T>(to_float(from[i * step])), c = to_float(cosines[i]);
                const float second = rounded<T>(to_float(from[i * step + apart])), s = to_float(sines[i]);
                store(to + i, rounded<T>(rounded<T>(first * c) - rounded<T>(second * s)));
                store(to + half + i, rounded<T>(rounded<T>(second * c) + rounded<T>(first * s)));
            }
        }
    }
}

inline Floats rounded(Floats value, float) { return value; }
inline Floats rounded(Floats value, bf16) {
    bf16 narrow[LANES];
    store(narrow, value);
    return load(narrow);
}

// silu(gate) * up, silu(gate) rounded to their type before.
template <typename X>
inline Floats gated(Floats gate, Floats up) {
    return rounded(silu(gate), X{}) * up;
}

// act(row, column, how many numbers, at most a vector) for all of some rows, of which a single one is taken in pieces.
template <typename Act>
void by_vectors(int64_t rows, int64_t width, int threads, Act act) {
    const int64_t piece = rows == 1 ? 4096 : width, pieces = rows == 1 ? (width + piece - 1) / piece : rows;
#pragma omp parallel for num_threads(threads) if (rows * width >= ENOUGH_NUMBERS_IN_ROWS)
    for (int64_t p = 0; p < pieces; p++) {
        const int64_t row = rows == 1 ? 0 : p, first = rows == 1 ? p * piece : 0, last = std::min(first + piece, width);
        int64_t column = first;
        for (; column + LANES <= last; column += LANES) act(row, column, int64_t{LANES});
        if (column < last) act(row, column, last - column);
    }
}

template <typename X>
inline Floats load_up_to(const X* at, int64_t some) { return some == LANES ? load(at) : load_some(at, some); }

template <typename X>
inline void store_up_to(X* at, Floats value, int64_t some) {
    if (some == LANES) return store(at, value);
    X all[LANES];
    store(all, value);
    std::memcpy(at, all, some * sizeof(X));
}

template <typename X>
void gate_all(const X* gate, const X* up, int64_t rows, int64_t width, int64_t stride, X* y, int threads) {
    by_vectors(rows, width, threads, [=](int64_t row, int64_t column, int64_t some) {
        const int64_t at = row * stride + column;
        store_up_to(y + row * width + column, gated<X>(load_up_to(gate + at, some), load_up_to(up + at, some)), some);
    });
}

// The gradients of gate and up, each rounded once: with s = sigmoid(gate), s (1 + gate (1 - s)) and silu(gate).
template <typename X>
void gate_all_back(const X* gradient, const X* gate, const X* up, int64_t rows, int64_t width, int64_t stride,
                   X* of_gate, X* of_up, int64_t to_stride, int threads) {
    by_vectors(rows, width, threads, [=](int64_t row, int64_t column, int64_t some) {
        const int64_t at = row * stride + column, to = row * to_stride + column;
        const Floats g = load_up_to(gradient + row * width + column, some), x = load_up_to(gate + at, some);
        const Floats s = sigmoid(x), bent = x * s, slope = s + bent * (splat(1.0f) - s);
        store_up_to(of_gate + to, g * load_up_to(up + at, some) * slope, some);
        store_up_to(of_up + to, g * bent, some);
    });
}

// x * sigmoid(1.702 x), which is silu(1.702 x) / 1.702, rounded once.
template <typename X>
void quick_gelu_all(const X* x, int64_t size, X* y, int threads) {
    const auto bent = [](Floats value) { return silu(value * 1.702f) * (1.0f / 1.702f); };
    const int64_t whole = size / LANES * LANES;
#pragma omp parallel for num_threads(threads) if (size >= ENOUGH_NUMBERS_IN_ROWS)
    for (int64_t i = 0; i < whole; i += LANES) store(y + i, bent(load(x + i)));
    if (whole < size) {
        X last[LANES];
        store(last, bent(load_some(x + whole, size - whole)));
        std::memcpy(y + whole, last, (size - whole) * sizeof(X));
    }
}

// Each expert's logit for each token, summed in fp32, and its score: a softmax over the experts, or a sigmoid.
template <typename X, typename W>
void route(const X* x, int64_t tokens, int64_t dim, const W* weight, int64_t experts, bool softmax, float* logits,
           float* scores, int threads) {
#pragma omp parallel for num_threads(threads) if (tokens * experts * dim >= ENOUGH_NUMBERS_IN_ROWS && tokens > 1)
    for (int64_t t = 0; t < tokens; t++) {
        float *own = logits + t * experts, *score = scores + t * experts;
        for (int64_t e = 0; e < experts; e++) {
            Floats total = {};
            for (int64_t k = 0; k < dim; k += LANES) {
                const X* value = x + t * dim + k;
                const W* factor = weight + e * dim + k;
                if (k + LANES <= dim) total += load(value) * load(factor);
                else total += load_some(value, dim - k) * load_some(factor, dim - k);
            }
            own[e] = sum(total);
        }
        float highest = own[0], total = 0;
        for (int64_t e = 1; e < experts; e++) highest = std::max(highest, own[e]);
        for (int64_t e = 0; e < experts; e++) {
            score[e] = softmax ? std::exp(own[e] - highest) : 1.0f / (1.0f + std::exp(-own[e]));
            total += score[e];
        }
        for (int64_t e = 0; softmax && e < experts; e++) score[e] /= total;
    }
}

// Calls act with a number of either type for each of two that are bf16 or fp32.
template <typename Act>
void with_types(bool first_is_half, bool second_is_half, Act act) {
    if (first_is_half && second_is_half) act(bf16{}, bf16{});
    else if (first_is_half) act(bf16{}, float{});
    else if (second_is_half) act(float{}, bf16{});
    else act(float{}, float{});
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

void rotate_rows(int32_t halves, int32_t half_tables, const void* x, int64_t head_stride, int64_t token_stride,
                 int64_t heads, int64_t tokens, int64_t dim, const void* cos, const void* sin, int32_t interleaved,
                 void* y, int32_t threads) {
    with_types(halves, half_tables, [&](auto of_x, auto of_tables) {
        typedef decltype(of_x) X;
        typedef decltype(of_tables) T;
        rotate(static_cast<const X*>(x), head_stride, token_stride, heads, tokens, dim, static_cast<const T*>(cos),
               static_cast<const T*>(sin), interleaved, static_cast<X*>(y), threads);
    });
}

void silu_product(int32_t halves, const void* gate, const void* up, int64_t rows, int64_t width, int64_t stride, void* y,
                  int32_t threads) {
    with_types(halves, halves, [&](auto, auto of_x) {
        typedef decltype(of_x) X;
        gate_all(static_cast<const X*>(gate), static_cast<const X*>(up), rows, width, stride, static_cast<X*>(y), threads);
    });
}

void silu_product_back(int32_t halves, const void* gradient, const void* gate, const void* up, int64_t rows,
                       int64_t width, int64_t stride, void* of_gate, void* of_up, int64_t to_stride, int32_t threads) {
    with_types(halves, halves, [&](auto, auto of_x) {
        typedef decltype(of_x) X;
        gate_all_back(static_cast<const X*>(gradient), static_cast<const X*>(gate), static_cast<const X*>(up), rows,
                      width, stride, static_cast<X*>(of_gate), static_cast<X*>(of_up), to_stride, threads);
    });
}

void quick_gelu(int32_t halves, const void* x, int64_t count, void* y, int32_t threads) {
    if (halves) quick_gelu_all(static_cast<const bf16*>(x), count, static_cast<bf16*>(y), threads);
    else quick_gelu_all(static_cast<const float*>(x), count, static_cast<float*>(y), threads);
}

void place_rows(const void* x, int64_t x_token, int64_t x_head, const int64_t* slots, int64_t tokens, int64_t heads,
                int64_t width, void* rows, int64_t token, int64_t head) {
    const char* from = static_cast<const char*>(x);
    char* to = static_cast<char*>(rows);
    if (x_head == width && head == width) width *= heads, heads = 1;
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t h = 0; h < heads; h++)
            std::memcpy(to + slots[t] * token + h * head, from + t * x_token + h * x_head, width);
}

void route_rows(int32_t halves, int32_t half_weight, const void* x, int64_t tokens, int64_t dim, const void* weight,
                int64_t experts, int32_t softmax, float* logits, float* scores, int32_t threads) {
    with_types(halves, half_weight, [&](auto of_x, auto of_weight) {
        typedef decltype(of_x) X;
        typedef decltype(of_weight) W;
        route(static_cast<const X*>(x), tokens, dim, static_cast<const W*>(weight), experts, softmax, logits, scores,
              threads);
    });
}
}
