// Products of a few rows with a matrix that lies in memory row by row: the matrix is read once, several rows at a time.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "integers.h"

// out[r][m] = row r of a matrix times xs[m], for R rows and M vectors of floats, padded with zeros to whole vectors.
template <int R, int M, typename Matrix>
inline void dots(const Matrix* rows, const float* const* xs, float (*out)[MOST]) {
    Register sums[R][M];
    each<R * M>([&](auto i) INLINED { sums[i / M][i % M] = Register{}; });
    const auto step = [&](int64_t k, auto whole) INLINED {
        Register w[R];
        each<R>([&](auto r) INLINED {
            if (REGISTER == LANES || k % LANES == 0) rows[r].ask(k);
            w[r] = rows[r].template floats<REGISTER, whole()>(k);
        });
        each<M>([&](auto m) INLINED {
            const Register x = load<REGISTER>(xs[m] + k);
            each<R>([&](auto r) INLINED { sums[r][m] += w[r] * x; });
        });
    };
    const int64_t in = rows[0].in, whole = in / REGISTER * REGISTER;
    for (int64_t k = 0; k < whole; k += REGISTER) step(k, std::true_type{});
    if (whole < in) step(whole, std::false_type{});
    each<R * M>([&](auto i) INLINED { out[i / M][i % M] = rows[i / M].finish(sum(sums[i / M][i % M])); });
}

#if HAS_BF16_DOTS
template <int R, int M>
inline void dots(const Plain<bf16>* rows, const bf16* const* xs, float (*out)[MOST]) {
    __m512 sums[R][M];
    each<R * M>([&](auto i) INLINED { sums[i / M][i % M] = _mm512_setzero_ps(); });
    const auto step = [&](int64_t k, int64_t some) INLINED {
        __m512bh w[R];
        each<R>([&](auto r) INLINED {
            rows[r].ask(k);
            w[r] = (__m512bh)load_halves(rows[r].data + k, some);
        });
        each<M>([&](auto m) INLINED {
            const __m512bh x = (__m512bh)load_halves(xs[m] + k, some);
            each<R>([&](auto r) INLINED { sums[r][m] = _mm512_dpbf16_ps(sums[r][m], w[r], x); });
        });
    };
    const int64_t in = rows[0].in, whole = in / 32 * 32;
    for (int64_t k = 0; k < whole; k += 32) step(k, 32);
    if (whole < in) step(whole, in - whole);
    each<R * M>([&](auto i) INLINED { out[i / M][i % M] = _mm512_reduce_add_ps(sums[i / M][i % M]); });
}
#endif

template <typename Matrix, typename X>
__attribute__((noinline)) void tile(const Matrix* rows, const X* xs, int64_t count, float (*out)[MOST]) {
    each<Matrix::TILE>([&](auto m) INLINED {
        if (count == m + 1) dots<STREAMS, m + 1>(rows, xs, out);
    });
}

// Rows `first` to `last` - 1 of `matrix` times `count` vectors: sink(row, vector, sum).
//
// Each stream takes a quarter of the rows one after another, so that what it asks for early is what it reads next.
template <typename Matrix, typename X, typename Sink>
inline void product(const Matrix& matrix, int64_t first, int64_t last, const X* xs, int64_t count, Sink sink) {
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
            const int64_t padded = up_to(in, LANES);
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

// Rows shared out among threads: many first, since a piece begins with a wait for memory, and fewer as they run out, so
// that a thread that was held up holds up no other.
class Pieces {
    std::atomic<int64_t> next{0};
    const int64_t rows, whole, shares;

public:
    // A piece is a multiple of `whole` rows, unless it is the last.
    Pieces(int64_t rows, int64_t whole, int threads) : rows(rows), whole(whole), shares(2 * threads) {}

    // The next piece is rows `first` to `last` - 1; there is none if false.
    bool take(int64_t& first, int64_t& last) {
        first = next.load(std::memory_order_relaxed);
        do {
            if (first >= rows) return false;
            last = std::min(first + up_to((rows - first + shares - 1) / shares, whole), rows);
        } while (!next.compare_exchange_weak(first, last, std::memory_order_relaxed));
        return true;
    }
};
