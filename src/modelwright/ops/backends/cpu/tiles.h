// Products of several rows with a matrix that lies in memory row by row: it is read once, in blocks of bf16 that meet
// all rows of x while the cache holds them. Leaves out rows so few that they need no blocks, and floats (linear.h).
#pragma once

#include <type_traits>

#include "linear.h"

#if HAS_BF16_DOTS

// Rows of a matrix in bf16, `depth` inputs of each, whole 32s of them.
struct Block {
    const bf16* data;
    int64_t stride;
    int64_t rows;
    int64_t depth;
};

// Where the block lies that is wanted next, to be asked for bit by bit while another is multiplied.
struct NextBlock {
    const char* data = nullptr;
    int64_t stride = 0;
    int64_t step = 0;  // bytes that hold 32 inputs

    INLINE void ask(int64_t row, int64_t k) const { _mm_prefetch(data + row * stride + k / 32 * step, _MM_HINT_T1); }
};

// Rows of x in groups: 32 inputs of all rows of a group, the next 32, and so on, with zeros where there is none.
class Packed {
    Room<bf16> data;

public:
    const int64_t count, in, depth, group, groups;

    Packed(int64_t count, int64_t in, int64_t group)
        : data(up_to(count, group) * up_to(in, 32)), count(count), in(in), depth(up_to(in, 32)), group(group),
          groups((count + group - 1) / group) {}

    bf16* at(int64_t g, int64_t k) const { return data.get() + (g * depth + k) * group; }

    // pack(rows, group, out) lays out 32 inputs of a group.
    template <typename Pack>
    void fill(int64_t g, const bf16* const* xs, Pack pack) {
        __m512i rows[16];
        for (int64_t k = 0; k < depth; k += 32) {
            for (int64_t i = 0; i < group; i++) {
                const int64_t m = g * group + i;
                rows[i] = m < count ? load_halves(xs[m] + k, in - k) : _mm512_setzero_si512();
            }
            pack(rows, group, at(g, k));
        }
    }
};

// The sums of 8 vectors.
inline __m256 sums_of(const __m512* v) {
    __m512 pairs[4], quads[2];
    each<4>([&](auto i) INLINED {
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                                 _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    });
    each<2>([&](auto i) INLINED {
        quads[i] = _mm512_add_ps(_mm512_shuffle_ps(pairs[2 * i], pairs[2 * i + 1], 0x44),
                                 _mm512_shuffle_ps(pairs[2 * i], pairs[2 * i + 1], 0xEE));
    });
    __m512 half = _mm512_add_ps(_mm512_shuffle_f32x4(quads[0], quads[1], 0x44),
                                _mm512_shuffle_f32x4(quads[0], quads[1], 0xEE));
    half = _mm512_add_ps(half, _mm512_shuffle_f32x4(half, half, 0xB1));
    return _mm512_castps512_ps256(_mm512_shuffle_f32x4(half, half, 0x08));
}

// Dot products of vectors: 3 rows of the matrix at a time with up to 8 of x, as many sums as there are registers for.
struct Dots {
    static constexpr int64_t PANEL = 48;   // rows of the matrix in a block
    static constexpr int64_t DEPTH = 1024;  // inputs in a block: 8 rows of x stay in the first cache
    static constexpr int64_t WHOLE = 1;     // what a block's rows must be a multiple of
    static constexpr int64_t WIDTH = 8;     // most rows of a group, and how far the sums of two rows are apart
    static constexpr int R = 3;

    static int64_t group(int64_t count) {
        const int64_t groups = (count + WIDTH - 1) / WIDTH;
        return (count + groups - 1) / groups;
    }

    static void pack(const __m512i* rows, int64_t group, bf16* out) {
        for (int64_t i = 0; i < group; i++) _mm512_store_si512(out + 32 * i, rows[i]);
    }

    // sums[(group * PANEL + row) * WIDTH + row in the group] += the block's rows times x from input k on.
    void multiply(const Block& block, const Packed& x, int64_t k, const NextBlock& ahead, float* sums) const {
        of_width<WIDTH>(block, x, k, ahead, sums);
    }

private:
    template <int M>
    static void of_width(const Block& block, const Packed& x, int64_t k, const NextBlock& ahead, float* sums) {
        if (M > 1 && x.group < M) return of_width<(M > 1 ? M - 1 : 1)>(block, x, k, ahead, sums);
        for (int64_t g = 0; g < x.groups; g++) {
            for (int64_t row = 0; row < block.rows; row += R) {
                float* out = sums + (g * PANEL + row) * WIDTH;
                if (ahead.data && row / R % x.groups == g) {
                    dots<M, true>(block, row, x.at(g, k), ahead, out);
                } else {
                    dots<M, false>(block, row, x.at(g, k), ahead, out);
                }
            }
        }
    }

