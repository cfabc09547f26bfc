// Products of matrices in either order of their numbers, of fp32 or bf16, summed in fp32: what gradients are made of.
//
// All are C(m, n) = sum over k of A(m, k) B(n, k). A lane holds one number of fp32, or two of bf16 that are neighbours
// along k. B is laid out in panels of 32 rows, by k; 12 rows of A meet a panel at a time, as many as there are registers
// for. Leaves out processors whose registers hold fewer than 16 floats.
#pragma once

#include <algorithm>
#include <type_traits>

#include "vectors.h"

#if defined(__AVX512F__)

constexpr int64_t PANEL = 32;     // rows of B beside each other
constexpr int MOST_ROWS = 12;  // of A

template <typename T>
constexpr int64_t IN_A_LANE = sizeof(float) / sizeof(T);

template <typename T>
inline int64_t lanes_for(int64_t depth) { return (depth + IN_A_LANE<T> - 1) / IN_A_LANE<T>; }

// A matrix whose numbers lie side by side along k; or along its rows, if it is turned.
template <typename T>
struct Side {
    const T* data;
    int64_t stride;  // numbers from one row to the next; of a turned one from one k to the next
    bool turned;

    Side from(int64_t row) const { return {data + row * (turned ? 1 : stride), stride, turned}; }
};

// Lane `k` of row `m` of A is at[m * by_row + k * by_lane].
struct Lanes {
    const float* at;
    int64_t by_row, by_lane;
};

// The first 32 bits of `some` lanes, and zeros.
INLINE __m512i some_lanes(const float* at, int64_t some) {
    return some >= LANES ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi32((1u << std::max<int64_t>(some, 0)) - 1, at);
}
#if HAS_BF16_DOTS
INLINE __m512i some_lanes(const bf16* at, int64_t some) { return load_halves(at, std::max<int64_t>(some, 0)); }

// Two vectors of 32 numbers become 32 lanes, each with a number of both.
INLINE void pair_up(__m512i even, __m512i odd, float* at) {
    const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i last = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    _mm512_storeu_si512(at, _mm512_permutex2var_epi64(low, first, high));
    _mm512_storeu_si512(at + LANES, _mm512_permutex2var_epi64(low, last, high));
}
#endif

// `count` rows of a matrix by k: lane k of row i is to[k * room + i]. Zeros stand for rows up to `room`, a multiple of
// 32, and for what a last lane lacks.
template <typename T>
void lay(const Side<T>& from, int64_t count, int64_t depth, int64_t room, float* to) {
    const int64_t lanes = lanes_for<T>(depth);
    if (!from.turned) {
        for (int64_t i = 0; i < room; i += LANES)
            for (int64_t k = 0; k < lanes; k += LANES) {
                __m512i rows[LANES];
                for (int64_t r = 0; r < LANES; r++) {
                    const T* row = from.data + (i + r) * from.stride + k * IN_A_LANE<T>;
                    rows[r] = i + r < count ? some_lanes(row, depth - k * IN_A_LANE<T>) : _mm512_setzero_si512();
                }
                transpose(rows);
                for (int64_t r = 0; r < std::min<int64_t>(LANES, lanes - k); r++)
                    _mm512_storeu_si512(to + (k + r) * room + i, rows[r]);
            }
        return;
    }
    for (int64_t k = 0; k < lanes; k++, to += room) {
        const T* row = from.data + k * IN_A_LANE<T> * from.stride;
        if constexpr (std::is_same_v<T, float>) {
            for (int64_t i = 0; i < room; i += LANES) _mm512_storeu_si512(to + i, some_lanes(row + i, count - i));
        } else {
#if HAS_BF16_DOTS
            const bool both = 2 * k + 1 < depth;
            for (int64_t i = 0; i < room; i += PANEL) {
                const __m512i odd = both ? some_lanes(row + from.stride + i, count - i) : _mm512_setzero_si512();
                pair_up(some_lanes(row + i, count - i), odd, to + i);
            }
#endif
        }
    }
}

// Room that is used again, and grows.
class Scratch {
    Room<float> room{0};
    int64_t size = 0;

public:
    float* of(int64_t wanted) {
        if (size < wanted) room = Room<float>(size = wanted);
        return room.get();
    }
};

// Rows of B in panels, [panels, lanes, 32].
class Panels {
    Scratch room;
    const float* first = nullptr;

public:
    int64_t count = 0, lanes = 0;

