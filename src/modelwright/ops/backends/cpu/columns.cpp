// Products of several rows with a matrix that lies input by input, [in, out], as Conv1D's does: no torch, only pointers.
//
// A strip of columns is read for some inputs and all rows of x, then for the next inputs: its sums wait in memory
// meanwhile. One row alone meets long stretches of the weight, as memory gives them fastest. Lanes are columns, so that
// no sum crosses them, and every sum is taken in the order of the inputs, however many rows there are.

#include <algorithm>

#include "linear.h"

namespace {

constexpr int64_t DEEP = 32;   // inputs that all rows meet before the next: what they read stays near
constexpr int64_t LINE = 64;   // bytes
constexpr int ROWS = 8;        // of x that meet a strip at once
constexpr int TOGETHER = 8;    // inputs that one row alone meets before its sums are stored

// Vectors of sums in a strip for so many rows: few rows leave registers for a wide one, which memory gives faster.
constexpr int width(int rows) { return rows <= 2 ? 8 : rows <= 4 ? 4 : 2; }

// x and a strip of the weight from some input on; the sums are [rows, width] vectors in the order of their kind.
template <typename X>
struct Block {
    const X *x, *weight;
    int64_t x_stride, stride, deep, some, ahead;
    float* sums;
};

template <int W, typename X>
INLINE void ask(const X* weight) {
    each<W * LANES * sizeof(X) / LINE>([&](auto i) INLINED { __builtin_prefetch(weight + i * (LINE / sizeof(X))); });
}

// The vectors of a strip at one input, of which some columns may not be there.
template <bool WHOLE, typename X>
INLINE Floats columns_at(const X* weight, int64_t some) {
    if (WHOLE || some >= LANES) return load(weight);
    return some > 0 ? load_some(weight, some) : Floats{};
}

template <int R, bool WHOLE, typename X>
__attribute__((noinline)) void meet(const Block<X>& b) {
    constexpr int W = width(R);
    Floats sums[R][W];
    each<R * W>([&](auto i) INLINED { sums[i / W][i % W] = load(b.sums + i * LANES); });
    const X* weight = b.weight;
    for (int64_t k = 0; k < b.deep; k++, weight += b.stride) {
        ask<W>(weight + b.ahead);
        Floats w[W];
        each<W>([&](auto i) INLINED { w[i] = columns_at<WHOLE>(weight + i * LANES, b.some - i * LANES); });
        each<R>([&](auto r) INLINED {
            const float value = to_float(b.x[r * b.x_stride + k]);
            each<W>([&](auto i) INLINED { sums[r][i] += w[i] * value; });
        });
    }
    each<R * W>([&](auto i) INLINED { store(b.sums + i * LANES, sums[i / W][i % W]); });
}

#if HAS_BF16_DOTS
// Two inputs at once, whose numbers are woven into pairs: within each quarter of a vector the low pairs go to one vector
// of sums and the high ones to the next.
template <int R, bool WHOLE>
__attribute__((noinline)) void meet_pairs(const Block<bf16>& b) {
    constexpr int W = width(R);
    __m512 sums[R][W];
    each<R * W>([&](auto i) INLINED { sums[i / W][i % W] = _mm512_loadu_ps(b.sums + i * LANES); });
    const bf16* weight = b.weight;
    for (int64_t k = 0; k < b.deep; k += 2, weight += 2 * b.stride) {
        const bool both = k + 1 < b.deep;
        ask<W>(weight + b.ahead);
        ask<W>(weight + b.stride + b.ahead);
        __m512bh w[W];
        each<W / 2>([&](auto i) INLINED {
            const int64_t some = WHOLE ? 32 : std::clamp<int64_t>(b.some - i * 32, 0, 32);
            const __m512i first = load_halves(weight + i * 32, some);
            const __m512i second = both ? load_halves(weight + b.stride + i * 32, some) : _mm512_setzero_si512();
            w[2 * i] = (__m512bh)_mm512_unpacklo_epi16(first, second);
            w[2 * i + 1] = (__m512bh)_mm512_unpackhi_epi16(first, second);
        });
        each<R>([&](auto r) INLINED {
            const bf16* x = b.x + r * b.x_stride + k;
            const __m512bh pair = (__m512bh)(both ? everywhere(x) : _mm512_set1_epi32(x->bits));
            each<W>([&](auto i) INLINED { sums[r][i] = _mm512_dpbf16_ps(sums[r][i], w[i], pair); });
        });
    }
    each<R * W>([&](auto i) INLINED { _mm512_storeu_ps(b.sums + i * LANES, sums[i / W][i % W]); });
}

template <int R, bool WHOLE>
void meet(const Block<bf16>& b) { meet_pairs<R, WHOLE>(b); }

// Where the sum of column i of a strip lies.
inline int64_t place(int64_t i, bf16) { return i / 32 * 32 + (i % 8 / 4) * 16 + i % 32 / 8 * 4 + i % 4; }
#else
inline int64_t place(int64_t i, bf16) { return i; }
#endif
inline int64_t place(int64_t i, float) { return i; }

// One row alone meets `deep` inputs of `some` columns, which are asked for `ahead` inputs before.
template <typename X>
INLINE void ask_below(const Block<X>& b, int64_t i) {
    for (int64_t k = 0; k < b.deep; k++) __builtin_prefetch(b.weight + (k + b.ahead) * b.stride + i);
}

template <typename X>
void stretch(const Block<X>& b) {
    for (int64_t i = 0; i < b.some; i += LANES) {
        if (i % (LINE / sizeof(X)) == 0) ask_below(b, i);
        Floats sum = load(b.sums + i);
        const X* weight = b.weight + i;
        if (b.deep == TOGETHER && i + LANES <= b.some)
            each<TOGETHER>([&](auto k) INLINED { sum += load(weight + k * b.stride) * to_float(b.x[k]); });
        else
            for (int64_t k = 0; k < b.deep; k++)
                sum += columns_at<false>(weight + k * b.stride, b.some - i) * to_float(b.x[k]);
        store(b.sums + i, sum);
    }
}

#if HAS_BF16_DOTS
// Adds the products of inputs k and k + 1, if that is there, to the sums of 32 columns, woven as in `meet_pairs`.
INLINE void add_pair(const Block<bf16>& b, int64_t k, int64_t i, int64_t some, __m512 (&sums)[2]) {
    const bool both = k + 1 < b.deep;
    const bf16* weight = b.weight + k * b.stride + i;
    const __m512bh x = (__m512bh)(both ? everywhere(b.x + k) : _mm512_set1_epi32(b.x[k].bits));
    const __m512i first = load_halves(weight, some);
    const __m512i second = both ? load_halves(weight + b.stride, some) : _mm512_setzero_si512();
    sums[0] = _mm512_dpbf16_ps(sums[0], (__m512bh)_mm512_unpacklo_epi16(first, second), x);
    sums[1] = _mm512_dpbf16_ps(sums[1], (__m512bh)_mm512_unpackhi_epi16(first, second), x);
}

template <>
void stretch(const Block<bf16>& b) {
    for (int64_t i = 0; i < b.some; i += 2 * LANES) {
        ask_below(b, i);
        __m512 sums[2] = {_mm512_loadu_ps(b.sums + i), _mm512_loadu_ps(b.sums + i + LANES)};
        if (b.deep == TOGETHER && i + 2 * LANES <= b.some)
            each<TOGETHER / 2>([&](auto pair) INLINED { add_pair(b, 2 * pair, i, 2 * LANES, sums); });
        else
            for (int64_t k = 0; k < b.deep; k += 2) add_pair(b, k, i, std::min<int64_t>(2 * LANES, b.some - i), sums);
        _mm512_storeu_ps(b.sums + i, sums[0]);
        _mm512_storeu_ps(b.sums + i + LANES, sums[1]);
    }
}
#endif

// Columns `first` to `last` - 1 of the only row of y.
template <typename X>
void long_piece(const Columns& c, int64_t first, int64_t last, float* sums) {
    const X *x = static_cast<const X*>(c.x), *weight = static_cast<const X*>(c.weight) + first;
    const int64_t some = last - first;
    std::fill(sums, sums + up_to(some, 2 * LANES), 0.0f);
    for (int64_t k = 0; k < c.in; k += TOGETHER) {
        const int64_t deep = std::min<int64_t>(TOGETHER, c.in - k);
        stretch(Block<X>{x + k, weight + k * c.out, c.in, c.out, deep, some, TOGETHER, sums});
    }
    const X* bias = static_cast<const X*>(c.bias);
    X* y = static_cast<X*>(c.y);
    for (int64_t i = 0; i < some; i++) {
        const float value = sums[place(i, X{})];
        store(y + first + i, bias ? value + to_float(bias[first + i]) : value);
    }
}

template <typename X>
void multiply_one(const Columns& c, int threads) {
    const int64_t wide = up_to((c.out + threads - 1) / threads, LINE);
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> sums(wide);
#pragma omp for schedule(static, 1)
        for (int64_t first = 0; first < c.out; first += wide)
            long_piece<X>(c, first, std::min(first + wide, c.out), sums.data());
    }
}

