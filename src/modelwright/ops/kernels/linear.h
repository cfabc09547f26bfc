// Products of a few rows with a matrix that lies in memory row by row: the matrix is read once, several rows at a time.
//
// A matrix type says how its rows are stored, and up to how many rows of bf16 (`FEW`) are better met as it streams by
// than in the blocks of tiles.h. It gives 16 inputs of a row as floats (`floats`), for any CPU; and where the CPU
// multiplies bf16, 32 of them as exact bf16 (`halves`) with a factor that is still to be applied.
#pragma once

#include <algorithm>
#include <vector>

#include "vectors.h"

constexpr int STREAMS = 4;  // rows of the matrix read at once
constexpr int MOST = 6;      // rows of x they are multiplied with at once, as many as registers allow
constexpr int AHEAD = 1024;  // bytes of each stream asked for early

template <typename T>
struct Plain {
    static constexpr int TILE = MOST;
    static constexpr int FEW = 4;
    const T* data;
    int64_t in;

    Plain at(int64_t row) const { return {data + row * in, in}; }
    static int64_t row_bytes(int64_t in) { return in * sizeof(T); }
    void ask(int64_t k) const { __builtin_prefetch(reinterpret_cast<const char*>(data + k) + AHEAD); }
    Floats floats(int64_t k) const { return k + LANES <= in ? load(data + k) : load_some(data + k, in - k); }
    float finish(float sum) const { return sum; }
};

// int8 with a scale per row.
struct Int8 {
    static constexpr int TILE = MOST;
    static constexpr int FEW = 8;
    const int8_t* data;
    const float* scales;
    int64_t in;

    Int8 at(int64_t row) const { return {data + row * in, scales + row, in}; }
    static int64_t row_bytes(int64_t in) { return in; }
    void ask(int64_t k) const { __builtin_prefetch(data + k + AHEAD); }
    Floats floats(int64_t k) const { return k + LANES <= in ? load(data + k) : load_some(data + k, in - k); }
    float finish(float sum) const { return sum * *scales; }
};

// Two inputs a byte: byte j of each 32 holds inputs j (low) and 32 + j (high) of 64, each less 8. A group of 32, 64 or
// more inputs shares a scale and, where there are any, an offset that is added to each of its weights.
struct Int4 {
    static constexpr int TILE = 3;
    static constexpr int FEW = 16;
    const uint8_t* data;
    const bf16* scales;
    const bf16* offsets;
    int64_t in;
    int64_t group;

    Int4 at(int64_t row) const {
        int64_t skip = row * (in / group);
        return {data + row * (in / 2), scales + skip, offsets ? offsets + skip : nullptr, in, group};
    }
    static int64_t row_bytes(int64_t in) { return in / 2; }
    void ask(int64_t k) const { __builtin_prefetch(data + k / 2 + AHEAD); }
    Floats floats(int64_t k) const {
        const uint8_t* bytes = data + k / 64 * 32 + k % 32;
        int shift = k % 64 / 32 * 4;
        typedef uint8_t Raw __attribute__((vector_size(LANES), aligned(1), may_alias));
        Ints steps = __builtin_convertvector(*reinterpret_cast<const Raw*>(bytes), Ints);
        Floats value = __builtin_convertvector(((steps >> shift) & 15) - 8, Floats) * to_float(scales[k / group]);
        return offsets ? value + to_float(offsets[k / group]) : value;
    }
    float finish(float sum) const { return sum; }
};

// out[r][m] = row r of `matrix` times xs[m], for R rows and M vectors of floats, padded with zeros to whole vectors.
template <int R, int M, typename Matrix>
inline void dots(const Matrix* rows, const float* const* xs, float (*out)[MOST]) {
    Floats sums[R][M] = {};
    const int64_t in = rows[0].in;
    for (int64_t k = 0; k < in; k += LANES) {
        Floats w[R];
        for (int r = 0; r < R; r++) {
            rows[r].ask(k);
            w[r] = rows[r].floats(k);
        }
        for (int m = 0; m < M; m++) {
            Floats x = load(xs[m] + k);
            for (int r = 0; r < R; r++) sums[r][m] += w[r] * x;
        }
    }
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) out[r][m] = rows[r].finish(sum(sums[r][m]));
}