    template <int M, bool ASK>
    __attribute__((noinline)) static void dots(const Block& block, int64_t row, const bf16* x, const NextBlock& ahead,
                                               float* out) {
        const bf16* w[R];
        __m512 all[R][WIDTH];
        each<R>([&](auto r) INLINED {
            w[r] = block.data + std::min(row + r, block.rows - 1) * block.stride;  // beyond the last row it once more
            each<WIDTH>([&](auto m) INLINED { all[r][m] = _mm512_setzero_ps(); });
        });
        for (int64_t k = 0; k < block.depth; k += 32) {
            __m512bh a[R];
            each<R>([&](auto r) INLINED {
                a[r] = (__m512bh)_mm512_loadu_si512(w[r] + k);
                if (ASK) ahead.ask(row + r, k);
            });
            each<M>([&](auto m) INLINED {
                const __m512bh b = (__m512bh)_mm512_load_si512(x + k * M + 32 * m);
                each<R>([&](auto r) INLINED { all[r][m] = _mm512_dpbf16_ps(all[r][m], a[r], b); });
            });
        }
        each<R>([&](auto r) INLINED {
            float* at = out + r * WIDTH;
            _mm256_store_ps(at, _mm256_add_ps(_mm256_load_ps(at), sums_of(all[r])));
        });
    }
};

// 32 inputs of a row as bf16, rounded once where they stand for scaled integers.
inline __m512i widened(const Plain<bf16>& row, int64_t k, int64_t some) { return load_halves(row.data + k, some); }
inline __m512i widened(const Int8& row, int64_t k, int64_t some) {
    const __m256i bytes = load_bytes(row.data + k, some);
    const __m512 scale = _mm512_set1_ps(*row.scales);
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(high, scale), _mm512_mul_ps(low, scale));
}
inline __m512i widened(const Int4& row, int64_t k, int64_t) {  // a group's 16 values first, then each by its step
    const __m512 steps = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const __m512 scale = _mm512_set1_ps(to_float(row.scales[k / row.group]));
    const __m512 offset = _mm512_set1_ps(row.offsets ? to_float(row.offsets[k / row.group]) : 0.0f);
    const __m256i values = (__m256i)_mm512_cvtneps_pbh(_mm512_fmadd_ps(steps, scale, offset));
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row.data + k / 64 * 32));
    const __m512i wide = _mm512_srl_epi16(_mm512_cvtepu8_epi16(bytes), _mm_cvtsi32_si128(k % 64 / 32 * 4));
    const __m512i places = _mm512_and_si512(wide, _mm512_set1_epi16(15));
    return _mm512_permutexvar_epi16(places, _mm512_castsi256_si512(values));
}

// `rows` rows of the matrix from input k on: where they lie if they are whole and bf16, else widened into `copy`.
template <typename How, typename Matrix>
Block block_of(const Matrix& matrix, int64_t row, int64_t rows, int64_t k, bf16* copy) {
    const int64_t some = std::min(How::DEPTH, matrix.in - k), depth = up_to(some, 32), whole = up_to(rows, How::WHOLE);
    if constexpr (std::is_same_v<Matrix, Plain<bf16>>) {
        if (some == depth && rows == whole) return {matrix.at(row).data + k, matrix.in, rows, depth};
    }
    for (int64_t r = 0; r < whole; r++) {
        for (int64_t i = 0; i < depth; i += 32) {
            __m512i line = _mm512_setzero_si512();
            if (r < rows) line = widened(matrix.at(row + r), k + i, some - i);
            _mm512_store_si512(copy + r * depth + i, line);
        }
    }
    return {copy, depth, whole, depth};
}

template <typename Matrix>
NextBlock next_block(const Matrix& matrix, int64_t row, int64_t k) {
    const char* data = reinterpret_cast<const char*>(matrix.at(row).data);
    return {data + Matrix::row_bytes(k), Matrix::row_bytes(matrix.in), Matrix::row_bytes(32)};
}

// Rows `first` to `last` - 1 of `matrix` times the rows of x: sink(row, row of x, sums, how many rows from that on).
template <typename How, typename Matrix, typename Sink>
void product_in_blocks(const Matrix& matrix, int64_t first, int64_t last, const Packed& x, Sink sink) {
    const How how;
    const int64_t size = x.groups * How::PANEL * How::WIDTH;
    const Room<float> sums(size);
    const Room<bf16> copy(How::PANEL * How::DEPTH);
    for (int64_t row = first; row < last; row += How::PANEL) {
        const int64_t rows = std::min(How::PANEL, last - row);
        std::fill_n(sums.get(), size, 0.0f);
        for (int64_t k = 0; k < matrix.in; k += How::DEPTH) {
            const bool deeper = k + How::DEPTH < matrix.in, further = row + How::PANEL < last;
            const NextBlock ahead = deeper ? next_block(matrix, row, k + How::DEPTH)
                                    : further ? next_block(matrix, row + How::PANEL, 0) : NextBlock{};
            how.multiply(block_of<How>(matrix, row, rows, k, copy.get()), x, k, ahead, sums.get());
        }
        for (int64_t m = 0; m < x.count; m++) {
            const float* column = sums.get() + m / x.group * How::PANEL * How::WIDTH + m % x.group;
            float said[How::PANEL];
            for (int64_t r = 0; r < rows; r++) said[r] = column[r * How::WIDTH];
            sink(row, m, said, rows);
        }
    }
}
#endif