// Columns `first` to `last` - 1 of y: strip by strip for some inputs, then for the next; `sums` has room for all.
template <int R, typename X>
void piece(const Columns& c, int64_t first, int64_t last, float* sums) {
    constexpr int64_t columns = width(R) * LANES, size = R * columns;
    const int64_t groups = (c.rows + R - 1) / R, strips = (last - first + columns - 1) / columns;
    std::fill(sums, sums + strips * groups * size, 0.0f);
    const X *x = static_cast<const X*>(c.x), *weight = static_cast<const X*>(c.weight);
    for (int64_t k = 0; k < c.in; k += DEEP)
        for (int64_t s = 0; s < strips; s++) {
            const int64_t column = first + s * columns, some = std::min(columns, last - column);
            const int64_t ahead = s + 1 < strips ? columns : DEEP * c.out - s * columns;
            for (int64_t g = 0; g < groups; g++) {
                const int64_t row = std::min(g * R, c.rows - R);  // the last group may compute rows again
                const Block<X> block{x + row * c.in + k, weight + k * c.out + column, c.in, c.out,
                                     std::min(DEEP, c.in - k), some, ahead, sums + (s * groups + g) * size};
                if (some == columns) meet<R, true>(block);
                else meet<R, false>(block);
            }
        }
    const X* bias = static_cast<const X*>(c.bias);
    for (int64_t row = 0; row < c.rows; row++) {
        const int64_t g = row / R, own = row - std::min(g * R, c.rows - R);
        X* y = static_cast<X*>(c.y) + row * c.out;
        for (int64_t i = 0; i < last - first; i++) {
            const float* strip = sums + (i / columns * groups + g) * size + own * columns;
            const float value = strip[place(i % columns, X{})];
            store(y + first + i, bias ? value + to_float(bias[first + i]) : value);
        }
    }
}

template <int R, typename X>
void multiply(const Columns& c, int threads) {
    constexpr int64_t columns = width(R) * LANES;
    Pieces pieces(c.out, columns, threads);
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> sums;
        for (int64_t first, last; pieces.take(first, last);) {
            sums.resize((c.rows + R - 1) / R * R * up_to(last - first, columns));
            piece<R, X>(c, first, last, sums.data());
        }
    }
}

template <typename X>
void multiply(const Columns& c, int threads) {
    if (c.rows == 1) return multiply_one<X>(c, threads);
    const int64_t groups = (c.rows + ROWS - 1) / ROWS, rows = (c.rows + groups - 1) / groups;
    each<ROWS>([&](auto r) INLINED {
        if (rows == r + 1) multiply<r + 1, X>(c, threads);
    });
}

}  // namespace

extern "C" void linear_columns(const Columns* c, int32_t halves, int32_t threads) {
    if (halves) multiply<bf16>(*c, threads);
    else multiply<float>(*c, threads);
}