#if HAS_BF16_DOTS
inline __m512bh halves(const Plain<bf16>& row, int64_t k, __mmask32 some) {
    return (__m512bh)_mm512_maskz_loadu_epi16(some, row.data + k);
}
inline __m512bh halves(const Int8& row, int64_t k, __mmask32 some) {  // small integers are exact in bf16
    __m256i bytes = _mm256_maskz_loadu_epi8(some, row.data + k);
    __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
    __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
    return _mm512_cvtne2ps_pbh(high, low);
}

template <int R, int M, typename Matrix>
inline void dots(const Matrix* rows, const bf16* const* xs, float (*out)[MOST]) {
    __m512 sums[R][M];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sums[r][m] = _mm512_setzero_ps();
    const int64_t in = rows[0].in;
    for (int64_t k = 0; k < in; k += 32) {
        const __mmask32 some = in - k >= 32 ? ~__mmask32(0) : (__mmask32(1) << (in - k)) - 1;
        __m512bh w[R];
        for (int r = 0; r < R; r++) {
            rows[r].ask(k);
            w[r] = halves(rows[r], k, some);
        }
        for (int m = 0; m < M; m++) {
            __m512bh x = (__m512bh)_mm512_maskz_loadu_epi16(some, xs[m] + k);
            for (int r = 0; r < R; r++) sums[r][m] = _mm512_dpbf16_ps(sums[r][m], w[r], x);
        }
    }
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) out[r][m] = rows[r].finish(_mm512_reduce_add_ps(sums[r][m]));
}

// The scale of a group is applied to the sum over the group; 16 at a time are spread out from their bf16.
template <int R, int M>
inline void dots(const Int4* rows, const bf16* const* xs, float (*out)[MOST]) {
    alignas(64) static const uint16_t STEPS[32] = {
        0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80, 0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0,
        0x40C0, 0x40E0};  // -8 to 7 in bf16
    const __m512i steps = _mm512_load_si512(STEPS);
    const __m512i low = _mm512_set1_epi16(15);
    const int64_t in = rows[0].in, group = rows[0].group;
    __m512 sums[R][M];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sums[r][m] = _mm512_setzero_ps();
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3F80);
    for (int64_t k = 0; k < in; k += 64) {
        __m512bh w[R][2];
        float scale[R][2];
        for (int r = 0; r < R; r++) {
            if (k % 128 == 0) rows[r].ask(k);
            __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[r].data + k / 2));
            __m512i wide = _mm512_cvtepu8_epi16(bytes);
            w[r][0] = (__m512bh)_mm512_permutexvar_epi16(_mm512_and_si512(wide, low), steps);
            w[r][1] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(wide, 4), steps);
            scale[r][0] = to_float(rows[r].scales[k / group]);
            scale[r][1] = to_float(rows[r].scales[(k + 32) / group]);
        }
        for (int m = 0; m < M; m++) {
            __m512bh x[2] = {(__m512bh)_mm512_loadu_si512(xs[m] + k), (__m512bh)_mm512_loadu_si512(xs[m] + k + 32)};
            for (int r = 0; r < R; r++) {
                __m512 part = _mm512_dpbf16_ps(_mm512_setzero_ps(), w[r][0], x[0]);
                if (group == 32) {
                    __m512 other = _mm512_dpbf16_ps(_mm512_setzero_ps(), w[r][1], x[1]);
                    sums[r][m] = _mm512_fmadd_ps(other, _mm512_set1_ps(scale[r][1]), sums[r][m]);
                } else {
                    part = _mm512_dpbf16_ps(part, w[r][1], x[1]);
                }
                sums[r][m] = _mm512_fmadd_ps(part, _mm512_set1_ps(scale[r][0]), sums[r][m]);
            }
            if (rows[0].offsets) {
                for (int half = 0; half < 2; half++) {
                    __m512 total = _mm512_dpbf16_ps(_mm512_setzero_ps(), ones, x[half]);
                    for (int r = 0; r < R; r++) {
                        __m512 offset = _mm512_set1_ps(to_float(rows[r].offsets[(k + 32 * half) / group]));
                        sums[r][m] = _mm512_fmadd_ps(total, offset, sums[r][m]);
                    }
                }
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) out[r][m] = _mm512_reduce_add_ps(sums[r][m]);
}
#endif