    template <typename T>
    void take(const Side<T>& from, int64_t rows, int64_t depth) {
        count = rows, lanes = lanes_for<T>(depth);
        float* to = room.of(up_to(rows, PANEL) * lanes);
        first = to;
        for (int64_t row = 0; row < rows; row += PANEL, to += PANEL * lanes)
            lay(from.from(row), std::min(PANEL, rows - row), depth, PANEL, to);
    }
    // The panel that begins with `row`, a multiple of 32, from lane `k` on.
    const float* at(int64_t row, int64_t k) const { return first + row * lanes + k * PANEL; }
};

// A as lanes: where it lies, or laid into `room` if its numbers lie along its rows.
template <typename T>
Lanes lanes_of(const Side<T>& a, int64_t rows, int64_t depth, Scratch& room) {
    if (!a.turned) return {reinterpret_cast<const float*>(a.data), a.stride / IN_A_LANE<T>, 1};
    const int64_t whole = up_to(rows, PANEL);
    float* to = room.of(whole * lanes_for<T>(depth));
    lay(a, rows, depth, whole, to);
    return {to, 1, whole};
}

INLINE __m512 add_product(__m512 sum, const float* a, __m512 b, float) {
    return _mm512_fmadd_ps(_mm512_set1_ps(*a), b, sum);
}
#if HAS_BF16_DOTS
INLINE __m512 add_product(__m512 sum, const float* a, __m512 b, bf16) {
    return _mm512_dpbf16_ps(sum, (__m512bh)everywhere(a), (__m512bh)b);
}
#endif

// Where sums go: instead of what is there, or, of floats, on top of it.
template <typename To>
struct Sums {
    To* at;
    int64_t stride;
    bool add;

    INLINE void put(int64_t row, int64_t column, __m512 sum, int64_t some) const {
        if (some <= 0) return;
        To* to = at + row * stride + column;
        if constexpr (std::is_same_v<To, float>) {
            const __mmask16 mask = some >= LANES ? 0xFFFF : (1u << some) - 1;
            if (add) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, to));
            _mm512_mask_storeu_ps(to, mask, sum);
        } else {
            if (some >= LANES) return store(to, floats(sum));
            To all[LANES];
            store(all, floats(sum));
            std::memcpy(to, all, some * sizeof(To));
        }
    }
};

// ROWS rows of A meet a panel; a function of its own, so that its sums have all registers.
template <int ROWS, typename T, typename To>
__attribute__((noinline)) void meet(Lanes a, const float* panel, int64_t lanes, const Sums<To>& sums, int64_t row,
                                    int64_t column, int64_t columns) {
    __m512 own[ROWS][2];
    each<ROWS>([&](auto r) INLINED { own[r][0] = own[r][1] = _mm512_setzero_ps(); });
    for (int64_t k = 0; k < lanes; k++, panel += PANEL, a.at += a.by_lane) {
        const __m512 low = _mm512_loadu_ps(panel), high = _mm512_loadu_ps(panel + LANES);
        each<ROWS>([&](auto r) INLINED {
            own[r][0] = add_product(own[r][0], a.at + r * a.by_row, low, T());
            own[r][1] = add_product(own[r][1], a.at + r * a.by_row, high, T());
        });
    }
    each<ROWS>([&](auto r) INLINED {
        sums.put(row + r, column, own[r][0], columns);
        sums.put(row + r, column + LANES, own[r][1], columns - LANES);
    });
}

template <typename T, typename To, int ROWS = MOST_ROWS>
void meet_rows(int64_t rows, const Lanes& a, const float* panel, int64_t lanes, const Sums<To>& sums, int64_t row,
               int64_t column, int64_t columns) {
    if constexpr (ROWS > 1) {
        if (rows < ROWS) return meet_rows<T, To, ROWS - 1>(rows, a, panel, lanes, sums, row, column, columns);
    }
    meet<ROWS, T>(a, panel, lanes, sums, row, column, columns);
}

// `rows` rows of A times the rows `first` to `last` - 1 of B, over `lanes` lanes of A and as many of B from `k` on.
// Column 0 of the sums is that of row `first`, a multiple of 32.
template <typename T, typename To>
void multiply(const Lanes& a, int64_t rows, const Panels& b, int64_t first, int64_t last, int64_t k, int64_t lanes,
              const Sums<To>& sums) {
    const int64_t groups = (rows + MOST_ROWS - 1) / MOST_ROWS;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t row = rows * g / groups, next = rows * (g + 1) / groups;
        const Lanes from{a.at + row * a.by_row, a.by_row, a.by_lane};
        for (int64_t n = first; n < last; n += PANEL)
            meet_rows<T>(next - row, from, b.at(n, k), lanes, sums, row, n - first, std::min(PANEL, last - n));
    }
}
#endif
