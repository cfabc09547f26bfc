// Blocks of 32 rows, wherever each lies, multiplied by AVX-512 in lanes of 32 bits: two numbers in bf16 or one in fp32.
//
// `multiply` takes rows times vectors: the rows are turned, so that lanes are rows and no sum crosses lanes. `add_up`
// adds the rows, each times a weight: lanes are channels.
#pragma once

#include <type_traits>
#include <vector>

#include "vectors.h"

// Where the rows of a block lie.
struct Rows {
    const char* at[BLOCK];

    Rows(const void* base, const int64_t* byte) {
        for (int j = 0; j < BLOCK; j++) at[j] = static_cast<const char*>(base) + byte[j];
    }
    // One behind another, `apart` bytes each.
    Rows(const void* first, int64_t apart) {
        for (int j = 0; j < BLOCK; j++) at[j] = static_cast<const char*>(first) + j * apart;
    }
};

// The rows that come next, asked for as they lie, a row of `run` bytes after another: in any other order memory is a
// third slower.
class Ahead {
    Rows rows;
    const int64_t run;
    int64_t row = 0, byte = 0;

public:
    static constexpr int64_t STEP = 128;  // bytes asked for at once: two lines

    Ahead(const Rows& rows, int64_t run) : rows(rows), run(run) {}

    void ask() {
        __builtin_prefetch(rows.at[row] + byte);
        __builtin_prefetch(rows.at[row] + byte + 64);
        byte += STEP;
        if (byte >= run) byte = 0, row = (row + 1) % BLOCK;
    }
};

#if HAS_BF16_DOTS

// How products are made of lanes that hold numbers of type X.
template <typename X>
struct Lane;

template <>
struct Lane<bf16> {
    static constexpr int NUMBERS = 2;  // of a row in a lane; and so many rows' weights
    static __m512 add(__m512 sum, __m512i a, __m512i b) {
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    }
    static void keep(bf16* to, Floats low, Floats high) {
        _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
    }
};

template <>
struct Lane<float> {
    static constexpr int NUMBERS = 1;
    static __m512 add(__m512 sum, __m512i a, __m512i b) {
        return _mm512_fmadd_ps((__m512)a, (__m512)b, sum);
    }
    static void keep(float* to, Floats low, Floats high) {
        store(to, low);
        store(to + LANES, high);
    }
};

// 16 numbers as floats; of int8 in two instructions, of which GCC makes many.
inline Floats wide(const bf16* at) { return load(at); }
inline Floats wide(const int8_t* at) {
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
}

// 16 lanes of each of 16 rows: lane j of the i-th vector at `to`, 32 lanes apart, is lane i of row j.
inline void turn(const Rows& rows, int first, int64_t beyond, float* to) {
    __m512i x[LANES];
    for (int j = 0; j < LANES; j++) x[j] = _mm512_loadu_si512(rows.at[first + j] + beyond);
    transpose(x);
    for (int i = 0; i < LANES; i++) _mm512_store_si512(to + i * BLOCK, x[i]);
}

constexpr int CHUNK = 32;  // lanes of rows that are turned at once

// As many lanes of a block's rows as `some` says, whole sixteens, from `first` on: [lanes, rows].
inline void turn(const Rows& rows, int64_t first, int64_t some, float* to) {
    for (int64_t i = 0; i < some; i += LANES)
        for (int half = 0; half < BLOCK; half += LANES) turn(rows, half, (first + i) * 4, to + i * BLOCK + half);
}