template <typename Matrix, typename X>
__attribute__((noinline)) void tile(const Matrix* rows, const X* const* xs, int64_t count, float (*out)[MOST]) {
    switch (count) {
        case 1: return dots<STREAMS, 1>(rows, xs, out);
        case 2: return dots<STREAMS, 2>(rows, xs, out);
        case 3: return dots<STREAMS, 3>(rows, xs, out);
    }
    if constexpr (Matrix::TILE > 3) {
        switch (count) {
            case 4: return dots<STREAMS, 4>(rows, xs, out);
            case 5: return dots<STREAMS, 5>(rows, xs, out);
            case 6: return dots<STREAMS, 6>(rows, xs, out);
        }
    }
}

// Rows `first` to `last` - 1 of `matrix` times `count` vectors: sink(row, vector, sum).
//
// Each stream takes a quarter of the rows one after another, so that what it asks for early is what it reads next.
template <typename Matrix, typename X, typename Sink>
inline void product(const Matrix& matrix, int64_t first, int64_t last, const X* const* xs, int64_t count, Sink sink) {
    if (count == 0) return;
    const int64_t tiles = (count + Matrix::TILE - 1) / Matrix::TILE, width = (count + tiles - 1) / tiles;
    const int64_t quarter = (last - first + STREAMS - 1) / STREAMS;
    float out[STREAMS][MOST];
    for (int64_t row = first; row < first + quarter; row++) {
        Matrix rows[STREAMS];
        for (int r = 0; r < STREAMS; r++) rows[r] = matrix.at(std::min(row + r * quarter, last - 1));
        for (int64_t m = 0; m < count; m += width) {
            const int64_t some = std::min(width, count - m);
            tile(rows, xs + m, some, out);
            for (int r = 0; r < STREAMS && row + r * quarter < last; r++)
                for (int64_t i = 0; i < some; i++) sink(row + r * quarter, m + i, out[r][i]);
        }
    }
}

// Rows of x as the products want them: as they are where bf16 is multiplied, else as floats with zeros behind.
template <typename X>
struct Inputs {
#if HAS_BF16_DOTS
    typedef X Element;
#else
    typedef float Element;
#endif
    std::vector<const Element*> rows;

    Inputs(const X* x, int64_t stride, int64_t count, int64_t in) {
        if constexpr (sizeof(Element) == sizeof(uint16_t)) {
            for (int64_t m = 0; m < count; m++) rows.push_back(x + m * stride);
        } else {
            const int64_t padded = (in + LANES - 1) / LANES * LANES;
            floats.assign(count * padded, 0.0f);
            for (int64_t m = 0; m < count; m++) {
                for (int64_t i = 0; i < in; i++) floats[m * padded + i] = to_float(x[m * stride + i]);
                rows.push_back(reinterpret_cast<const Element*>(floats.data() + m * padded));
            }
        }
    }

private:
    std::vector<float> floats;
};

// How a matrix comes from outside, see `_Weight` in linear.py.
struct Weight {
    int32_t kind;  // 0 the type of x, 2 int8, 3 int4
    int64_t in;
    int64_t group;
    const void* data;
    const void* scales;
    const void* offsets;
};

template <typename T>
inline void fill(const Weight& w, Plain<T>& m) { m = {static_cast<const T*>(w.data), w.in}; }
inline void fill(const Weight& w, Int8& m) {
    m = {static_cast<const int8_t*>(w.data), static_cast<const float*>(w.scales), w.in};
}
inline void fill(const Weight& w, Int4& m) {
    m = {static_cast<const uint8_t*>(w.data), static_cast<const bf16*>(w.scales), static_cast<const bf16*>(w.offsets),
         w.in, w.group};
}

// Calls act with an empty matrix of the type that `kind` says, among those that may meet x.
template <typename X, typename Act>
inline void with_kind(int32_t kind, Act act) {
    switch (kind) {
        case 2: return act(Int8{});
        case 3: return act(Int4{});
        default: return act(Plain<X>{});
    }
}