// to[v][row] = or += the products of vector v, `apart` numbers from the one before, with turned lanes of the rows.
template <typename X, int VECTORS, bool ASKS>
__attribute__((noinline)) void multiply(const float* turned, int64_t lanes, const X* vectors, int64_t apart,
                                        Ahead& ahead, bool anew, float* to) {
    __m512 sums[VECTORS][2];
    for (int v = 0; v < VECTORS; v++)
        for (int half = 0; half < 2; half++)
            sums[v][half] = anew ? _mm512_setzero_ps() : _mm512_load_ps(to + (2 * v + half) * LANES);
    for (int64_t i = 0; i < lanes; i++, turned += BLOCK) {
        const __m512i low = _mm512_load_si512(turned), high = _mm512_load_si512(turned + LANES);
        if (ASKS) ahead.ask();
        for (int v = 0; v < VECTORS; v++) {
            const __m512i number = everywhere(vectors + v * apart + i * Lane<X>::NUMBERS);
            sums[v][0] = Lane<X>::add(sums[v][0], low, number);
            sums[v][1] = Lane<X>::add(sums[v][1], high, number);
        }
    }
    for (int v = 0; v < VECTORS; v++)
        for (int half = 0; half < 2; half++) _mm512_store_ps(to + (2 * v + half) * LANES, sums[v][half]);
}

// to[r][32 channels, as `in_order` takes them] = what it was times kept[r], and the rows' channels from `first` on,
// each times its weight of weights[r], which are `apart` numbers from those before. Results are `width` floats apart.
template <typename X, int RESULTS, bool ASKS>
__attribute__((noinline)) void add_up(const Rows& rows, int64_t first, const X* weights, int64_t apart, Ahead& ahead,
                                      const float* kept, float* to, int64_t width) {
    const int64_t byte = first * sizeof(X);
    __m512 sums[RESULTS][2];
    for (int r = 0; r < RESULTS; r++)
        for (int half = 0; half < 2; half++)
            sums[r][half] = _mm512_mul_ps(_mm512_load_ps(to + r * width + half * LANES), _mm512_set1_ps(kept[r]));
    for (int j = 0; j < BLOCK; j += Lane<X>::NUMBERS, weights += Lane<X>::NUMBERS) {
        __m512i low = _mm512_loadu_si512(rows.at[j] + byte), high;
        if constexpr (Lane<X>::NUMBERS == 2) {
            const __m512i other = _mm512_loadu_si512(rows.at[j + 1] + byte);
            high = _mm512_unpackhi_epi16(low, other);
            low = _mm512_unpacklo_epi16(low, other);
        } else {
            high = _mm512_loadu_si512(rows.at[j] + byte + 64);
        }
        if (ASKS) ahead.ask();
        for (int r = 0; r < RESULTS; r++) {
            const __m512i weight = everywhere(weights + r * apart);
            sums[r][0] = Lane<X>::add(sums[r][0], low, weight);
            sums[r][1] = Lane<X>::add(sums[r][1], high, weight);
        }
    }
    for (int r = 0; r < RESULTS; r++)
        for (int half = 0; half < 2; half++) _mm512_store_ps(to + r * width + half * LANES, sums[r][half]);
}

// 32 channels of a result; of bf16, unpacking two rows left 4 of every 8 first, then the others.
template <typename X>
inline void in_order(const float* from, Floats* to) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    const __m512 a = _mm512_load_ps(from), b = _mm512_load_ps(from + LANES);
    to[0] = (Floats)(Lane<X>::NUMBERS == 1 ? a : _mm512_permutex2var_ps(a, first, b));
    to[1] = (Floats)(Lane<X>::NUMBERS == 1 ? b : _mm512_permutex2var_ps(a, second, b));
}

// Calls act with the numbers 8, 4, 2 and 1 as constants, as many from `first` on, until `count` are through.
template <typename Act>
inline void in_sets(int64_t count, Act act) {
    int64_t first = 0;
    for (; first + 8 <= count; first += 8) act(first, std::integral_constant<int, 8>());
    if (count - first >= 4) act(first, std::integral_constant<int, 4>()), first += 4;
    if (count - first >= 2) act(first, std::integral_constant<int, 2>()), first += 2;
    if (count - first >= 1) act(first, std::integral_constant<int, 1>());
}

// Whole registers of numbers.
class Lines {
    struct alignas(64) Line {
        float lanes[LANES];
    };
    std::vector<Line> lines;

public:
    explicit Lines(int64_t count) : lines(count) {}
    float* at(int64_t i) { return lines[i].lanes; }
    const float* at(int64_t i) const { return lines[i].lanes; }
    void fill(float x) {
        for (Line& line : lines) std::fill_n(line.lanes, LANES, x);
    }
};
#endif
